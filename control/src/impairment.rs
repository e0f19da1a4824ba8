//! Impairments of links in words: as a request brings them, a listing shows them and the store
//! keeps them.

use std::time::Duration;

use dataplane_core::link::{
    Chance, ChanceError, DELAY_MAX, Distribution, Impairment, ImpairmentError, LossModel, Rate,
    RateError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is wrong with a link; what is left out is as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImpairmentBody {
    /// How long a frame is on its way: `20ms`.
    pub delay: Option<String>,
    /// How much that varies: `2ms`.
    pub jitter: Option<String>,
    /// How: `uniform` or `normal`.
    pub distribution: Option<String>,
    /// Frames that are lost, each by itself: `1%`.
    pub loss: Option<String>,
    /// Frames that are lost in bursts: `gilbert-elliott P R [LOSS_BAD [LOSS_GOOD]]`.
    pub loss_model: Option<String>,
    /// Frames that arrive twice.
    pub duplicate: Option<String>,
    /// Frames that overtake the delayed.
    pub reorder: Option<String>,
    /// Frames of which one bit is flipped.
    pub corrupt: Option<String>,
    /// How fast the line is: `10mbit`.
    pub rate: Option<String>,
    /// Fixes what is drawn.
    pub seed: Option<u64>,
}

/// Words that are no impairment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No time.
    #[error("'{0}' is no time: it is a number with ns, us, ms or s, from 0 to {max}, such as 20ms", max = time_text(DELAY_MAX))]
    Time(String),
    /// No distribution.
    #[error("'{0}' is no distribution; there are uniform and normal")]
    Distribution(String),
    /// No loss model.
    #[error(
        "'{0}' is no loss model; there is 'gilbert-elliott P R [LOSS_BAD [LOSS_GOOD]]': the chances \
         to go from good to bad and back, and to lose a frame while bad [100%] and while good [0%]"
    )]
    LossModel(String),
    /// Two answers to one question.
    #[error("give a loss or a loss model, not both")]
    Losses,
    /// No chance.
    #[error(transparent)]
    Chance(#[from] ChanceError),
    /// No rate.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// It cannot be.
    #[error(transparent)]
    Impossible(#[from] ImpairmentError),
}

/// Units of time, the largest first.
const TIME_UNITS: [(&str, u64); 4] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
];
const GILBERT_ELLIOTT: &str = "gilbert-elliott";

fn time(text: &str) -> Result<Duration, BodyError> {
    let wrong = || BodyError::Time(text.to_owned());
    let unit = TIME_UNITS
        .iter()
        .find_map(|(unit, nanos)| Some((text.strip_suffix(unit)?, *nanos)));
    let (number, nanos) = unit.unwrap_or((text, 0));
    let value: f64 = number.parse().map_err(|_| wrong())?;
    // A bare zero needs no unit.
    if nanos == 0 && value != 0.0 {
        return Err(wrong());
    }
    let nanos = (value * nanos as f64).round();
    let within = (0.0..=DELAY_MAX.as_nanos() as f64).contains(&nanos);
    within
        .then(|| Duration::from_nanos(nanos as u64))
        .ok_or_else(wrong)
}

/// A time in the largest unit in which it is whole.
fn time_text(time: Duration) -> String {
    let nanos = time.as_nanos() as u64;
    let mut units = TIME_UNITS.iter().rev();
    let whole = units.find(|(_, size)| nanos.is_multiple_of(*size));
    let (unit, size) = whole.unwrap_or(&("ns", 1));
    format!("{}{unit}", nanos / size)
}

fn distribution(text: &str) -> Result<Distribution, BodyError> {
    let mut all = Distribution::ALL.into_iter();
    all.find(|known| known.label() == text)
        .ok_or_else(|| BodyError::Distribution(text.to_owned()))
}

fn chance(text: Option<&String>) -> Result<Chance, ChanceError> {
    text.map_or(Ok(Chance::NEVER), |text| text.parse())
}

fn loss_model(text: &str) -> Result<LossModel, BodyError> {
    let wrong = || BodyError::LossModel(text.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    let Some((&GILBERT_ELLIOTT, chances)) = words.split_first() else {
        return Err(wrong());
    };
    if !(2..=4).contains(&chances.len()) {
        return Err(wrong());
    }
    let chance = |index: usize, usual: Chance| {
        let text = chances.get(index);
        text.map_or(Ok(usual), |text| text.parse())
    };
    Ok(LossModel::GilbertElliott {
        worsen: chance(0, Chance::NEVER)?,
        recover: chance(1, Chance::NEVER)?,
        loss_bad: chance(2, Chance::ALWAYS)?,
        loss_good: chance(3, Chance::NEVER)?,
    })
}

impl ImpairmentBody {
    /// What the words say.
    ///
    /// # Errors
    /// [`BodyError`] for what cannot be read, or cannot be.
    pub fn impairment(&self) -> Result<Impairment, BodyError> {
        let delay = |text: Option<&String>| text.map_or(Ok(Duration::ZERO), |text| time(text));
        let loss = match (&self.loss, &self.loss_model) {
            (Some(_), Some(_)) => return Err(BodyError::Losses),
            (_, Some(model)) => loss_model(model)?,
            (loss, None) => LossModel::Random(chance(loss.as_ref())?),
        };
        let impairment = Impairment {
            delay: delay(self.delay.as_ref())?,
            jitter: delay(self.jitter.as_ref())?,
            distribution: match &self.distribution {
                Some(text) => distribution(text)?,
                None => Distribution::default(),
            },
            loss,
            duplicate: chance(self.duplicate.as_ref())?,
            reorder: chance(self.reorder.as_ref())?,
            corrupt: chance(self.corrupt.as_ref())?,
            rate: self.rate.as_deref().map(str::parse::<Rate>).transpose()?,
            seed: self.seed.unwrap_or(0),
        };
        impairment.check()?;
        Ok(impairment)
    }

    /// Everything that is set, in the words of the command line.
    pub fn words(&self) -> String {
        let texts = [
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("distribution", &self.distribution),
            ("loss", &self.loss),
            ("loss-model", &self.loss_model),
            ("duplicate", &self.duplicate),
            ("reorder", &self.reorder),
            ("corrupt", &self.corrupt),
            ("rate", &self.rate),
        ];
        let set = texts
            .iter()
            .filter_map(|(word, text)| Some((word, text.as_ref()?)));
        let mut words: Vec<String> = set.map(|(word, text)| format!("{word} {text}")).collect();
        words.extend(self.seed.map(|seed| format!("seed {seed}")));
        words.join(" ")
    }
}

impl From<Impairment> for ImpairmentBody {
    /// The words that [`ImpairmentBody::impairment`] reads.
    fn from(impairment: Impairment) -> Self {
        let chance = |chance: Chance| chance.is_possible().then(|| chance.to_string());
        let time = |time: Duration| (!time.is_zero()).then(|| time_text(time));
        let (loss, loss_model) = match impairment.loss {
            LossModel::Random(loss) => (chance(loss), None),
            LossModel::GilbertElliott {
                worsen,
                recover,
                loss_bad,
                loss_good,
            } => {
                let model = format!("{GILBERT_ELLIOTT} {worsen} {recover} {loss_bad} {loss_good}");
                (None, Some(model))
            }
        };
        let varied = !impairment.jitter.is_zero();
        Self {
            delay: time(impairment.delay),
            jitter: time(impairment.jitter),
            distribution: varied.then(|| impairment.distribution.label().to_owned()),
            loss,
            loss_model,
            duplicate: chance(impairment.duplicate),
            reorder: chance(impairment.reorder),
            corrupt: chance(impairment.corrupt),
            rate: impairment.rate.map(|rate| rate.to_string()),
            seed: Some(impairment.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &str) -> ImpairmentBody {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_read_is_written_and_read_again() {
        for json in [
            "{}",
            r#"{"delay": "20ms", "jitter": "1500us", "distribution": "normal", "seed": 7}"#,
            r#"{"loss": "0.05%", "duplicate": "1%", "corrupt": "100%", "rate": "1.5mbit"}"#,
            r#"{"loss_model": "gilbert-elliott 1% 10%", "delay": "1s", "reorder": "25%"}"#,
            r#"{"loss_model": "gilbert-elliott 1% 10% 50% 0.1%"}"#,
        ] {
            let read = body(json).impairment().unwrap();
            let written = ImpairmentBody::from(read);
            assert_eq!(written.impairment(), Ok(read), "{json}");
        }
        let written = ImpairmentBody::from(
            body(r#"{"delay": "0.02s", "seed": 3}"#)
                .impairment()
                .unwrap(),
        );
        assert_eq!(written.words(), "delay 20ms seed 3");
    }

    #[test]
    fn what_cannot_be_is_told_with_its_range() {
        for (json, named) in [
            (r#"{"loss": "130%"}"#, "0% to 100%"),
            (r#"{"loss": "-1%"}"#, "0% to 100%"),
            (r#"{"rate": "0"}"#, "8kbit to 100gbit"),
            (r#"{"rate": "10parsec"}"#, "mbit"),
            (r#"{"delay": "61s"}"#, "0 to 60s"),
            (r#"{"delay": "-5ms"}"#, "0 to 60s"),
            (r#"{"delay": "20"}"#, "ns, us, ms or s"),
            (r#"{"delay": "1ms", "jitter": "2ms"}"#, "0 to the delay"),
            (r#"{"delay": "1ms", "distribution": "normal"}"#, "--jitter"),
            (r#"{"distribution": "pareto"}"#, "uniform and normal"),
            (r#"{"reorder": "5%"}"#, "--delay"),
            (
                r#"{"loss": "1%", "loss_model": "gilbert-elliott 1% 1%"}"#,
                "not both",
            ),
            (r#"{"loss_model": "gilbert-elliott 1%"}"#, "P R"),
            (r#"{"loss_model": "markov 1% 1%"}"#, "gilbert-elliott"),
            (r#"{"loss_model": "gilbert-elliott 1% 0%"}"#, "recover"),
        ] {
            let error = body(json).impairment().unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }
}
