//! One TCP connection: messages behind their length in two bytes (RFC 7766 section 8).

use std::collections::VecDeque;
use std::net::IpAddr;

use dataplane_core::addr::L4Port;
use dataplane_core::time::{Duration, Instant};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::{Asked, CONNECTION_IDLE, Client, PIPELINED_MAX, QUESTION_SIZE_MAX, Refused};

/// Bytes of the socket's buffers. An answer may be larger: what has no room yet waits outside.
const BUFFER_SIZE: usize = 4_096;
/// Bytes of answers that wait for room: two of the largest.
const WAITING_SIZE_MAX: usize = 2 * (2 + 65_535);
/// Bytes in front of a message.
const LENGTH_SIZE: usize = 2;

#[derive(Debug)]
pub(super) struct Connection {
    pub number: u64,
    socket: SocketHandle,
    received: Vec<u8>,
    waiting: VecDeque<u8>,
    unanswered: usize,
    /// When a byte last came or left.
    active: Instant,
    /// Whether it was ended here, of which its client is yet to be told.
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Aborted,
}

impl Connection {
    /// One that waits for whoever comes first.
    pub fn listen(number: u64, sockets: &mut SocketSet<'static>, now: Instant) -> Self {
        let buffer = || SocketBuffer::new(vec![0; BUFFER_SIZE]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(
            CONNECTION_IDLE.as_secs(),
        )));
        // The socket is new and the port is not 0: nothing can be wrong with it.
        let listens = socket.listen(L4Port::DNS.0);
        debug_assert!(listens.is_ok());
        Self {
            number,
            socket: sockets.add(socket),
            received: Vec::new(),
            waiting: VecDeque::new(),
            unanswered: 0,
            active: now,
            end: End::Open,
        }
    }

    /// Whether nobody has come yet.
    pub fn is_listening(&self, sockets: &SocketSet<'_>) -> bool {
        sockets.get::<Socket<'_>>(self.socket).is_listening()
    }

    /// Who has connected, and is not being turned away.
    pub fn remote(&self, sockets: &SocketSet<'_>) -> Option<IpAddr> {
        if self.end == End::Aborted {
            return None;
        }
        let socket = sockets.get::<Socket<'_>>(self.socket);
        socket.remote_endpoint().map(|remote| remote.addr.into())
    }

    /// In how long it has been silent for too long; `None` while it listens.
    pub fn idle_in(&self, sockets: &SocketSet<'_>, now: Instant) -> Option<Duration> {
        let open = self.end == End::Open && !self.is_listening(sockets);
        open.then(|| CONNECTION_IDLE.saturating_sub(now.since(self.active)))
    }

    /// Takes an answer.
    pub fn answer(&mut self, bytes: &[u8]) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if let Ok(size) = u16::try_from(bytes.len()) {
            self.waiting.extend(size.to_be_bytes());
            self.waiting.extend(bytes);
        }
    }

    /// Ends it at once.
    pub fn abort(&mut self, sockets: &mut SocketSet<'_>) {
        self.end = End::Aborted;
        sockets.get_mut::<Socket<'_>>(self.socket).abort();
    }

    /// Moves bytes both ways, and ends it when its time has come.
    pub fn tend(
        &mut self,
        sockets: &mut SocketSet<'_>,
        asked: &mut VecDeque<Asked>,
        refused: &mut Refused,
        now: Instant,
    ) {
        if self.end == End::Aborted {
            return;
        }
        let socket = sockets.get_mut::<Socket<'_>>(self.socket);
        if socket.is_listening() {
            self.active = now;
            return;
        }
        if now.since(self.active) >= CONNECTION_IDLE {
            return self.abort(sockets);
        }
        if self.receive(socket, asked, now).is_err() {
            refused.oversize += 1;
            return self.abort(sockets);
        }
        while socket.can_send() && !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let sent = socket.send_slice(front).unwrap_or(0);
            self.waiting.drain(..sent);
            self.active = now;
            if sent == 0 {
                break;
            }
        }
        if socket.state() == State::CloseWait && self.unanswered == 0 && self.waiting.is_empty() {
            socket.close();
        }
    }

    fn receive(
        &mut self,
        socket: &mut Socket<'_>,
        asked: &mut VecDeque<Asked>,
        now: Instant,
    ) -> Result<(), TooLarge> {
        let Some(remote) = socket.remote_endpoint() else {
            return Ok(());
        };
        while self.unanswered < PIPELINED_MAX && self.waiting.len() < WAITING_SIZE_MAX {
            if let Some(bytes) = self.take_message()? {
                self.unanswered += 1;
                asked.push_back(Asked {
                    client: Client::Tcp {
                        connection: self.number,
                    },
                    source: remote.addr.into(),
                    bytes,
                });
                continue;
            }
            if !socket.can_recv() {
                break;
            }
            let received = socket.recv(|bytes| {
                self.received.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            if !received.is_ok_and(|size| size > 0) {
                break;
            }
            self.active = now;
        }
        Ok(())
    }

    fn take_message(&mut self) -> Result<Option<Vec<u8>>, TooLarge> {
        let Some(length) = self.received.first_chunk::<LENGTH_SIZE>() else {
            return Ok(None);
        };
        let size = usize::from(u16::from_be_bytes(*length));
        if size > QUESTION_SIZE_MAX {
            return Err(TooLarge);
        }
        if self.received.len() < LENGTH_SIZE + size {
            return Ok(None);
        }
        let message = self.received[LENGTH_SIZE..LENGTH_SIZE + size].to_vec();
        self.received.drain(..LENGTH_SIZE + size);
        Ok(Some(message))
    }

    /// Takes the socket back when the connection is over.
    pub fn remove_if_over(&self, sockets: &mut SocketSet<'_>) -> bool {
        let socket = sockets.get::<Socket<'_>>(self.socket);
        // An abort leaves by a packet first; until then its remote is known.
        let over = socket.state() == State::Closed && socket.remote_endpoint().is_none();
        let over = over || socket.state() == State::TimeWait;
        if over {
            sockets.remove(self.socket);
        }
        over
    }
}

/// A message that is larger than any question.
#[derive(Debug)]
struct TooLarge;
