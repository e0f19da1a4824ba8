//! What a network does about spanning tree and loops.

use std::str::FromStr;

/// What becomes of bridge protocol data units, which spanning tree speaks by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StpFrames {
    /// They end at the port, as IEEE 802.1Q has it for a bridge.
    #[default]
    Drop,
    /// They pass as other multicast does, so that bridges in sandboxes find their loops.
    Forward,
}

impl StpFrames {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Drop, Self::Forward];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Forward => "forward",
        }
    }
}

/// Text that does not say what becomes of BPDUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is nothing to do with BPDUs; choose drop or forward")]
pub struct StpFramesError(pub String);

impl FromStr for StpFrames {
    type Err = StpFramesError;

    fn from_str(text: &str) -> Result<Self, StpFramesError> {
        let of_label = |frames: &Self| frames.label() == text;
        let mut all = Self::ALL.into_iter();
        all.find(of_label)
            .ok_or_else(|| StpFramesError(text.to_owned()))
    }
}

/// What is done to find ports that are connected outside the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoopDetect {
    /// Nothing is sent. A station that flaps between ports is told of all the same.
    #[default]
    Off,
    /// Probes are sent by every port, and one that comes back is told of.
    Event,
    /// Besides, of the two ports the one that was attached later is blocked for a while.
    Block,
}

impl LoopDetect {
    /// Each.
    pub const ALL: [Self; 3] = [Self::Off, Self::Event, Self::Block];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Event => "event",
            Self::Block => "block",
        }
    }
}

/// Text that does not say what is done about loops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is nothing to do about loops; choose off, event or block")]
pub struct LoopDetectError(pub String);

impl FromStr for LoopDetect {
    type Err = LoopDetectError;

    fn from_str(text: &str) -> Result<Self, LoopDetectError> {
        let of_label = |detect: &Self| detect.label() == text;
        let mut all = Self::ALL.into_iter();
        all.find(of_label)
            .ok_or_else(|| LoopDetectError(text.to_owned()))
    }
}
