//! Counts what comes: every datagram once, by its number.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::tests::lab::Namespace;
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage};
use nix::sys::time::TimeSpec;

use super::payload::{PAYLOAD_SIZE_MIN, Tag};
use crate::measure::cpu;

/// Pause when a look found little. A datagram that finds no sleeper wakes nobody, which is most of
/// what receiving it would cost.
const LOOK_PAUSE: Duration = Duration::from_micros(500);
/// Silence after which nothing more is on its way, once everything was sent.
const SILENCE: Duration = Duration::from_millis(150);
/// Longest wait for silence.
const SILENCE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Datagrams of one system call.
const CALL_MAX: usize = 64;
/// Longest latency that is told from longer ones, in nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// Receives on the sockets of a course.
pub struct Receiver<'a> {
    /// One socket for each path.
    pub servers: &'a [(Namespace, UdpSocket)],
    /// Flows that are sent.
    pub flows: usize,
    /// Sockets that each datagram is to reach: one, or each of them.
    pub copies: usize,
    /// Bytes of the frames of each flow in turn, at least one.
    pub sizes: &'a [u16],
    /// The run that datagrams must belong to.
    pub run: u32,
    /// Datagrams of the schedule before those that count.
    pub uncounted: u64,
}

/// What came.
pub struct Arrivals {
    /// Datagrams, each counted once at each socket that it is to reach.
    pub unique: u64,
    /// Bytes of their frames, check sequences included.
    pub bytes: u64,
    /// Of each flow, at each socket that it is to reach.
    pub by_flow: Vec<u64>,
    /// Datagrams that came after a later one of their flow.
    pub reordered: u64,
    /// Datagrams that had come before.
    pub duplicates: u64,
    /// Datagrams that the receiver's own sockets had no room for.
    pub overflowed: u64,
    /// From due to arrival, in nanoseconds.
    pub latency: Histogram<u64>,
    /// CPU seconds of the receiver.
    pub cpu_seconds: f64,
}

/// What has come of one flow.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// A bit for each number.
    bits: Vec<u64>,
    /// One above the highest number.
    next: u32,
}

/// What a datagram is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Later than all.
    Next,
    /// Earlier than one that has come.
    Late,
    /// It has come before.
    Duplicate,
}

impl Seen {
    /// Notes a number.
    pub fn note(&mut self, sequence: u32) -> Order {
        let (word, bit) = (sequence as usize / 64, 1 << (sequence % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            return Order::Duplicate;
        }
        self.bits[word] |= bit;
        if sequence < self.next {
            return Order::Late;
        }
        self.next = sequence + 1;
        Order::Next
    }
}

impl Receiver<'_> {
    /// Receives until `done`, and then until silence.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn run(&self, done: &AtomicBool) -> io::Result<Arrivals> {
        let cpu = cpu::thread_seconds()?;
        let overflowed = self.overflowed()?;
        let mut arrivals = Arrivals::new(self.flows * self.copies)?;
        let mut seen = vec![Seen::default(); self.flows * self.copies];
        let mut buffers = vec![[0; PAYLOAD_SIZE_MIN]; CALL_MAX];
        let space = nix::cmsg_space!(TimeSpec);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(CALL_MAX, Some(space));
        let (mut last, mut done_at) = (Instant::now(), None);
        loop {
            let mut most = 0;
            for (index, (_, server)) in self.servers.iter().enumerate() {
                let first = index % self.copies * self.flows;
                let end = first + self.flows;
                let count = receive(server, &mut headers, &mut buffers, |payload, at| {
                    self.count(payload, at, (&mut seen[first..end], first), &mut arrivals);
                })?;
                most = most.max(count);
            }
            if most > 0 {
                last = Instant::now();
            }
            if done_at.is_none() && done.load(Ordering::Relaxed) {
                done_at = Some(Instant::now());
            }
            if let Some(done_at) = done_at {
                let quiet = last.max(done_at).elapsed() > SILENCE;
                if quiet || done_at.elapsed() > SILENCE_WAIT_MAX {
                    break;
                }
            }
            if most < CALL_MAX {
                std::thread::sleep(LOOK_PAUSE);
            }
        }
        arrivals.overflowed = self.overflowed()? - overflowed;
        arrivals.cpu_seconds = cpu::thread_seconds()? - cpu;
        Ok(arrivals)
    }

    /// Counts a datagram among those that its socket has `seen`, the first of which is that flow of
    /// all.
    fn count(
        &self,
        payload: &[u8],
        at: u64,
        (seen, first): (&mut [Seen], usize),
        arrivals: &mut Arrivals,
    ) {
        let Some(tag) = Tag::read(payload).filter(|tag| tag.run == self.run) else {
            return; // a greeting, or another run's straggler
        };
        let flow = usize::from(tag.flow);
        let Some(seen) = seen.get_mut(flow) else {
            return; // no such flow was sent
        };
        if u64::from(tag.sequence) * self.flows as u64 + u64::from(tag.flow) < self.uncounted {
            return;
        }
        let order = seen.note(tag.sequence);
        if order == Order::Duplicate {
            arrivals.duplicates += 1;
            return;
        }
        arrivals.unique += 1;
        arrivals.bytes += u64::from(self.sizes[tag.sequence as usize % self.sizes.len()]);
        arrivals.by_flow[first + flow] += 1;
        arrivals.reordered += u64::from(order == Order::Late);
        arrivals
            .latency
            .saturating_record(at.saturating_sub(tag.due));
    }

    /// Datagrams that the sockets have dropped, ever.
    fn overflowed(&self) -> io::Result<u64> {
        let drops = |(ns, socket): &(Namespace, UdpSocket)| super::drops::of(ns, socket);
        self.servers.iter().map(drops).sum()
    }
}

impl Arrivals {
    fn new(flows: usize) -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3);
        Ok(Self {
            unique: 0,
            bytes: 0,
            by_flow: vec![0; flows],
            reordered: 0,
            duplicates: 0,
            overflowed: 0,
            latency: latency.map_err(|error| io::Error::other(error.to_string()))?,
            cpu_seconds: 0.0,
        })
    }
}

/// Shows `see` what is there, up to one call's worth, with its time of arrival in nanoseconds
/// since 1970.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    buffers: &mut [[u8; PAYLOAD_SIZE_MIN]],
    mut see: impl FnMut(&[u8], u64),
) -> io::Result<usize> {
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
        .iter_mut()
        .map(|buffer| [IoSliceMut::new(buffer)])
        .collect();
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let messages = match socket::recvmmsg(fd, headers, slices.iter_mut(), flags, None) {
        Ok(messages) => messages,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
        Err(errno) => return Err(errno.into()),
    };
    let mut count = 0;
    for message in messages {
        count += 1;
        let at = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(nanos(time)),
            _ => None,
        });
        if let Some(payload) = message.iovs().next() {
            see(payload, at.unwrap_or_default());
        }
    }
    Ok(count)
}

fn nanos(time: TimeSpec) -> u64 {
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_told_by_numbers() {
        let mut seen = Seen::default();
        let told: Vec<Order> = [0, 1, 3, 2, 2, 3, 200, 199, 200]
            .into_iter()
            .map(|sequence| seen.note(sequence))
            .collect();
        use Order::{Duplicate, Late, Next};
        assert_eq!(
            told,
            [
                Next, Next, Next, Late, Duplicate, Duplicate, Next, Late, Duplicate
            ]
        );
    }
}
