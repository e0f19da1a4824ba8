//! The open loop: what is due is sent, whatever became of what was sent before.

use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::socket::{self, MsgFlags, MultiHeaders, SockaddrStorage};

use super::payload::Tag;
use super::{Course, Pace};
use crate::measure::cpu;

/// Time between two bursts: short against the queues on the way, long against the price of a
/// timer, so that the generator need not spin on a CPU that the switch could use.
pub const TICK: Duration = Duration::from_micros(100);
/// Datagrams of a burst at most: half of what a TAP queues.
const BURST_MAX: u64 = 250;
/// How much faster than scheduled a late generator sends. Without a limit, every pause of this
/// thread would end in a burst that no queue holds.
const CATCH_UP: f64 = 1.25;
/// Longest delay that is told from longer ones, in nanoseconds.
const LATENESS_MAX: u64 = 60_000_000_000;
/// Datagrams of one system call.
const CALL_MAX: usize = 64;

/// The schedule of one run, and the sockets to send it by.
pub struct Generator<'a> {
    clients: &'a [UdpSocket],
    run: u32,
    /// Datagrams a second.
    pub rate: f64,
    /// Datagrams of a burst.
    burst: u64,
    /// Datagrams before those that count.
    pub uncounted: u64,
    /// Datagrams in all.
    total: u64,
    payload_size: usize,
}

/// What was offered.
pub struct Sent {
    /// Datagrams that count.
    pub frames: u64,
    /// Seconds that it took to send them, no fewer than scheduled.
    pub seconds: f64,
    /// CPU seconds of the generator.
    pub cpu_seconds: f64,
    /// How long after it was due each burst was sent, in nanoseconds.
    pub lateness: Histogram<u64>,
}

/// When what is due, by the clock that the kernel stamps arrivals with.
struct Clock {
    origin: Instant,
    /// Nanoseconds since 1970 at the origin.
    epoch: u64,
    /// The datagram that is due at the origin.
    first: u64,
    rate: f64,
    burst: u64,
}

impl Clock {
    fn new(generator: &Generator<'_>, first: u64) -> io::Result<Self> {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            origin: Instant::now(),
            epoch: epoch.map_err(io::Error::other)?.as_nanos() as u64,
            first,
            rate: generator.rate,
            burst: generator.burst,
        })
    }

    /// When a datagram is due, from the origin: with its burst.
    fn due(&self, index: u64) -> Duration {
        let burst = (index - self.first) / self.burst * self.burst;
        Duration::from_secs_f64(burst as f64 / self.rate)
    }

    /// The first datagram that is not due yet at that time from the origin.
    fn due_by(&self, elapsed: Duration) -> u64 {
        let bursts = (elapsed.as_secs_f64() * self.rate) as u64 / self.burst + 1;
        self.first + bursts * self.burst
    }
}

impl<'a> Generator<'a> {
    /// A schedule.
    pub fn new(course: &'a Course, pace: Pace, payload_size: usize) -> Self {
        let frames = |time: Duration| (pace.rate * time.as_secs_f64()) as u64;
        let uncounted = frames(pace.warm_up);
        Self {
            clients: &course.clients,
            run: course.run,
            rate: pace.rate,
            burst: frames(TICK).clamp(1, BURST_MAX),
            uncounted,
            total: uncounted + frames(pace.duration).max(1),
            payload_size,
        }
    }

    /// Flows.
    pub fn flows(&self) -> usize {
        self.clients.len()
    }

    /// Sends the schedule.
    ///
    /// # Errors
    /// When a socket fails for good; a datagram that an interface does not take is lost.
    pub fn run(&self) -> io::Result<Sent> {
        // By default the kernel may be 50 µs late, half of a tick.
        prctl::set_timerslack(1)?;
        let cpu = cpu::thread_seconds()?;
        let mut calls = Calls::new(self.payload_size);
        // What the warm-up could not send is not sent any more, so that a late generator begins to
        // count without a debt.
        self.phase(&mut calls, 0..self.uncounted)?;
        let (frames, seconds, lateness) = self.phase(&mut calls, self.uncounted..self.total)?;
        Ok(Sent {
            frames,
            seconds,
            cpu_seconds: cpu::thread_seconds()? - cpu,
            lateness,
        })
    }

    /// Sends a range of the schedule, beginning now; how many were sent, in how many seconds, and
    /// how late.
    fn phase(
        &self,
        calls: &mut Calls,
        range: Range<u64>,
    ) -> io::Result<(u64, f64, Histogram<u64>)> {
        let mut lateness = Histogram::new_with_bounds(1, LATENESS_MAX, 2)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let clock = Clock::new(self, range.start)?;
        let end = Duration::from_secs_f64((range.end - range.start) as f64 / self.rate);
        let (mut next, mut last) = (range.start, Duration::ZERO);
        loop {
            let now = clock.origin.elapsed();
            if next == range.end || now > end + TICK {
                break;
            }
            let due = clock.due_by(now).min(range.end);
            if next == due {
                std::thread::sleep(clock.due(next).saturating_sub(now));
                continue;
            }
            let allowed = ((now - last).as_secs_f64() * self.rate * CATCH_UP) as u64 + self.burst;
            let until = due.min(next + allowed);
            lateness.saturating_record(now.saturating_sub(clock.due(next)).as_nanos() as u64);
            self.send(calls, &clock, next..until)?;
            next = until;
            last = now;
            if next < due {
                std::thread::sleep(TICK / 4);
            }
        }
        let seconds = clock.origin.elapsed().max(end).as_secs_f64();
        Ok((next - range.start, seconds, lateness))
    }

    /// Sends a range of the schedule, flow by flow.
    fn send(&self, calls: &mut Calls, clock: &Clock, range: Range<u64>) -> io::Result<()> {
        let flows = self.clients.len() as u64;
        for offset in 0..flows.min(range.end - range.start) {
            let flow = (range.start + offset) % flows;
            let mut indices = (range.start + offset..range.end).step_by(flows as usize);
            loop {
                let count = calls.fill(indices.by_ref().map(|index| Tag {
                    run: self.run,
                    flow: flow as u16,
                    sequence: (index / flows) as u32,
                    due: clock.epoch + clock.due(index).as_nanos() as u64,
                }));
                if count == 0 {
                    break;
                }
                calls.send(&self.clients[flow as usize], count)?;
            }
        }
        Ok(())
    }
}

/// Payloads and headers of one system call.
struct Calls {
    payloads: Vec<Vec<u8>>,
    headers: MultiHeaders<SockaddrStorage>,
}

impl Calls {
    fn new(payload_size: usize) -> Self {
        Self {
            payloads: vec![vec![0x5a; payload_size]; CALL_MAX],
            headers: MultiHeaders::preallocate(CALL_MAX, None),
        }
    }

    /// Writes tags into payloads, as many as fit one call.
    fn fill(&mut self, tags: impl Iterator<Item = Tag>) -> usize {
        let filled = self.payloads.iter_mut().zip(tags);
        filled.map(|(payload, tag)| tag.write(payload)).count()
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<()> {
        let mut first = 0;
        while first < count {
            let payloads = &self.payloads[first..count];
            let slices: Vec<[IoSlice<'_>; 1]> = payloads
                .iter()
                .map(|payload| [IoSlice::new(payload)])
                .collect();
            let to = [const { None::<SockaddrStorage> }; CALL_MAX];
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
            let sent = socket::sendmmsg(fd, &mut self.headers, &slices, to, [], flags);
            first += match sent.map(Iterator::count) {
                Ok(sent) => sent.max(1),
                // No room at the interface, or the echo of an earlier loss: this one is lost.
                Err(
                    Errno::EAGAIN
                    | Errno::ENOBUFS
                    | Errno::ECONNREFUSED
                    | Errno::EHOSTUNREACH
                    | Errno::EPERM,
                ) => 1,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(())
    }
}
