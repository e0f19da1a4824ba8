//! How many addresses a switch caches (RFC 2889 section 5.7), and how fast it learns them (section
//! 5.8).
//!
//! # Theory of operation
//! Three ports take part, by packet sockets on the interfaces of three sandboxes: the *learning* port
//! sends a frame from each of so many made-up addresses to the *test* port, and then the test port
//! sends a frame to each of them. An address that the switch knows is sent to the learning port
//! alone; one that it does not know is flooded, which the *monitoring* port sees. A trial passes when
//! nothing was flooded. Test frames of which nothing was seen anywhere are sent again, so what was
//! lost says nothing about the table.
//!
//! # What differs from the RFC, and why
//! - Learning frames for the capacity leave at `rate`, and those that did not reach the test port are
//!   sent again: what is asked is the size of the table, not of a queue. For the learning rate they
//!   are sent once.
//! - Nothing is aged out between trials, as the RFC asks, for that would take minutes. For the
//!   capacity all trials have the same addresses, each as many of them as it asks: a table that keeps
//!   the old ones holds the first ones then, and one that replaces them holds those that were learned
//!   last, so either passes up to its size and not above. For the learning rate every trial has
//!   addresses that were never seen; with 20 trials of `addresses` each, a table that is smaller than
//!   all of them and keeps the old ones is taken to be slow.
//! - The addresses of the sandboxes themselves are in the table too: a few less are left.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ::tests::lab::Namespace;
use dataplane_core::addr::MacAddr;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::packet::{Offloads, PacketBuilder, PacketSocket};
use dataplane_port::{BATCH_MAX, Batch, PortIo};
use nix::sys::prctl;
use nix::sys::socket::{setsockopt, sockopt};

use super::highest::{Bounds, Found, Trial, flag, highest};
use super::placement;
use super::{MeasureError, Request, refused};
use crate::result::{Metric, Sample};
use crate::system::System;

/// Ports that take part.
pub const PORTS_MIN: u16 = 3;
/// Most addresses of a trial: each is told by three bytes.
pub const ADDRESSES_MAX: u32 = 1 << 22;
/// Where the search for the capacity starts.
const CAPACITY_FIRST: u64 = 1_024;
/// Where the search for the learning rate starts, in addresses a second, and its lowest value.
const RATE_FIRST: u64 = 25_000;
const RATE_LEAST: u64 = 500;
/// Times that frames of which nothing was seen are sent.
const SENDINGS_MAX: usize = 4;
/// Silence after which nothing more is on its way.
const SILENCE: Duration = Duration::from_millis(60);
/// Longest wait for silence.
const SILENCE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pause when nothing is due and nothing was received.
const PAUSE: Duration = Duration::from_micros(100);
/// Frames after which those that have come are taken out of the sockets: a quarter of what they hold.
const UNDRAINED_MAX: usize = 16_384;
/// Bytes that a socket may queue.
const SOCKET_BUFFER_SIZE: usize = 64 << 20;
/// Share of the rate below which the tester has not kept to it.
const PACE_LEAST: f64 = 0.98;
/// The EtherType for local experiments (IEEE 802), which no stack answers.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of every frame, without the check sequence: the smallest of Ethernet.
const FRAME_SIZE: usize = 60;
/// The station at the test port.
const TESTER: MacAddr = MacAddr([0x06, 0, 0, 0, 0, 1]);
/// The last epoch of addresses that no trial of this process has had: an instance may live longer
/// than a measurement, and what it has learned is not new.
static EPOCHS: AtomicU16 = AtomicU16::new(1);

/// The capacity of the table.
pub fn capacity(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut ports = Ports::open(request, system)?;
    let rate = request.load.rate;
    let (found, trials) = search_capacity(request, &mut |set| {
        Ok(ports.learn_all(set, rate)? && ports.flooded(set, rate)? == Some(0))
    })?;
    let value = found.value as f64;
    Ok(sample(
        Metric::more("addresses", "addresses", value),
        trials,
        found,
    ))
}

/// The highest rate at which addresses are learned.
pub fn learning_rate(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let mut ports = Ports::open(request, system)?;
    let (found, reached, trials) = search_learning_rate(request, &mut |rate| {
        let set = Set {
            epoch: EPOCHS.fetch_add(1, Ordering::Relaxed),
            count: request.load.addresses,
        };
        Ok(Learned {
            sent: ports.learn_once(set, rate as f64)?,
            all: ports.flooded(set, request.load.rate)? == Some(0),
        })
    })?;
    let metric = Metric::more("learning-rate", "addresses/s", reached);
    Ok(sample(metric, trials, found))
}

fn sample(metric: Metric, trials: usize, found: Found) -> Sample {
    let mut sample = Sample {
        metrics: vec![metric, Metric::less("trials", "trials", trials as f64)],
        ..Sample::default()
    };
    flag(&mut sample, found.end);
    sample
}

/// The most addresses that `trial` finds learned, and how many trials that took.
fn search_capacity(
    request: &Request,
    trial: &mut dyn FnMut(Set) -> Result<bool, MeasureError>,
) -> Result<(Found, usize), MeasureError> {
    let most = u64::from(request.load.addresses_max);
    let bounds = Bounds {
        least: 1,
        first: CAPACITY_FIRST.min(most),
        most,
        resolution: request.load.resolution,
    };
    let mut trials = 0;
    let found = highest(bounds, &|| request.stop.is_asked(), &mut |count| {
        trials += 1;
        let count = count as u32;
        Ok(match trial(Set { epoch: 0, count })? {
            true => Trial::Passed,
            false => Trial::Failed,
        })
    })?;
    Ok((found, trials))
}

/// What a trial of the learning rate came to.
#[derive(Clone, Copy, Debug)]
struct Learned {
    /// Addresses a second that really left.
    sent: f64,
    /// Whether all were learned.
    all: bool,
}

/// The highest rate at which `trial` finds all learned: what was asked, what really left a second,
/// and how many trials that took.
fn search_learning_rate(
    request: &Request,
    trial: &mut dyn FnMut(u64) -> Result<Learned, MeasureError>,
) -> Result<(Found, f64, usize), MeasureError> {
    let most = (request.load.rate_max as u64).max(1);
    let bounds = Bounds {
        least: RATE_LEAST.min(most),
        first: RATE_FIRST.min(most),
        most,
        resolution: request.load.resolution,
    };
    let mut trials = 0;
    let mut passed = Vec::new();
    let found = highest(bounds, &|| request.stop.is_asked(), &mut |rate| {
        trials += 1;
        let learned = trial(rate)?;
        if !learned.all {
            return Ok(Trial::Failed);
        }
        passed.push((rate, learned.sent));
        Ok(match learned.sent >= PACE_LEAST * rate as f64 {
            true => Trial::Passed,
            false => Trial::AtTesterLimit,
        })
    })?;
    let at = passed.iter().filter(|(rate, _)| *rate == found.value);
    let reached = at.map(|(_, sent)| *sent).fold(0.0, f64::max);
    Ok((found, reached, trials))
}

/// Addresses of one trial: the first `count` of an epoch.
#[derive(Clone, Copy, Debug)]
struct Set {
    epoch: u16,
    count: u32,
}

impl Set {
    /// The address by its number.
    fn address(self, number: u32) -> MacAddr {
        let [_, a, b, c] = number.to_be_bytes();
        let [high, low] = self.epoch.to_be_bytes();
        MacAddr([0x02, high, low, a, b, c])
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Says where the test port's station is.
    Hello,
    /// From an address that is to be learned.
    Learning,
    /// To an address that was.
    Test,
}

/// What a frame says of itself, in its 13 bytes after the EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    run: u32,
    purpose: Purpose,
    /// Counts phases, so that a late frame of another one is not taken for one of this.
    phase: u32,
    number: u32,
}

impl Note {
    fn write(self, dst: MacAddr, src: MacAddr) -> [u8; FRAME_SIZE] {
        let mut frame = [0; FRAME_SIZE];
        frame[..6].copy_from_slice(&dst.0);
        frame[6..12].copy_from_slice(&src.0);
        frame[12..14].copy_from_slice(&ETHERTYPE);
        frame[14..18].copy_from_slice(&self.run.to_be_bytes());
        frame[18] = self.purpose as u8;
        frame[19..23].copy_from_slice(&self.phase.to_be_bytes());
        frame[23..27].copy_from_slice(&self.number.to_be_bytes());
        frame
    }

    /// `None` when it is not one of these frames.
    fn read(frame: &[u8]) -> Option<Self> {
        let rest = frame.get(12..)?.strip_prefix(&ETHERTYPE)?;
        let (run, rest) = rest.split_first_chunk()?;
        let (purpose, rest) = rest.split_first()?;
        let (phase, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let purposes = [Purpose::Hello, Purpose::Learning, Purpose::Test];
        Some(Self {
            run: u32::from_be_bytes(*run),
            purpose: *purposes.iter().find(|known| **known as u8 == *purpose)?,
            phase: u32::from_be_bytes(*phase),
            number: u32::from_be_bytes(*number),
        })
    }
}

/// The three ports.
struct Ports {
    learning: Wire,
    test: Wire,
    monitoring: Wire,
    run: u32,
    phase: u32,
}

/// Which numbers a phase is still to hear of.
struct Missing {
    absent: Vec<bool>,
    left: usize,
}

impl Missing {
    fn all(count: u32) -> Self {
        Self {
            absent: vec![true; count as usize],
            left: count as usize,
        }
    }

    fn strike(&mut self, number: u32) {
        if let Some(absent) = self.absent.get_mut(number as usize)
            && std::mem::take(absent)
        {
            self.left -= 1;
        }
    }

    fn numbers(&self) -> Vec<u32> {
        let absent = self.absent.iter().enumerate();
        absent
            .filter_map(|(number, absent)| absent.then_some(number as u32))
            .collect()
    }
}

impl Ports {
    fn open(request: &Request, system: &System) -> Result<Self, MeasureError> {
        let mut sandboxes: Vec<&Namespace> = Vec::new();
        for path in &system.paths {
            if !sandboxes
                .iter()
                .any(|known| known.path() == path.from.path())
            {
                sandboxes.push(&path.from);
            }
        }
        let [learning, test, monitoring, ..] = sandboxes[..] else {
            return Err(MeasureError::Request(format!(
                "{} ports; {PORTS_MIN} take part: one learns, one tests, one monitors",
                sandboxes.len()
            )));
        };
        placement::pin_sender(request.load.placement).map_err(refused("pin the tester"))?;
        // By default the kernel may be 50 µs late, half of a pause.
        prctl::set_timerslack(1).map_err(refused("have precise pauses"))?;
        let open = |ns| Wire::open(ns).map_err(refused("open a packet socket on eth0"));
        let mut ports = Self {
            learning: open(learning)?,
            test: open(test)?,
            monitoring: open(monitoring)?,
            run: fastrand::Rng::with_seed(request.seed).u32(1..),
            phase: 0,
        };
        ports.greet()?;
        Ok(ports)
    }

    /// Has the switch learn where the test port is: when the other two have heard of it.
    fn greet(&mut self) -> Result<(), MeasureError> {
        let end = Instant::now() + SILENCE_WAIT_MAX;
        let (mut heard_learning, mut heard_monitoring) = (false, false);
        while Instant::now() < end {
            let note = self.note(Purpose::Hello, 0);
            self.test.put(&note.write(MacAddr::BROADCAST, TESTER))?;
            self.test.flush()?;
            std::thread::park_timeout(Duration::from_millis(5));
            self.learning.take(&note, |_| heard_learning = true)?;
            self.monitoring.take(&note, |_| heard_monitoring = true)?;
            if heard_learning && heard_monitoring {
                return Ok(());
            }
        }
        Err(MeasureError::Stuck(format!(
            "no broadcast of the test port has reached both others within {SILENCE_WAIT_MAX:?}"
        )))
    }

    const fn note(&self, purpose: Purpose, number: u32) -> Note {
        Note {
            run: self.run,
            purpose,
            phase: self.phase,
            number,
        }
    }

    /// Sends a frame from each address until the test port has heard of all; whether it has.
    fn learn_all(&mut self, set: Set, rate: f64) -> Result<bool, MeasureError> {
        self.phase += 1;
        let mut missing = Missing::all(set.count);
        for _ in 0..SENDINGS_MAX {
            let numbers = missing.numbers();
            self.send_learning(set, &numbers, rate, &mut missing)?;
            if missing.left == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a frame from each address once; addresses a second that really left.
    fn learn_once(&mut self, set: Set, rate: f64) -> Result<f64, MeasureError> {
        self.phase += 1;
        let mut missing = Missing::all(set.count);
        let numbers = missing.numbers();
        let seconds = self.send_learning(set, &numbers, rate, &mut missing)?;
        Ok(f64::from(set.count) / seconds)
    }

    fn send_learning(
        &mut self,
        set: Set,
        numbers: &[u32],
        rate: f64,
        missing: &mut Missing,
    ) -> Result<f64, MeasureError> {
        let any = self.note(Purpose::Learning, 0);
        let Self { learning, test, .. } = self;
        let frame = |number| Note { number, ..any }.write(TESTER, set.address(number));
        let mut take = || {
            let before = missing.left;
            test.take(&any, |note| missing.strike(note.number))?;
            Ok((before - missing.left, missing.left == 0))
        };
        let seconds = paced(learning, numbers, rate, frame, &mut take)?;
        await_silence(&mut take)?;
        Ok(seconds)
    }

    /// Sends a frame to each address until each was seen at the learning or the monitoring port; how
    /// many came by the latter, or `None` when of some nothing is to be seen.
    fn flooded(&mut self, set: Set, rate: f64) -> Result<Option<usize>, MeasureError> {
        self.phase += 1;
        let any = self.note(Purpose::Test, 0);
        let (mut missing, mut flooded) = (Missing::all(set.count), 0);
        let Self {
            learning,
            test,
            monitoring,
            ..
        } = self;
        let frame = |number| Note { number, ..any }.write(set.address(number), TESTER);
        for _ in 0..SENDINGS_MAX {
            let numbers = missing.numbers();
            let mut take = || {
                let before = missing.left;
                let mut seen = 0;
                monitoring.take(&any, |note| {
                    seen += 1;
                    missing.strike(note.number);
                })?;
                flooded += seen;
                learning.take(&any, |note| missing.strike(note.number))?;
                // A flooded frame comes to the learning port too: the monitoring one must have had
                // its time, which silence gives it.
                Ok((before - missing.left + seen, false))
            };
            paced(test, &numbers, rate, frame, &mut take)?;
            await_silence(&mut take)?;
            if missing.left == 0 {
                return Ok(Some(flooded));
            }
        }
        Ok(None)
    }
}

/// Takes what has come: how many frames of interest, and whether no more are expected.
type Take<'a> = &'a mut dyn FnMut() -> Result<(usize, bool), MeasureError>;

/// Sends a frame for each number at a rate, with looks at what comes; seconds that it took.
fn paced(
    wire: &mut Wire,
    numbers: &[u32],
    rate: f64,
    frame: impl Fn(u32) -> [u8; FRAME_SIZE],
    take: Take<'_>,
) -> Result<f64, MeasureError> {
    let start = Instant::now();
    let (mut next, mut undrained) = (0, 0);
    while next < numbers.len() {
        let due = (start.elapsed().as_secs_f64() * rate) as usize + 1;
        let until = due.min(numbers.len()).min(next + BATCH_MAX);
        for number in &numbers[next..until.max(next)] {
            wire.put(&frame(*number))?;
        }
        wire.flush()?;
        undrained += until.saturating_sub(next);
        let idle = until <= next;
        next = until.max(next);
        if idle || undrained >= UNDRAINED_MAX {
            undrained = 0;
            if take()?.0 == 0 && idle {
                std::thread::sleep(PAUSE);
            }
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Takes until nothing has come for a while, or nothing more is expected.
fn await_silence(take: Take<'_>) -> Result<(), MeasureError> {
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < SILENCE && start.elapsed() < SILENCE_WAIT_MAX {
        let (count, complete) = take()?;
        if complete {
            return Ok(());
        }
        if count > 0 {
            last = Instant::now();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// A packet socket on a sandbox's interface.
struct Wire {
    socket: PacketSocket,
    sent: Vec<FrameBuf>,
    filled: usize,
    received: Batch,
}

impl Wire {
    fn open(ns: &Namespace) -> io::Result<Self> {
        let builder = PacketBuilder::new("eth0").offloads(Offloads::None);
        let opened = ns.run(|| builder.open()).map_err(io::Error::other)?;
        let socket = opened.into_iter().next();
        let socket = socket.ok_or_else(|| io::Error::other("no queue was opened"))?;
        if let Some(fd) = socket.readiness() {
            setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER_SIZE)?;
            setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_SIZE)?;
        }
        Ok(Self {
            socket,
            sent: vec![FrameBuf::with_capacity(FRAME_SIZE); BATCH_MAX],
            filled: 0,
            received: Batch::new(),
        })
    }

    /// Puts a frame into the next call, which is made when it is full.
    fn put(&mut self, frame: &[u8]) -> Result<(), MeasureError> {
        self.sent[self.filled].copy_from(frame, Offload::NONE);
        self.filled += 1;
        match self.filled == self.sent.len() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Makes the call; a frame that the interface has no room for is lost.
    fn flush(&mut self) -> Result<(), MeasureError> {
        let mut left = &mut self.sent[..self.filled];
        self.filled = 0;
        while !left.is_empty() {
            let sent = match self.socket.send(left) {
                Ok(sent) => sent.max(1),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotConnected | io::ErrorKind::InvalidInput => {
                        return Err(refused("send frames by eth0")(error));
                    }
                    io::ErrorKind::Interrupted => 0,
                    _ => 1,
                },
            };
            left = &mut left[sent..];
        }
        Ok(())
    }

    /// Shows `see` what has come and is of the same run, purpose and phase as `like`.
    fn take(&mut self, like: &Note, mut see: impl FnMut(Note)) -> Result<(), MeasureError> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(refused("receive frames by eth0")(error)),
            }
            let notes = self.received.frames().iter();
            for note in notes.filter_map(|frame| Note::read(frame.bytes())) {
                let number = note.number;
                if (Note { number, ..*like }) == note {
                    see(note);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::VecDeque;

    use super::super::highest::End;
    use crate::scenario::MeasureName;

    /// A table of a size, which keeps what it has when it is full, or gives up the oldest.
    struct Table {
        size: usize,
        when_full: WhenFull,
        known: VecDeque<MacAddr>,
    }

    #[derive(Clone, Copy, Debug)]
    enum WhenFull {
        KeepsTheOld,
        ReplacesTheOldest,
    }

    impl Table {
        fn learn(&mut self, address: MacAddr) {
            // What is seen again is the newest.
            let before = self.known.len();
            self.known.retain(|known| *known != address);
            let new = self.known.len() == before;
            match (new && before == self.size, self.when_full) {
                (true, WhenFull::KeepsTheOld) => return,
                (true, WhenFull::ReplacesTheOldest) => drop(self.known.pop_front()),
                (false, _) => {}
            }
            self.known.push_back(address);
        }

        fn passes(&mut self, set: Set) -> bool {
            let addresses = (0..set.count).map(|number| set.address(number));
            addresses.clone().for_each(|address| self.learn(address));
            addresses.into_iter().all(|it| self.known.contains(&it))
        }
    }

    #[test]
    fn the_size_of_a_table_is_found_without_ageing_whatever_it_does_when_it_is_full() {
        for when_full in [WhenFull::KeepsTheOld, WhenFull::ReplacesTheOldest] {
            for size in [7, 200, 1_024, 1_500] {
                let mut table = Table {
                    size,
                    when_full,
                    known: VecDeque::new(),
                };
                let mut request = Request::new(MeasureName::Rfc2889Capacity);
                request.load.resolution = 0.001;
                request.load.addresses_max = 4_000;
                let mut unlucky = 0;
                let searched = search_capacity(&request, &mut |set| {
                    // Something else fails now and then.
                    unlucky += 1;
                    Ok(table.passes(set) && unlucky % 4 != 0)
                });
                let (found, _) = searched.expect("a simulated trial");
                let least = (size as f64 / 1.001).floor() as u64;
                assert!(
                    (least..=size as u64).contains(&found.value),
                    "{when_full:?} {size}: {found:?}"
                );
                assert_eq!(found.end, End::Narrowed);
            }
        }
    }

    /// A switch that learns up to so many addresses a second, and a tester that offers up to so many.
    fn learn(learns: f64, offers: f64) -> (Found, f64) {
        let request = Request::new(MeasureName::Rfc2889LearningRate);
        let searched = search_learning_rate(&request, &mut |rate| {
            let sent = (rate as f64).min(offers);
            Ok(Learned {
                sent,
                all: sent <= learns,
            })
        });
        let (found, reached, _) = searched.expect("a simulated trial");
        (found, reached)
    }

    #[test]
    fn the_learning_rate_is_found_within_the_resolution_and_the_testers_limit_is_told() {
        for learns in [700.0, 40e3, 333e3, 3.9e6] {
            let (found, reached) = learn(learns, 1e9);
            assert_eq!(found.end, End::Narrowed, "{learns}");
            assert!(
                reached <= learns && reached >= learns / 1.02 - 1.0,
                "{learns}: {reached}"
            );
        }
        let (found, reached) = learn(1e9, 250e3);
        assert_eq!((found.end, reached), (End::TesterLimit, 250e3));
        let (found, reached) = learn(100.0, 1e9);
        assert_eq!((found.end, reached), (End::Floor, 0.0));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let note = Note {
            run: 0x0102_0304,
            purpose: Purpose::Test,
            phase: 7,
            number: 0xffff_fffe,
        };
        let frame = note.write(TESTER, MacAddr::BROADCAST);
        assert_eq!(Note::read(&frame), Some(note));
        assert_eq!(Note::read(&frame[..26]), None, "cut off");
        let mut other = frame;
        other[13] = 0;
        assert_eq!(Note::read(&other), None, "another EtherType");
        other = frame;
        other[18] = 9;
        assert_eq!(Note::read(&other), None, "another purpose");
    }

    #[test]
    fn addresses_are_distinct_unicast_and_not_the_testers() {
        let mut all = std::collections::BTreeSet::new();
        for epoch in [0, 1, u16::MAX] {
            let set = Set { epoch, count: 3 };
            for number in [0, 1, ADDRESSES_MAX - 1] {
                let address = set.address(number);
                assert!(address.0[0] & 1 == 0 && address != TESTER);
                assert!(all.insert(address.0), "{address:?}");
            }
        }
    }

    #[test]
    fn what_was_heard_of_is_missed_no_more_and_counts_once() {
        let mut missing = Missing::all(4);
        for number in [1, 1, 3, 9] {
            missing.strike(number);
        }
        assert_eq!((missing.left, missing.numbers()), (2, vec![0, 2]));
    }
}
