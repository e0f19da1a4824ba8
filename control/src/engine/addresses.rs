//! Addresses that are kept for endpoints, or from them.

use std::net::IpAddr;

use super::Engine;
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::ipam;
use crate::model::Holder;

/// Reservations of one network: as many as there can be endpoints.
pub const RESERVATIONS_MAX: usize = 4_096;

impl Engine {
    /// Keeps an address of a network for somebody; once more is as good as once.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Ipam`], [`Error::Limit`]; nothing is changed.
    pub async fn reserve(
        &self,
        network: &str,
        address: IpAddr,
        holder: Holder,
    ) -> Result<(), Error> {
        let mut state = self.state().await;
        let wanted = state.desired.network(network);
        let wanted = wanted.ok_or_else(|| Error::unknown_network(network))?;
        let place = (wanted.domain, address);
        if state.desired.reservations.get(&place) == Some(&holder) {
            return Ok(());
        }
        ipam::check_reservation(wanted, &state.desired, address, &holder)?;
        let of_network = state.desired.reservations.keys();
        let count = of_network.filter(|(domain, _)| *domain == place.0).count();
        if count >= RESERVATIONS_MAX {
            return Err(Error::Limit {
                what: "reserved addresses of a network",
                max: RESERVATIONS_MAX,
            });
        }
        self.store.put_reservation(place.0, address, &holder)?;
        let text = format!("network '{network}' keeps {address} for {holder}");
        state.desired.reservations.insert(place, holder);
        let subject = Subject::network(network);
        self.events.tell(EventKind::NetworkChanged, subject, text);
        Ok(())
    }

    /// Gives a reserved address back.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NotAttached`].
    pub async fn release(&self, network: &str, address: IpAddr) -> Result<(), Error> {
        let mut state = self.state().await;
        let wanted = state.desired.network(network);
        let domain = wanted
            .ok_or_else(|| Error::unknown_network(network))?
            .domain;
        let place = (domain, address);
        if !state.desired.reservations.contains_key(&place) {
            return Err(Error::NotAttached(format!(
                "{address} is not reserved on network '{network}'; `causeway network inspect \
                 {network}` lists what is"
            )));
        }
        self.store.remove_reservation(domain, address)?;
        state.desired.reservations.remove(&place);
        let text = format!("network '{network}' keeps {address} for nobody any more");
        let subject = Subject::network(network);
        self.events.tell(EventKind::NetworkChanged, subject, text);
        Ok(())
    }
}
