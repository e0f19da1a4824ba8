//! What goes on between requests: the host is watched, the workers' notices are followed up,
//! tables are swept.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dataplane::Notice;
use dataplane_core::addr::PortId;
use tokio::sync::mpsc;

use super::Engine;
use super::gone::LOOK_EVERY;
use super::wiring::PROBE_EVERY;
use crate::error::Error;
use crate::events::EventKind;
use crate::hostnet::HostState;
use crate::keep;
use crate::link::Link;
use crate::link::watch::Watch;
use crate::name_watch;

/// Pause after a change of the host before it is read, so that a burst is read once.
const SETTLE: Duration = Duration::from_millis(5);
/// How often dead FDB entries are swept and lost notices made up for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often the load is measured, and a port moved to a less busy worker.
const BALANCE_EVERY: Duration = Duration::from_secs(1);
/// How often the NAT's limits are looked at, so that a warning comes before they are reached.
const PRESSURE_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the host's resolver has other servers.
const RESOLVER_EVERY: Duration = Duration::from_secs(1);
/// Notices that wait for the control plane: hints, so more than this many need no queue.
const NOTICES_MAX: usize = 256;

impl Engine {
    /// Starts the background tasks; they end when the engine is dropped.
    ///
    /// # Errors
    /// When the host cannot be watched.
    pub fn start_background(self: &Arc<Self>) -> Result<(), Error> {
        let watch = Watch::open(&self.host)?;
        tokio::spawn(watch_host(Arc::downgrade(self), watch));
        let (sender, receiver) = mpsc::channel(NOTICES_MAX);
        let notices = self.dataplane.notices().clone();
        std::thread::Builder::new()
            .name("notices".to_owned())
            .spawn(move || {
                // Ends when the dataplane is dropped.
                while let Ok(notice) = notices.recv() {
                    if sender.blocking_send(notice).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| Error::io("start a thread", error))?;
        tokio::spawn(follow_notices(Arc::downgrade(self), receiver));
        tokio::spawn(sweep(Arc::downgrade(self)));
        tokio::spawn(balance(Arc::downgrade(self)));
        if self.keeper.is_some() {
            tokio::spawn(keep_sessions(Arc::downgrade(self)));
        }
        tokio::spawn(watch_resolver(Arc::downgrade(self)));
        tokio::spawn(watch_pressure(Arc::downgrade(self)));
        tokio::spawn(look_for_loops(Arc::downgrade(self)));
        let removals = name_watch::watch().map_err(|error| Error::io("start a thread", error))?;
        tokio::spawn(follow_names(Arc::downgrade(self), removals));
        tokio::spawn(look_at_processes(Arc::downgrade(self)));
        Ok(())
    }

    /// Reads the host again and follows what has changed.
    async fn host_changed(&self) -> Result<(), Error> {
        let mut state = self.state().await;
        let host = HostState::read(&self.netlink).await?;
        self.flush_unplugged(&mut state, &host);
        let host_link = state.host_link.map(|link| link.link);
        let news = match state.unsettled {
            true => News::Ways,
            false => News::of(&host, &state.followed, &state.host, host_link),
        };
        match news {
            News::Nothing => Ok(()),
            News::Neighbours => {
                state.host = host;
                self.install(&state)
            }
            News::Ways => {
                state.host = host.clone();
                self.follow_uplinks(&mut state).await?;
                self.prepare_nics(&mut state).await?;
                self.look_at_host(&mut state).await?;
                self.take_prepared_nics(&mut state).await;
                self.listen_where_uplinks_are(&mut state).await;
                state.followed = host;
                Ok(())
            }
        }
    }

    async fn follow(&self, notice: Notice) -> Result<(), Error> {
        match notice {
            Notice::PortDown(port) => self.ports_gone(&[port]).await,
            Notice::PortUp(port) => {
                let state = self.state().await;
                if let Some(endpoint) = state.desired.endpoints.get(&port) {
                    let text = format!("port '{}' is up again", endpoint.name);
                    self.tell_port(&state, EventKind::PortUp, endpoint, text);
                }
                Ok(())
            }
            Notice::Claimed(claim) => {
                self.follow_claim(claim).await;
                Ok(())
            }
            Notice::Sighted(sighting) => self.follow_sighting(sighting).await,
            Notice::NextHopWanted(uplink, address) => {
                let state = self.state().await;
                match state.uplinks.iter().find(|open| open.id == uplink) {
                    Some(open) => Ok(self.netlink.probe_neighbour(open.link, address).await?),
                    None => Ok(()),
                }
            }
        }
    }
}

/// What a reading of the host brings that has not been followed yet. A notification says less: what it
/// is about may have been read before it came, with another one or by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    /// MACs of neighbours, which only the picture depends on.
    Neighbours,
    /// Links, addresses or routes.
    Ways,
}

impl News {
    /// What `read` brings after the one that was last `followed`, and after the one that the picture
    /// is made from. Uplinks need not follow what is on the host link alone, which requests change.
    fn of(
        read: &HostState,
        followed: &HostState,
        pictured: &HostState,
        host_link: Option<u32>,
    ) -> Self {
        if !same_ways(read, followed, host_link) || !same_ways(read, pictured, None) {
            Self::Ways
        } else if read.neighbours != pictured.neighbours {
            Self::Neighbours
        } else {
            Self::Nothing
        }
    }
}

/// Whether two readings have the same links, addresses and routes, those of `except` left out; counters
/// always differ.
fn same_ways(one: &HostState, two: &HostState, except: Option<u32>) -> bool {
    let ways = |host: &HostState| {
        let links = host.links.iter().filter(|link| Some(link.index) != except);
        let essence = |link: &Link| {
            let (name, alias) = (link.name.clone(), link.alias.clone());
            (link.index, name, link.mac, link.mtu, link.up, alias)
        };
        let addresses = host.addresses.iter().filter(|own| Some(own.link) != except);
        let routes = host.routes.iter().filter(|way| Some(way.link) != except);
        (
            links.map(essence).collect::<Vec<_>>(),
            addresses.copied().collect::<Vec<_>>(),
            routes.copied().collect::<Vec<_>>(),
        )
    };
    ways(one) == ways(two)
}

async fn watch_host(engine: Weak<Engine>, mut watch: Watch) {
    loop {
        watch.changed().await;
        tokio::time::sleep(SETTLE).await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if let Err(error) = engine.host_changed().await {
            tracing::warn!(%error, "cannot follow a change of the host");
        }
    }
}

async fn follow_names(engine: Weak<Engine>, mut removals: mpsc::Receiver<()>) {
    while removals.recv().await.is_some() {
        tokio::time::sleep(SETTLE).await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if let Err(error) = engine.find_gone().await {
            tracing::warn!(%error, "cannot look for ended sandboxes");
        }
    }
}

async fn look_at_processes(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = PortId(0);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        match engine.look_at_processes(last).await {
            Ok(looked_at) => last = looked_at,
            // The sweep tries again, and says so less often.
            Err(error) => tracing::debug!(%error, "cannot look for ended sandboxes"),
        }
    }
}

async fn follow_notices(engine: Weak<Engine>, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if let Err(error) = engine.follow(notice).await {
            tracing::warn!(?notice, %error, "cannot follow a notice of the dataplane");
        }
    }
}

async fn balance(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(BALANCE_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        match engine.blocking(|dataplane| dataplane.balance()) {
            Ok(None) => {}
            Ok(Some((port, worker))) => {
                tracing::info!(%port, worker, "moved a busy port to another worker");
            }
            Err(error) => tracing::warn!(%error, "cannot move a busy port"),
        }
    }
}

async fn keep_sessions(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(keep::INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        tokio::task::block_in_place(|| engine.keep_sessions());
    }
}

async fn watch_pressure(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(PRESSURE_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.watch_pressure().await;
        engine.watch_storms().await;
        engine.watch_mirror_files().await;
        engine.watch_nics().await;
    }
}

async fn watch_resolver(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(RESOLVER_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.watch_resolver().await;
    }
}

async fn look_for_loops(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(PROBE_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if let Err(error) = engine.probe_for_loops() {
            tracing::warn!(%error, "cannot look for loops");
        }
        if let Err(error) = engine.unblock_ports().await {
            tracing::warn!(%error, "cannot unblock a port");
        }
    }
}

async fn sweep(engine: Weak<Engine>) {
    let mut timer = tokio::time::interval(SWEEP_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.blocking(|dataplane| dataplane.sweep());
        if let Err(error) = engine.find_gone().await {
            tracing::warn!(%error, "cannot look for ended sandboxes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostnet::tests::{address, link};
    use crate::link::inet::Neighbour;

    #[test]
    fn what_a_request_has_read_before_is_news_until_it_was_followed() {
        let of = |read: &HostState, followed: &HostState, pictured: &HostState| {
            News::of(read, followed, pictured, Some(9))
        };
        let before = HostState {
            links: vec![link(2, "eth0"), link(9, "causeway0")],
            addresses: vec![address(2, "192.0.2.1", 24)],
            ..HostState::default()
        };
        let mut resolved = before.clone();
        resolved.neighbours.push(Neighbour {
            link: 2,
            address: "192.0.2.2".parse().unwrap(),
            mac: None,
            managed: false,
        });
        assert_eq!(of(&before, &before, &before), News::Nothing);
        assert_eq!(of(&resolved, &before, &before), News::Neighbours);
        assert_eq!(of(&resolved, &before, &resolved), News::Nothing);
        let mut renewed = resolved.clone();
        renewed.addresses[0] = address(2, "192.0.2.50", 24);
        for pictured in [&before, &resolved, &renewed] {
            assert_eq!(of(&renewed, &before, pictured), News::Ways);
        }
        assert_eq!(of(&renewed, &renewed, &renewed), News::Nothing);
        // A gateway's address, by a request and by somebody else.
        let mut created = before.clone();
        created.addresses.push(address(9, "10.88.0.1", 32));
        assert_eq!(of(&created, &before, &created), News::Nothing);
        assert_eq!(of(&before, &before, &created), News::Ways);
    }
}
