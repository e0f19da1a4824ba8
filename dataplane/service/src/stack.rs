//! A gateway as an IP host: what is sent to its DNS port in, what it answers out.
//!
//! One [`Stack`] for each network, so that networks may share subnets. smoltcp has the protocols;
//! packets go in and out without their Ethernet header, because who is where is known already: the
//! gateway has its endpoints as static neighbours, and remembers where others have spoken from.
//!
//! Limits: [`CONNECTIONS_MAX`] TCP connections, of which one client has
//! [`CONNECTIONS_PER_CLIENT_MAX`], each with [`PIPELINED_MAX`] unanswered questions and closed when
//! it is silent for [`CONNECTION_IDLE`]; questions of [`QUESTION_SIZE_MAX`] bytes; [`STATIONS_MAX`]
//! clients that are no endpoints. What exceeds them is refused, and counted in [`Refused`].
//!
//! Not thread-safe: the service thread owns it.

mod connection;
mod device;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use dataplane_core::addr::{L4Port, MacAddr, PortId};
use dataplane_core::headers::{ETHERNET_SIZE, Headers, L3};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::Gateway;
use rustc_hash::FxBuildHasher;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::dns::message::UDP_SIZE_MAX;
use connection::Connection;
use device::PacketDevice;

/// TCP connections of one network: some ten for each of the endpoints that a network has at most in
/// practice, at 12 KiB each.
pub const CONNECTIONS_MAX: usize = 256;
/// TCP connections of one client, so that one leaves room for the others.
pub const CONNECTIONS_PER_CLIENT_MAX: usize = 16;
/// Questions of one connection that wait for an answer; the next ones wait in the client's window.
pub const PIPELINED_MAX: usize = 16;
/// How long a connection may be silent (RFC 7766 section 6.2.3 asks for a few seconds).
pub const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Largest question: one name of 255 bytes and an EDNS record with options.
pub const QUESTION_SIZE_MAX: usize = 4_096;
/// Clients whose station is remembered, because they are not at an endpoint's address.
pub const STATIONS_MAX: usize = 1_024;

/// Datagrams in the UDP socket before they are taken out or have left.
const DATAGRAMS_MAX: usize = 64;

/// A question that has come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whom the answer goes to.
    pub client: Client,
    /// Where it came from.
    pub source: IpAddr,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// By a datagram.
    Udp(udp::UdpMetadata),
    /// By a connection, which may have ended meanwhile.
    Tcp {
        /// Which; numbers are never given twice.
        connection: u64,
    },
}

/// What was refused for a limit of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Connections over [`CONNECTIONS_PER_CLIENT_MAX`].
    pub connections: u64,
    /// Connections that were ended for a message that is too large.
    pub oversize: u64,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its port.
    pub port: PortId,
    /// Its MAC.
    pub mac: MacAddr,
}

/// One network's gateway as a host.
pub struct Stack {
    gateway: Gateway,
    interface: Interface,
    device: PacketDevice,
    sockets: SocketSet<'static>,
    udp: SocketHandle,
    connections: Vec<Connection>,
    /// Connections that there have been.
    opened: u64,
    stations: HashMap<IpAddr, Station, FxBuildHasher>,
    asked: VecDeque<Asked>,
    refused: Refused,
}

impl Stack {
    /// The gateway's, with nothing open but its DNS port.
    pub fn new(gateway: &Gateway, now: Instant) -> Self {
        let mut device = PacketDevice::new(gateway.mtu);
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut device, device::clock(now));
        let link_local = IpAddr::V6(gateway.mac.link_local_v6());
        interface.update_ip_addrs(|addresses| {
            for address in gateway.addresses.iter().chain([&link_local]) {
                // Everybody is on the link, as far as this stack is concerned. A network has at most
                // one gateway of each family, so there is room for all.
                let _ = addresses.push(IpCidr::new((*address).into(), 0));
            }
        });
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = |size| {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; DATAGRAMS_MAX],
                vec![0; size],
            )
        };
        let mut socket = udp::Socket::new(
            buffer(QUESTION_SIZE_MAX),
            buffer(DATAGRAMS_MAX * usize::from(UDP_SIZE_MAX)),
        );
        // The socket is new and the port is not 0: nothing can be wrong with it.
        let bound = socket.bind(L4Port::DNS.0);
        debug_assert!(bound.is_ok());
        let udp = sockets.add(socket);
        let mut stack = Self {
            gateway: gateway.clone(),
            interface,
            device,
            sockets,
            udp,
            connections: Vec::new(),
            opened: 0,
            stations: HashMap::default(),
            asked: VecDeque::new(),
            refused: Refused::default(),
        };
        stack.listen(now);
        stack
    }

    /// Whether it is that gateway's.
    pub fn is_of(&self, gateway: &Gateway) -> bool {
        let Gateway {
            mac,
            addresses,
            mtu,
        } = gateway;
        (self.gateway.mac, self.gateway.mtu) == (*mac, *mtu) && self.gateway.addresses == *addresses
    }

    /// Takes a frame that was sent to the gateway by a station of that port. Its checksums are whole.
    pub fn receive(&mut self, frame: &[u8], port: PortId, now: Instant) {
        let Ok(headers) = Headers::parse(frame) else {
            return;
        };
        let Ok(L3::Ip(ip)) = headers.l3 else { return };
        if self.stations.len() >= STATIONS_MAX && !self.stations.contains_key(&ip.src) {
            // Those that ask again are remembered again; endpoints need not be.
            self.stations.clear();
        }
        let mac = headers.src;
        self.stations.insert(ip.src, Station { port, mac });
        self.device.put(&frame[headers.l3_offset..]);
        let clock = device::clock(now);
        self.interface
            .poll_ingress_single(clock, &mut self.device, &mut self.sockets);
        self.take_datagrams();
        self.tend_connections(now);
    }

    /// The oldest question that nobody has taken yet.
    pub fn take_asked(&mut self) -> Option<Asked> {
        self.asked.pop_front()
    }

    /// Sends an answer, once [`Stack::run`] is called; `false` when there is no room before that.
    pub fn answer(&mut self, client: Client, bytes: &[u8]) -> bool {
        match client {
            Client::Udp(meta) => {
                let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
                return socket.send_slice(bytes, meta).is_ok();
            }
            Client::Tcp { connection } => {
                let mut connections = self.connections.iter_mut();
                // One that is no more needs no answer.
                if let Some(open) = connections.find(|open| open.number == connection) {
                    open.answer(bytes);
                }
            }
        }
        true
    }

    /// Lets time pass, and hands each packet that leaves to `send`, as a frame without its
    /// destination, which `place` knows or the station that has spoken from there is.
    pub fn run(
        &mut self,
        now: Instant,
        place: impl Fn(IpAddr) -> Option<Station>,
        mut send: impl FnMut(PortId, &[u8]),
    ) {
        self.tend_connections(now);
        let clock = device::clock(now);
        self.interface
            .poll(clock, &mut self.device, &mut self.sockets);
        self.tend_connections(now);
        self.interface
            .poll_egress(clock, &mut self.device, &mut self.sockets);
        let mut frame = Vec::new();
        while let Some(packet) = self.device.take() {
            let Some((destination, ethertype)) = device::destination(&packet) else {
                continue;
            };
            let station = place(destination).or_else(|| self.stations.get(&destination).copied());
            let Some(station) = station else { continue };
            frame.clear();
            frame.extend(station.mac.0);
            frame.extend(self.gateway.mac.0);
            frame.extend(ethertype.to_be_bytes());
            debug_assert_eq!(frame.len(), ETHERNET_SIZE);
            frame.extend(packet);
            send(station.port, &frame);
        }
    }

    /// Whether a question waits to be taken.
    pub fn has_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// How long [`Stack::run`] may wait; `None` for ever.
    pub fn next_due(&mut self, now: Instant) -> Option<Duration> {
        let clock = device::clock(now);
        let protocols = self.interface.poll_delay(clock, &self.sockets);
        let protocols = protocols.map(|delay| Duration::from_micros(delay.total_micros()));
        let idle = self
            .connections
            .iter()
            .filter_map(|open| open.idle_in(&self.sockets, now))
            .min();
        protocols.into_iter().chain(idle).min()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        let open = |open: &&Connection| open.remote(&self.sockets).is_some();
        self.connections.iter().filter(open).count()
    }

    /// What was refused so far.
    pub fn refused(&self) -> Refused {
        self.refused
    }

    fn take_datagrams(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
        while let Ok((bytes, meta)) = socket.recv() {
            self.asked.push_back(Asked {
                client: Client::Udp(meta),
                source: meta.endpoint.addr.into(),
                bytes: bytes.to_vec(),
            });
        }
    }

    /// Carries connections on, ends those that are over, and keeps one listening while there may be
    /// more.
    fn tend_connections(&mut self, now: Instant) {
        for index in 0..self.connections.len() {
            let (before, rest) = self.connections.split_at_mut(index);
            let open = &mut rest[0];
            let remote = open.remote(&self.sockets);
            let siblings = before
                .iter()
                .filter(|other| remote.is_some() && other.remote(&self.sockets) == remote);
            if siblings.count() >= CONNECTIONS_PER_CLIENT_MAX {
                open.abort(&mut self.sockets);
                self.refused.connections += 1;
                continue;
            }
            open.tend(&mut self.sockets, &mut self.asked, &mut self.refused, now);
        }
        let sockets = &mut self.sockets;
        self.connections
            .retain(|open| !open.remove_if_over(sockets));
        self.listen(now);
    }

    fn listen(&mut self, now: Instant) {
        let listening = |open: &Connection| open.is_listening(&self.sockets);
        if self.connections.len() < CONNECTIONS_MAX && !self.connections.iter().any(listening) {
            self.opened += 1;
            let connection = Connection::listen(self.opened, &mut self.sockets, now);
            self.connections.push(connection);
        }
    }
}

impl core::fmt::Debug for Stack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stack")
            .field("gateway", &self.gateway)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
