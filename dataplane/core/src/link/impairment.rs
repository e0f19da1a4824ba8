//! What is wrong with a link, as netem(8) has it: settings, and the ranges that they have.

use core::fmt;
use core::str::FromStr;

use super::rate::Rate;
use crate::time::Duration;

/// Longest delay: longer than any path on Earth or to the Moon and back, and what the wheel holds
/// is bounded by frames anyway.
pub const DELAY_MAX: Duration = Duration::from_secs(60);
/// A chance is so many of these: a frame in a million.
const PARTS: u32 = 1_000_000;
const PARTS_PER_PERCENT: u32 = PARTS / 100;

/// How likely something is, in steps of a millionth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Chance(u32);

impl Chance {
    /// It never happens.
    pub const NEVER: Self = Self(0);
    /// It always happens.
    pub const ALWAYS: Self = Self(PARTS);

    /// Draws: whether it happens this time. What never happens draws nothing.
    #[inline]
    pub fn happens(self, rng: &mut fastrand::Rng) -> bool {
        self.0 > 0 && rng.u32(..PARTS) < self.0
    }

    /// Whether it can happen at all.
    pub const fn is_possible(self) -> bool {
        self.0 > 0
    }
}

/// A chance that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no chance: it is a percentage from 0% to 100%, such as 1% or 0.05%")]
pub struct ChanceError(String);

impl FromStr for Chance {
    type Err = ChanceError;

    /// `1%`, `0.05%`, `100`.
    fn from_str(text: &str) -> Result<Self, ChanceError> {
        let wrong = || ChanceError(text.to_owned());
        let number = text.strip_suffix('%').unwrap_or(text);
        let percent: f64 = number.parse().map_err(|_| wrong())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self((percent * f64::from(PARTS_PER_PERCENT)).round() as u32))
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, parts) = (self.0 / PARTS_PER_PERCENT, self.0 % PARTS_PER_PERCENT);
        let fraction = format!("{parts:04}");
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{whole}%"),
            digits => write!(f, "{whole}.{digits}%"),
        }
    }
}

/// How the delays of frames lie about the mean.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Distribution {
    /// Alike between mean - jitter and mean + jitter.
    #[default]
    Uniform,
    /// As a bell whose standard deviation is the jitter. No frame leaves before it has come, so
    /// where the jitter is near the mean the bell is cut.
    Normal,
}

impl Distribution {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Normal];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Normal => "normal",
        }
    }
}

/// Which frames are lost.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LossModel {
    /// Each with the same chance, whatever became of the others.
    Random(Chance),
    /// In bursts: the link is good or bad, and goes over from frame to frame (Gilbert, Elliott).
    GilbertElliott {
        /// From good to bad.
        worsen: Chance,
        /// From bad to good.
        recover: Chance,
        /// Loss while it is bad.
        loss_bad: Chance,
        /// Loss while it is good.
        loss_good: Chance,
    },
}

impl Default for LossModel {
    fn default() -> Self {
        Self::Random(Chance::NEVER)
    }
}

/// What is wrong with a link in one direction; nothing by default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Impairment {
    /// How long a frame is on its way, on average.
    pub delay: Duration,
    /// How much that varies.
    pub jitter: Duration,
    /// How.
    pub distribution: Distribution,
    /// Frames that vanish.
    pub loss: LossModel,
    /// Frames that arrive twice.
    pub duplicate: Chance,
    /// Frames that are spared the delay, and so overtake.
    pub reorder: Chance,
    /// Frames of which one bit is flipped.
    pub corrupt: Chance,
    /// How fast frames go over the line.
    pub rate: Option<Rate>,
    /// Fixes everything that is drawn.
    pub seed: u64,
}

/// Settings that cannot be, together or at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImpairmentError {
    /// Too long a delay.
    #[error("a delay is from 0 to 60s")]
    Delay,
    /// The delay would be negative.
    #[error("jitter is from 0 to the delay: a frame cannot leave before it has come")]
    Jitter,
    /// There is nothing to vary.
    #[error("a distribution is of the jitter: give --jitter as well")]
    Distribution,
    /// There is nothing to overtake.
    #[error("reordered frames overtake those that are delayed: give --delay as well")]
    Reorder,
    /// The link would stay bad.
    #[error("a link that can worsen must be able to recover: give r a chance above 0%")]
    Recover,
}

impl Impairment {
    /// Checks that the settings can be.
    ///
    /// # Errors
    /// [`ImpairmentError`], the first that is found.
    pub fn check(&self) -> Result<(), ImpairmentError> {
        if self.delay > DELAY_MAX {
            return Err(ImpairmentError::Delay);
        }
        if self.jitter > self.delay {
            return Err(ImpairmentError::Jitter);
        }
        if self.jitter.is_zero() && self.distribution != Distribution::default() {
            return Err(ImpairmentError::Distribution);
        }
        if self.reorder.is_possible() && self.delay.is_zero() {
            return Err(ImpairmentError::Reorder);
        }
        if let LossModel::GilbertElliott {
            worsen, recover, ..
        } = self.loss
            && worsen.is_possible()
            && !recover.is_possible()
        {
            return Err(ImpairmentError::Recover);
        }
        Ok(())
    }

    /// Whether nothing is wrong, whatever the seed.
    pub fn is_none(&self) -> bool {
        let seed = self.seed;
        *self
            == Self {
                seed,
                ..Self::default()
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chance(text: &str) -> Chance {
        text.parse().unwrap()
    }

    #[test]
    fn chances_are_read_as_they_are_written() {
        for text in ["0%", "100%", "1%", "0.05%", "33.3333%", "12.5%"] {
            assert_eq!(chance(text).to_string(), text);
        }
        assert_eq!(chance("7"), chance("7%"));
        for text in ["130%", "-1%", "NaN", "inf", "", "%", "one"] {
            let error = text.parse::<Chance>().unwrap_err().to_string();
            assert!(error.contains("0% to 100%"), "{text}: {error}");
        }
    }

    #[test]
    fn settings_that_cannot_be_are_told_by_name() {
        let millis = Duration::from_millis;
        let none = Impairment::default();
        assert!(none.is_none() && none.check().is_ok());
        let delayed = Impairment {
            delay: millis(20),
            jitter: millis(20),
            ..none
        };
        assert_eq!(delayed.check(), Ok(()));
        let bad = [
            (
                Impairment {
                    delay: DELAY_MAX + millis(1),
                    ..none
                },
                ImpairmentError::Delay,
            ),
            (
                Impairment {
                    jitter: millis(21),
                    ..delayed
                },
                ImpairmentError::Jitter,
            ),
            (
                Impairment {
                    distribution: Distribution::Normal,
                    ..none
                },
                ImpairmentError::Distribution,
            ),
            (
                Impairment {
                    reorder: chance("5%"),
                    ..none
                },
                ImpairmentError::Reorder,
            ),
            (
                Impairment {
                    loss: LossModel::GilbertElliott {
                        worsen: chance("1%"),
                        recover: Chance::NEVER,
                        loss_bad: Chance::ALWAYS,
                        loss_good: Chance::NEVER,
                    },
                    ..none
                },
                ImpairmentError::Recover,
            ),
        ];
        for (impairment, error) in bad {
            assert_eq!(impairment.check(), Err(error));
        }
    }
}
