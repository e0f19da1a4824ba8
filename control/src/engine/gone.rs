//! Endpoints whose sandbox cannot be reached any more, by the path at which it was attached.
//!
//! # Theory of operation
//! An open TAP keeps the namespace that it was opened in, so a sandbox that its owner has ended lives until we
//! close the device, and no device tells of it. It is the path that goes: a name of `ip netns`, of which
//! [`crate::name_watch`] tells, or what a process has under `/proc`, of which nobody does. So the latter are
//! looked at, [`LOOKED_AT_MAX`] at a time, each of which costs one system call; a sweep looks at all.
//!
//! A namespace outlives one path while it has another, a name or a process in it: our device is taken out of it
//! then by that other one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::addr::PortId;

use super::Engine;
use crate::device;
use crate::discovery;
use crate::error::Error;
use crate::model::Endpoint;

/// How often sandboxes that a process leads to are looked at: their end is seen within 100 ms.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How many of them are looked at each time, so that it takes less than 1 % of a CPU however many there are.
const LOOKED_AT_MAX: usize = 64;

impl Engine {
    /// Finds endpoints whose sandbox ended, or lost its name, while nobody told.
    pub(super) async fn find_gone(&self) -> Result<(), Error> {
        let endpoints: Vec<Arc<Endpoint>> = {
            let state = self.state().await;
            state.desired.endpoints.shared().cloned().collect()
        };
        self.leave_gone(endpoints).await
    }

    /// Looks at some of the sandboxes that a process leads to, from the one after `last` on. Returns the last
    /// one that was looked at.
    pub(super) async fn look_at_processes(&self, last: PortId) -> Result<PortId, Error> {
        let endpoints: Vec<Arc<Endpoint>> = {
            let state = self.state().await;
            let in_turn = state.desired.endpoints.by_process_after(last);
            in_turn.take(LOOKED_AT_MAX).cloned().collect()
        };
        let last = endpoints.last().map_or(last, |endpoint| endpoint.port);
        self.leave_gone(endpoints).await?;
        Ok(last)
    }

    /// Detaches those of the endpoints whose sandboxes are not where they were.
    async fn leave_gone(&self, endpoints: Vec<Arc<Endpoint>>) -> Result<(), Error> {
        let gone = endpoints
            .into_iter()
            .filter(|endpoint| !device::sandbox_is_there(endpoint));
        let gone: Vec<Arc<Endpoint>> = gone.collect();
        if gone.is_empty() {
            return Ok(());
        }
        let inodes = gone.iter().map(|endpoint| endpoint.sandbox.inode).collect();
        // Where they cannot be looked for, there is no other way into a sandbox either.
        let paths = discovery::paths_to(&inodes).unwrap_or_default();
        let mut without = Vec::new();
        for endpoint in gone {
            match paths.get(&endpoint.sandbox.inode) {
                Some(path) => self.leave_by(&endpoint, path).await?,
                None => without.push(endpoint.port),
            }
        }
        self.ports_gone(&without).await
    }

    /// Detaches an endpoint whose sandbox lives on without the path by which it was attached.
    async fn leave_by(&self, endpoint: &Endpoint, path: &Path) -> Result<(), Error> {
        let mut state = self.state().await;
        // It may have been detached, or attached anew, meanwhile.
        let still = state.desired.endpoints.get(&endpoint.port);
        if still.is_none_or(|still| still.sandbox != endpoint.sandbox) {
            return Ok(());
        }
        state.desired.endpoints.change(endpoint.port, |still| {
            path.clone_into(&mut still.sandbox.path);
        });
        let name = &endpoint.name;
        tracing::info!(endpoint = %name, "its sandbox is not where it was, so it is detached");
        self.drop_resolv_conf(&state, endpoint);
        self.remove_endpoint(&mut state, endpoint.port).await
    }
}
