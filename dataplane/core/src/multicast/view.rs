//! One worker's view of the MDB, and what it makes of a frame to a group.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::message::{self, Malformed, Message};
use super::network::{Network, Source};
use super::{GroupKey, Heard, Mdb};
use crate::addr::{DomainId, PortId, VlanId};
use crate::counters::Counters;
use crate::frame::Frame;
use crate::headers::{Headers, Ip};
use crate::l2::{self, StormView, Takers};
use crate::time::Instant;
use crate::topology::{Domain, Multicast, PORTS_MAX, Port, Suppression, Topology};
use crate::trace::{Answer, Step, Trace, step};
use crate::verdict::{DropReason, Verdict};

/// One worker's view. Not shared: each worker, simulation or question has its own.
#[derive(Debug)]
pub struct MdbView {
    shared: Arc<Mdb>,
    /// The ports that the last frame with [`Verdict::Multicast`] leaves by, ascending.
    takers: Vec<PortId>,
    /// Present in a what-if: what is heard goes here, and the shared table stays as it is.
    overlay: Option<HashMap<DomainId, Network, FxBuildHasher>>,
}

/// A frame that is to be flooded, to those who have a use for it.
pub(crate) struct Spared<'s, 'f, T> {
    pub view: &'s mut MdbView,
    pub storm: &'s mut StormView,
    pub topology: &'s Topology,
    pub domain: &'s Domain,
    pub port: &'s Port,
    pub vlan: VlanId,
    pub headers: &'s Headers,
    pub frame: &'s mut Frame<'f>,
    pub counters: &'s Counters,
    pub now: Instant,
    pub trace: &'s mut T,
}

/// Whom a frame to a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    /// Everybody.
    All,
    /// Routers.
    Routers,
    /// Routers and those who listen.
    Listeners,
}

impl MdbView {
    /// A view that takes note in the shared table.
    pub fn live(shared: Arc<Mdb>) -> Self {
        Self {
            shared,
            takers: Vec::with_capacity(TAKERS_MAX),
            overlay: None,
        }
    }

    /// A view that reads the shared table and keeps what it hears to itself.
    pub fn overlay(shared: Arc<Mdb>) -> Self {
        Self {
            overlay: Some(HashMap::default()),
            ..Self::live(shared)
        }
    }

    /// The ports that the last frame leaves by whose verdict was [`Verdict::Multicast`].
    pub fn takers(&self) -> &[PortId] {
        &self.takers
    }

    /// Takes the list of [`MdbView::takers`] for as long as it is walked.
    pub fn take_takers(&mut self) -> Vec<PortId> {
        core::mem::take(&mut self.takers)
    }

    /// Gives the list back.
    pub fn return_takers(&mut self, takers: Vec<PortId>) {
        self.takers = takers;
    }

    /// The shared table.
    pub fn mdb(&self) -> &Arc<Mdb> {
        &self.shared
    }

    /// Forgets what was heard on a port, which a worker has found to be down.
    #[cold]
    pub fn flush_port(&self, port: PortId) {
        if self.overlay.is_none() {
            self.shared.forget_port(port, super::Forget::Heard);
        }
    }

    /// Changes what is known of a network.
    fn change<R>(&mut self, id: DomainId, change: impl FnOnce(&mut Network) -> R) -> R {
        let Some(overlay) = &mut self.overlay else {
            return change(&mut self.shared.networks.entry(id).or_default());
        };
        let known = || self.shared.networks.get(&id).map(|known| known.clone());
        change(
            overlay
                .entry(id)
                .or_insert_with(|| known().unwrap_or_default()),
        )
    }

    /// Writes down who is to have a frame; `false` when everybody is, for nobody asks who listens.
    fn choose(&mut self, domain: &Domain, key: GroupKey, audience: Audience, now: Instant) -> bool {
        self.takers.clear();
        let takers = &mut self.takers;
        let mut write = |network: &Network| {
            if !network.is_trusted(key.vlan, key.family(), now) {
                return false;
            }
            if audience == Audience::Listeners {
                network.collect_listeners(key, now, takers);
            }
            network.collect_routers(key, now, takers);
            true
        };
        let apart = self
            .overlay
            .as_ref()
            .and_then(|overlay| overlay.get(&domain.id));
        let trusted = match apart {
            Some(network) => write(network),
            None => {
                let known = self.shared.networks.get(&domain.id);
                known.is_some_and(|network| write(&network))
            }
        };
        if trusted {
            self.takers.extend_from_slice(&domain.mcast_routers);
            self.takers.sort_unstable();
            self.takers.dedup();
        }
        trusted
    }
}

/// Room for every port as a listener, as one that is sent everything, as a router that was heard and
/// as one that was set, so that no frame makes the list grow.
const TAKERS_MAX: usize = 4 * PORTS_MAX;

impl<T: Trace> Spared<'_, '_, T> {
    /// Sends the frame to those who are to have it, having taken note of what it says, or answers it.
    ///
    /// # Errors
    /// `GroupMessageMalformed`, `NoListener`, `NoOtherPort`, and those of storm control.
    #[inline]
    pub fn forward(self) -> Result<Verdict, DropReason> {
        let dst = self.headers.dst;
        self.storm.admit(self.port, self.frame, dst, self.now)?;
        if self.domain.spares(self.headers.dst) {
            return self.forward_sparingly();
        }
        self.flood()
    }

    fn flood(&self) -> Result<Verdict, DropReason> {
        let (domain, dst) = (self.domain.id, self.headers.dst);
        l2::flood(self.topology, self.port.id, domain, self.vlan, dst)
    }

    // Apart from the path of the others, which it would only make longer.
    #[inline(never)]
    fn forward_sparingly(mut self) -> Result<Verdict, DropReason> {
        if self.domain.suppression == Suppression::On
            && let Some(answer) = self.answer()
        {
            self.counters.answered_for.add(1);
            step!(self.trace, Step::Reply(answer));
            return Ok(Verdict::Replied(self.port.id));
        }
        let snoops = self.domain.multicast != Multicast::Flooded;
        match self.headers.ip().copied() {
            Some(ip) if snoops && ip.dst.is_multicast() => self.forward_group(&ip),
            Some(_) | None => self.flood(),
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        let (topology, domain) = (self.topology, self.domain);
        let here = self.vlan == domain.gateway_vlan;
        here.then(|| l2::answer(topology, domain, self.port, self.headers, self.frame))?
    }

    fn forward_group(mut self, ip: &Ip) -> Result<Verdict, DropReason> {
        let key = GroupKey {
            vlan: self.vlan,
            group: ip.dst,
        };
        let audience = match self.listen(ip)? {
            Some(audience) => audience,
            None if key.is_always_flooded() => Audience::All,
            None => Audience::Listeners,
        };
        if audience == Audience::All || !self.view.choose(self.domain, key, audience, self.now) {
            return self.flood();
        }
        let takers = Takers::of_group(self.port, self.vlan);
        let (topology, id) = (self.topology, self.domain.id);
        let takes = |port: &Port| takers.include_of(port, id);
        let all = &mut self.view.takers;
        all.retain(|port| topology.port(*port).is_some_and(takes));
        if all.is_empty() {
            return Err(DropReason::NoListener);
        }
        Ok(Verdict::Multicast(id, self.vlan))
    }

    /// Takes note of a message; `None` when the frame is none.
    fn listen(&mut self, ip: &Ip) -> Result<Option<Audience>, DropReason> {
        let read = message::read(self.headers, self.frame, ip);
        let read = read.map_err(|Malformed| DropReason::GroupMessageMalformed)?;
        let Some(message) = read else {
            return Ok(None);
        };
        let source = Source {
            domain: self.domain,
            vlan: self.vlan,
            port: self.port.id,
            flags: self.port.flags,
        };
        let now = self.now;
        let view = &mut self.view;
        let heard: Heard =
            view.change(self.domain.id, |network| network.hear(source, message, now));
        self.counters.groups_refused.add(heard.refused.into());
        step!(self.trace, Step::Snooped(heard));
        Ok(Some(match message {
            Message::Report(_) => Audience::Routers,
            Message::Leave(_) | Message::Records(_) | Message::Query(_) => Audience::All,
            Message::Router => Audience::All,
        }))
    }
}
