//! Probes: frames by which the switch finds out that two of its ports are connected outside.
//!
//! A probe leaves by one port, to a group that other bridges forward. Where it comes back there is
//! a way around the switch. It is 60 bytes: an Ethernet header of EtherType 0x88b5 (IEEE 802-2014
//! clause 9.2.4, for local experiments), the port's number, and a tag that only this process can
//! make, so that an endpoint cannot accuse another's port.

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::addr::{MacAddr, PortId};
use crate::headers::{ETHERNET_SIZE, array_at};

/// The group that probes are sent to: locally administered, so that every bridge floods it.
pub const PROBE_GROUP: MacAddr = MacAddr([0x03, 0xca, 0, 0, 0, 0x01]);
/// EtherType of a probe.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;
/// Bytes of a probe, the least that Ethernet carries.
pub const PROBE_SIZE: usize = 60;

/// Behind the Ethernet header: port, tag.
const PORT_AT: usize = ETHERNET_SIZE;
const TAG_AT: usize = PORT_AT + 2;

/// The secret by which a process knows its own probes.
#[derive(Clone, Copy, Debug)]
pub struct ProbeKey(u64, u64);

impl ProbeKey {
    /// From a seed, so that a simulation repeats itself.
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self(rng.u64(..), rng.u64(..))
    }

    /// The probe that leaves by `port`.
    pub fn probe(&self, port: PortId) -> [u8; PROBE_SIZE] {
        let [high, low] = port.0.to_be_bytes();
        let source = MacAddr([0x02, 0xca, 0, 1, high, low]);
        let mut probe = [0; PROBE_SIZE];
        probe[..6].copy_from_slice(&PROBE_GROUP.0);
        probe[6..12].copy_from_slice(&source.0);
        probe[12..14].copy_from_slice(&PROBE_ETHERTYPE.to_be_bytes());
        probe[PORT_AT..TAG_AT].copy_from_slice(&[high, low]);
        probe[TAG_AT..TAG_AT + 8].copy_from_slice(&self.tag(port).to_be_bytes());
        probe
    }

    /// The port that a probe of this process left by; `None` for everything else.
    pub fn read(&self, bytes: &[u8]) -> Option<PortId> {
        let port = PortId(u16::from_be_bytes(array_at(bytes, PORT_AT)?));
        let tag = u64::from_be_bytes(array_at(bytes, TAG_AT)?);
        (tag == self.tag(port)).then_some(port)
    }

    fn tag(&self, port: PortId) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.0, self.1);
        hasher.write_u16(port.0);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Headers;

    #[test]
    fn a_probe_is_an_ethernet_frame_to_a_group_that_bridges_forward() {
        let probe = ProbeKey::new(1).probe(PortId(0x102));
        let headers = Headers::parse(&probe).unwrap();
        assert_eq!(headers.dst, PROBE_GROUP);
        assert!(headers.dst.is_group() && !headers.dst.is_link_local_group());
        assert!(!headers.src.is_group());
        assert_eq!(headers.ethertype, PROBE_ETHERTYPE);
    }

    #[test]
    fn only_its_own_process_reads_a_probe_and_no_bit_of_it_can_be_changed() {
        let (own, other) = (ProbeKey::new(1), ProbeKey::new(2));
        let probe = own.probe(PortId(7));
        assert_eq!(own.read(&probe), Some(PortId(7)));
        assert_eq!(other.read(&probe), None);
        for bit in 8 * PORT_AT..8 * (TAG_AT + 8) {
            let mut forged = probe;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(own.read(&forged), None, "bit {bit}");
        }
        assert_eq!(own.read(&probe[..TAG_AT + 7]), None, "cut short");
    }
}
