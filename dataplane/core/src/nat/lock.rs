//! The lock of a shard: taken for one translation, given back by a plain store.
//!
//! # Theory of operation
//! A worker takes a shard's lock for each packet that it translates, and hardly ever finds it taken. So
//! what counts is what taking and giving back cost when nobody waits. To give back a lock that
//! threads sleep on, one has to ask for them by an atomic exchange, which waits for everything
//! before it; giving this one back is a store. Who finds it taken spins, and soon offers the CPU to
//! others at each turn ([`Backoff`]): the holder may be one of those.
//!
//! Whoever holds it for longer than a translation, as a listing, takes one shard after the other.
//! A thread that panics with a lock held leaves it free and the shard as it was, for a worker must
//! not follow it down.
//!
//! Limits: no order among those who wait. A worker that the kernel runs in preference to everything
//! else (`SCHED_FIFO`) may keep a holder from its CPU for as long as the kernel lets it, 950 ms by
//! default (`sched(7)`).

use crossbeam::utils::Backoff;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A value that one thread has at a time.
#[derive(Debug)]
pub(super) struct Lock<T>(SpinMutex<T>);

/// The value, for as long as this lives.
pub(super) type Held<'a, T> = SpinMutexGuard<'a, T>;

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    /// Waits for the value.
    #[inline(always)]
    pub fn lock(&self) -> Held<'_, T> {
        match self.0.try_lock() {
            Some(held) => held,
            None => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> Held<'_, T> {
        let backoff = Backoff::new();
        loop {
            backoff.snooze();
            // Looked at first: to try it would take the line from the holder.
            if !self.0.is_locked()
                && let Some(held) = self.0.try_lock()
            {
                return held;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn nothing_is_lost_between_threads() {
        const THREADS: usize = 4;
        const EACH: u64 = 50_000;
        let counts = Lock::new((0, 0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let mut held = counts.lock();
                        assert_eq!(held.0, held.1, "half of a change is seen by nobody");
                        held.0 += 1;
                        held.1 += 1;
                    }
                });
            }
        });
        let all = THREADS as u64 * EACH;
        assert_eq!(*counts.lock(), (all, all));
    }

    #[test]
    fn who_waits_gets_what_the_holder_left_and_not_before() {
        let word = Lock::new("old");
        let (asking, asked) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut held = word.lock();
            let waiter = scope.spawn(|| {
                asking.send(()).unwrap();
                *word.lock()
            });
            asked.recv().unwrap();
            // Long enough for it to have turned to offering its CPU.
            for _ in 0..1_000 {
                std::thread::yield_now();
            }
            assert!(!waiter.is_finished());
            *held = "new";
            drop(held);
            assert_eq!(waiter.join().unwrap(), "new");
        });
    }

    #[test]
    fn a_holder_that_panics_leaves_it_free() {
        let value = Lock::new(7);
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = value.lock();
            panic!("with the lock held");
        }));
        assert!(died.is_err());
        assert_eq!(*value.lock(), 7);
    }
}
