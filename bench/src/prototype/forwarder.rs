//! Frames from one device to the other and back: as they are between two TAPs or two veths by AF_XDP,
//! or with one address rewritten between a TAP and the packet sockets of a network card.

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
use dataplane_port::xdp::{End, SharedPair, XdpBuilder, XdpError};
use dataplane_port::{Batch, PortIo};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::system::{Path, SERVER_PORT, Setup, Shape, System, Work, two_sandboxes};

/// A forwarder between two sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prototype {
    /// How frames get from one device to the other.
    pub passing: Passing,
    /// Who carries them.
    pub threads: Threads,
}

/// How frames get from one device to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// Between TAPs, by reading and writing.
    Taps,
    /// Between veths by AF_XDP, copied out of the memory of one socket and into that of the other.
    XdpCopying,
    /// Between veths by AF_XDP with memory in common: the descriptor moves, the frame stays.
    XdpSharing,
}

impl Prototype {
    /// Between TAPs.
    pub const TAPS: [Self; 2] = Self::of(Passing::Taps);
    /// By AF_XDP, copying.
    pub const XDP_COPYING: [Self; 2] = Self::of(Passing::XdpCopying);
    /// By AF_XDP, sharing memory.
    pub const XDP_SHARING: [Self; 2] = Self::of(Passing::XdpSharing);

    const fn of(passing: Passing) -> [Self; 2] {
        [
            Self {
                passing,
                threads: Threads::TwoSpinning,
            },
            Self {
                passing,
                threads: Threads::OneSleeping,
            },
        ]
    }
}

impl std::fmt::Display for Prototype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.passing {
            Passing::Taps => "prototype",
            Passing::XdpCopying => "copying prototype",
            Passing::XdpSharing => "sharing prototype",
        })?;
        f.write_str(match self.threads {
            Threads::TwoSpinning => " of two threads",
            Threads::OneSleeping => " of one thread",
        })
    }
}

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
pub(super) type Queues = Vec<Box<dyn PortIo>>;

/// Two sandboxes, or a sandbox and an outside, with threads that carry their frames.
///
/// # Errors
/// When a device or a thread cannot be made.
pub fn forwarder(prototype: Prototype, setup: &Setup) -> io::Result<System> {
    let threads = prototype.threads;
    match (prototype.passing, setup.shape) {
        (Passing::Taps, Shape::Pair | Shape::Star | Shape::Mesh) => between_taps(threads),
        (Passing::Taps, Shape::NatOut | Shape::PortForward) => to_the_outside(threads, setup),
        (Passing::XdpCopying | Passing::XdpSharing, _) => by_xdp(prototype, setup),
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
    let forwarder = Forwarder::start(copying(ends, None), threads.spin(), Box::new(lab))?;
    Ok(System::of_pair(&sandboxes, work(), Box::new(forwarder)))
}

/// Each thread has a queue of both veths, so that a flow stays with one.
fn by_xdp(prototype: Prototype, setup: &Setup) -> io::Result<System> {
    let threads = prototype.threads;
    let (host, sandboxes, names) = two_sandboxes("prototype", setup, threads.count());
    let [first, second] = names.map(|name| {
        let builder = XdpBuilder::new(&name).queues(threads.count());
        builder.mtu(setup.mtu)
    });
    let opened: Result<Vec<Box<dyn Carry>>, XdpError> = host.ns.run(|| {
        if prototype.passing == Passing::XdpSharing {
            let pairs = SharedPair::open(&first, &second)?.into_iter();
            return Ok(pairs.map(|pair| Box::new(pair) as _).collect());
        }
        let open = |builder: &XdpBuilder| {
            let queues = builder.open()?.into_iter();
            Ok(queues.map(|queue| Box::new(queue) as _).collect())
        };
        Ok(copying([open(&first)?, open(&second)?], None))
    });
    let carriers = opened.map_err(io::Error::other)?;
    let forwarder = Forwarder::start(carriers, threads.spin(), Box::new(host))?;
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
    let carriers = copying([devices, card.collect()], Some(translation));
    let forwarder = Forwarder::start(carriers, threads.spin(), keep)?;
    Ok(System::of_paths(vec![path], work(), Box::new(forwarder)))
}

fn work() -> Work {
    Work::Threads {
        name: "prototype".to_owned(),
        prefix: NAMES.to_owned(),
    }
}

/// A TAP `eth0` in a namespace, as attachments make it.
pub(super) fn taps(ns: &Namespace, count: usize) -> io::Result<Queues> {
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
    /// A thread for each carrier; `keep` lives as long.
    fn start(
        carriers: Vec<Box<dyn Carry>>,
        spin: Duration,
        keep: Box<dyn std::any::Any>,
    ) -> io::Result<Self> {
        let mut forwarder = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            _keep: keep,
        };
        for (index, carrier) in carriers.into_iter().enumerate() {
            let stop = Arc::clone(&forwarder.stop);
            let builder = std::thread::Builder::new().name(format!("{NAMES}{index}"));
            let thread = builder.spawn(move || forward(carrier, spin, &stop))?;
            forwarder.threads.push(thread);
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

fn forward(mut carrier: Box<dyn Carry>, spin: Duration, stop: &AtomicBool) {
    let mut busy = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if carrier.carry() {
            busy = Instant::now();
        } else if busy.elapsed() >= spin {
            sleep(carrier.readiness().into_iter().flatten());
        }
    }
}

/// What a thread of a forwarder does.
trait Carry: Send {
    /// Carries one batch each way; `false` when there was nothing.
    fn carry(&mut self) -> bool;

    /// What to wait on.
    fn readiness(&self) -> [Option<BorrowedFd<'_>>; 2];
}

/// Copies between a queue of each end.
struct Copying {
    one: Box<dyn PortIo>,
    two: Box<dyn PortIo>,
    batch: Batch,
    translation: Option<Translation>,
}

fn copying([first, second]: [Queues; 2], nat: Option<Translation>) -> Vec<Box<dyn Carry>> {
    let pairs = first.into_iter().zip(second);
    let copying = pairs.map(|(one, two)| Copying {
        one,
        two,
        batch: Batch::new(),
        translation: nat,
    });
    copying.map(|it| Box::new(it) as _).collect()
}

impl Carry for Copying {
    fn carry(&mut self) -> bool {
        let nat = self.translation.as_ref();
        let out = |frame: &mut FrameBuf| nat.map_or((), |nat| nat.out(frame));
        let back = |frame: &mut FrameBuf| nat.map_or((), |nat| nat.back(frame));
        copy(&mut *self.one, &mut *self.two, &mut self.batch, out)
            | copy(&mut *self.two, &mut *self.one, &mut self.batch, back)
    }

    fn readiness(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.one.readiness(), self.two.readiness()]
    }
}

impl Carry for SharedPair {
    fn carry(&mut self) -> bool {
        self.forward(End::First) + self.forward(End::Second) > 0
    }

    fn readiness(&self) -> [Option<BorrowedFd<'_>>; 2] {
        SharedPair::readiness(self).map(Some)
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
    use dataplane_port::conformance::{Packet, PacketKind, numbered, wait};
    use dataplane_port::packet::PacketSocket;
    use etherparse::{PacketBuilder, SlicedPacket};

    /// What arrives next of what the test sends; the sandboxes say something by themselves.
    fn take(socket: &mut PacketSocket, sent: &FrameBuf) -> Option<FrameBuf> {
        let mut rx = Batch::new();
        wait(|| {
            rx.clear();
            let _ = socket.recv(&mut rx);
            let mut frames = rx.take_frames().into_iter();
            frames.find(|frame| frame.bytes() == sent.bytes())
        })
    }

    #[test]
    fn a_frame_passes_every_prototype_bit_for_bit_both_ways() {
        if !lab::require_root("prototypes") {
            return;
        }
        let all = [
            Prototype::TAPS,
            Prototype::XDP_COPYING,
            Prototype::XDP_SHARING,
        ];
        for prototype in all.concat() {
            let system = forwarder(prototype, &Setup::default()).unwrap();
            let path = &system.paths[0];
            let open = |ns: &Namespace| ns.run(|| PacketSocket::open("eth0")).unwrap();
            let (mut one, mut two) = (open(&path.from), open(&path.to));
            let mut frames: Vec<FrameBuf> = [60, 61, 300, 1_514]
                .into_iter()
                .zip(0..)
                .map(|(size, number)| FrameBuf::from_bytes(&numbered(size, number)))
                .collect();
            for kind in PacketKind::ALL {
                let packet = Packet::new(kind, &[], 200);
                let mut unfinished = FrameBuf::from_bytes(&packet.partial());
                unfinished.offload = packet.checksum_offload();
                frames.push(unfinished);
            }
            for (from, to) in [(0, 1), (1, 0)] {
                let ends = [&mut one, &mut two];
                for frame in &mut frames {
                    let sent = ends[from].send(std::slice::from_mut(frame));
                    assert_eq!(sent.unwrap(), 1, "{prototype}");
                    let arrived = take(ends[to], frame);
                    let offload = arrived.map(|frame| frame.offload);
                    assert_eq!(offload, Some(frame.offload), "{prototype}: {frame:?}");
                }
            }
        }
    }

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
