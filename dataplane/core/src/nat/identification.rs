//! Identifications of IPv4 packets that leave under an address which several hosts share.
//!
//! A packet that may be fragmented on its way is put together by its addresses, protocol and
//! identification, and two hosts inside may have chosen the same one towards the same remote. So such
//! a packet gets one of ours (RFC 7857 section 10, RFC 6864 section 5.3.1). A packet with DF is left
//! alone: nobody looks at its identification (RFC 6864 section 4).
//!
//! # Theory of operation
//! The 65,536 identifications are 1,024 blocks of 64, given in an order that only the key tells: single
//! packets get those of a block in an order of its own, so that nobody outside knows the next one
//! (RFC 7739), and a GSO frame a block for itself, because its segments count up. None comes again
//! before all others were given or passed over. Of a frame of more than 64 segments those behind the
//! 64th may have what is another's.
//!
//! The cost is one addition to a word that all workers share, for packets without DF alone.

use core::sync::atomic::{AtomicU32, Ordering};
use std::net::IpAddr;

use crate::frame::{Frame, GsoKind, Offload};
use crate::headers::{Headers, Ip};

use super::hash::HashKey;
use super::rewrite;
use super::shared::NatView;

/// Identifications of a block: as many segments as a frame of 64 KiB has, at the MTU of Ethernet.
const BLOCK_SIZE: u32 = 1 << BLOCK_BITS;
const BLOCK_BITS: u32 = 6;

/// How many identifications were given or passed over.
#[derive(Debug, Default)]
pub(super) struct Identifications(AtomicU32);

impl Identifications {
    /// As many, for somebody else.
    pub fn copy(&self) -> Self {
        // Relaxed, here and below: a number guards no other memory.
        Self(AtomicU32::new(self.0.load(Ordering::Relaxed)))
    }

    /// An identification for one packet, with all its fragments.
    pub fn single(&self, key: &HashKey) -> u16 {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let block = place(number, key);
        // Another order in each block.
        let within = key.permute((number ^ block) % BLOCK_SIZE, BLOCK_BITS);
        (block << BLOCK_BITS | within) as u16
    }

    /// The first of `count` identifications for as many segments.
    pub fn run(&self, count: u32, key: &HashKey) -> u16 {
        let first = |number: u32| number.div_ceil(BLOCK_SIZE).wrapping_mul(BLOCK_SIZE);
        let behind = count.next_multiple_of(BLOCK_SIZE);
        let next = |number| Some(first(number).wrapping_add(behind));
        let relaxed = Ordering::Relaxed;
        let (Ok(number) | Err(number)) = self.0.fetch_update(relaxed, relaxed, next);
        (place(first(number), key) << BLOCK_BITS) as u16
    }
}

/// Where the block of a number is.
fn place(number: u32, key: &HashKey) -> u32 {
    key.permute(number >> BLOCK_BITS, u16::BITS - BLOCK_BITS)
}

impl NatView {
    /// Gives a packet an identification of ours, if its source was `old` and is `new` and it may be
    /// fragmented on its way. Fragments have theirs already.
    #[inline]
    pub(super) fn identify(
        &mut self,
        frame: &mut Frame<'_>,
        headers: &Headers,
        (old, new): (IpAddr, IpAddr),
    ) {
        if let Some(ip) = headers.ip()
            && !ip.dont_fragment
            && old != new
        {
            self.identify_anew(frame, headers, ip);
        }
    }

    #[cold]
    fn identify_anew(&mut self, frame: &mut Frame<'_>, headers: &Headers, ip: &Ip) {
        if ip.fragment.is_some() {
            return;
        }
        let (identifications, key) = self.tables.identifications();
        let id = match segments_max(&frame.buf.offload, ip) {
            0 | 1 => identifications.single(key),
            count => identifications.run(count, key),
        };
        rewrite::put_identification(frame.buf.bytes_mut(), headers.l3_offset, id);
    }
}

/// As many segments as a frame has at most, each a packet with an identification of its own.
fn segments_max(offload: &Offload, ip: &Ip) -> u32 {
    match offload.gso() {
        None | Some(GsoKind::Fragments | GsoKind::Other(_)) => 1,
        Some(GsoKind::TcpV4 | GsoKind::TcpV6 | GsoKind::UdpL4 | GsoKind::UdpFragments) => {
            ip.total_size.div_ceil(u32::from(offload.gso_size.max(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_is_given_once_and_in_no_order() {
        let (given, key) = (Identifications::default(), HashKey::new(7));
        let ids: Vec<u16> = (0..65_536).map(|_| given.single(&key)).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 65_536);
        let steps = ids
            .windows(2)
            .filter(|pair| pair[1].wrapping_sub(pair[0]) == 1);
        assert!(steps.count() < 2_048, "1,024 would be by chance");
        assert_eq!(given.single(&key), ids[0], "then again");
    }

    #[test]
    fn segments_count_up_and_are_nobody_elses() {
        let (given, key) = (Identifications::default(), HashKey::new(7));
        let mut ids = BTreeSet::new();
        for count in (2..=64).cycle().take(500) {
            let first = given.run(count, &key);
            assert!(
                (0..count).all(|index| ids.insert(first + index as u16)),
                "{count}"
            );
            assert!(ids.insert(given.single(&key)));
        }
        // More than a block has pass over as many blocks as they touch.
        let before = given.copy();
        given.run(130, &key);
        let three = [64; 3].map(|count| before.run(count, &key));
        assert_eq!(three.iter().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(given.single(&key), before.single(&key));
    }
}
