//! What a bridge port has beyond its flags: read only where a flag asks for it.

use super::Identity;

/// Who is behind a bridge port, and what it is allowed. Apart from
/// [`Port`](crate::topology::Port), of which every frame reads one cache line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortProfile {
    /// Who its endpoint is; asked where [`PortFlags::SECURED`](super::PortFlags::SECURED) is on.
    pub identity: Identity,
    /// How many stations may be learned on it, where that is less than every port may have.
    pub mac_limit: Option<u32>,
}
