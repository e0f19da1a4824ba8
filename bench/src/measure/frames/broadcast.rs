//! Broadcast frames from one sandbox to all others: RFC 2889 section 5.10.
//!
//! A frame is due at every other sandbox, and lost at each where it does not come. Datagrams go to the
//! subnet's broadcast address, so a plain socket in each sandbox receives them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use ::tests::lab::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{self, sockopt};

use super::generator::{Flow, Lane};
use super::way::Ways;
use super::{
    AROUND_PAYLOAD, Course, FRAME_SIZE_MIN, GREETING_MAX, GREETING_PAUSE, SOCKET_BUFFER_SIZE,
    errno, payload,
};
use crate::measure::{MeasureError, Request, refused};
use crate::system::{SERVER_PORT, System};

/// Bits of a sandbox's address that name its subnet.
const PREFIX_LEN: u32 = 16;

/// Opens the sockets, and has a datagram reach every sandbox.
pub fn open(request: &Request, system: &System) -> Result<Course, MeasureError> {
    let first = &system.paths[0];
    let mut servers: Vec<(Namespace, UdpSocket)> = Vec::new();
    for path in &system.paths {
        let own = path.to.path();
        let known = servers.iter().any(|(ns, _)| ns.path() == own);
        if !known && own != first.from.path() {
            servers.push((path.to.clone(), server(&path.to)?));
        }
    }
    let all = SocketAddr::new(broadcast_address(first.connect.ip())?, SERVER_PORT);
    let client = client(&first.from, all)?;
    greet(&client, &servers, all)?;
    let way = Ways::of(&first.from)?.to_all(all.ip())?;
    let largest = request.frame_sizes.iter().copied().max();
    let largest = usize::from(largest.unwrap_or(FRAME_SIZE_MIN));
    let lane = Lane::open(&first.from, &way, largest);
    let frame = |size: &u16| way.frame(&client, usize::from(size - AROUND_PAYLOAD));
    let frames = request.frame_sizes.iter().map(frame);
    Ok(Course {
        flows: vec![Flow {
            lane: 0,
            frames: frames.collect::<Result<_, _>>()?,
        }],
        lanes: vec![lane.map_err(refused("send frames by eth0"))?],
        clients: vec![client],
        copies: servers.len(),
        servers,
        ends: vec![0],
        sizes: request.frame_sizes.clone(),
        run: fastrand::Rng::with_seed(request.seed).u32(1..),
    })
}

/// The broadcast address of the subnet that a sandbox's address is in.
fn broadcast_address(of: IpAddr) -> Result<IpAddr, MeasureError> {
    match of {
        IpAddr::V4(address) => {
            let host_bits = u32::MAX.checked_shr(PREFIX_LEN).unwrap_or_default();
            Ok(Ipv4Addr::from_bits(address.to_bits() | host_bits).into())
        }
        IpAddr::V6(address) => Err(MeasureError::Request(format!(
            "broadcasts on the network of {address}; IPv6 has none"
        ))),
    }
}

fn server(ns: &Namespace) -> Result<UdpSocket, MeasureError> {
    let open = || -> Result<UdpSocket, Errno> {
        let any = (Ipv4Addr::UNSPECIFIED, SERVER_PORT);
        let socket = UdpSocket::bind(any).map_err(|e| errno(&e))?;
        socket.set_nonblocking(true).map_err(|e| errno(&e))?;
        socket::setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_SIZE)?;
        socket::setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(socket)
    };
    ns.run(open).map_err(refused("receive broadcasts"))
}

fn client(ns: &Namespace, to: SocketAddr) -> Result<UdpSocket, MeasureError> {
    let open = || -> Result<UdpSocket, Errno> {
        let any = (Ipv4Addr::UNSPECIFIED, 0);
        let socket = UdpSocket::bind(any).map_err(|e| errno(&e))?;
        socket.set_broadcast(true).map_err(|e| errno(&e))?;
        socket.connect(to).map_err(|e| errno(&e))?;
        Ok(socket)
    };
    ns.run(open).map_err(refused(format!("broadcast to {to}")))
}

/// Sends greetings until one has reached every sandbox.
fn greet(
    client: &UdpSocket,
    servers: &[(Namespace, UdpSocket)],
    to: SocketAddr,
) -> Result<(), MeasureError> {
    let greeting = payload::greeting(0);
    let end = Instant::now() + GREETING_MAX;
    let mut waiting: Vec<&UdpSocket> = servers.iter().map(|(_, server)| server).collect();
    let mut buffer = [0; 64];
    while Instant::now() < end {
        client
            .send(&greeting)
            .map_err(refused(format!("broadcast to {to}")))?;
        std::thread::park_timeout(GREETING_PAUSE);
        waiting.retain(|server| {
            let mut heard = false;
            while let Ok(size) = server.recv(&mut buffer) {
                heard |= buffer[..size] == greeting;
            }
            !heard
        });
        if waiting.is_empty() {
            return Ok(());
        }
    }
    Err(MeasureError::Stuck(format!(
        "no broadcast has reached {} of {} sandboxes within {GREETING_MAX:?}",
        waiting.len(),
        servers.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_sandboxs_subnet_are_addressed() {
        let of = |text: &str| broadcast_address(text.parse().expect("an address"));
        let all: IpAddr = "10.0.255.255".parse().expect("an address");
        assert_eq!(of("10.0.3.7").expect("IPv4"), all);
        of("fd00::1").expect_err("IPv6 has none");
    }
}
