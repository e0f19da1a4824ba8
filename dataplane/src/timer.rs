//! A timer that ends a worker's sleep at a moment, to the nanosecond.
//!
//! The poll counts in milliseconds, which is too coarse for a frame that is due in a hundred
//! microseconds, so the worker polls a timerfd beside its queues. Setting it anew takes back an
//! expiry that nobody has read, so it is never read: one system call for each sleep that ends with
//! a frame, none for others.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use dataplane_core::time::Instant;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A worker's timer.
#[derive(Debug)]
pub(crate) struct Timer {
    timer: TimerFd,
    /// The moment that it was last set for.
    set_for: Option<Instant>,
}

impl Timer {
    /// A timer that is polled under a token, and not set.
    pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let fd = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self {
            timer,
            set_for: None,
        })
    }

    /// Sets the timer for a moment that is still to come; `None` leaves it as it is, for a wake-up
    /// too many harms nobody.
    pub fn set(&mut self, due: Option<Instant>, now: Instant) {
        let Some(due) = due.filter(|due| self.set_for != Some(*due)) else {
            return;
        };
        let after = TimeSpec::from_duration(due.since(now));
        // Zero would disarm it.
        let after = after.max(TimeSpec::new(0, 1));
        let set = self
            .timer
            .set(Expiration::OneShot(after), TimerSetTimeFlags::empty());
        // It fails for impossible times only; then the next tick looks.
        self.set_for = set.is_ok().then_some(due);
    }
}
