//! Where the host's own connections to publications are listened for, as uplinks' addresses come and
//! go.

use std::net::IpAddr;

use super::publications::claims;
use super::reservations::reserves;
use super::{Engine, State};
use crate::model::Publication;
use crate::relay::Held;
use crate::topology;

impl State {
    /// Where a publication's ports are: at each address of its uplink, at one address, or at every
    /// one, which is `None`.
    pub(super) fn places(&self, publication: &Publication) -> Vec<Option<IpAddr>> {
        match &publication.uplink {
            Some(name) => {
                let addresses = topology::uplink_addresses(&self.uplinks, &self.host, name);
                addresses.into_iter().map(Some).collect()
            }
            None => vec![publication.host_ip],
        }
    }

    /// Whether the host itself reaches a publication at all of its places, or is kept from them all by
    /// reservation.
    pub(super) fn serves_the_host(&self, publication: &Publication) -> bool {
        let places = self.places(publication);
        let listeners = self.listeners.get(&publication.id);
        listeners.is_some_and(|own| reserves(publication) || own.missing(&places).is_empty())
    }
}

impl Engine {
    /// Listens at the addresses that uplinks have as of now, for the publications that are for one
    /// uplink alone. What goes on at addresses that stay is not disturbed.
    pub(super) async fn listen_where_uplinks_are(&self, state: &mut State) {
        let of_an_uplink =
            |publication: &&Publication| publication.uplink.is_some() && !reserves(publication);
        let publications = state.desired.publications.values().filter(of_an_uplink);
        let publications: Vec<Publication> = publications.cloned().collect();
        for publication in publications {
            let places = state.places(&publication);
            let rules = topology::rules_of(&state.desired, &publication);
            let listeners = state.listeners.entry(publication.id);
            let none = || Held::default().serve(rules, &self.budget);
            let listeners = listeners.or_insert_with(none);
            listeners.keep(&places);
            for place in listeners.missing(&places) {
                match Held::take(claims(&publication, place).collect()).await {
                    Ok(held) => listeners.add(held, &self.budget),
                    // Clients elsewhere are served all the same; only the host's own are not.
                    Err(error) => {
                        tracing::error!(publication = publication.id, %error, "cannot listen");
                    }
                }
            }
        }
    }
}
