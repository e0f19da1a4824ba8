//! Fragments: all of a packet are treated like the first.
//!
//! Only the first fragment of a packet carries ports. When it is translated, what became of its
//! addresses is remembered by (addresses, protocol, identification), and the others get the same.
//! Their checksum needs nothing: it is in the first fragment and covers the whole packet. Those that
//! overtake the first wait for it (`route/early.rs`).
//!
//! A fragment that overlaps another one ends its packet: what would be put together at its
//! destination is nobody's to say (RFC 5722, RFC 1858). One that repeats another is dropped alone.
//!
//! Whose source is translated gets an identification of ours, the same for all its fragments, for
//! two hosts inside may have chosen the same one towards the same remote (RFC 6864 section 5.3.1).
//!
//! Limits: [`FRAGMENTS_MAX`] packets in each shard, the oldest forgotten first;
//! [`FRAGMENT_TIMEOUT_SECONDS`].

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr};
use crate::frame::Frame;
use crate::headers::{EXTENSION_HEADERS_MAX, Fragment, Headers, Ip, array_at, protocol};
use crate::time::Instant;
use crate::trace::NatKind;
use crate::verdict::DropReason;

use super::packet::Packet;
use super::rewrite::{self, Side};
use super::shared::NatView;
use super::spans::{Fit, Last, Spans};
use super::translate::{Found, Inbound, Translation};

/// Fragmented packets remembered by each shard: 4,096 in all, less than a megabyte, which a flood
/// of fragments cannot exceed.
pub const FRAGMENTS_MAX: usize = 64;

/// How long the fragments of a packet may trail the first: what Linux waits to reassemble
/// (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIMEOUT_SECONDS: u32 = 30;

/// What the fragments of a packet have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FragmentKey {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
    /// The network that it came from; `None` from outside. Networks may overlap.
    from: Option<DomainId>,
}

/// What became of the first fragment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FragmentRoute {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The network of the inside end.
    pub domain: DomainId,
    pub kind: NatKind,
    /// The identification that takes the place of the sender's.
    pub id: Option<u32>,
}

/// What becomes of the fragments of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Fate {
    /// They are translated like the first.
    Follow(FragmentRoute),
    /// They are left to the host, as the first was.
    Foreign,
    /// They are dropped, because some overlapped.
    Refused,
}

/// Where a fragment stands: in its frame, and in its packet.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Offset of the identification in the frame.
    id_at: usize,
    /// First byte of its payload and the one behind the last, in the whole packet.
    span: (u16, u16),
    last: Option<Last>,
}

#[derive(Clone, Debug)]
pub(super) struct Fragments {
    records: Vec<Record>,
    /// The record to be replaced next.
    next: usize,
}

#[derive(Clone, Copy, Hash, Debug)]
pub(super) struct Record {
    key: FragmentKey,
    fate: Fate,
    spans: Spans,
    second: u32,
}

impl FragmentKey {
    /// The key of a packet from the network `from`, or from outside.
    pub const fn new(ip: &Ip, fragment: Fragment, from: Option<DomainId>) -> Self {
        Self {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            id: fragment.id,
            from,
        }
    }

    /// The address and number that spread packets over the shards.
    pub const fn spread(&self) -> (IpAddr, u32) {
        (self.src, self.id)
    }
}

impl Fragments {
    pub const fn new() -> Self {
        Self {
            records: Vec::new(),
            next: 0,
        }
    }

    /// What is remembered.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// Remembers a packet, in place of the oldest if there are too many.
    fn remember(&mut self, record: Record) {
        if let Some(same) = self.records.iter_mut().find(|old| old.key == record.key) {
            *same = record;
        } else if self.records.len() < FRAGMENTS_MAX {
            self.records.push(record);
        } else {
            let next = self.next % FRAGMENTS_MAX;
            self.records[next] = record;
            self.next = next + 1;
        }
    }

    /// Where a packet is remembered.
    fn find(&self, key: &FragmentKey, now: Instant) -> Option<usize> {
        self.records.iter().position(|record| {
            let age = now.second().saturating_sub(record.second);
            record.key == *key && age <= FRAGMENT_TIMEOUT_SECONDS
        })
    }

    /// Forgets the packets from or to inside addresses that `condemned` names.
    pub fn forget_inside(&mut self, condemned: impl Fn(DomainId, IpAddr) -> bool) {
        let touches = |record: &Record| {
            let sender = record.key.from;
            let receiver = match record.fate {
                Fate::Follow(route) => condemned(route.domain, route.dst),
                Fate::Foreign | Fate::Refused => false,
            };
            receiver || sender.is_some_and(|domain| condemned(domain, record.key.src))
        };
        self.records.retain(|record| !touches(record));
        self.next = self.next.min(self.records.len());
    }

    fn forget(&mut self, index: usize) {
        self.records.swap_remove(index);
        self.next = self.next.min(self.records.len());
    }

    /// What becomes of a fragment of a packet that is remembered. One that completes its packet
    /// makes room for another with the same identification.
    fn place(
        &mut self,
        key: &FragmentKey,
        part: &Part,
        now: Instant,
    ) -> Option<Result<Fate, DropReason>> {
        let index = self.find(key, now)?;
        let record = &mut self.records[index];
        let fate = record.fate;
        if fate == Fate::Refused {
            return Some(Err(DropReason::NatFragmentOverlap));
        }
        Some(match record.spans.add(part.span, part.last) {
            Fit::New => Ok(fate),
            Fit::Complete => {
                self.forget(index);
                Ok(fate)
            }
            Fit::Repeated | Fit::Scattered => Err(DropReason::NatFragmentOverlap),
            Fit::Overlapping => {
                record.fate = Fate::Refused;
                Err(DropReason::NatFragmentOverlap)
            }
        })
    }
}

impl NatView {
    /// What becomes of a fragment whose first one is known: from the network `from`, or from
    /// outside. `None` when it is not.
    ///
    /// # Errors
    /// The reason to drop it.
    #[cold]
    pub(super) fn fate_of(
        &mut self,
        frame: &Frame<'_>,
        headers: &Headers,
        from: Option<DomainId>,
        now: Instant,
    ) -> Result<Option<Fate>, DropReason> {
        let overlap = DropReason::NatFragmentOverlap;
        let (key, part) = locate(frame, headers, from).ok_or(overlap)?;
        let shard = self.tables.shard_of_fragment(key.spread());
        let fragments = &mut self.tables.shard(shard).table.fragments;
        fragments.place(&key, &part, now).transpose()
    }

    /// Whether the first fragment of a packet is known.
    pub(crate) fn knows_fragment(
        &mut self,
        headers: &Headers,
        from: Option<DomainId>,
        now: Instant,
    ) -> bool {
        let Some(key) = key_of(headers, from) else {
            return false;
        };
        let shard = self.tables.shard_of_fragment(key.spread());
        let fragments = &mut self.tables.shard(shard).table.fragments;
        fragments.find(&key, now).is_some()
    }

    /// The source that the first fragment of a packet from `domain` got, if it is known.
    pub(super) fn fragment_source(
        &mut self,
        headers: &Headers,
        domain: DomainId,
        now: Instant,
    ) -> Option<IpAddr> {
        let key = key_of(headers, Some(domain))?;
        let shard = self.tables.shard_of_fragment(key.spread());
        let fragments = &mut self.tables.shard(shard).table.fragments;
        let record = &fragments.records[fragments.find(&key, now)?];
        match record.fate {
            Fate::Follow(route) if route.kind == NatKind::ForwardReturn => Some(route.src),
            Fate::Follow(_) | Fate::Foreign | Fate::Refused => None,
        }
    }

    /// Remembers what became of a first fragment, whose `headers` are those from before, and gives
    /// it an identification of ours where its source has changed.
    #[cold]
    pub(super) fn remember_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        from: Option<DomainId>,
        (packet, found): (&Packet, &Found),
        now: Instant,
    ) {
        let Some((key, part)) = locate(frame, headers, from) else {
            return;
        };
        let id = (key.src != packet.src.ip).then(|| self.tables.fragment_id(key.src.is_ipv6()));
        if let Some(id) = id {
            renumber(frame, headers, &part, id);
        }
        let fate = Fate::Follow(FragmentRoute {
            src: packet.src.ip,
            dst: packet.dst.ip,
            domain: found.domain,
            kind: found.kind,
            id,
        });
        self.remember(key, &part, fate, now);
    }

    /// Remembers that a first fragment was left to the host.
    #[cold]
    pub(super) fn leave_fragment(
        &mut self,
        frame: &Frame<'_>,
        headers: &Headers,
        from: Option<DomainId>,
        now: Instant,
    ) {
        if let Some((key, part)) = locate(frame, headers, from) {
            self.remember(key, &part, Fate::Foreign, now);
        }
    }

    fn remember(&mut self, key: FragmentKey, part: &Part, fate: Fate, now: Instant) {
        let mut spans = Spans::NONE;
        // The first of its packet contradicts nothing.
        let _ = spans.add(part.span, part.last);
        let record = Record {
            key,
            fate,
            spans,
            second: now.second(),
        };
        let shard = self.tables.shard_of_fragment(key.spread());
        self.tables.shard(shard).table.fragments.remember(record);
        self.fragments_begun = true;
    }

    /// Does to a fragment from inside what was done to the first.
    #[cold]
    pub(super) fn follow_out(
        packet: &mut Packet,
        frame: &mut Frame<'_>,
        headers: &Headers,
        fate: Fate,
    ) -> Result<Translation, DropReason> {
        match fate {
            Fate::Follow(route) => Ok(follow(packet, frame, headers, &route)),
            Fate::Foreign => Err(DropReason::NatNoMapping),
            Fate::Refused => Err(DropReason::NatFragmentOverlap),
        }
    }

    /// Does to a fragment to an external address what was done to the first.
    #[cold]
    pub(super) fn follow_in(
        packet: &mut Packet,
        frame: &mut Frame<'_>,
        headers: &Headers,
        fate: Fate,
    ) -> Result<Inbound, DropReason> {
        match fate {
            Fate::Follow(route) => Ok(Inbound {
                translation: follow(packet, frame, headers, &route),
                domain: route.domain,
                inside: route.dst,
            }),
            Fate::Foreign => Err(DropReason::NatNoMapping),
            Fate::Refused => Err(DropReason::NatFragmentOverlap),
        }
    }
}

fn follow(
    packet: &mut Packet,
    frame: &mut Frame<'_>,
    headers: &Headers,
    route: &FragmentRoute,
) -> Translation {
    let before = packet.ends();
    if let Some(id) = route.id
        && let Some(part) = headers.ip().and_then(|ip| part_of(frame, headers, ip))
    {
        renumber(frame, headers, &part, id);
    }
    if packet.src.ip != route.src {
        packet.rewrite(frame, Side::Source, L4Addr::new(route.src, 0));
    }
    if packet.dst.ip != route.dst {
        packet.rewrite(frame, Side::Destination, L4Addr::new(route.dst, 0));
    }
    Translation {
        kind: route.kind,
        before,
        after: packet.ends(),
        created: false,
    }
}

/// Gives a fragment another identification, and IPv4 the header checksum to it.
fn renumber(frame: &mut Frame<'_>, headers: &Headers, part: &Part, id: u32) {
    let bytes = frame.buf.bytes_mut();
    if headers.ip().is_some_and(|ip| ip.src.is_ipv4()) {
        rewrite::put_identification(bytes, headers.l3_offset, id as u16);
    } else if let Some(field) = bytes.get_mut(part.id_at..part.id_at + 4) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

fn key_of(headers: &Headers, from: Option<DomainId>) -> Option<FragmentKey> {
    let ip = headers.ip()?;
    Some(FragmentKey::new(ip, ip.fragment?, from))
}

fn locate(
    frame: &Frame<'_>,
    headers: &Headers,
    from: Option<DomainId>,
) -> Option<(FragmentKey, Part)> {
    let key = key_of(headers, from)?;
    let part = part_of(frame, headers, headers.ip()?)?;
    Some((key, part))
}

/// Where a fragment stands. `None` for one that no sender makes: of no bytes, beyond the largest
/// packet, or of a length that the next one could not begin at (RFC 791, RFC 8200 section 4.5).
fn part_of(frame: &Frame<'_>, headers: &Headers, ip: &Ip) -> Option<Part> {
    let fragment = ip.fragment?;
    let (id_at, payload_at) = if ip.src.is_ipv6() {
        let at = fragment_header(frame.bytes(), headers.l3_offset)?;
        (at + 4, at + 8)
    } else {
        let l3 = headers.l3_offset;
        (l3 + 4, l3 + usize::from(ip.header_size))
    };
    let end = headers.l3_offset + ip.total_size as usize;
    let size = u16::try_from(end.checked_sub(payload_at)?).ok()?;
    if size == 0 || fragment.more && !size.is_multiple_of(8) {
        return None;
    }
    Some(Part {
        id_at,
        span: (fragment.offset, fragment.offset.checked_add(size)?),
        last: (!fragment.more).then_some(Last),
    })
}

/// Offset of the fragment header of an IPv6 packet.
fn fragment_header(bytes: &[u8], l3: usize) -> Option<usize> {
    let [mut next] = array_at(bytes, l3 + 6)?;
    let mut at = l3 + 40;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if next == protocol::FRAGMENT {
            return Some(at);
        }
        let [following, size] = array_at(bytes, at)?;
        at += match next {
            protocol::AUTHENTICATION => (usize::from(size) + 2) * 4,
            _ => (usize::from(size) + 1) * 8,
        };
        next = following;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> FragmentKey {
        FragmentKey {
            src: [10, 0, 0, 2].into(),
            dst: [192, 0, 2, 1].into(),
            protocol: 17,
            id,
            from: None,
        }
    }

    fn record(id: u32, now: Instant) -> Record {
        Record {
            key: key(id),
            fate: Fate::Foreign,
            spans: Spans::NONE,
            second: now.second(),
        }
    }

    #[test]
    fn a_flood_forgets_the_oldest_and_keeps_its_bound() {
        let mut fragments = Fragments::new();
        let now = Instant::from_secs(5);
        for id in 0..1_000 {
            fragments.remember(record(id, now));
            fragments.remember(record(id, now));
        }
        assert_eq!(fragments.records.len(), FRAGMENTS_MAX);
        let kept: Vec<u32> = (0..1_000)
            .filter(|id| fragments.find(&key(*id), now).is_some())
            .collect();
        let last: Vec<u32> = (1_000 - FRAGMENTS_MAX as u32..1_000).collect();
        assert_eq!(kept, last);
    }

    #[test]
    fn a_fragment_is_forgotten_after_the_timeout() {
        let mut fragments = Fragments::new();
        fragments.remember(record(1, Instant::from_secs(5)));
        assert!(fragments.find(&key(1), Instant::from_secs(35)).is_some());
        assert!(fragments.find(&key(1), Instant::from_secs(36)).is_none());
        assert!(fragments.find(&key(2), Instant::from_secs(5)).is_none());
    }
}
