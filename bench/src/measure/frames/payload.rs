//! What a datagram carries: whose it is, which one it is, and when it was due.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | the run |
//! | 4..6 | the flow |
//! | 6..10 | its number in the flow, from 0 |
//! | 10..18 | when it was due, in nanoseconds since 1970 |
//!
//! All in network order. The rest, if any, is padding.

/// Bytes of the smallest payload: what fits a frame of 64 bytes.
pub const PAYLOAD_SIZE_MIN: usize = 18;
/// The run that greetings belong to.
const GREETING_RUN: u32 = 0;

/// One datagram's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which measurement.
    pub run: u32,
    /// Which flow.
    pub flow: u16,
    /// Which one of the flow.
    pub sequence: u32,
    /// When it was due, in nanoseconds since 1970.
    pub due: u64,
}

impl Tag {
    /// Writes it at the beginning of a payload of at least [`PAYLOAD_SIZE_MIN`].
    pub fn write(&self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(&self.run.to_be_bytes());
        payload[4..6].copy_from_slice(&self.flow.to_be_bytes());
        payload[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        payload[10..18].copy_from_slice(&self.due.to_be_bytes());
    }

    /// Reads it; `None` when the payload is too short.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (run, rest) = payload.split_first_chunk()?;
        let (flow, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (due, _) = rest.split_first_chunk()?;
        Some(Self {
            run: u32::from_be_bytes(*run),
            flow: u16::from_be_bytes(*flow),
            sequence: u32::from_be_bytes(*sequence),
            due: u64::from_be_bytes(*due),
        })
    }
}

/// A datagram that belongs to no measurement.
pub fn greeting(flow: u16) -> [u8; PAYLOAD_SIZE_MIN] {
    let mut payload = [0; PAYLOAD_SIZE_MIN];
    Tag {
        run: GREETING_RUN,
        flow,
        sequence: 0,
        due: 0,
    }
    .write(&mut payload);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let tag = Tag {
            run: 0x0102_0304,
            flow: 5,
            sequence: 0xffff_fffe,
            due: u64::MAX - 1,
        };
        let mut payload = [0; 20];
        tag.write(&mut payload);
        assert_eq!(Tag::read(&payload), Some(tag));
        assert_eq!(Tag::read(&payload[..17]), None);
    }
}
