//! Frames from one device to the other and back: copied as they are between two TAPs, or with one
//! address rewritten between a TAP and the packet sockets of a network card.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::tests::lab::{self, Lab, Namespace};
use control::link::TAP_QUEUE_FRAMES;
use dataplane_core::addr::MacAddr;
use dataplane_core::checksum::{self, Change, L4Checksum};
use dataplane_core::frame::FrameBuf;
use dataplane_port::packet::PacketBuilder;
use dataplane_port::tap::TapBuilder;
use dataplane_port::{Batch, PortIo};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::system::{Path, SERVER_PORT, Setup, Shape, System, Work};

/// How the threads of the forwarder wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Two, each looking for frames for 50 µs before it sleeps.
    TwoSpinning,
    /// One that sleeps at once.
    OneSleeping,
}

impl Threads {
    const fn count(self) -> usize {
        match self {
            Self::TwoSpinning => 2,
            Self::OneSleeping => 1,
        }
    }

    const fn spin(self) -> Duration {
        match self {
            Self::TwoSpinning => SPIN,
            Self::OneSleeping => Duration::ZERO,
        }
    }
}

/// How long a spinning thread looks for frames.
const SPIN: Duration = Duration::from_micros(50);
/// How long a sleeping thread sleeps before it looks whether it is to end, in milliseconds.
const SLEEP_MS: u8 = 50;
/// Names of the threads begin so.
const NAMES: &str = "prototype-";
/// Where the IPv4 header of a frame without a tag begins.
const IPV4_OFFSET: usize = 14;
/// Bytes of an IPv4 header without options; frames with options are copied as they are.
const IPV4_SIZE: usize = 20;

/// The host's network card.
const CARD: &str = "up0";
/// The sandbox's address and that of its gateway.
const INSIDE: &str = "10.0.0.2";
const GATEWAY: &str = "10.0.0.1";
/// The address outside, and the one that the sandbox is seen by there.
const OUTSIDE: &str = "192.0.2.2";
const EXTERNAL: &str = "192.0.2.1";

/// One end's queues, one for each thread.
type Queues = Vec<Box<dyn PortIo>>;

/// Two sandboxes, or a sandbox and an outside, with threads that carry their frames.
///
/// # Errors
/// When a device or a thread cannot be made.
pub fn forwarder(threads: Threads, setup: &Setup) -> io::Result<System> {
    match setup.shape {
        Shape::Pair | Shape::Star | Shape::Mesh => between_taps(threads),
        Shape::NatOut | Shape::PortForward => to_the_outside(threads, setup),
    }
}

fn between_taps(threads: Threads) -> io::Result<System> {
    let lab = Lab::new("bench-prototype");
    let mut sandboxes = Vec::new();
    let mut ends = Vec::new();
    for address in ["10.0.0.2/16", "10.0.0.3/16"] {
        let ns = lab.namespace(address);
        ends.push(taps(&ns, threads.count())?);
        ns.add_address("eth0", address);
        ns.set_up("eth0");
        sandboxes.push(ns);
    }
    let (second, first) = (ends.pop(), ends.pop());
    let ends = [first, second].map(Option::unwrap_or_default);
    let forwarder = Forwarder::start(ends, threads.spin(), None, Box::new(lab))?;
    Ok(System::of_pair(&sandboxes, work(), Box::new(forwarder)))
}

/// The host's interface has no address, so that its kernel answers nothing; neighbours are static.
fn to_the_outside(threads: Threads, setup: &Setup) -> io::Result<System> {
    let lab = Lab::new("bench-prototype");
    let [host, inside, outside] = ["host", "inside", "outside"].map(|name| lab.namespace(name));
    let devices = taps(&inside, threads.count())?;
    lab.cable(&host, CARD, &outside, "eth0");
    let ends = [(&inside, INSIDE, GATEWAY), (&outside, OUTSIDE, EXTERNAL)];
    for (ns, address, neighbour) in ends {
        ns.set_mtu("eth0", setup.mtu.into());
        ns.add_address("eth0", &format!("{address}/24"));
        ns.set_up("eth0");
        let (netlink, link) = (ns.netlink(), ns.link("eth0").index);
        let add = netlink.add_static_neighbour(link, lab::ip(neighbour), host.mac(CARD));
        lab::block_on(add).map_err(io::Error::other)?;
    }
    inside.add_default_route("eth0", GATEWAY);
    host.set_mtu(CARD, setup.mtu.into());
    let builder = PacketBuilder::new(CARD).queues(threads.count());
    let sockets = host.run(|| builder.open()).map_err(io::Error::other)?;
    let card = sockets.into_iter().map(|socket| Box::new(socket) as _);
    let translation = Translation {
        inside: lab::ip(INSIDE),
        external: lab::ip(EXTERNAL),
        inside_mac: inside.mac("eth0"),
        outside_mac: outside.mac("eth0"),
        own_mac: host.mac(CARD),
    };
    let at = |address| SocketAddr::new(lab::ip(address), SERVER_PORT);
    let path = match setup.shape {
        Shape::PortForward => Path {
            from: outside.clone(),
            to: inside.clone(),
            listen: at(INSIDE),
            connect: at(EXTERNAL),
        },
        _ => Path {
            from: inside.clone(),
            to: outside.clone(),
            listen: at(OUTSIDE),
            connect: at(OUTSIDE),
        },
    };
    let keep = Box::new((host, inside, outside, lab));
    let ends = [devices, card.collect()];
    let forwarder = Forwarder::start(ends, threads.spin(), Some(translation), keep)?;
    Ok(System::of_paths(vec![path], work(), Box::new(forwarder)))
}

fn work() -> Work {
    Work::Threads {
        name: "prototype".to_owned(),
        prefix: NAMES.to_owned(),
    }
}

fn taps(ns: &Namespace, count: usize) -> io::Result<Queues> {
    let made = ns.run(|| TapBuilder::new("eth0").queues(count).create());
    let index = ns.link("eth0").index;
    let netlink = ns.netlink();
    lab::block_on(netlink.set_noqueue(index)).map_err(io::Error::other)?;
    let longer = netlink.set_tx_queue_frames(index, TAP_QUEUE_FRAMES);
    lab::block_on(longer).map_err(io::Error::other)?;
    let taps = made.map_err(io::Error::other)?.into_iter();
    Ok(taps.map(|tap| Box::new(tap) as Box<dyn PortIo>).collect())
}

/// Ends its threads when it is dropped.
struct Forwarder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _keep: Box<dyn std::any::Any>,
}

impl Forwarder {
    /// A thread for each pair of queues of the two ends; `keep` lives as long.
    fn start(
        [first, second]: [Queues; 2],
        spin: Duration,
        translation: Option<Translation>,
        keep: Box<dyn std::any::Any>,
    ) -> io::Result<Self> {
        let mut forwarder = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            _keep: keep,
        };
        for (index, (one, two)) in first.into_iter().zip(second).enumerate() {
            let stop = Arc::clone(&forwarder.stop);
            let body = move || forward(one, two, spin, translation.as_ref(), &stop);
            let builder = std::thread::Builder::new().name(format!("{NAMES}{index}"));
            forwarder.threads.push(builder.spawn(body)?);
        }
        Ok(forwarder)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn forward(
    mut one: Box<dyn PortIo>,
    mut two: Box<dyn PortIo>,
    spin: Duration,
    translation: Option<&Translation>,
    stop: &AtomicBool,
) {
    let mut batch = Batch::new();
    let mut busy = Instant::now();
    let out = |frame: &mut FrameBuf| translation.map_or((), |nat| nat.out(frame));
    let back = |frame: &mut FrameBuf| translation.map_or((), |nat| nat.back(frame));
    while !stop.load(Ordering::Relaxed) {
        let copied = copy(&mut *one, &mut *two, &mut batch, out)
            | copy(&mut *two, &mut *one, &mut batch, back);
        if copied {
            busy = Instant::now();
        } else if busy.elapsed() >= spin {
            let fds = [one.readiness(), two.readiness()];
            sleep(fds.into_iter().flatten());
        }
    }
}

/// Copies one batch; `false` when there was nothing.
fn copy(
    from: &mut dyn PortIo,
    to: &mut dyn PortIo,
    batch: &mut Batch,
    rewrite: impl Fn(&mut FrameBuf),
) -> bool {
    let received = from.recv(batch).is_ok();
    let mut left = batch.frames_mut();
    left.iter_mut().for_each(rewrite);
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

/// One inside address behind one external one; ports stay as they are.
#[derive(Clone, Copy, Debug)]
struct Translation {
    inside: IpAddr,
    external: IpAddr,
    inside_mac: MacAddr,
    outside_mac: MacAddr,
    own_mac: MacAddr,
}

impl Translation {
    fn out(&self, frame: &mut FrameBuf) {
        self.rewrite(frame, 12, self.inside, self.external, self.outside_mac);
    }

    fn back(&self, frame: &mut FrameBuf) {
        self.rewrite(frame, 16, self.external, self.inside, self.inside_mac);
    }

    /// Replaces the address at an offset of the IPv4 header, and both checksums with it.
    fn rewrite(&self, frame: &mut FrameBuf, at: usize, old: IpAddr, new: IpAddr, to: MacAddr) {
        let offload = frame.offload;
        let bytes = frame.bytes_mut();
        let (IpAddr::V4(before), IpAddr::V4(after)) = (old, new) else {
            return;
        };
        let at = IPV4_OFFSET + at;
        let plain = bytes.get(12..15) == Some(&[0x08, 0x00, 0x45]);
        if !plain || bytes.get(at..at + 4) != Some(&before.octets()) {
            return;
        }
        bytes[..6].copy_from_slice(&to.0);
        bytes[6..12].copy_from_slice(&self.own_mac.0);
        bytes[at..at + 4].copy_from_slice(&after.octets());
        let change = Change::NONE.ip(old, new);
        let sum = IPV4_OFFSET + 10;
        let header = u16::from_be_bytes([bytes[sum], bytes[sum + 1]]);
        bytes[sum..sum + 2].copy_from_slice(&change.complete(header).to_be_bytes());
        let kind = match bytes[IPV4_OFFSET + 9] {
            6 => L4Checksum::Tcp,
            17 => L4Checksum::Udp,
            _ => return,
        };
        let l4 = IPV4_OFFSET + IPV4_SIZE;
        checksum::update_l4(bytes, &offload, l4, kind, change, Change::NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket};

    #[test]
    fn a_translated_segment_has_valid_checksums() {
        let segment = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 2], [192, 0, 2, 2], 64)
            .tcp(40_000, 5_201, 1, 1_000);
        let mut bytes = Vec::new();
        segment.write(&mut bytes, b"payload").unwrap();
        let mut frame = FrameBuf::from_bytes(&bytes);
        let translation = Translation {
            inside: [10, 0, 0, 2].into(),
            external: [192, 0, 2, 1].into(),
            inside_mac: MacAddr([1; 6]),
            outside_mac: MacAddr([3; 6]),
            own_mac: MacAddr([4; 6]),
        };
        translation.out(&mut frame);
        let once = frame.bytes().to_vec();
        let sliced = SlicedPacket::from_ethernet(&once).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else {
            panic!("IPv4 went in");
        };
        let header = ip.header();
        assert_eq!(header.source(), [192, 0, 2, 1]);
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
        let Some(etherparse::TransportSlice::Tcp(tcp)) = &sliced.transport else {
            panic!("TCP went in");
        };
        let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
        assert_eq!(sum, Ok(tcp.checksum()));
        assert_eq!(&once[..12], &[3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
        translation.out(&mut frame);
        assert_eq!(frame.bytes(), once, "only the inside address is translated");
    }
}
