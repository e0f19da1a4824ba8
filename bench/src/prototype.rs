//! The least that a method can cost: what stands beside a line of the bar that falls short.
//!
//! [`forwarder`] copies frames between two TAPs with virtio headers, and [`lookup`] and
//! [`translation`] do what a switch and a NAT cannot do without. There is no learning, no
//! admission, no counter, no session: Causeway does all of that, and should come close.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::tests::lab::{self, Lab, Namespace};
use dataplane_port::tap::{Tap, TapBuilder};
use dataplane_port::{Batch, PortIo};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::system::{System, Work};

/// How the threads of the forwarder wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Two, each looking for frames for 50 µs before it sleeps.
    TwoSpinning,
    /// One that sleeps at once.
    OneSleeping,
}

/// How long a spinning thread looks for frames.
const SPIN: Duration = Duration::from_micros(50);
/// How long a sleeping thread sleeps before it looks whether it is to end, in milliseconds.
const SLEEP_MS: u8 = 50;
/// Names of the threads begin so.
const NAMES: &str = "prototype-";

/// Two sandboxes with TAPs, and threads that copy.
///
/// # Errors
/// When a device or a thread cannot be made.
pub fn forwarder(threads: Threads) -> io::Result<System> {
    let lab = Lab::new("bench-prototype");
    let (count, spin) = match threads {
        Threads::TwoSpinning => (2, SPIN),
        Threads::OneSleeping => (1, Duration::ZERO),
    };
    let mut sandboxes = Vec::new();
    let mut queues = Vec::new();
    for address in ["10.0.0.2/16", "10.0.0.3/16"] {
        let ns = lab.namespace(address);
        queues.push(taps(&ns, count)?);
        ns.add_address("eth0", address);
        ns.set_up("eth0");
        sandboxes.push(ns);
    }
    let (second, first) = (queues.pop(), queues.pop());
    let pairs = first
        .into_iter()
        .flatten()
        .zip(second.into_iter().flatten());
    let mut forwarder = Forwarder {
        stop: Arc::default(),
        threads: Vec::new(),
        _lab: lab,
    };
    for (index, (one, two)) in pairs.enumerate() {
        let stop = Arc::clone(&forwarder.stop);
        let body = move || forward(one, two, spin, &stop);
        let builder = std::thread::Builder::new().name(format!("{NAMES}{index}"));
        forwarder.threads.push(builder.spawn(body)?);
    }
    let work = Work::Threads {
        name: "prototype".to_owned(),
        prefix: NAMES.to_owned(),
    };
    Ok(System::of_pair(&sandboxes, work, Box::new(forwarder)))
}

fn taps(ns: &Namespace, count: usize) -> io::Result<Vec<Tap>> {
    let made = ns.run(|| TapBuilder::new("eth0").queues(count).create());
    let index = ns.link("eth0").index;
    lab::block_on(ns.netlink().set_noqueue(index)).map_err(io::Error::other)?;
    made.map_err(io::Error::other)
}

/// Ends its threads when it is dropped.
struct Forwarder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _lab: Lab,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn forward(mut one: Tap, mut two: Tap, spin: Duration, stop: &AtomicBool) {
    let mut batch = Batch::new();
    let mut busy = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let copied = copy(&mut one, &mut two, &mut batch) | copy(&mut two, &mut one, &mut batch);
        if copied {
            busy = Instant::now();
        } else if busy.elapsed() >= spin {
            let fds = [one.readiness(), two.readiness()];
            sleep(fds.into_iter().flatten());
        }
    }
}

/// Copies one batch; `false` when there was nothing.
fn copy(from: &mut Tap, to: &mut Tap, batch: &mut Batch) -> bool {
    let received = from.recv(batch).is_ok();
    let mut left = batch.frames_mut();
    while !left.is_empty() {
        left = match to.send(left) {
            Ok(sent) => &mut left[sent..],
            // The device has no room, or refuses one: it is lost.
            Err(_) => &mut left[1..],
        };
    }
    batch.clear();
    received
}

fn sleep<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // A signal is a reason to look, like any other.
    let _ = poll(&mut fds, PollTimeout::from(SLEEP_MS));
}

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
