//! What the demo's containers do: ping, serve, transfer. Plain sockets, bounded in time.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Netns;

/// How long anything in the demo may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one echo request and waits for its reply; the round-trip time.
///
/// # Errors
/// `TimedOut` when no reply came within `patience`.
pub fn ping(
    ns: &Netns,
    to: Ipv4Addr,
    (id, sequence): (u16, u16),
    patience: Duration,
) -> io::Result<Duration> {
    ns.run(|| ping_here(to, id, sequence, patience))
        .map_err(io::Error::other)?
}

fn ping_here(to: Ipv4Addr, id: u16, sequence: u16, patience: Duration) -> io::Result<Duration> {
    let raw = socket::socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(*b"is anybody there");
    let sum = dataplane_core::checksum::Sum::ZERO
        .add_bytes(&packet)
        .checksum();
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    let [a, b, c, d] = to.octets();
    let start = Instant::now();
    socket::sendto(
        raw.as_raw_fd(),
        &packet,
        &SockaddrIn::new(a, b, c, d, 0),
        MsgFlags::empty(),
    )?;
    let mut buffer = [0; 256];
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // A timeout of zero would mean forever.
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        socket::setsockopt(&raw, sockopt::ReceiveTimeout, &timeout)?;
        let size = match socket::recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(size) => size,
            Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        };
        let header_size = usize::from(buffer[0] & 0x0f) * 4;
        let reply = buffer.get(header_size..size).unwrap_or_default();
        let ours = [&[0, 0][..], &packet[4..8]].concat();
        if reply.len() >= 8 && reply[..2] == ours[..2] && reply[4..8] == ours[2..] {
            return Ok(start.elapsed());
        }
    }
}

/// What a server saw of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Who the server believes its client to be.
    pub client: IpAddr,
    /// Bytes received.
    pub bytes: u64,
    /// From the first byte to the last.
    pub elapsed: Duration,
}

/// Sends `bytes` from one namespace to a server that listens in another.
///
/// # Errors
/// What the sockets said; nothing waits longer than [`PATIENCE`] for the next byte.
pub fn transfer(
    (from, connect): (&Netns, SocketAddr),
    (to, listen): (&Netns, SocketAddr),
    bytes: u64,
) -> io::Result<Served> {
    let listener = to
        .run(|| TcpListener::bind(listen))
        .map_err(io::Error::other)??;
    let server = std::thread::spawn(move || serve(&listener));
    let sent = from
        .run(|| send(connect, bytes))
        .map_err(io::Error::other)?;
    if let Err(error) = sent {
        // The server still waits in accept: a connection of our own lets it go.
        drop(to.run(|| TcpStream::connect_timeout(&listen, PATIENCE)));
        let _ = server.join();
        return Err(error);
    }
    server
        .join()
        .map_err(|_| io::Error::other("the server panicked"))?
}

fn serve(listener: &TcpListener) -> io::Result<Served> {
    let (mut stream, client) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut chunk, mut bytes, start) = (vec![0; 1 << 18], 0, Instant::now());
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            size => bytes += size as u64,
        }
    }
    let elapsed = start.elapsed();
    stream.write_all(b"thanks")?;
    Ok(Served {
        client: client.ip(),
        bytes,
        elapsed,
    })
}

fn send(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let chunk = vec![0x5a; 1 << 18];
    let mut left = bytes;
    while left > 0 {
        let size = left.min(chunk.len() as u64);
        stream.write_all(&chunk[..size as usize])?;
        left -= size;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut thanks = Vec::new();
    stream.read_to_end(&mut thanks)?;
    if thanks != b"thanks" {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server did not say thanks",
        ));
    }
    Ok(())
}
