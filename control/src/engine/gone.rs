//! Endpoints whose sandbox cannot be reached any more, by the path at which it was attached.
//!
//! Mostly the namespace is no more, and its devices with it. One that a process is in outlives its name:
//! our device is taken out of it then, by way of that process.

use std::path::PathBuf;

use super::Engine;
use crate::device;
use crate::discovery;
use crate::error::Error;
use crate::model::Endpoint;

impl Engine {
    /// Finds endpoints whose sandbox ended, or lost its name, while nobody told.
    pub(super) async fn find_gone(&self) -> Result<(), Error> {
        let endpoints: Vec<Endpoint> = {
            let state = self.state().await;
            state.desired.endpoints.values().cloned().collect()
        };
        let gone = endpoints
            .into_iter()
            .filter(|endpoint| !device::sandbox_is_there(endpoint));
        let gone: Vec<Endpoint> = gone.collect();
        if gone.is_empty() {
            return Ok(());
        }
        let inodes = gone.iter().map(|endpoint| endpoint.sandbox.inode).collect();
        // Without /proc there is no other way into a sandbox either.
        let homes = discovery::processes_in(&inodes).unwrap_or_default();
        for endpoint in gone {
            match homes.get(&endpoint.sandbox.inode) {
                Some(pid) => self.leave_unnamed(&endpoint, *pid).await?,
                None => self.port_gone(endpoint.port).await?,
            }
        }
        Ok(())
    }

    /// Detaches an endpoint whose sandbox lives on without the name by which it was attached.
    async fn leave_unnamed(&self, endpoint: &Endpoint, pid: u32) -> Result<(), Error> {
        let mut state = self.state().await;
        // It may have been detached, or attached anew, meanwhile.
        match state.desired.endpoints.get_mut(&endpoint.port) {
            Some(still) if still.sandbox == endpoint.sandbox => {
                still.sandbox.path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            }
            Some(_) | None => return Ok(()),
        }
        let name = &endpoint.name;
        tracing::info!(endpoint = %name, "its sandbox has lost its name, so it is detached");
        self.drop_resolv_conf(&state, endpoint);
        self.remove_endpoint(&mut state, endpoint.port).await
    }
}
