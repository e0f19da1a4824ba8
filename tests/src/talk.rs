//! Conversations between namespaces: echo servers and pings by plain sockets, and a witness that
//! sees every frame of an interface.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane_core::addr::MacAddr;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::headers::{Headers, L4Kind};
use dataplane_port::packet::{Membership, PacketBuilder, PacketSocket};
use dataplane_port::{Batch, PortIo};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::lab::{DEADLINE, Namespace, connect, wait_until};

/// How long somebody waits who expects no answer: answers take microseconds here.
pub const SILENCE: Duration = Duration::from_millis(300);
/// Pause between two looks at a packet socket.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// Serves TCP on `address`: says the client's address in a line, then sends back what comes. Ends
/// with the process.
///
/// # Panics
/// When the address is taken.
pub fn serve_tcp(ns: &Namespace, address: &str) {
    let listener = ns.run(|| TcpListener::bind(address));
    let listener = listener.unwrap_or_else(|e| panic!("{address}: {e}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo_stream(stream));
        }
    });
}

fn echo_stream(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    writeln!(stream, "{peer}")?;
    let mut copy = stream.try_clone()?;
    io::copy(&mut stream, &mut copy).map(drop)
}

/// Serves UDP on `address`: sends back the client's address, a space, and what came. Ends with
/// the process.
///
/// # Panics
/// When the address is taken.
pub fn serve_udp(ns: &Namespace, address: &str) {
    let socket = ns.run(|| UdpSocket::bind(address));
    let socket = socket.unwrap_or_else(|e| panic!("{address}: {e}"));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((size, client)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{} ", client.ip().to_canonical()).into_bytes();
            answer.extend_from_slice(&buffer[..size]);
            // A client that is gone answers with an error, which is not the server's.
            let _ = socket.send_to(&answer, client);
        }
    });
}

/// Connects to a [`serve_tcp`], sends `size` bytes, gets them back, and returns the address that
/// the server sees.
///
/// # Panics
/// When that fails.
pub fn ask_tcp(ns: &Namespace, address: &str, size: usize) -> IpAddr {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let stream = ns.run(|| connect(DEADLINE, address));
    converse(&stream, size).unwrap_or_else(|e| panic!("{address}: {e}"))
}

fn converse(stream: &TcpStream, size: usize) -> io::Result<IpAddr> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut sent = vec![0; size];
    fastrand::fill(&mut sent);
    let mut writer = stream.try_clone()?;
    let writing = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            writer.write_all(&sent)?;
            writer.shutdown(std::net::Shutdown::Write)
        })
    };
    let mut received = Vec::new();
    reader.read_to_end(&mut received)?;
    writing.join().expect("a writer that does not panic")?;
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "what came back differs");
    line.trim().parse().map_err(io::Error::other)
}

/// Sends `size` bytes to a [`serve_udp`], again if nothing comes back, and returns the address
/// that the server sees.
///
/// # Panics
/// When nothing comes back, or something else.
pub fn ask_udp(ns: &Namespace, address: &str, size: usize) -> IpAddr {
    const TRIES_MAX: usize = 20;
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let client = ns.run(|| UdpSocket::bind(any)).expect("a socket");
    client.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let mut sent = vec![0; size];
    fastrand::fill(&mut sent);
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..TRIES_MAX {
        client
            .send_to(&sent, address)
            .unwrap_or_else(|e| panic!("{address}: {e}"));
        let Ok((got, _)) = client.recv_from(&mut buffer) else {
            continue;
        };
        let answer = &buffer[..got];
        let space = answer
            .iter()
            .position(|byte| *byte == b' ')
            .expect("an address first");
        assert!(answer[space + 1..] == sent, "what came back differs");
        let seen = std::str::from_utf8(&answer[..space]).expect("an address");
        return seen.parse().expect("an address");
    }
    panic!("no answer from {address}");
}

/// Whether a TCP connection is refused or unanswered.
pub fn unreachable_tcp(ns: &Namespace, address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address with a port");
    ns.run(|| TcpStream::connect_timeout(&address, SILENCE))
        .is_err()
}

/// Echo requests to one address.
#[derive(Debug)]
pub struct Pinger {
    socket: UdpSocket,
    request: u8,
    reply: u8,
    sequence: u16,
}

impl Pinger {
    /// Pings `address` from `ns`, by the kernel's own ping socket.
    ///
    /// # Panics
    /// When there is no way to `address`.
    pub fn new(ns: &Namespace, address: IpAddr) -> Self {
        Self::allow(ns);
        Self::open(ns, address)
    }

    /// Lets a namespace have ping sockets.
    ///
    /// # Panics
    /// When it cannot.
    pub fn allow(ns: &Namespace) {
        ns.set_sysctl("net/ipv4/ping_group_range", "0 0");
    }

    /// As [`Pinger::new`], from a namespace that may have ping sockets.
    ///
    /// # Panics
    /// When there is no way to `address`.
    pub fn open(ns: &Namespace, address: IpAddr) -> Self {
        let (family, protocol, request, reply) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
        };
        let opened =
            ns.run(|| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol));
        let socket = UdpSocket::from(opened.expect("a ping socket"));
        socket
            .connect((address, 0))
            .unwrap_or_else(|e| panic!("{address}: {e}"));
        Self {
            socket,
            request,
            reply,
            sequence: 0,
        }
    }

    /// Sends one request of `size` bytes and waits for its reply.
    pub fn ping(&mut self, size: usize, patience: Duration) -> bool {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence.to_be_bytes();
        let mut packet = vec![0xa5; 8 + size];
        packet[..8].copy_from_slice(&[self.request, 0, 0, 0, 0, 0, sequence[0], sequence[1]]);
        if self.socket.send(&packet).is_err() {
            return false;
        }
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            // An ICMP error is reported by the socket and ends nothing.
            let Ok(got) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let ours = got == packet.len() && buffer[0] == self.reply && buffer[6..8] == sequence;
            if ours {
                return buffer[8..got] == packet[8..];
            }
        }
    }
}

/// Whether one ping of `size` bytes is answered within the lab's deadline.
pub fn ping(ns: &Namespace, address: IpAddr, size: usize) -> bool {
    Pinger::new(ns, address).ping(size, DEADLINE)
}

/// Whether pings stay unanswered.
pub fn unpingable(ns: &Namespace, address: IpAddr) -> bool {
    !Pinger::new(ns, address).ping(56, SILENCE)
}

/// A packet socket that sees every frame of an interface, from the one side or the other.
#[derive(Debug)]
pub struct Witness {
    port: PacketSocket,
    batch: Batch,
}

impl Witness {
    /// Watches `interface` of `ns`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn new(ns: &Namespace, interface: &str) -> Self {
        let builder = PacketBuilder::new(interface).membership(Membership::Promiscuous);
        let mut opened = ns
            .run(|| builder.open())
            .unwrap_or_else(|e| panic!("{interface}: {e}"));
        Self {
            port: opened.remove(0),
            batch: Batch::new(),
        }
    }

    /// Sends a frame out of the interface, as soon as its queue has room.
    ///
    /// # Panics
    /// When it is refused until the lab's deadline.
    pub fn send(&mut self, frame: &[u8]) {
        wait_until(DEADLINE, "the interface takes a frame", || {
            self.try_send(frame, Offload::NONE)
        });
    }

    /// Sends a frame with what is left to do for it; `false` when the interface refuses it.
    pub fn try_send(&mut self, frame: &[u8], offload: Offload) -> bool {
        let mut frame = FrameBuf::from_bytes(frame);
        frame.offload = offload;
        matches!(self.port.send(&mut [frame]), Ok(1))
    }

    /// Shows `see` what has arrived; whether anything had.
    pub fn look(&mut self, mut see: impl FnMut(&[u8])) -> bool {
        self.look_whole(|frame| see(frame.bytes()))
    }

    /// As [`Witness::look`], with what is left to do for each frame.
    pub fn look_whole(&mut self, see: impl FnMut(&FrameBuf)) -> bool {
        let received = self.port.recv(&mut self.batch).unwrap_or(0);
        self.batch.frames().iter().for_each(see);
        self.batch.clear();
        received > 0
    }

    /// Frames that came too fast to be seen.
    pub fn missed(&self) -> u64 {
        self.port.edge_stats().rx_dropped
    }

    /// Watches in the background until told to stop, and keeps what `keep` makes of the frames.
    pub fn watch<T: Send + 'static>(
        mut self,
        mut keep: impl FnMut(&[u8]) -> Option<T> + Send + 'static,
    ) -> Watch<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut seen = 0;
            // Read before the last look, so that whatever came before the stop is looked at.
            loop {
                let last = stopped.load(Ordering::Relaxed);
                while self.look(|frame| {
                    seen += 1;
                    kept.extend(keep(frame));
                }) {}
                if last {
                    break;
                }
                std::thread::park_timeout(LOOK_PAUSE);
            }
            Seen {
                kept,
                seen,
                missed: self.missed(),
            }
        });
        Watch { stop, thread }
    }
}

/// A [`Witness`] at work.
#[derive(Debug)]
pub struct Watch<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen<T>>,
}

/// What a [`Watch`] has seen.
#[derive(Debug)]
pub struct Seen<T> {
    /// What was kept.
    pub kept: Vec<T>,
    /// Frames.
    pub seen: u64,
    /// Frames that came too fast.
    pub missed: u64,
}

impl<T> Watch<T> {
    /// Ends it.
    ///
    /// # Panics
    /// When it has panicked.
    pub fn end(self) -> Seen<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a watch that does not panic")
    }
}

/// Watches an interface: every frame that is not its own.
pub fn watch_others(ns: &Namespace, interface: &str) -> Watch<Vec<u8>> {
    let own = ns.mac(interface);
    Witness::new(ns, interface).watch(move |frame| {
        let src = Headers::parse(frame).map(|headers| headers.src);
        (src != Ok(own)).then(|| frame.to_vec())
    })
}

/// Holds what has come to an interface to one MAC: as source, and nowhere in it another of `inside`.
/// Returns what has come.
///
/// # Panics
/// With the frame that has another, or when next to nothing has come.
#[track_caller]
pub fn assert_one_mac(watch: Watch<Vec<u8>>, own: MacAddr, inside: &[MacAddr]) -> Vec<Vec<u8>> {
    let seen = watch.end();
    assert_eq!(seen.missed, 0);
    assert!(seen.kept.len() > 10, "{} frames", seen.kept.len());
    for frame in &seen.kept {
        let headers = Headers::parse(frame).expect("a whole frame");
        assert_eq!(headers.src, own, "{frame:02x?}");
        // A DHCP client says who it is, in `chaddr`.
        let dhcp =
            matches!(headers.l4.map(|l4| l4.kind), Ok(L4Kind::Udp { dst, .. }) if dst.0 == 67);
        for mac in inside.iter().filter(|mac| !dhcp && **mac != own) {
            let found = frame[..frame.len().min(128)]
                .windows(6)
                .any(|at| at == mac.0);
            assert!(!found, "{mac} in {frame:02x?}");
        }
    }
    seen.kept
}

/// The names of the nf_tables tables of a namespace, as the kernel tells by netlink; `None` when
/// it has no nf_tables.
///
/// # Panics
/// When the kernel's answer is malformed.
pub fn nft_tables(ns: &Namespace) -> Option<usize> {
    // linux/netfilter/nfnetlink.h, nf_tables.h.
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_NEWTABLE: u16 = 0;
    const NFT_MSG_GETTABLE: u16 = 1;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let open = || {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
    };
    let opened: OwnedFd = ns.run(open).ok()?;
    let mut netlink = File::from(opened);
    let kind = |message: u16| (NFNL_SUBSYS_NFTABLES << 8) | message;
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(kind(NFT_MSG_GETTABLE).to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 12]);
    netlink
        .write_all(&request)
        .expect("netlink takes a request");
    let mut tables = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = netlink.read(&mut buffer).expect("netlink answers");
        let mut rest = &buffer[..size];
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            match u16::from_ne_bytes([header[4], header[5]]) {
                NLMSG_ERROR => return None,
                NLMSG_DONE => return Some(tables),
                other if other == kind(NFT_MSG_NEWTABLE) => tables += 1,
                other => panic!("netlink message {other:#x}"),
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
