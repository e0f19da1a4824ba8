//! The open loop: what is due is sent, whatever became of what was sent before.
//!
//! # What a frame costs
//! Frames are written beforehand and leave by packet sockets past the queueing discipline, up to
//! 32 by one system call, so this program's own share is about a hundredth. The rest is the
//! kernel's, and a UDP socket would take 0.8 µs more of it. Within the sender's call the kernel
//! also carries each frame on, one by one: through a cable into the receiving socket for 2.0 µs in
//! all, through the kernel bridge for 3.2 µs (a 2-CPU virtual machine with other work on it). So
//! one sender can offer a system of the kernel no more than one CPU carries with the system's own
//! work on it. That is the floor: only bundles of frames, or other CPUs for the system's work,
//! would be below it, and either would be another system.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime};

use ::tests::lab::Namespace;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::packet::{Offloads, PacketBuilder, PacketSocket};
use dataplane_port::{BATCH_MAX, PortIo};
use hdrhistogram::Histogram;
use nix::sys::prctl;
use nix::sys::socket::{setsockopt, sockopt};

use super::payload::Tag;
use super::way::{HEADERS_SIZE, Way};
use super::{Offer, Pace, SOCKET_BUFFER_SIZE};
use crate::measure::cpu;

/// Time between two bursts: short against the queues on the way, long against the price of a
/// timer, so that the generator need not spin on a CPU that the switch could use.
pub const TICK: Duration = Duration::from_micros(100);
/// Datagrams of a burst at most: half of what a TAP queues.
const BURST_MAX: u64 = 250;
/// How much faster than scheduled a late generator sends, by bursts of at most twice the usual
/// size. Without a limit, every pause of this thread would end in a burst that no queue holds.
const CATCH_UP: f64 = 1.25;
/// Longest delay that is told from longer ones, in nanoseconds.
const LATENESS_MAX: u64 = 60_000_000_000;

/// A packet socket on the interface that a path begins with, and the frames of its next call.
pub struct Lane {
    socket: PacketSocket,
    frames: Vec<FrameBuf>,
    filled: usize,
    /// Frames that this end had no memory for: they were never offered.
    withheld: u64,
}

/// The first frames of a flow, and the lane that they leave by.
pub struct Flow {
    /// Which of the lanes.
    pub lane: usize,
    /// Whole frames, at least one, which are sent in turn.
    pub frames: Vec<Vec<u8>>,
}

/// The schedule of one run, and the lanes to send it by.
pub struct Generator<'a> {
    lanes: &'a mut [Lane],
    flows: &'a [Flow],
    run: u32,
    /// Datagrams a second.
    pub rate: f64,
    /// Datagrams of a burst.
    burst: u64,
    /// Datagrams before those that count.
    pub uncounted: u64,
    /// Datagrams in all.
    total: u64,
    /// Whether a schedule is kept to.
    timing: Timing,
}

/// When datagrams are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    /// As they are due.
    Scheduled,
    /// With nothing between them.
    AtOnce,
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

impl Sent {
    /// Datagrams a second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.seconds
    }
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

impl Lane {
    /// Opens it on the interface of a way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(ns: &Namespace, way: &Way, frame_size: usize) -> io::Result<Self> {
        let builder = PacketBuilder::new(&way.interface)
            .offloads(Offloads::None)
            .receive_buffer_size(0);
        let opened = ns.run(|| builder.open()).map_err(io::Error::other)?;
        let socket = opened.into_iter().next();
        let socket = socket.ok_or_else(|| io::Error::other("no queue was opened"))?;
        if let Some(fd) = socket.readiness() {
            enlarge(&fd)?;
        }
        Ok(Self {
            socket,
            frames: vec![FrameBuf::with_capacity(frame_size); BATCH_MAX],
            filled: 0,
            withheld: 0,
        })
    }

    /// Puts a frame into the next call, which is made when it is full.
    fn put(&mut self, frame: &[u8], tag: &Tag) -> io::Result<()> {
        let buf = &mut self.frames[self.filled];
        buf.copy_from(frame, Offload::NONE);
        tag.write(&mut buf.bytes_mut()[HEADERS_SIZE..]);
        self.filled += 1;
        if self.filled == self.frames.len() {
            return self.flush();
        }
        Ok(())
    }

    /// Makes the call.
    fn flush(&mut self) -> io::Result<()> {
        let mut left = &mut self.frames[..self.filled];
        self.filled = 0;
        while !left.is_empty() {
            let sent = match self.socket.send(left) {
                Ok(sent) => sent.max(1),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotConnected | io::ErrorKind::InvalidInput => return Err(error),
                    io::ErrorKind::Interrupted => 0,
                    // No room in this end's own socket.
                    io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
                        self.withheld += 1;
                        1
                    }
                    // No room at the interface, which is where the switch begins: it is lost.
                    _ => 1,
                },
            };
            left = &mut left[sent..];
        }
        Ok(())
    }
}

/// An open loop does not wait for room.
fn enlarge(fd: &BorrowedFd<'_>) -> io::Result<()> {
    Ok(setsockopt(fd, sockopt::SndBufForce, &SOCKET_BUFFER_SIZE)?)
}

impl<'a> Generator<'a> {
    /// A schedule, or a burst.
    pub fn new(lanes: &'a mut [Lane], flows: &'a [Flow], run: u32, offer: Offer) -> Self {
        let pace = match offer {
            Offer::Paced(pace) => pace,
            Offer::Burst { frames, .. } => {
                return Self {
                    lanes,
                    flows,
                    run,
                    rate: f64::INFINITY,
                    burst: BURST_MAX,
                    uncounted: 0,
                    total: frames,
                    timing: Timing::AtOnce,
                };
            }
        };
        Self::scheduled(lanes, flows, run, pace)
    }

    fn scheduled(lanes: &'a mut [Lane], flows: &'a [Flow], run: u32, pace: Pace) -> Self {
        let frames = |time: Duration| (pace.rate * time.as_secs_f64()) as u64;
        let uncounted = frames(pace.warm_up);
        Self {
            lanes,
            flows,
            run,
            rate: pace.rate,
            burst: frames(TICK).clamp(1, BURST_MAX),
            uncounted,
            total: uncounted + frames(pace.duration).max(1),
            timing: Timing::Scheduled,
        }
    }

    /// Sends the schedule, or the burst.
    ///
    /// # Errors
    /// When an interface fails for good; a datagram that it has no room for is lost.
    pub fn run(&mut self) -> io::Result<Sent> {
        // By default the kernel may be 50 µs late, half of a tick.
        prctl::set_timerslack(1)?;
        let cpu = cpu::thread_seconds()?;
        // What the warm-up could not send is not sent any more, so that a late generator begins to
        // count without a debt.
        self.phase(0..self.uncounted)?;
        let withheld = |lanes: &[Lane]| lanes.iter().map(|lane| lane.withheld).sum::<u64>();
        let before = withheld(self.lanes);
        let (frames, seconds, lateness) = match self.timing {
            Timing::Scheduled => self.phase(self.uncounted..self.total)?,
            Timing::AtOnce => self.at_once()?,
        };
        Ok(Sent {
            frames: frames - (withheld(self.lanes) - before),
            seconds,
            cpu_seconds: cpu::thread_seconds()? - cpu,
            lateness,
        })
    }

    /// Sends a range of the schedule, beginning now; how many were sent, in how many seconds, and
    /// how late.
    fn phase(&mut self, range: Range<u64>) -> io::Result<(u64, f64, Histogram<u64>)> {
        let mut lateness = Histogram::new_with_bounds(1, LATENESS_MAX, 2)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let clock = Clock::new(self, range.start)?;
        let end = Duration::from_secs_f64((range.end - range.start) as f64 / self.rate);
        let mut next = range.start;
        let mut allowance = Allowance::new(self.rate * CATCH_UP, self.burst);
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
            let until = match allowance.take(due - next, now) {
                Ok(allowed) => next + allowed,
                Err(wait) => {
                    std::thread::sleep(wait);
                    continue;
                }
            };
            lateness.saturating_record(now.saturating_sub(clock.due(next)).as_nanos() as u64);
            self.send(&clock, next..until)?;
            next = until;
        }
        let seconds = clock.origin.elapsed().max(end).as_secs_f64();
        Ok((next - range.start, seconds, lateness))
    }

    /// Sends everything with nothing between; how many, in how many seconds, and never late.
    fn at_once(&mut self) -> io::Result<(u64, f64, Histogram<u64>)> {
        let lateness = Histogram::new_with_bounds(1, LATENESS_MAX, 2)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let clock = Clock::new(self, 0)?;
        self.send(&clock, 0..self.total)?;
        Ok((self.total, clock.origin.elapsed().as_secs_f64(), lateness))
    }

    /// Sends a range of the schedule.
    fn send(&mut self, clock: &Clock, range: Range<u64>) -> io::Result<()> {
        let flows = self.flows.len() as u64;
        for index in range {
            let number = index % flows;
            let flow = &self.flows[number as usize];
            let sequence = index / flows;
            let frame = &flow.frames[sequence as usize % flow.frames.len()];
            let tag = Tag {
                run: self.run,
                flow: number as u16,
                sequence: sequence as u32,
                due: clock.epoch + clock.due(index).as_nanos() as u64,
            };
            self.lanes[flow.lane].put(frame, &tag)?;
        }
        self.lanes.iter_mut().try_for_each(Lane::flush)
    }
}

/// How many datagrams a generator may send at once: it gains them with time, up to two bursts.
struct Allowance {
    /// Datagrams gained a second.
    rate: f64,
    burst: u64,
    gained: f64,
    last: Duration,
}

impl Allowance {
    fn new(rate: f64, burst: u64) -> Self {
        Self {
            rate,
            burst,
            gained: burst as f64,
            last: Duration::ZERO,
        }
    }

    /// Takes what is wanted, or two bursts of it; how long to wait when there is less than one
    /// burst and less than wanted.
    fn take(&mut self, wanted: u64, now: Duration) -> Result<u64, Duration> {
        let gained = self.gained + self.rate * now.saturating_sub(self.last).as_secs_f64();
        self.gained = gained.min((2 * self.burst) as f64);
        self.last = now;
        let least = wanted.min(self.burst) as f64;
        if self.gained < least {
            // A nanosecond more, lest rounding make it wait once again.
            let wait = Duration::from_secs_f64((least - self.gained) / self.rate);
            return Err(wait + Duration::from_nanos(1));
        }
        let taken = wanted.min(self.gained as u64);
        self.gained -= taken as f64;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_generator_catches_up_by_bounded_bursts() {
        // 1.25 a microsecond, by bursts of 100.
        let mut allowance = Allowance::new(1.25e6, 100);
        let at = Duration::from_micros;
        assert_eq!(allowance.take(60, at(0)), Ok(60), "the first burst");
        assert_eq!(
            allowance.take(100, at(0)),
            Err(at(48) + Duration::from_nanos(1))
        );
        assert_eq!(allowance.take(20, at(0)), Ok(20), "less than a burst");
        assert_eq!(allowance.take(100, at(64)), Ok(100), "80 later");
        // A pause of ten milliseconds, with all that was due meanwhile.
        assert_eq!(allowance.take(10_000, at(10_064)), Ok(200));
        assert_eq!(allowance.take(9_800, at(10_144)), Ok(100), "80 µs later");
    }
}
