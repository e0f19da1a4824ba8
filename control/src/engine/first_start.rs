//! The network `default`, which a state directory has from its first start.
//!
//! That it is due is written with the state's first tables and taken back when it is there, so that a
//! daemon which is killed in between is followed by one that makes it, and one that the user has
//! removed stays away.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::{Engine, NetworkRequest};
use crate::config::{DEFAULT_NETWORK, DefaultNetwork, DefaultNetworkConfig};
use crate::error::Error;
use crate::ipam;

/// Docker's own choice: what tutorials show.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const GATEWAY_LEN: u8 = 16;

impl Engine {
    /// Makes the default network if it is due. One that cannot be made stays due, and everything
    /// else goes on.
    pub(super) async fn make_default_network(&self) -> Result<(), Error> {
        if !self.store.is_default_network_due()? {
            return Ok(());
        }
        if let DefaultNetwork::Present(config) = &self.config.default_network {
            match self.create_default_network(config).await {
                // A daemon was killed before it wrote down that it had made it.
                Ok(()) | Err(Error::Exists { .. }) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot make the network '{DEFAULT_NETWORK}'");
                    return Ok(());
                }
            }
        }
        Ok(self.store.default_network_was_made()?)
    }

    async fn create_default_network(&self, config: &DefaultNetworkConfig) -> Result<(), Error> {
        let usual = Ipv4Net::new(GATEWAY, GATEWAY_LEN).map(IpNet::V4).ok();
        let made = self.create_network(request(config, config.bip.or(usual)));
        let clash = match made.await {
            Err(Error::Ipam(clash @ ipam::Error::OverlapsRoute { .. })) if config.bip.is_none() => {
                clash
            }
            other => return other.map(drop),
        };
        // What is wrong with the usual subnet; what to do about it does not concern this one.
        let clash = clash.to_string();
        let why = clash.split(';').next().unwrap_or_default();
        let why = format!(" with another subnet than usual, for {why}");
        let created = self.create_network_and_tell(request(config, None), &why);
        created.await.map(drop)
    }
}

fn request(config: &DefaultNetworkConfig, bip: Option<IpNet>) -> NetworkRequest {
    NetworkRequest {
        name: DEFAULT_NETWORK.to_owned(),
        subnet: bip.map(|bip| bip.trunc()),
        gateway: bip.map(|bip| bip.addr()),
        subnet6: config.bip6.map(|bip| bip.trunc()),
        gateway6: config.bip6.map(|bip| bip.addr()),
        ip_range: config.fixed_cidr,
        internal: config.internal,
        mtu: config.mtu,
        ..NetworkRequest::default()
    }
}
