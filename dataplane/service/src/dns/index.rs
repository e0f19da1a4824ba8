//! Who has a name: an index over the endpoints of a network, sorted by the names' hashes.
//!
//! It is made anew for each picture of which something is asked: no name is copied, and nothing is
//! allocated but the index itself.

use std::hash::Hasher as _;
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::zone::EndpointNames;

/// A place where a name stands. Sorted by hash, then in the order of the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hash: u64,
    endpoint: u32,
    /// Which of the endpoint's names.
    name: u32,
}

/// The names of the endpoints of a network, as they are and without regard to case. It is told the
/// endpoints at each question: those that it was made of.
#[derive(Debug, Default)]
pub(super) struct NameIndex(Vec<Place>);

/// The hash of a name, without regard to case. Names are the operator's to choose, so nobody is kept
/// from choosing many of one hash; what they cost then is a longer walk.
pub(super) fn hash_of(name: &str) -> u64 {
    let mut hasher = FxHasher::default();
    for byte in name.bytes() {
        hasher.write_u8(byte.to_ascii_lowercase());
    }
    hasher.finish()
}

impl NameIndex {
    pub fn of(endpoints: &[Arc<EndpointNames>]) -> Self {
        let mut places = Vec::with_capacity(endpoints.len());
        for (endpoint, names) in (0..).zip(endpoints) {
            for (name, text) in (0..).zip(&names.names) {
                let hash = hash_of(text);
                places.push(Place {
                    hash,
                    endpoint,
                    name,
                });
            }
        }
        places.sort_unstable();
        Self(places)
    }

    /// The positions of the endpoints that have a name of that hash and text, ascending.
    pub fn holders(
        &self,
        endpoints: &[Arc<EndpointNames>],
        hash: u64,
        text: &str,
    ) -> impl Iterator<Item = usize> {
        let start = self.0.partition_point(|place| place.hash < hash);
        let same = self.0[start..].iter().take_while(move |p| p.hash == hash);
        let holds = move |place: &&Place| {
            let names = endpoints.get(place.endpoint as usize);
            let name = names.and_then(|names| names.names.get(place.name as usize));
            name.is_some_and(|name| name.eq_ignore_ascii_case(text))
        };
        same.filter(holds).map(|place| place.endpoint as usize)
    }
}
