//! A host of the simulation: smoltcp's stack on a queue of frames, and what runs on it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane_core::addr::MacAddr;
use dataplane_core::headers::{Headers, L4Kind};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint};

use crate::wire::{self, Link};

/// Bytes of a TCP socket's buffers: more than the largest segment, less than a transfer.
const TCP_BUFFER_SIZE: usize = 32_768;
/// Bytes moved between an application and its socket at once.
const CHUNK_SIZE: usize = 4_096;
/// Time between two datagrams or echoes of one application.
const RETRY_MICROS: u64 = 200_000;

/// One host.
pub struct Host {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it leaves checksums and segmentation to the device, as a TAP's kernel does.
    pub offloads: bool,
    iface: Interface,
    device: Queue,
    sockets: SocketSet<'static>,
    apps: Vec<App>,
}

/// Frames between smoltcp and the simulation.
struct Queue {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    frame_size_max: usize,
}

/// What runs on a host.
enum App {
    /// Sends `size` bytes of a pattern, and expects as many of the peer's pattern.
    Transfer {
        handle: SocketHandle,
        name: u64,
        peer: u64,
        size: usize,
        sent: usize,
        received: usize,
        closed: bool,
    },
    /// Sends numbered datagrams until each has come back.
    Asker {
        handle: SocketHandle,
        to: IpEndpoint,
        wanted: u32,
        answered: u32,
        next: u64,
    },
    /// Sends datagrams back to where they came from.
    Answerer { handle: SocketHandle },
    /// Pings, with frames of its own making.
    Pinger {
        to: Ipv4Addr,
        via: MacAddr,
        id: u16,
        wanted: u32,
        answered: u32,
        next: u64,
    },
}

/// Byte `offset` of the pattern called `name`: no two places of two patterns look alike for long.
fn pattern(name: u64, offset: usize) -> u8 {
    let mixed = (name << 32 | offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl Host {
    /// A host with an address of a prefix of `prefix_len` bits and a router.
    ///
    /// # Panics
    /// When smoltcp takes no route.
    pub fn new(
        mac: MacAddr,
        address: Ipv4Addr,
        prefix_len: u8,
        router: Ipv4Addr,
        mtu: usize,
        seed: u64,
    ) -> Self {
        let mut device = Queue {
            rx: VecDeque::new(),
            tx: Vec::new(),
            frame_size_max: mtu + 14,
        };
        let mut config = Config::new(EthernetAddress(mac.0).into());
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut device, Instant::ZERO);
        iface.update_ip_addrs(|own| {
            let cidr = IpCidr::new(address.into(), prefix_len);
            own.push(cidr).expect("the first address fits");
        });
        iface
            .routes_mut()
            .add_default_ipv4_route(router)
            .expect("the first route fits");
        Self {
            mac,
            address,
            offloads: mtu > 1_500,
            iface,
            device,
            sockets: SocketSet::new(Vec::new()),
            apps: Vec::new(),
        }
    }

    /// Connects to `to` from `from_port` and exchanges `size` bytes each way.
    ///
    /// # Panics
    /// When smoltcp refuses to connect.
    pub fn connect(&mut self, to: SocketAddr, from_port: u16, names: (u64, u64), size: usize) {
        let mut socket = tcp_socket();
        let remote = IpEndpoint::from(to);
        socket
            .connect(self.iface.context(), remote, from_port)
            .expect("an unused socket connects");
        self.add_transfer(socket, names, size);
    }

    /// Listens on `port` for one connection and exchanges `size` bytes each way.
    ///
    /// # Panics
    /// When smoltcp refuses to listen.
    pub fn listen(&mut self, port: u16, names: (u64, u64), size: usize) {
        let mut socket = tcp_socket();
        socket.listen(port).expect("an unused socket listens");
        self.add_transfer(socket, names, size);
    }

    fn add_transfer(
        &mut self,
        socket: tcp::Socket<'static>,
        (name, peer): (u64, u64),
        size: usize,
    ) {
        let handle = self.sockets.add(socket);
        self.apps.push(App::Transfer {
            handle,
            name,
            peer,
            size,
            sent: 0,
            received: 0,
            closed: false,
        });
    }

    /// Sends `count` datagrams to `to` until each has been answered.
    ///
    /// # Panics
    /// When smoltcp refuses to bind.
    pub fn ask(&mut self, to: SocketAddr, from_port: u16, count: u32) {
        let handle = self.udp(from_port);
        self.apps.push(App::Asker {
            handle,
            to: to.into(),
            wanted: count,
            answered: 0,
            next: 0,
        });
    }

    /// Answers datagrams on `port`.
    ///
    /// # Panics
    /// When smoltcp refuses to bind.
    pub fn answer(&mut self, port: u16) {
        let handle = self.udp(port);
        self.apps.push(App::Answerer { handle });
    }

    fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || {
            let metadata = vec![udp::PacketMetadata::EMPTY; 16];
            udp::PacketBuffer::new(metadata, vec![0; 4_096])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("an unused socket binds");
        self.sockets.add(socket)
    }

    /// Pings `to` through the station `via` until `count` answers have come.
    pub fn ping(&mut self, to: Ipv4Addr, via: MacAddr, id: u16, count: u32) {
        self.apps.push(App::Pinger {
            to,
            via,
            id,
            wanted: count,
            answered: 0,
            next: 0,
        });
    }

    /// Takes a frame from the wire. Echo is answered here: the stack is built without it.
    pub fn receive(&mut self, bytes: Vec<u8>) {
        if let Ok(headers) = Headers::parse(&bytes)
            && let Some(ip) = headers.ip()
            && ip.dst == IpAddr::V4(self.address)
            && headers.dst == self.mac
            && let Ok(L4Kind::Echo { request, id }) = headers.l4.map(|l4| l4.kind)
        {
            if request {
                let link = Link(self.mac, headers.src);
                let reply = wire::echo(link, ip.dst, ip.src, false, id.0);
                self.device.tx.push(reply);
            } else {
                self.echo_answered(id.0);
            }
            return;
        }
        self.device.rx.push_back(bytes);
    }

    fn echo_answered(&mut self, of: u16) {
        for app in &mut self.apps {
            if let App::Pinger { id, answered, .. } = app
                && *id == of
            {
                *answered += 1;
            }
        }
    }

    /// Runs the stack and the applications; returns what they send and when to be run again.
    pub fn run(&mut self, micros: u64) -> (Vec<Vec<u8>>, Option<u64>) {
        let now = Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX));
        self.iface.poll(now, &mut self.device, &mut self.sockets);
        let mut next = None;
        for app in &mut self.apps {
            let wake = app.run(micros, &mut self.sockets);
            if let App::Pinger {
                to, via, id, next, ..
            } = app
                && *next == micros + RETRY_MICROS
            {
                let link = Link(self.mac, *via);
                let (from, to) = (self.address.into(), (*to).into());
                self.device.tx.push(wire::echo(link, from, to, true, *id));
            }
            next = earliest(next, wake);
        }
        self.iface.poll(now, &mut self.device, &mut self.sockets);
        let poll_at = self.iface.poll_at(now, &self.sockets);
        let poll_at = poll_at.map(|at| (at.total_micros() as u64).max(micros + 1));
        let frames = std::mem::take(&mut self.device.tx);
        (frames, earliest(next, poll_at))
    }

    /// Whether every application has done what it came for.
    pub fn is_done(&self) -> bool {
        self.apps.iter().all(App::is_done)
    }

    /// What is still to be done, for a message.
    pub fn unfinished(&self) -> String {
        let open = self.apps.iter().filter(|app| !app.is_done());
        let texts = open.map(|app| match app {
            App::Transfer {
                name,
                size,
                sent,
                received,
                handle,
                ..
            } => {
                let state = self.sockets.get::<tcp::Socket<'_>>(*handle).state();
                format!("transfer {name}: sent {sent}, received {received} of {size}, {state}")
            }
            App::Asker {
                wanted, answered, ..
            } => format!("asker: {answered} of {wanted}"),
            App::Pinger {
                id,
                wanted,
                answered,
                ..
            } => {
                format!("pinger {id}: {answered} of {wanted}")
            }
            App::Answerer { .. } => String::new(),
        });
        texts.collect::<Vec<_>>().join("; ")
    }

    /// Bytes that transfers have received and found right.
    pub fn bytes_received(&self) -> usize {
        let received = |app: &App| match app {
            App::Transfer { received, .. } => *received,
            App::Asker { .. } | App::Answerer { .. } | App::Pinger { .. } => 0,
        };
        self.apps.iter().map(received).sum()
    }
}

impl App {
    fn run(&mut self, micros: u64, sockets: &mut SocketSet<'static>) -> Option<u64> {
        match self {
            Self::Transfer { .. } => {
                self.transfer(sockets);
                None
            }
            Self::Answerer { handle } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(*handle);
                while socket.can_send() {
                    let Ok((data, from)) = socket.recv() else {
                        break;
                    };
                    let data = data.to_vec();
                    socket.send_slice(&data, from).expect("there is room");
                }
                None
            }
            Self::Asker {
                handle,
                to,
                wanted,
                answered,
                next,
            } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(*handle);
                while let Ok((data, _)) = socket.recv() {
                    // Answers come twice when the wire doubles them; only the awaited one counts.
                    *answered += u32::from(data == answered.to_be_bytes());
                }
                if answered >= wanted {
                    return None;
                }
                if micros >= *next {
                    *next = micros + RETRY_MICROS;
                    let sent = socket.send_slice(&answered.to_be_bytes(), *to);
                    sent.expect("one datagram fits");
                }
                Some(*next)
            }
            Self::Pinger {
                wanted,
                answered,
                next,
                ..
            } => {
                if answered >= wanted {
                    return None;
                }
                if micros >= *next {
                    *next = micros + RETRY_MICROS;
                }
                Some(*next)
            }
        }
    }

    fn transfer(&mut self, sockets: &mut SocketSet<'static>) {
        let Self::Transfer {
            handle,
            name,
            peer,
            size,
            sent,
            received,
            closed,
        } = self
        else {
            return;
        };
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        while socket.can_send() && sent < size {
            let end = (*sent + CHUNK_SIZE).min(*size);
            let chunk: Vec<u8> = (*sent..end).map(|offset| pattern(*name, offset)).collect();
            *sent += socket.send_slice(&chunk).expect("the socket can send");
        }
        let mut chunk = [0; CHUNK_SIZE];
        while socket.can_recv() {
            let count = socket
                .recv_slice(&mut chunk)
                .expect("the socket can receive");
            for (index, byte) in chunk[..count].iter().enumerate() {
                let offset = *received + index;
                assert_eq!(
                    *byte,
                    pattern(*peer, offset),
                    "byte {offset} of transfer {peer}"
                );
            }
            *received += count;
            assert!(
                received <= size,
                "transfer {peer} is longer than it was sent"
            );
        }
        if sent == size && received == size && !*closed {
            socket.close();
            *closed = true;
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Transfer { closed, .. } => *closed,
            Self::Asker {
                wanted, answered, ..
            }
            | Self::Pinger {
                wanted, answered, ..
            } => answered >= wanted,
            Self::Answerer { .. } => true,
        }
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER_SIZE]);
    tcp::Socket::new(buffer(), buffer())
}

/// The earlier of two times, where either may be missing.
fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

impl Device for Queue {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Received(frame), Sender(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_size_max;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sender<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}
