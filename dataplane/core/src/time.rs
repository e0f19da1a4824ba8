//! Time as a value: the core never reads a clock, its caller passes `now` in.

use core::ops::Add;
pub use core::time::Duration;

/// A point on the caller's monotonic clock, in nanoseconds since an origin of its choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant {
    nanos: u64,
}

impl Instant {
    /// The origin of the clock.
    pub const ZERO: Self = Self { nanos: 0 };

    /// The point `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self { nanos }
    }

    /// The point `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self {
            nanos: millis * 1_000_000,
        }
    }

    /// The point `secs` seconds after the origin.
    pub const fn from_secs(secs: u64) -> Self {
        Self {
            nanos: secs * 1_000_000_000,
        }
    }

    /// Nanoseconds since the origin.
    pub const fn nanos(self) -> u64 {
        self.nanos
    }

    /// Whole seconds since the origin, the unit of FDB ages. Wraps after 136 years.
    #[inline]
    pub const fn second(self) -> u32 {
        (self.nanos / 1_000_000_000) as u32
    }

    /// Time elapsed since `earlier`; zero when `earlier` lies in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self {
            nanos: self.nanos.saturating_add(nanos),
        }
    }
}
