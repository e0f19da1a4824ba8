//! The least that a method can cost: what stands beside a line of the bar that falls short.
//!
//! [`forwarder`] carries frames between two devices, and [`lookup`] and [`translation`] do what a
//! switch and a NAT cannot do without. There is no learning, no admission, no counter, no session:
//! Causeway does all of that, and should come close.

mod attaching;
mod forwarder;

use std::net::IpAddr;
use std::time::Instant;

pub use self::attaching::Attacher;
pub use self::forwarder::{Prototype, forwarder};

/// Slots of a table for so many keys: at most half are used.
fn slots(keys: usize) -> usize {
    (2 * keys).next_power_of_two()
}

/// A flat table with linear probing; no key is 0.
struct Table {
    slots: Vec<(u64, u64)>,
}

impl Table {
    fn new(keys: usize) -> Self {
        Self {
            slots: vec![(0, 0); slots(keys)],
        }
    }

    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        // Fibonacci hashing: the high bits of the product are well mixed.
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.slots[slot].0 != key && self.slots[slot].0 != 0 {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, key: u64, value: u64) {
        let slot = self.find(key);
        self.slots[slot] = (key, value);
    }

    fn get(&self, key: u64) -> u64 {
        self.slots[self.find(key)].1
    }
}

/// The MAC of a station, as a key.
fn station(n: usize) -> u64 {
    0x0200_0000_0000 | (n as u64 + 1)
}

/// Nanoseconds for each frame: two MACs are written and read, and both are looked up among
/// `stations`, with destinations drawn by `draw`.
pub fn lookup(stations: usize, draw: impl Fn(&mut fastrand::Rng) -> usize) -> f64 {
    const FRAMES: usize = 2_000_000;
    let mut table = Table::new(stations + 2);
    for n in 0..stations + 2 {
        table.insert(station(n), n as u64 + 1);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let targets: Vec<u64> = (0..1 << 16).map(|_| station(draw(&mut rng))).collect();
    let source = station(stations + 1);
    let mut frame = [0x5a_u8; 60];
    let start = Instant::now();
    for target in targets.iter().cycle().take(FRAMES) {
        frame[..6].copy_from_slice(&target.to_be_bytes()[2..]);
        frame[6..12].copy_from_slice(&source.to_be_bytes()[2..]);
        let frame = std::hint::black_box(&frame);
        let known = table.get(mac(&frame[6..12]));
        std::hint::black_box((known, table.get(mac(&frame[..6]))));
    }
    start.elapsed().as_nanos() as f64 / FRAMES as f64
}

fn mac(bytes: &[u8]) -> u64 {
    let mut key = [0; 8];
    key[2..].copy_from_slice(bytes);
    u64::from_be_bytes(key)
}

/// Nanoseconds for each datagram: its headers are read, its flow is looked up among `flows`, and
/// source address, port and both checksums are rewritten.
pub fn translation(flows: usize) -> f64 {
    const FRAMES: usize = 1_000_000;
    let address: IpAddr = [192, 0, 2, 1].into();
    let IpAddr::V4(external) = address else {
        return f64::NAN; // it was written as IPv4 above
    };
    let mut table = Table::new(flows);
    let mut frames: Vec<[u8; 60]> = Vec::with_capacity(flows);
    for flow in 0..flows {
        let mut frame = [0x5a_u8; 60];
        frame[26..30].copy_from_slice(&[10, 0, 0, 2]);
        frame[30..34].copy_from_slice(&[198, 51, 100, 9]);
        frame[34..36].copy_from_slice(&(2000 + flow as u16).to_be_bytes());
        frame[36..38].copy_from_slice(&53_u16.to_be_bytes());
        table.insert(flow_key(&frame), 1024 + flow as u64);
        frames.push(frame);
    }
    let mut frame = [0; 60];
    let start = Instant::now();
    for original in frames.iter().cycle().take(FRAMES) {
        frame.copy_from_slice(original);
        let port = table.get(flow_key(std::hint::black_box(&frame))) as u16;
        let new = [
            u16::from_be_bytes([external.octets()[0], external.octets()[1]]),
            u16::from_be_bytes([external.octets()[2], external.octets()[3]]),
        ];
        let old = [word(&frame, 26), word(&frame, 28), word(&frame, 34)];
        put(&mut frame, 26, new[0]);
        put(&mut frame, 28, new[1]);
        put(&mut frame, 34, port);
        let ip = update(word(&frame, 24), &old[..2], &new);
        put(&mut frame, 24, ip);
        let udp = update(word(&frame, 40), &old, &[new[0], new[1], port]);
        put(&mut frame, 40, udp);
        std::hint::black_box(&frame);
    }
    start.elapsed().as_nanos() as f64 / FRAMES as f64
}

fn flow_key(frame: &[u8; 60]) -> u64 {
    let word = |at: usize| u64::from(word(frame, at));
    let addresses = word(26) << 48 | word(28) << 32 | word(30) << 16 | word(32);
    addresses.rotate_left(13) ^ (word(34) << 16 | word(36)) ^ u64::from(frame[23]) << 40
}

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A checksum after words have changed (RFC 1624, equation 3).
fn update(checksum: u16, old: &[u16], new: &[u16]) -> u16 {
    let mut sum = u32::from(!checksum);
    sum += old.iter().map(|word| u32::from(!word)).sum::<u32>();
    sum += new.iter().map(|word| u32::from(*word)).sum::<u32>();
    sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_finds_what_was_put_in() {
        let mut table = Table::new(100);
        for n in 0..100 {
            table.insert(station(n), n as u64 + 1);
        }
        assert!((0..100).all(|n| table.get(station(n)) == n as u64 + 1));
        assert_eq!(table.get(station(100)), 0);
    }

    #[test]
    fn a_checksum_follows_its_words() {
        // RFC 1624, section 4: 0x5555 becomes 0x3285 under a checksum of 0xdd2f.
        assert_eq!(update(0xdd2f, &[0x5555], &[0x3285]), 0x0000);
    }
}
