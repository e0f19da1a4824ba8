//! Rates in bits per second, and the shaper that holds frames to one.
//!
//! The shaper is a token bucket turned into time: it remembers until when what has been let go
//! keeps the line busy. A burst is by how much that may lie in the past; a frame leaves when its
//! last bit would have gone over the line, or at once while the burst lasts. Fractions of a
//! nanosecond are carried over, so the rate is exact in the long run.

use core::fmt;
use core::str::FromStr;

use crate::time::{Duration, Instant};

/// Smallest rate: a full Ethernet frame takes a second and a half.
pub const RATE_MIN: u64 = 8_000;
/// Largest rate: a frame of 64 bytes takes 5 ns, and no software switch meets it.
pub const RATE_MAX: u64 = 100_000_000_000;
/// Largest burst, in bytes: what waits in a wheel is bounded besides.
pub const BURST_MAX: u64 = 64 << 20;
/// Frames may wait for their turn this long, ...
pub const RATE_WAIT_MAX: Duration = Duration::from_millis(50);
/// ... or behind so many bytes where that is longer: a slow line must hold a few frames at least.
pub const RATE_QUEUE_BYTES: u64 = 32 << 10;
/// Without a burst of its own a limit has what goes in this time, ...
const BURST_TIME: Duration = Duration::from_millis(2);
/// ... or two full frames of Ethernet where that is more.
const BURST_BYTES_MIN: u64 = 2 * 1_514;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const BITS: u64 = 8;

/// Bits per second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(u64);

/// A rate with the bytes that may go at once after a pause.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RateLimit {
    rate: Rate,
    burst_bytes: u64,
}

/// A rate that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RateError {
    /// No number with a unit where one belongs.
    #[error(
        "a rate is a number with bit, kbit, mbit or gbit, such as 10mbit, and may have a burst in \
         bytes, k or m: '10mbit burst 32k'"
    )]
    Form,
    /// Too small or too large a rate.
    #[error("a rate is from 8kbit to 100gbit")]
    Rate,
    /// Too small or too large a burst.
    #[error("a burst is from 1 byte to 64m")]
    Burst,
}

/// Units of rates, as of tc(8), the largest first.
const RATE_UNITS: [(&str, u64); 4] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];
/// Units of sizes, as of tc(8): a k is 1,024.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("mb", 1 << 20),
    ("m", 1 << 20),
    ("kb", 1 << 10),
    ("k", 1 << 10),
    ("b", 1),
];

/// A number with one of `units`, rounded to whole ones; without a unit it counts as it is.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<f64> {
    let split = units
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, size) = split.unwrap_or((text, 1));
    // No "inf", no "1e9".
    let plain = |c: char| matches!(c, '0'..='9' | '.' | '-');
    if !number.chars().all(plain) {
        return None;
    }
    let value: f64 = number.parse().ok()?;
    Some((value * size as f64).round())
}

impl Rate {
    /// A rate of so many bits per second.
    ///
    /// # Errors
    /// [`RateError::Rate`].
    pub fn new(bits_per_second: u64) -> Result<Self, RateError> {
        let within = (RATE_MIN..=RATE_MAX).contains(&bits_per_second);
        within
            .then_some(Self(bits_per_second))
            .ok_or(RateError::Rate)
    }

    /// How long the line is busy with so many bytes.
    fn time(self, bytes: u64) -> Duration {
        Duration::from_nanos((bytes * BITS * NANOS_PER_SECOND).div_ceil(self.0))
    }

    /// Bytes that go over the line in a time.
    fn bytes_in(self, time: Duration) -> u64 {
        let nanos = u128::from(self.0) * time.as_nanos();
        (nanos / u128::from(NANOS_PER_SECOND * BITS)) as u64
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = RATE_UNITS.iter();
        let whole = units.find(|(_, size)| self.0.is_multiple_of(*size));
        let (unit, size) = whole.unwrap_or(&("bit", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    /// `10mbit`, `1.5gbit`, `64kbit`.
    fn from_str(text: &str) -> Result<Self, RateError> {
        let lower = text.to_ascii_lowercase();
        let bits = quantity(&lower, &RATE_UNITS).ok_or(RateError::Form)?;
        // Beyond the range a float says so as well as an integer.
        Self::new(bits.clamp(0.0, RATE_MAX as f64 * 2.0) as u64)
    }
}

impl RateLimit {
    /// A limit of `rate`, with a burst of its own or the usual one.
    ///
    /// # Errors
    /// [`RateError::Burst`].
    pub fn new(rate: Rate, burst_bytes: Option<u64>) -> Result<Self, RateError> {
        let usual = rate.bytes_in(BURST_TIME).clamp(BURST_BYTES_MIN, BURST_MAX);
        let burst_bytes = burst_bytes.unwrap_or(usual);
        if !(1..=BURST_MAX).contains(&burst_bytes) {
            return Err(RateError::Burst);
        }
        Ok(Self { rate, burst_bytes })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} burst {}", self.rate, self.burst_bytes)
    }
}

impl FromStr for RateLimit {
    type Err = RateError;

    /// `10mbit`, or `10mbit burst 32k`.
    fn from_str(text: &str) -> Result<Self, RateError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (rate, burst) = match words[..] {
            [rate] => (rate, None),
            [rate, "burst", burst] => {
                let bytes = quantity(&burst.to_ascii_lowercase(), &SIZE_UNITS);
                let bytes = bytes.ok_or(RateError::Form)?;
                (rate, Some(bytes.clamp(0.0, BURST_MAX as f64 * 2.0) as u64))
            }
            _ => return Err(RateError::Form),
        };
        Self::new(rate.parse()?, burst)
    }
}

/// Holds frames to a rate.
#[derive(Debug)]
pub(super) struct Shaper {
    rate: Rate,
    /// By how much the line may have been idle to no loss, in nanoseconds.
    tolerance: u64,
    /// How far the line may be busy ahead for a frame to be let wait.
    wait_max: u64,
    /// Until when the line is busy with what has been let go.
    busy_until: u64,
    /// What that lacks of a whole nanosecond, in parts of the rate.
    rest: u64,
}

impl Shaper {
    /// A line that is idle.
    pub fn new(limit: RateLimit) -> Self {
        Self::with(limit.rate, limit.rate.time(limit.burst_bytes))
    }

    /// A line without a burst: each frame takes its time.
    pub fn line(rate: Rate) -> Self {
        Self::with(rate, Duration::ZERO)
    }

    fn with(rate: Rate, tolerance: Duration) -> Self {
        let queue = rate.time(RATE_QUEUE_BYTES);
        Self {
            rate,
            tolerance: tolerance.as_nanos() as u64,
            wait_max: RATE_WAIT_MAX.max(queue).as_nanos() as u64,
            busy_until: 0,
            rest: 0,
        }
    }

    /// When a frame of `size` bytes that comes at `now` has gone over the line; `None`, and the
    /// line is as it was, when too much waits before it.
    pub fn pass(&mut self, size: usize, now: Instant) -> Option<Instant> {
        let idle_since = now.nanos().saturating_sub(self.tolerance);
        if self.busy_until.saturating_sub(now.nanos()) > self.wait_max {
            return None;
        }
        if self.busy_until < idle_since {
            (self.busy_until, self.rest) = (idle_since, 0);
        }
        // At most 64 KiB, so far below 2^64.
        let cost = size as u64 * BITS * NANOS_PER_SECOND + self.rest;
        self.busy_until += cost / self.rate.0;
        self.rest = cost % self.rate.0;
        Some(Instant::from_nanos(self.busy_until).max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn limit(text: &str) -> Result<RateLimit, RateError> {
        text.parse()
    }

    #[test]
    fn rates_are_read_in_the_units_of_tc_and_written_in_the_largest_that_is_whole() {
        for (text, written) in [
            ("10mbit", "10mbit burst 3028"),
            ("1gbit", "1gbit burst 250000"),
            ("8kbit burst 1", "8kbit burst 1"),
            ("1.5Mbit burst 2k", "1500kbit burst 2048"),
            ("9600bit burst 64m", "9600bit burst 67108864"),
            ("2000000 burst 1kb", "2mbit burst 1024"),
            ("100gbit burst 5b", "100gbit burst 5"),
        ] {
            let read = limit(text).unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(limit(written), Ok(read));
        }
        for text in [
            "0",
            "0mbit",
            "7999",
            "101gbit",
            "-1mbit",
            "99999999999999gbit",
        ] {
            assert_eq!(limit(text), Err(RateError::Rate), "{text}");
        }
        for text in ["1mbit burst 0", "1mbit burst 65m", "1mbit burst -1k"] {
            assert_eq!(limit(text), Err(RateError::Burst), "{text}");
        }
        for text in [
            "",
            "fast",
            "mbit",
            "1mbyte",
            "infbit",
            "1mbit burst",
            "1 2",
            "1mbit burst x",
        ] {
            assert_eq!(limit(text), Err(RateError::Form), "{text}");
        }
        assert!(RateError::Rate.to_string().contains("8kbit to 100gbit"));
    }

    #[test]
    fn a_line_takes_each_frame_its_time() {
        let mut line = Shaper::line("10mbit".parse().unwrap());
        let mut leaves = |at, size| line.pass(size, Instant::from_nanos(at)).unwrap().nanos();
        assert_eq!(leaves(SECOND, 1_250), SECOND + 1_000_000);
        assert_eq!(leaves(SECOND, 125), SECOND + 1_100_000, "behind the first");
        assert_eq!(leaves(2 * SECOND, 125), 2 * SECOND + 100_000, "idle before");
    }

    #[test]
    fn a_burst_leaves_at_once_and_the_rest_at_the_rate() {
        let mut shaper = Shaper::new(limit("10mbit burst 5000").unwrap());
        let mut leaves = |at| shaper.pass(1_250, Instant::from_nanos(at)).unwrap().nanos();
        let times: Vec<u64> = (0..6).map(|_| leaves(SECOND) - SECOND).collect();
        assert_eq!(times, [0, 0, 0, 0, 1_000_000, 2_000_000]);
        // Two milliseconds after the last: half of the burst is there again.
        let again = SECOND + 4_000_000;
        let times: Vec<u64> = (0..3).map(|_| leaves(again) - again).collect();
        assert_eq!(times, [0, 0, 1_000_000]);
    }

    #[test]
    fn the_rate_is_exact_whatever_a_frame_takes() {
        for rate in ["8kbit", "9999bit", "7mbit", "10gbit", "99999999999bit"] {
            let rate: Rate = rate.parse().unwrap();
            let mut line = Shaper::line(rate);
            let (mut now, mut sent) = (Instant::from_secs(1), 0u64);
            for size in (60..1_514).cycle().take(20_000) {
                now = line.pass(size, now).unwrap();
                sent += size as u64;
            }
            let exact = u128::from(sent * BITS) * u128::from(SECOND) / u128::from(rate.0);
            assert_eq!(u128::from(now.nanos() - SECOND), exact, "{rate}");
        }
    }

    #[test]
    fn what_would_wait_too_long_is_refused_and_takes_no_time() {
        let mut shaper = Shaper::new(limit("10mbit burst 1").unwrap());
        let now = Instant::from_secs(1);
        let passed = (0..100).filter_map(|_| shaper.pass(1_250, now)).count();
        assert_eq!(
            passed, 51,
            "50 ms of frames of a millisecond, and the one on the line"
        );
        let later = now + Duration::from_millis(1);
        assert!(shaper.pass(1_250, later).is_some());
        assert!(shaper.pass(1_250, later).is_none());
        let mut slow = Shaper::new(limit("8kbit burst 1").unwrap());
        let passed = (0..100).filter_map(|_| slow.pass(1_024, now)).count();
        assert_eq!(passed, 33, "32 KiB, however long that takes");
    }
}
