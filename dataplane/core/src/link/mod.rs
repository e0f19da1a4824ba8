//! A link: what happens to frames between a port and the switch, in one direction.
//!
//! A link is before the switch or behind it, never inside: `path` knows nothing of it. Each
//! [`Link::pass`] takes one frame at a moment and says what becomes of it: lost, or one or two
//! copies, each with the moment at which it is through and the bit that is flipped in it. Who holds
//! them until then is the caller, in a [`Wheel`].
//!
//! In this order: the rate limit of the port; then what is wrong with the link, as netem(8) has it:
//! duplication, loss (of the frame or of its twin), the line's own rate, delay with jitter or none
//! where the frame is reordered, corruption. A frame that was lost has not used the line.
//!
//! Frames are those of a wire: GSO frames are segmented before, so that each segment is lost,
//! delayed and paid for by itself, with its headers. Bytes are those of tc(8): from the destination
//! MAC to the last byte of payload.
//!
//! Everything that is drawn comes from the seed of the settings, so equal frames at equal moments
//! meet the same.
//!
//! Limits: [`LINK_HELD_MAX`] frames held by one link, [`HELD_MAX`] by one worker. Not supported:
//! correlations of chances, `gap`, slots, distributions from tables. Not thread-safe: the caller
//! locks one that several workers share.

mod impairment;
mod rate;
#[cfg(test)]
mod tests;
mod wheel;

use fastrand::Rng;

pub use impairment::{
    Chance, ChanceError, DELAY_MAX, Distribution, Impairment, ImpairmentError, LossModel,
};
use rate::Shaper;
pub use rate::{
    BURST_MAX, RATE_MAX, RATE_MIN, RATE_QUEUE_BYTES, RATE_WAIT_MAX, Rate, RateError, RateLimit,
};
pub use wheel::Wheel;

use crate::checksum;
use crate::frame::{Frame, FrameBuf, Offload};
use crate::path::{Switch, forward};
use crate::time::{Duration, Instant};
use crate::trace::{Step, Trace};
use crate::verdict::{DropReason, Verdict};

/// Frames that the links of one worker hold in all: buffers of 64 KiB, backed with memory where a
/// frame was written.
pub const HELD_MAX: usize = 8_192;
/// Frames that one link holds: 40 ms at 100,000 frames per second. Half of a worker's, so that no
/// link takes all.
pub const LINK_HELD_MAX: u32 = 4_096;
/// Bits of a byte.
const BITS: usize = 8;

/// The direction of a link, as the port sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the port into the switch.
    In,
    /// From the switch out by the port.
    Out,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// What is set of a link; a plain cable by default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct LinkSpec {
    /// The rate that the port may have.
    pub limit: Option<RateLimit>,
    /// What is wrong with it.
    pub impairment: Impairment,
}

impl LinkSpec {
    /// Whether frames pass as by a plain cable.
    pub fn is_plain(&self) -> bool {
        self.limit.is_none() && self.impairment.is_none()
    }
}

/// A link with what it remembers.
#[derive(Debug)]
pub struct Link {
    spec: LinkSpec,
    direction: Direction,
    limiter: Option<Shaper>,
    line: Option<Shaper>,
    rng: Rng,
    /// Of a Gilbert-Elliott model.
    bad: bool,
    /// What it has done.
    pub counts: LinkCounts,
}

/// What a link has done. The law: entered + duplicated = lost + limited + overflowed + what passed
/// + what is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkCounts {
    /// Frames that came.
    pub entered: u64,
    /// Copies that were lost.
    pub lost: u64,
    /// Copies that exceeded a rate.
    pub limited: u64,
    /// Copies for which there was no room.
    pub overflowed: u64,
    /// Frames that became two.
    pub duplicated: u64,
    /// Copies that were spared the delay.
    pub reordered: u64,
    /// Copies with a flipped bit.
    pub corrupted: u64,
}

/// One arrival of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// When it is through.
    pub due: Instant,
    /// The bit that is flipped in it.
    pub corrupt: Option<Bit>,
}

/// A bit of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bit(usize);

/// Why a frame does not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// It exceeds the rate, and too much waits already.
    Limited,
    /// The link is lossy.
    Lost,
}

impl Loss {
    /// How it is counted of a frame that was to enter.
    pub const fn reason(self) -> DropReason {
        match self {
            Self::Limited => DropReason::RateLimited,
            Self::Lost => DropReason::LinkLost,
        }
    }
}

/// The arrivals of one frame: one, or two.
pub type Arrivals = (Arrival, Option<Arrival>);

impl Link {
    /// A link on which nothing has been yet.
    pub fn new(spec: LinkSpec, direction: Direction) -> Self {
        // The two directions of a port share a seed, and draw apart all the same.
        let mut seeds = Rng::with_seed(spec.impairment.seed);
        let seeds = Direction::ALL.map(|_| seeds.u64(..));
        Self {
            limiter: spec.limit.map(Shaper::new),
            line: spec.impairment.rate.map(Shaper::line),
            rng: Rng::with_seed(seeds[direction as usize]),
            bad: false,
            counts: LinkCounts::default(),
            spec,
            direction,
        }
    }

    /// What is set of it.
    pub const fn spec(&self) -> &LinkSpec {
        &self.spec
    }

    /// Changes what is set of it. What it counts goes on; so does the rest where nothing changed.
    pub fn set(&mut self, spec: LinkSpec) {
        if self.spec != spec {
            *self = Self {
                counts: self.counts,
                ..Self::new(spec, self.direction)
            };
        }
    }

    /// What becomes of a frame of `size` bytes that comes at `now`.
    ///
    /// # Errors
    /// [`Loss`]: it does not arrive.
    pub fn pass(&mut self, size: usize, now: Instant) -> Result<Arrivals, Loss> {
        self.counts.entered += 1;
        let limited = match &mut self.limiter {
            Some(limiter) => limiter.pass(size, now),
            None => Some(now),
        };
        let Some(sent) = limited else {
            self.counts.limited += 1;
            return Err(Loss::Limited);
        };
        let twin = self.spec.impairment.duplicate.happens(&mut self.rng);
        let lost = self.loses();
        self.counts.duplicated += u64::from(twin);
        self.counts.lost += u64::from(lost);
        match (twin, lost) {
            (false, true) => Err(Loss::Lost),
            (false, false) | (true, true) => Ok((self.arrival(size, sent)?, None)),
            (true, false) => match (self.arrival(size, sent), self.arrival(size, sent)) {
                (Ok(first), second) => Ok((first, second.ok())),
                (Err(loss), second) => second.map(|second| (second, None)).map_err(|_| loss),
            },
        }
    }

    /// Counts a frame for which there is no room. It has not been on the link: it has used up nothing of
    /// a rate, which is others' then, and nothing was drawn for it.
    pub fn refuse(&mut self) {
        self.counts.entered += 1;
        self.counts.overflowed += 1;
    }

    /// The way of one copy over the line.
    fn arrival(&mut self, size: usize, sent: Instant) -> Result<Arrival, Loss> {
        let passed = match &mut self.line {
            Some(line) => line.pass(size, sent),
            None => Some(sent),
        };
        let Some(passed) = passed else {
            self.counts.limited += 1;
            return Err(Loss::Limited);
        };
        let impairment = self.spec.impairment;
        let reordered = impairment.reorder.happens(&mut self.rng);
        self.counts.reordered += u64::from(reordered);
        let due = match reordered {
            true => passed,
            false => passed + self.delay(),
        };
        let corrupt = impairment.corrupt.happens(&mut self.rng);
        self.counts.corrupted += u64::from(corrupt);
        let corrupt = corrupt.then(|| Bit(self.rng.usize(..(size * BITS).max(1))));
        Ok(Arrival { due, corrupt })
    }

    /// Whether the next frame is lost. The state that a frame meets is the one before it changes.
    fn loses(&mut self) -> bool {
        let rng = &mut self.rng;
        match self.spec.impairment.loss {
            LossModel::Random(chance) => chance.happens(rng),
            LossModel::GilbertElliott {
                worsen,
                recover,
                loss_bad,
                loss_good,
            } => {
                let (loss, change) = match self.bad {
                    true => (loss_bad, recover),
                    false => (loss_good, worsen),
                };
                let lost = loss.happens(rng);
                self.bad ^= change.happens(rng);
                lost
            }
        }
    }

    fn delay(&mut self) -> Duration {
        let Impairment {
            delay,
            jitter,
            distribution,
            ..
        } = self.spec.impairment;
        if jitter.is_zero() {
            return delay;
        }
        let jitter = jitter.as_nanos() as u64;
        match distribution {
            Distribution::Uniform => {
                let drawn = Duration::from_nanos(self.rng.u64(0..=2 * jitter));
                (delay + drawn).saturating_sub(Duration::from_nanos(jitter))
            }
            Distribution::Normal => {
                let nanos = delay.as_nanos() as f64 + jitter as f64 * normal(&mut self.rng);
                Duration::from_nanos(nanos.max(0.0) as u64)
            }
        }
    }
}

/// Takes a frame to its verdict that its port's link has held, as [`forward`] does others.
pub fn resume<T: Trace>(
    sw: &mut Switch,
    frame: &mut Frame<'_>,
    now: Instant,
    trace: &mut T,
) -> Verdict {
    let verdict = forward(sw, frame, now, trace);
    sw.counters.count_released();
    verdict
}

/// No observer of frames that a link has held. A type of its own, so that `forward` is compiled for
/// frames that come straight from their port as if there were no other caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen;

impl Trace for Unseen {
    const ON: bool = false;

    #[inline(always)]
    fn step(&mut self, _: Step) {}
}

/// Draws from the normal distribution with mean 0 and deviation 1 (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (core::f64::consts::TAU * rng.f64()).cos()
}

/// Flips a bit of a frame. The checksum is completed before, so that the far end finds out.
pub fn corrupt(frame: &mut FrameBuf, bit: Bit) {
    if checksum::complete(frame).is_ok() {
        frame.offload = Offload::NONE;
    }
    if let Some(byte) = frame.bytes_mut().get_mut(bit.0 / BITS) {
        *byte ^= 1 << (bit.0 % BITS);
    }
}
