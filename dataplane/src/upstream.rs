//! Sockets to name servers upstream: one for each exchange, closed with it.
//!
//! The kernel chooses the port, at random, and lets only what the server sends through to a
//! connected socket. Sockets are of the namespace that the process was started in.
//!
//! Limits: a socket for each of the resolver's exchanges, which are limited; messages of 64 KiB.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane_service::dns::Send;
use dataplane_service::dns::message::Transport;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};

/// Largest message.
const MESSAGE_SIZE_MAX: usize = 65_535;
/// Bytes in front of a message by TCP (RFC 7766 section 8).
const LENGTH_SIZE: usize = 2;
/// Datagrams that are taken from one socket before the others' turn.
const DATAGRAMS_MAX: usize = 16;

/// What came of an exchange.
pub(crate) enum Heard<'b> {
    /// A message, which may or may not be the answer.
    Message(&'b [u8]),
    /// The server cannot be reached, or has hung up.
    Failure,
}

/// The open exchanges.
#[derive(Default)]
pub(crate) struct Upstreams {
    sockets: HashMap<u64, Socket>,
    buffer: Vec<u8>,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(Stream),
}

struct Stream {
    socket: TcpStream,
    /// What is to be sent, and how much of it was.
    message: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

impl Upstreams {
    /// Sends a query, or begins to.
    pub fn open(&mut self, registry: &Registry, send: &Send) -> io::Result<()> {
        let token = Token(usize::try_from(send.exchange).map_err(io::Error::other)?);
        let mut socket = match send.transport {
            Transport::Udp => Socket::Udp(datagram(send)?),
            Transport::Tcp => Socket::Tcp(Stream::connect(send)?),
        };
        match &mut socket {
            Socket::Udp(socket) => registry.register(socket, token, Interest::READABLE)?,
            Socket::Tcp(stream) => {
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut stream.socket, token, interest)?;
            }
        }
        self.sockets.insert(send.exchange, socket);
        Ok(())
    }

    /// Takes up what has come, until nothing is left.
    pub fn take(&mut self, exchange: u64, mut heard: impl FnMut(Heard<'_>)) {
        self.buffer.resize(MESSAGE_SIZE_MAX, 0);
        match self.sockets.get_mut(&exchange) {
            Some(Socket::Udp(socket)) => {
                for _ in 0..DATAGRAMS_MAX {
                    match socket.recv(&mut self.buffer) {
                        Ok(size) => heard(Heard::Message(&self.buffer[..size])),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                        Err(_) => return heard(Heard::Failure),
                    }
                }
                // Whoever sends so many answers to one question is not to be heard any more.
                heard(Heard::Failure);
            }
            Some(Socket::Tcp(stream)) => match stream.take(&mut self.buffer) {
                Ok(Some(message)) => heard(Heard::Message(&message)),
                Ok(None) => {}
                Err(_) => heard(Heard::Failure),
            },
            None => {}
        }
    }

    /// Closes the sockets of exchanges that count no more.
    pub fn keep(&mut self, registry: &Registry, counts: impl Fn(u64) -> bool) {
        self.sockets.retain(|exchange, socket| {
            let keep = counts(*exchange);
            if !keep {
                // It is closed at any rate, which ends its registration too.
                let _ = match socket {
                    Socket::Udp(socket) => registry.deregister(socket),
                    Socket::Tcp(stream) => registry.deregister(&mut stream.socket),
                };
            }
            keep
        });
    }
}

fn datagram(send: &Send) -> io::Result<UdpSocket> {
    let any: IpAddr = match send.server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(send.server)?;
    socket.send(&send.bytes)?;
    Ok(socket)
}

impl Stream {
    fn connect(send: &Send) -> io::Result<Self> {
        let size = u16::try_from(send.bytes.len()).map_err(io::Error::other)?;
        Ok(Self {
            socket: TcpStream::connect(send.server)?,
            message: [&size.to_be_bytes()[..], &send.bytes].concat(),
            sent: 0,
            received: Vec::new(),
        })
    }

    /// Sends what is left to send, and reads what has come; a message when it is whole.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        while self.sent < self.message.len() {
            match self.socket.write(&self.message[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if is_waiting(&error) => break,
                Err(error) => return Err(error),
            }
        }
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(size) => self.received.extend_from_slice(&buffer[..size]),
                Err(error) if is_waiting(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            if let Some(length) = self.received.first_chunk::<LENGTH_SIZE>() {
                let end = LENGTH_SIZE + usize::from(u16::from_be_bytes(*length));
                if self.received.len() >= end {
                    return Ok(Some(self.received[LENGTH_SIZE..end].to_vec()));
                }
            }
        }
    }
}

/// Whether there is nothing to do but wait; before a connection is made, it is not connected yet.
fn is_waiting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
    )
}
