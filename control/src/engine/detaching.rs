//! Endpoints that leave, one or many at a time.
//!
//! The kernel takes some 20 ms to remove an interface, most of them waiting until no CPU can be using
//! it any more. Waits of several removals overlap, so many endpoints leave by one change of the
//! topology, one commit at either end, and as many removals at a time as [`REMOVALS_MAX`].

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use dataplane_core::addr::PortId;

use super::endpoints::{SandboxRef, open_sandbox};
use super::{Engine, State};
use crate::error::Error;
use crate::link::check_ifname;
use crate::model::{Endpoint, Phase};

/// Interfaces that are removed at a time.
const REMOVALS_MAX: usize = 64;

/// Endpoints that one request may detach.
pub const DETACHED_MAX: usize = 4_096;

impl Engine {
    /// Takes sandboxes' interfaces away, and them out of everything published for them. All or, when
    /// one of them is not there or belongs to its network, none.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::InUse`], [`Error::Invalid`]; or what the kernel refused: the others
    /// are gone then, and a second try goes on from there.
    pub async fn detach(&self, names: &[String]) -> Result<(), Error> {
        if names.len() > DETACHED_MAX {
            let count = names.len();
            return Err(Error::Invalid(format!(
                "{count} endpoints in one request; at most {DETACHED_MAX}"
            )));
        }
        let mut state = self.state().await;
        let mut ports = Vec::with_capacity(names.len());
        for name in names {
            let endpoint = state.desired.endpoint(name);
            let endpoint = endpoint.ok_or_else(|| Error::unknown_endpoint(name))?;
            check_detachable(&state, endpoint)?;
            ports.push(endpoint.port);
        }
        ports.sort_unstable();
        ports.dedup();
        self.remove_endpoints(&mut state, &ports).await
    }

    /// Detaches the endpoint that a sandbox has by an interface name.
    ///
    /// # Errors
    /// As [`Engine::detach`]; for a sandbox without such an endpoint, those that it has are named.
    pub async fn detach_sandbox(&self, sandbox: &SandboxRef, ifname: &str) -> Result<(), Error> {
        check_ifname(ifname)?;
        let (path, ns) = open_sandbox(sandbox)?;
        let inode = ns.id().inode();
        // A handle would keep the sandbox alive.
        drop(ns);
        let mut state = self.state().await;
        let here: Vec<&Endpoint> = state.desired.endpoints.in_sandbox(inode).collect();
        let Some(endpoint) = here.iter().find(|endpoint| endpoint.ifname == ifname) else {
            let path = path.display();
            let others: Vec<&str> = here.iter().map(|e| e.ifname.as_str()).collect();
            let hint = if others.is_empty() {
                "nothing of ours is attached there".to_owned()
            } else {
                format!("choose with --ifname: {}", others.join(", "))
            };
            return Err(Error::NotAttached(format!(
                "no endpoint has the interface '{ifname}' in {path}; {hint}"
            )));
        };
        check_detachable(&state, endpoint)?;
        let port = endpoint.port;
        self.remove_endpoint(&mut state, port).await
    }

    /// Removes an endpoint wherever in its life it is.
    pub(super) async fn remove_endpoint(
        &self,
        state: &mut State,
        port: PortId,
    ) -> Result<(), Error> {
        self.remove_endpoints(state, &[port]).await
    }

    /// Removes endpoints wherever in their lives they are. Those whose device cannot be removed stay
    /// on their way out.
    pub(super) async fn remove_endpoints(
        &self,
        state: &mut State,
        ports: &[PortId],
    ) -> Result<(), Error> {
        let mut before = Vec::with_capacity(ports.len());
        for port in ports {
            before.push(self.endpoint(state, *port)?.clone());
        }
        let leaving = before.iter().map(|endpoint| Endpoint {
            phase: Phase::Detaching,
            ..endpoint.clone()
        });
        let leaving: Vec<Endpoint> = leaving.collect();
        self.store.set_phase(ports, Phase::Detaching)?;
        let mut withdrawn = Vec::with_capacity(leaving.len());
        for endpoint in &leaving {
            withdrawn.push(self.withdraw_from(state, endpoint.port));
            let leaving = endpoint.clone();
            state.desired.endpoints.insert(leaving);
        }
        self.install(state)?;
        let open = ports.iter().filter(|port| state.open.remove(port));
        let open: Vec<PortId> = open.copied().collect();
        self.blocking(|dataplane| dataplane.remove_ports(&open))?;
        for port in ports {
            // Another endpoint may have the number next.
            self.blocked.release(*port);
        }
        let removals: Vec<Removal<'_>> = leaving.iter().map(|e| Removal::of(state, e)).collect();
        let mut failed = self.remove_devices(&removals).await;
        let has_failed =
            |endpoint: &Endpoint| failed.iter().any(|(port, _)| *port == endpoint.port);
        let gone: Vec<&Endpoint> = leaving.iter().filter(|e| !has_failed(e)).collect();
        self.forget_endpoints(state, &gone)?;
        for ((removal, before), withdrawn) in removals.iter().zip(&before).zip(withdrawn) {
            self.forget_withdrawn(state, removal.endpoint.port, withdrawn)?;
            if has_failed(removal.endpoint) {
                continue;
            }
            if let Left::WithOthers = removal.sandbox {
                let path = before.sandbox.path.as_os_str();
                self.write_resolv_confs_of(state, state.desired.endpoints.at_path(path));
            }
            self.settle_ways_out_beside(state, before).await;
            self.tell_detached(state, before);
        }
        failed.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Forgets endpoints whose devices are gone, or have never been.
    pub(super) fn forget_endpoints(
        &self,
        state: &mut State,
        gone: &[&Endpoint],
    ) -> Result<(), Error> {
        let ports: Vec<PortId> = gone.iter().map(|endpoint| endpoint.port).collect();
        self.store.remove_endpoints(&ports)?;
        for endpoint in gone {
            let port = endpoint.port;
            state.desired.endpoints.remove(&port);
            self.drop_fdb_entries(state, port);
            self.drop_listeners(state, port);
            self.drop_mirrors_of_port(state, port);
            state.capabilities.remove(&port);
            state.negotiated.remove(&port);
        }
        self.end_sessions(gone.iter().copied());
        // At once: an address may be another endpoint's before the next interval.
        self.keep_sessions();
        self.refresh_uplinks(state)?;
        self.install(state)
    }

    /// Removes devices; those that cannot be, and why.
    async fn remove_devices(&self, removals: &[Removal<'_>]) -> Vec<(PortId, Error)> {
        if let [removal] = removals {
            return self
                .remove_device(*removal)
                .await
                .err()
                .into_iter()
                .collect();
        }
        tokio::task::block_in_place(|| {
            let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
            let fail = |why| {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push(why);
            };
            std::thread::scope(|scope| {
                for _ in 0..removals.len().min(REMOVALS_MAX) {
                    scope.spawn(|| {
                        // A request waits within a system call, and would keep others' from theirs.
                        let runtime = tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build();
                        while let Some(removal) = removals.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            let removed = match &runtime {
                                Ok(runtime) => runtime.block_on(self.remove_device(*removal)),
                                Err(error) => Err((
                                    removal.endpoint.port,
                                    Error::Io {
                                        action: "start removing".to_owned(),
                                        source: io::Error::from(error.kind()),
                                    },
                                )),
                            };
                            if let Err(why) = removed {
                                fail(why);
                            }
                        }
                    });
                }
            });
            failed.into_inner().unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// Removes a device, and the `resolv.conf` of a sandbox that has no other.
    async fn remove_device(&self, removal: Removal<'_>) -> Result<(), (PortId, Error)> {
        let Removal { endpoint, sandbox } = removal;
        let removed = self.devices.remove(endpoint).await;
        removed.map_err(|error| (endpoint.port, error))?;
        match sandbox {
            Left::Empty => self.drop_resolv_conf_of(&endpoint.sandbox.path),
            Left::WithOthers => {}
        }
        Ok(())
    }
}

/// A device that is to be removed.
#[derive(Clone, Copy, Debug)]
struct Removal<'e> {
    endpoint: &'e Endpoint,
    sandbox: Left,
}

/// How endpoints that leave leave their sandbox.
#[derive(Clone, Copy, Debug)]
enum Left {
    Empty,
    WithOthers,
}

impl<'e> Removal<'e> {
    /// Of an endpoint that is on its way out.
    fn of(state: &State, endpoint: &'e Endpoint) -> Self {
        let path = endpoint.sandbox.path.as_os_str();
        let mut there = state.desired.endpoints.at_path(path);
        let sandbox = match there.all(|other| other.phase == Phase::Detaching) {
            true => Left::Empty,
            false => Left::WithOthers,
        };
        Self { endpoint, sandbox }
    }
}

/// Refuses to detach what is a part of its network.
pub(super) fn check_detachable(state: &State, endpoint: &Endpoint) -> Result<(), Error> {
    if !endpoint.comes_with_nic() {
        return Ok(());
    }
    let network = state.desired.network_of(endpoint);
    let network = network.map_or_else(String::new, |network| network.name.to_string());
    Err(Error::InUse(format!(
        "endpoint '{}' belongs to the NIC of network '{network}'; take that back by `causeway network \
         set {network} --nic none`",
        endpoint.name
    )))
}
