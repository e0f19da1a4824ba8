//! What is asked of the kernel, and what it came to.

use super::bpf::Mode;
use crate::Negotiated;

/// What is asked of the kernel, each in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A map of sockets.
    Map,
    /// The program.
    Program,
    /// A program that is told of frames in several pieces; without it, frames fit one chunk.
    ProgramOfPieces,
    /// A socket of AF_XDP.
    Socket,
    /// Packet buffers in pinned memory.
    Memory,
    /// Metadata of frames to send; without it, checksums are finished before.
    Metadata,
    /// A socket for frames in several chunks; without it, they fit one.
    SeveralChunks,
    /// The program in the driver; without it, it runs in the kernel's common path.
    Native,
    /// The program in the kernel's common path.
    Generic,
    /// Busy polling; without it, the kernel brings frames when it comes to it.
    BusyPoll,
}

/// What the kernel could give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Where the program runs.
    pub mode: Mode,
    /// How large frames may be.
    pub frames: Frames,
    /// Who finishes the checksums of frames that are sent.
    pub checksums: Checksums,
    /// Who fetches frames from the driver.
    pub polling: Polling,
}

/// How large frames may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Several chunks hold one (`XDP_USE_SG`, Linux 6.6).
    SeveralChunks,
    /// One chunk holds it.
    OneChunk,
}

/// Who finishes the checksums of frames that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Whoever needs them: what is left to do is described to the kernel (Linux 6.11).
    Described,
    /// We do, before.
    Finished,
}

/// Who fetches frames from the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// The kernel: nobody has asked for anything else.
    Unasked,
    /// The kernel, for it has refused to have it done by others.
    ByKernel,
    /// Whoever looks for frames as well, by busy polling (Linux 5.11).
    ByOwner,
}

impl Features {
    /// Each with what is best and what it came to.
    pub(super) fn in_words(self) -> Vec<Negotiated> {
        let (native, generic) = ("in the driver", "in the kernel's common path");
        let (several, one) = ("in several chunks", "in one chunk");
        let (described, finished) = ("finished by the receiver", "finished before they are sent");
        let program = match self.mode {
            Mode::Native => native,
            Mode::Generic => generic,
        };
        let frames = match self.frames {
            Frames::SeveralChunks => several,
            Frames::OneChunk => one,
        };
        let checksums = match self.checksums {
            Checksums::Described => described,
            Checksums::Finished => finished,
        };
        let words = |feature, wanted, used| Negotiated {
            feature,
            wanted,
            used,
        };
        let (owner, kernel) = ("by the worker that waits", "by the kernel alone");
        let polling = match self.polling {
            Polling::Unasked => None,
            Polling::ByKernel => Some(kernel),
            Polling::ByOwner => Some(owner),
        };
        let always = [
            words("XDP program", native, program),
            words("frames", several, frames),
            words("checksums", described, checksums),
        ];
        let asked = polling.map(|used| words("polling", owner, used));
        always.into_iter().chain(asked).collect()
    }
}
