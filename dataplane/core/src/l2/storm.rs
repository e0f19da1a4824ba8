//! Storm control: how many frames a second may be flooded that enter by one port.
//!
//! Three meters a port, one for each class of flooded frames, and each a *generic cell rate
//! algorithm* (ITU-T I.371): the theoretical arrival time of the next frame is all that it keeps, in
//! one atomic word, which is what a bucket of tokens comes to. All queues of a port share it,
//! whichever workers receive from them. Time is the caller's.
//!
//! Metered is what is flooded: unknown unicast is known to be that only after the lookup, and what
//! is for the gateway, such as a request for its MAC, burdens no other port.
//!
//! A GSO frame counts for what it is on a wire, its segments. It passes whole where one frame may,
//! and those after it wait for the rest: else one of more segments than the burst could never pass.

use core::fmt;
use core::str::FromStr;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rustc_hash::FxBuildHasher;

use super::{FloodClass, PortFlags};
use crate::addr::{MacAddr, PortId};
use crate::frame::Frame;
use crate::gso;
use crate::time::Instant;
use crate::topology::{PORTS_MAX, Port};
use crate::verdict::DropReason;

/// Largest rate, in frames per second: beyond it the meter's step, in whole nanoseconds, would be
/// wrong by more than a thousandth, and a limit would be none.
pub const STORM_RATE_MAX: u32 = 1_000_000;
/// Largest burst, in frames.
pub const STORM_BURST_MAX: u32 = 1_000_000;
/// Without a burst of its own a limit has that of so many parts of a second.
const BURST_PARTS: u32 = 10;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How much of one class may be flooded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StormLimit {
    /// Frames per second.
    rate: u32,
    /// Frames that may come at once.
    burst: u32,
}

/// A limit that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StormLimitError {
    /// No number where one belongs.
    #[error("a storm limit is frames per second, such as '1000' or '1000 burst 50', or 'none'")]
    Form,
    /// Too small or too large a rate.
    #[error(
        "a storm limit is from 1 to {STORM_RATE_MAX} frames per second, or none; to flood nothing \
         at all, use the flags flood, mcast-flood and bcast-flood of the other ports"
    )]
    Rate,
    /// Too small or too large a burst.
    #[error("a storm limit's burst is from 1 to {STORM_BURST_MAX} frames")]
    Burst,
}

impl StormLimit {
    /// A limit of `rate` frames per second; a tenth of a second's worth of them may come at once,
    /// or `burst`.
    ///
    /// # Errors
    /// [`StormLimitError`] for what is out of range.
    pub fn new(rate: u32, burst: Option<u32>) -> Result<Self, StormLimitError> {
        if !(1..=STORM_RATE_MAX).contains(&rate) {
            return Err(StormLimitError::Rate);
        }
        let burst = burst.unwrap_or((rate / BURST_PARTS).max(1));
        if !(1..=STORM_BURST_MAX).contains(&burst) {
            return Err(StormLimitError::Burst);
        }
        Ok(Self { rate, burst })
    }

    /// The theoretical arrival time after `frames` more, which are admitted at `now`; `None` when
    /// they are too early.
    fn admit(self, expected: u64, frames: u64, now: u64) -> Option<u64> {
        let interval = NANOS_PER_SECOND / u64::from(self.rate);
        let tolerance = interval * u64::from(self.burst - 1);
        let start = expected.max(now);
        (start - now <= tolerance).then(|| start.saturating_add(interval * frames))
    }
}

impl fmt::Display for StormLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} burst {}", self.rate, self.burst)
    }
}

impl FromStr for StormLimit {
    type Err = StormLimitError;

    /// `1000`, or `1000 burst 50`.
    fn from_str(text: &str) -> Result<Self, StormLimitError> {
        let number = |word: &str, error| match word.parse::<u64>() {
            Ok(number) => u32::try_from(number).map_err(|_| error),
            Err(_) if word.parse::<f64>().is_ok() => Err(error),
            Err(_) => Err(StormLimitError::Form),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (rate, burst) = match words[..] {
            [rate] => (rate, None),
            [rate, "burst", burst] => (rate, Some(number(burst, StormLimitError::Burst)?)),
            _ => return Err(StormLimitError::Form),
        };
        Self::new(number(rate, StormLimitError::Rate)?, burst)
    }
}

/// The limits of a port; a class without one is flooded without end.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct StormLimits([Option<StormLimit>; FloodClass::ALL.len()]);

impl StormLimits {
    /// That of a class.
    pub const fn of(&self, class: FloodClass) -> Option<StormLimit> {
        self.0[class as usize]
    }

    /// That of a class, to be set.
    pub const fn of_mut(&mut self, class: FloodClass) -> &mut Option<StormLimit> {
        &mut self.0[class as usize]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for StormLimits {
    /// `broadcast 1000 burst 100, multicast 5 burst 1`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = FloodClass::ALL.into_iter();
        let set = limits.filter_map(|class| Some((class, self.of(class)?)));
        for (index, (class, limit)) in set.enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(f, "{between}{} {limit}", class.label())?;
        }
        Ok(())
    }
}

impl FromStr for StormLimits {
    type Err = StormLimitError;

    /// What is written, an empty text included.
    fn from_str(text: &str) -> Result<Self, StormLimitError> {
        let mut limits = Self::default();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (label, limit) = part.split_once(' ').ok_or(StormLimitError::Form)?;
            let class = FloodClass::named(label).ok_or(StormLimitError::Form)?;
            *limits.of_mut(class) = Some(limit.parse()?);
        }
        Ok(limits)
    }
}

impl FloodClass {
    /// Why a frame ends of which more than enough were flooded.
    pub const fn storm(self) -> DropReason {
        match self {
            Self::UnknownUnicast => DropReason::StormUnknownUnicast,
            Self::Multicast => DropReason::StormMulticast,
            Self::Broadcast => DropReason::StormBroadcast,
        }
    }
}

/// The meters of every port, shared by all workers. No lock: workers meet in one word of each.
#[derive(Debug, Default)]
pub struct StormMeters {
    /// By [`PortId`]; made when the first port is limited.
    ports: OnceLock<Box<[PortMeters]>>,
}

type PortMeters = [Meter; FloodClass::ALL.len()];

/// One class of one port.
#[derive(Debug, Default)]
struct Meter {
    /// The theoretical arrival time of the next frame, in nanoseconds.
    expected: AtomicU64,
    /// Frames that were too many.
    dropped: AtomicU64,
}

impl StormMeters {
    /// No port has had a frame.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Frames of a port and class that were too many, of all workers.
    pub fn dropped(&self, port: PortId, class: FloodClass) -> u64 {
        let meters = self.ports.get().and_then(|ports| ports.get(port.index()));
        meters.map_or(0, |meters| {
            meters[class as usize].dropped.load(Ordering::Relaxed)
        })
    }

    /// Forgets what a port has had, which is being removed.
    pub fn forget_port(&self, port: PortId) {
        let meters = self.ports.get().and_then(|ports| ports.get(port.index()));
        for meter in meters.into_iter().flatten() {
            meter.expected.store(0, Ordering::Relaxed);
            meter.dropped.store(0, Ordering::Relaxed);
        }
    }

    fn meter(&self, port: PortId, class: FloodClass) -> Option<&Meter> {
        let made = || (0..PORTS_MAX).map(|_| PortMeters::default()).collect();
        let meters = self.ports.get_or_init(made).get(port.index())?;
        Some(&meters[class as usize])
    }
}

impl Meter {
    /// Takes `frames` that come at `now` into account; `false`, and nothing taken, when they are
    /// too early.
    fn take(&self, limit: StormLimit, frames: u64, now: u64) -> bool {
        let next = |expected| limit.admit(expected, frames, now);
        // Relaxed: the word stands for itself alone.
        let order = Ordering::Relaxed;
        self.expected.fetch_update(order, order, next).is_ok()
    }
}

/// One worker's access to the meters, or that of a what-if, which uses nothing up.
#[derive(Debug)]
pub struct StormView {
    shared: Arc<StormMeters>,
    /// Present in a what-if: arrival times that its own frames have brought about.
    overlay: Option<HashMap<(PortId, FloodClass), u64, FxBuildHasher>>,
}

impl StormView {
    /// A view whose frames count.
    pub fn live(shared: Arc<StormMeters>) -> Self {
        Self {
            shared,
            overlay: None,
        }
    }

    /// A view that reads the shared meters and keeps what it takes to itself.
    pub fn overlay(shared: Arc<StormMeters>) -> Self {
        Self {
            shared,
            overlay: Some(HashMap::default()),
        }
    }

    /// Decides whether a frame for `dst` that enters by `port` may be flooded.
    ///
    /// # Errors
    /// `StormBroadcast`, `StormMulticast`, `StormUnknownUnicast`.
    #[inline]
    pub fn admit(
        &mut self,
        port: &Port,
        frame: &Frame<'_>,
        dst: MacAddr,
        now: Instant,
    ) -> Result<(), DropReason> {
        match port.flags.has(PortFlags::STORM) {
            true => self.meter(port, frame, dst, now),
            false => Ok(()),
        }
    }

    // Cold for the sake of ports without a limit, as `examine` is.
    #[cold]
    #[inline(never)]
    fn meter(
        &mut self,
        port: &Port,
        frame: &Frame<'_>,
        dst: MacAddr,
        now: Instant,
    ) -> Result<(), DropReason> {
        let class = FloodClass::of(dst);
        let limit = port.profile.storm.of(class);
        let meter = self.shared.meter(port.id, class);
        let Some((limit, meter)) = limit.zip(meter) else {
            return Ok(());
        };
        let frames = gso::segment_count(frame.buf).unwrap_or(1) as u64;
        let Some(overlay) = &mut self.overlay else {
            if meter.take(limit, frames, now.nanos()) {
                return Ok(());
            }
            meter.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(class.storm());
        };
        let shared = meter.expected.load(Ordering::Relaxed);
        let expected = overlay.entry((port.id, class)).or_insert(shared);
        let next = limit.admit(*expected, frames, now.nanos());
        *expected = next.ok_or(class.storm())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Result<StormLimit, StormLimitError> {
        text.parse()
    }

    #[test]
    fn limits_are_read_as_they_are_written_and_nothing_else_is() {
        for (text, written) in [
            ("1000", "1000 burst 100"),
            ("5", "5 burst 1"),
            ("1 burst 1", "1 burst 1"),
            ("1000000 burst 1000000", "1000000 burst 1000000"),
        ] {
            let read = limit(text).unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(limit(written), Ok(read));
        }
        for text in ["0", "1000001", "-1", "1.5", "99999999999", "1e9"] {
            assert_eq!(limit(text), Err(StormLimitError::Rate), "{text}");
        }
        for text in ["1 burst 0", "1 burst 1000001", "1 burst -1"] {
            assert_eq!(limit(text), Err(StormLimitError::Burst), "{text}");
        }
        for text in ["", "few", "1 burst", "1 2", "1 burst 2 3", "1 burst few"] {
            assert_eq!(limit(text), Err(StormLimitError::Form), "{text}");
        }
        let mut limits = StormLimits::default();
        assert_eq!("".parse(), Ok(limits));
        *limits.of_mut(FloodClass::Broadcast) = Some(limit("7").unwrap());
        *limits.of_mut(FloodClass::UnknownUnicast) = Some(limit("9 burst 2").unwrap());
        assert_eq!(
            limits.to_string(),
            "unknown-unicast 9 burst 2, broadcast 7 burst 1"
        );
        assert_eq!(limits.to_string().parse(), Ok(limits));
        assert_eq!(
            "anycast 7".parse::<StormLimits>(),
            Err(StormLimitError::Form)
        );
        assert!(StormLimitError::Rate.to_string().contains("1 to 1000000"));
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let (meter, limit) = (Meter::default(), limit("1000 burst 10").unwrap());
        let second = NANOS_PER_SECOND;
        let passed = |at| (0..50).filter(|_| meter.take(limit, 1, at)).count();
        assert_eq!(passed(second), 10, "the burst");
        assert_eq!(passed(second + 999_999), 0, "a nanosecond too early");
        assert_eq!(passed(second + 1_000_000), 1);
        assert_eq!(passed(second + 4_000_000), 3);
        assert_eq!(passed(60 * second), 10, "no more than a burst is saved up");
    }

    #[test]
    fn in_the_long_run_as_many_pass_as_the_rate_says() {
        for rate in [1, 7, 1_000, 333_333, STORM_RATE_MAX] {
            let (meter, limit) = (Meter::default(), StormLimit::new(rate, Some(5)).unwrap());
            // Ten frames for each that may pass, over 1,000 of these.
            let gap = NANOS_PER_SECOND / u64::from(rate) / 10;
            let passed = (0..10_000)
                .filter(|n| meter.take(limit, 1, n * gap))
                .count();
            assert!((1_000..=1_006).contains(&passed), "{rate}: {passed}");
        }
    }

    #[test]
    fn several_workers_share_what_may_pass() {
        let (meter, limit) = (Meter::default(), limit("1 burst 1000").unwrap());
        let passed: usize = std::thread::scope(|scope| {
            let worker = || (0..1_000).filter(|_| meter.take(limit, 1, 5)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(passed, 1_000);
    }

    #[test]
    fn a_frame_of_many_segments_is_paid_for_by_those_after_it() {
        let (meter, limit) = (Meter::default(), limit("1000 burst 2").unwrap());
        assert!(meter.take(limit, 45, 0), "more than the burst");
        assert!(!meter.take(limit, 1, 43_000_000));
        assert!(meter.take(limit, 1, 44_000_000));
    }
}
