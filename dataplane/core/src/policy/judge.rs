//! What becomes of a packet that rules are asked about.

use super::flows::{Kind, Known, Opener, Packet};
use super::question::{Content, is_later_fragment};
use super::{FlowsView, Party, Question, RuleSlot, Zone};
use crate::addr::{L4Addr, L4Port};
use crate::counters::Counters;
use crate::frame::Frame;
use crate::headers::{HeaderError, Headers, L4Kind, TcpFlags, protocol};
use crate::nat;
use crate::time::Instant;
use crate::topology::Topology;
use crate::trace::{Step, Trace, step};
use crate::verdict::DropReason;

/// What the rules say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// None fits: the default counts.
    Default,
    /// This one lets it pass.
    Allowed(RuleSlot),
    /// This one does not.
    Denied(RuleSlot),
    /// This one does not, and has its sender told.
    Rejected(RuleSlot),
}

impl Ruling {
    /// What becomes of a packet, where the default is `otherwise`.
    const fn outcome(self, otherwise: Result<(), DropReason>) -> Result<(), DropReason> {
        match self {
            Self::Default => otherwise,
            Self::Allowed(_) => Ok(()),
            Self::Denied(_) => Err(DropReason::PolicyDenied),
            Self::Rejected(_) => Err(DropReason::PolicyRejected),
        }
    }
}

/// What a packet is in its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Of the end that opens it, or has.
    Opening,
    /// Of the other end: judged as what it answers.
    Answer,
}

/// What judging needs.
pub(crate) struct Judge<'j, T> {
    pub flows: &'j FlowsView,
    pub topology: &'j Topology,
    pub counters: &'j Counters,
    pub now: Instant,
    pub trace: &'j mut T,
}

impl<T: Trace> Judge<'_, T> {
    /// Judges a packet of which it is known what it is in its flow: its session says so.
    ///
    /// # Errors
    /// `PolicyDenied`, `PolicyRejected`, or the question's default.
    pub fn settle(
        &mut self,
        question: &Question,
        standing: Standing,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        let asked = match standing {
            Standing::Opening => *question,
            Standing::Answer => question.flipped(),
        };
        let ruling = self.topology.policy.judge(&asked);
        self.conclude(ruling, &asked, standing, headers)
    }

    /// Judges a packet that no session tells of, by the table of flows.
    ///
    /// # Errors
    /// `PolicyDenied`, `PolicyRejected`, or the question's default.
    pub fn follow(
        &mut self,
        question: &Question,
        headers: &Headers,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let Some(packet) = self.packet(question, headers) else {
            return self.without_flow(question, headers, frame);
        };
        let ruling = match self.find(&packet) {
            Some(known) if !opens(&packet) => {
                let ruling = self.go_on(question, headers, &packet, &known)?;
                let stamp = self.topology.stamp();
                self.flows.touch(&known, &packet, ruling, stamp, self.now);
                ruling
            }
            Some(_) | None => self.begin(question, headers, &packet)?,
        };
        let fragment = headers.ip().and_then(|ip| ip.fragment);
        if fragment.is_some_and(|fragment| fragment.more) && !is_later_fragment(headers) {
            self.expect_fragments(question, headers, ruling);
        }
        Ok(())
    }

    fn find(&self, packet: &Packet) -> Option<Known> {
        let timeouts = &self.topology.nat.timeouts;
        self.flows.find(packet, self.now, timeouts)
    }

    /// A packet of a flow that is known. What was said of its opening counts until the topology
    /// changes.
    fn go_on(
        &mut self,
        question: &Question,
        headers: &Headers,
        packet: &Packet,
        known: &Known,
    ) -> Result<Ruling, DropReason> {
        let (standing, asked) = match known.is_answered_by(packet) {
            true => (Standing::Answer, question.flipped()),
            false => (Standing::Opening, *question),
        };
        let ruling = match known.stamp == self.topology.stamp() {
            true => known.ruling(),
            false => self.topology.policy.judge(&asked),
        };
        self.conclude(ruling, &asked, standing, headers)?;
        Ok(ruling)
    }

    /// A packet of a flow that is not known. A TCP segment from the middle of a connection may
    /// belong to one that is older than the table: it passes where the other end may have opened it,
    /// for no connection comes of it that there is not.
    fn begin(
        &mut self,
        question: &Question,
        headers: &Headers,
        packet: &Packet,
    ) -> Result<Ruling, DropReason> {
        let policy = &self.topology.policy;
        let mut ruling = policy.judge(question);
        let (mut opener, mut standing) = (Opener::Sender, Standing::Opening);
        if ruling.outcome(question.otherwise).is_err() && is_from_the_middle(packet) {
            let before = policy.judge(&question.flipped());
            if before.outcome(question.otherwise).is_ok() {
                ruling = before;
                (opener, standing) = (Opener::Receiver, Standing::Answer);
            }
        }
        self.conclude(ruling, question, standing, headers)?;
        self.open(packet, opener, ruling);
        Ok(ruling)
    }

    fn open(&self, packet: &Packet, opener: Opener, ruling: Ruling) {
        let (stamp, timeouts) = (self.topology.stamp(), &self.topology.nat.timeouts);
        let flows = self.flows;
        if !flows.open(packet, opener, ruling, stamp, self.now, timeouts) {
            self.counters.flows_refused.add(1);
        }
    }

    /// The other fragments of a packet that has passed, which do not tell their ports, pass with it.
    #[cold]
    fn expect_fragments(&self, question: &Question, headers: &Headers, ruling: Ruling) {
        let rest = Headers {
            l4: Err(HeaderError::LaterFragment),
            ..*headers
        };
        if let Some(packet) = self.packet(question, &rest) {
            self.open(&packet, Opener::Sender, ruling);
        }
    }

    /// A packet that makes no flow: an ICMP error passes with the flow that it is about.
    #[cold]
    fn without_flow(
        &mut self,
        question: &Question,
        headers: &Headers,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let about = nat::flow_of_error(frame, headers);
        if let Some((protocol, own, other)) = about {
            let content = Content::Ip {
                src: own.ip,
                dst: other.ip,
                protocol: Some(protocol),
                ports: Some((own.l4_port.0, other.l4_port.0)),
            };
            let asked = Question {
                content,
                ..*question
            };
            let kind = match protocol {
                protocol::TCP => Kind::Tcp,
                protocol::UDP => Kind::Other,
                _ => Kind::Icmp,
            };
            let packet = self.between(&asked, (own, other), (protocol, kind));
            if let Some(known) = self.find(&packet) {
                self.go_on(&asked, headers, &packet, &known)?;
                return Ok(());
            }
        }
        self.settle(question, Standing::Opening, headers)
    }

    /// Counts and tells what was said.
    fn conclude(
        &mut self,
        ruling: Ruling,
        asked: &Question,
        standing: Standing,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        match ruling {
            Ruling::Allowed(slot) | Ruling::Denied(slot) | Ruling::Rejected(slot) => {
                let size = headers.ip().map_or(0, |ip| ip.total_size);
                self.counters.record_rule(slot, size.into());
            }
            Ruling::Default => {}
        }
        step!(self.trace, Step::Policy(ruling, standing));
        ruling.outcome(asked.otherwise)
    }

    /// How the table knows a packet; nothing for one that belongs to no flow of its own.
    fn packet(&self, question: &Question, headers: &Headers) -> Option<Packet> {
        let Content::Ip {
            src,
            dst,
            protocol: Some(protocol),
            ports,
        } = question.content
        else {
            return None;
        };
        let mut flags = TcpFlags::default();
        let (kind, (from, to)) = match headers.l4.map(|l4| l4.kind) {
            Ok(L4Kind::Tcp { flags: seen, .. }) => {
                flags = seen;
                (Kind::Tcp, ports?)
            }
            Ok(L4Kind::Udp { .. }) => (Kind::Other, ports?),
            Ok(L4Kind::Echo { request: true, id }) => (Kind::Icmp, (id.0, 0)),
            Ok(L4Kind::Echo { request: false, id }) => (Kind::Icmp, (0, id.0)),
            Ok(L4Kind::IcmpOther { .. }) => (Kind::Icmp, (0, 0)),
            Err(HeaderError::Unknown) => (Kind::Other, (0, 0)),
            Err(HeaderError::LaterFragment) => {
                let id = headers.ip()?.fragment?.id;
                (Kind::Fragments, ((id >> 16) as u16, id as u16))
            }
            Ok(L4Kind::IcmpError { .. }) | Err(HeaderError::Truncated) => return None,
            Err(HeaderError::Inconsistent) => return None,
        };
        let end = |ip, port| L4Addr {
            ip,
            l4_port: L4Port(port),
        };
        let packet = self.between(question, (end(src, from), end(dst, to)), (protocol, kind));
        Some(Packet { flags, ..packet })
    }

    /// A packet between two ends, without flags.
    fn between(
        &self,
        question: &Question,
        (src, dst): (L4Addr, L4Addr),
        (protocol, kind): (u8, Kind),
    ) -> Packet {
        let (from, to) = (zone_number(&question.from), zone_number(&question.to));
        let from_high = (from, src) > (to, dst);
        let (low, high) = match from_high {
            true => ((to, dst), (from, src)),
            false => ((from, src), (to, dst)),
        };
        // Fragments of the two directions have nothing in common.
        let way = match kind {
            Kind::Fragments => 1 + u64::from(from_high),
            Kind::Tcp | Kind::Icmp | Kind::Other => 0,
        };
        let tag = u64::from(protocol) | way << 8 | low.0 << 16 | high.0 << 36;
        Packet {
            hash: self.flows.hash(tag, low.1, high.1),
            from_high,
            kind,
            flags: TcpFlags::default(),
        }
    }
}

/// A number for each zone, below 2^20.
const fn zone_number(party: &Party) -> u64 {
    match party.zone() {
        Zone::Domain(domain) => domain.0 as u64,
        Zone::Host => 1 << 16,
        Zone::Outside => 1 << 16 | 1,
    }
}

/// Whether only a new connection begins like this, be it between ends that have another one.
fn opens(packet: &Packet) -> bool {
    let Packet { kind, flags, .. } = packet;
    *kind == Kind::Tcp && flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK)
}

/// Whether it is a TCP segment that no connection begins with.
fn is_from_the_middle(packet: &Packet) -> bool {
    let Packet { kind, flags, .. } = packet;
    *kind == Kind::Tcp && flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN)
}
