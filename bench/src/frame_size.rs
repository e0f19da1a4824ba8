//! What sizes frames have: one, or a mix of several in a fixed order.
//!
//! A mix is written as `imix`, the simple one of 7 frames of 64 bytes, 4 of 570 and 1 of 1,518 that
//! is widely used, or as a genome of RFC 6985: a letter for each frame in turn. All sizes include the
//! check sequence. Custom sizes by number (section 5 of the RFC) are not read.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::measure::FRAME_SIZE_MIN;

/// What a frame has around its packet: addresses, type and check sequence.
pub const FRAME_OVERHEAD: u16 = 18;
/// Bytes of the largest frame that can be written; an MTU allows less.
const FRAME_SIZE_MAX: u16 = u16::MAX;
/// Letters of a genome at most: more than a burst has frames would not be mixed in it.
pub const GENOME_LEN_MAX: usize = 64;
/// How the simple mix is written.
const IMIX: &str = "imix";
/// Its frames in turn, each size spread over the whole.
const IMIX_SIZES: [u16; 12] = [64, 570, 64, 64, 570, 64, 1_518, 64, 570, 64, 570, 64];
/// Sizes by their letters, but for `z`: RFC 6985 section 4.
const LETTERS: [(char, u16); 10] = [
    ('a', 64),
    ('b', 128),
    ('c', 256),
    ('d', 512),
    ('e', 1_024),
    ('f', 1_280),
    ('g', 1_518),
    ('h', 2_112),
    ('i', 9_216),
    ('j', 16_384),
];
/// The letter of the largest frame of the MTU.
const LARGEST: char = 'z';

/// The sizes of a flow's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// All have this many bytes.
    Bytes(u16),
    /// The simple IMIX.
    Imix,
    /// A genome of RFC 6985.
    Genome(Box<str>),
}

/// Why a word is no frame size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no size of frames; give {FRAME_SIZE_MIN} to {FRAME_SIZE_MAX}, \"{IMIX}\", or a genome of \
     RFC 6985: letters from a to j and z, at most {GENOME_LEN_MAX}"
)]
pub struct NoFrameSize(String);

impl FrameSize {
    /// Bytes of each frame in turn; then it begins anew.
    pub fn sizes(&self, mtu: u16) -> Vec<u16> {
        match self {
            Self::Bytes(size) => vec![*size],
            Self::Imix => IMIX_SIZES.to_vec(),
            Self::Genome(genome) => {
                let size = |letter: char| match letter {
                    LARGEST => mtu.saturating_add(FRAME_OVERHEAD),
                    _ => size_of_letter(letter).unwrap_or(FRAME_SIZE_MIN),
                };
                genome.chars().map(size).collect()
            }
        }
    }

    /// The mean of them, in bytes.
    pub fn mean(&self, mtu: u16) -> f64 {
        mean(&self.sizes(mtu))
    }
}

/// The mean of the sizes of frames that come in turn, in bytes; NaN when there are none.
pub fn mean(sizes: &[u16]) -> f64 {
    sizes.iter().map(|size| f64::from(*size)).sum::<f64>() / sizes.len() as f64
}

/// Bytes of the first `frames` of frames of these sizes in turn.
pub fn bytes_of(sizes: &[u16], frames: u64) -> u64 {
    let len = (sizes.len() as u64).max(1);
    let sum = |sizes: &[u16]| sizes.iter().map(|size| u64::from(*size)).sum::<u64>();
    frames / len * sum(sizes) + sum(&sizes[..(frames % len) as usize])
}

fn size_of_letter(letter: char) -> Option<u16> {
    let found = LETTERS.iter().find(|(known, _)| *known == letter);
    found.map(|(_, size)| *size)
}

impl FromStr for FrameSize {
    type Err = NoFrameSize;

    fn from_str(word: &str) -> Result<Self, NoFrameSize> {
        if word == IMIX {
            return Ok(Self::Imix);
        }
        if let Ok(size) = word.parse() {
            return Ok(Self::Bytes(size));
        }
        let known = |letter| letter == LARGEST || size_of_letter(letter).is_some();
        match (1..=GENOME_LEN_MAX).contains(&word.len()) && word.chars().all(known) {
            true => Ok(Self::Genome(word.into())),
            false => Err(NoFrameSize(word.to_owned())),
        }
    }
}

/// As scenarios write it.
impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => write!(f, "{size}"),
            Self::Imix => f.write_str(IMIX),
            Self::Genome(genome) => f.write_str(genome),
        }
    }
}

impl Serialize for FrameSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(size) => to.serialize_u16(*size),
            Self::Imix | Self::Genome(_) => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for FrameSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOrWord)
    }
}

struct NumberOrWord;

impl Visitor<'_> for NumberOrWord {
    type Value = FrameSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a mix such as \"imix\"")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<FrameSize, E> {
        let size = u16::try_from(number).map_err(|_| E::custom(NoFrameSize(number.to_string())));
        size.map(FrameSize::Bytes)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<FrameSize, E> {
        let size = u16::try_from(number).map_err(|_| E::custom(NoFrameSize(number.to_string())));
        size.map(FrameSize::Bytes)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<FrameSize, E> {
        match word.parse() {
            // A number in quotes would be a second way to write the same.
            Ok(FrameSize::Bytes(_)) => Err(E::custom(NoFrameSize(format!("\"{word}\"")))),
            Ok(mix) => Ok(mix),
            Err(error) => Err(E::custom(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simple_mix_is_seven_to_four_to_one() {
        let sizes = FrameSize::Imix.sizes(1_500);
        let count = |size| sizes.iter().filter(|found| **found == size).count();
        assert_eq!([count(64), count(570), count(1_518)], [7, 4, 1]);
        let mean = FrameSize::Imix.mean(1_500);
        assert!((mean - (7.0 * 64.0 + 4.0 * 570.0 + 1_518.0) / 12.0).abs() < 1e-9);
    }

    #[test]
    fn a_genome_names_each_frame_in_turn() {
        let genome: FrameSize = "adgz".parse().expect("a genome");
        assert_eq!(genome.sizes(9_000), [64, 512, 1_518, 9_018]);
        assert_eq!(genome.sizes(1_500), [64, 512, 1_518, 1_518]);
    }

    #[test]
    fn words_are_written_as_they_are_read_and_others_are_refused() {
        for word in ["64", "imix", "adg", "aaaaaaaddddg", "z"] {
            let read: FrameSize = word.parse().expect(word);
            assert_eq!(read.to_string(), word);
            let json = serde_json::to_string(&read).expect("JSON");
            assert_eq!(serde_json::from_str::<FrameSize>(&json).expect(word), read);
        }
        let long = "a".repeat(GENOME_LEN_MAX + 1);
        for word in ["", "imx", "ADG", "70000", "-1", long.as_str()] {
            word.parse::<FrameSize>().expect_err(word);
        }
        serde_json::from_str::<FrameSize>("\"64\"").expect_err("one way to write it");
    }

    #[test]
    fn bytes_are_those_of_whole_turns_and_a_begun_one() {
        assert_eq!(bytes_of(&[64, 570, 1_518], 0), 0);
        assert_eq!(bytes_of(&[64, 570, 1_518], 2), 634);
        assert_eq!(bytes_of(&[64, 570, 1_518], 7), 2 * 2_152 + 64);
        assert_eq!(bytes_of(&[64], 1_000), 64_000);
    }
}
