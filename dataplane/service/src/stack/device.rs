//! The device of a [`Stack`](super::Stack): packets in memory.

use std::collections::VecDeque;
use std::net::IpAddr;

use dataplane_core::headers::ethertype;
use dataplane_core::time::Instant;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant as Clock;
use smoltcp::wire::{IpVersion, Ipv4Packet, Ipv6Packet};

/// Packets that wait to leave; smoltcp keeps what exceeds them. They are taken out after each turn.
const PACKETS_OUT_MAX: usize = 1_024;

#[derive(Debug)]
pub(super) struct PacketDevice {
    mtu: u16,
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl PacketDevice {
    pub fn new(mtu: u16) -> Self {
        Self {
            mtu,
            incoming: None,
            outgoing: VecDeque::new(),
        }
    }

    /// The packet that is received next.
    pub fn put(&mut self, packet: &[u8]) {
        self.incoming = Some(packet.to_vec());
    }

    /// The oldest packet that leaves.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }
}

/// smoltcp's clock.
pub(super) fn clock(now: Instant) -> Clock {
    Clock::from_micros(i64::try_from(now.nanos() / 1_000).unwrap_or(i64::MAX))
}

/// Where a packet goes, and its EtherType.
pub(super) fn destination(packet: &[u8]) -> Option<(IpAddr, u16)> {
    match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            Some((packet.dst_addr().into(), ethertype::IPV4))
        }
        IpVersion::Ipv6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            Some((packet.dst_addr().into(), ethertype::IPV6))
        }
    }
}

pub(super) struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

pub(super) struct TxToken<'d>(&'d mut VecDeque<Vec<u8>>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, size: usize, fill: F) -> R {
        let mut packet = vec![0; size];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for PacketDevice {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Clock) -> Option<(RxToken, TxToken<'_>)> {
        let packet = self.incoming.take()?;
        Some((RxToken(packet), TxToken(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: Clock) -> Option<TxToken<'_>> {
        let room = self.outgoing.len() < PACKETS_OUT_MAX;
        room.then_some(TxToken(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities
    }
}
