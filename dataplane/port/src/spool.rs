//! A port that takes frames for a thread which is slower than a worker: one that writes a file.
//!
//! [`pair`] gives the switch's side, a [`PortIo`] that only sends, and a [`SpoolReader`] for the
//! thread. Between them is a ring of [`RING_SIZE`] bytes, allocated at once. A frame is copied into
//! it with the time at which it was sent; the port never waits. A full ring is a device's full
//! queue: `WouldBlock`, and an event when half of it is free again. A reader that cannot go on says so
//! by [`SpoolReader::refuse`], and every frame is refused until it can.
//!
//! Limits: nothing is received; the offload of a frame is not kept. Thread-safety: one thread sends
//! and one reads. `head` is moved by the first alone and `tail` by the second; a word between the
//! two belongs to the reader, any other to the port.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf};

use crate::{Batch, Capabilities, PortIo};

/// Bytes of a ring: what comes at 10 Gbit/s in 6 ms, and 60 ms of a million small frames a second.
/// Longer than a write to a page cache takes, and eight rings are no burden to a host.
pub const RING_SIZE: usize = 8 << 20;

/// How long the reader lets frames gather, so that it is not woken for each.
const GATHER: Duration = Duration::from_millis(5);

const WORD_SIZE: usize = size_of::<u64>();
/// Before each frame: when it was sent, and its size.
const HEADER_WORDS: u64 = 2;

/// Both ends of a spool.
///
/// # Errors
/// When the system has no descriptor left.
pub fn pair() -> io::Result<(SpoolPort, SpoolReader)> {
    pair_of_size(RING_SIZE)
}

fn pair_of_size(size: usize) -> io::Result<(SpoolPort, SpoolReader)> {
    let (room, made_room) = UnixStream::pair()?;
    room.set_nonblocking(true)?;
    made_room.set_nonblocking(true)?;
    let words = (size / WORD_SIZE).next_power_of_two();
    let ring = Arc::new(Ring {
        words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        head: AtomicU64::new(0),
        tail: AtomicU64::new(0),
        is_full: AtomicBool::new(false),
        is_idle: AtomicBool::new(false),
        is_refusing: AtomicBool::new(false),
        is_closed: AtomicBool::new(false),
        reader: OnceLock::new(),
    });
    let port = SpoolPort {
        ring: Arc::clone(&ring),
        room,
    };
    Ok((port, SpoolReader { ring, made_room }))
}

/// The switch's side.
#[derive(Debug)]
pub struct SpoolPort {
    ring: Arc<Ring>,
    /// Readable when half of the ring is free again.
    room: UnixStream,
}

/// The thread's side.
#[derive(Debug)]
pub struct SpoolReader {
    ring: Arc<Ring>,
    made_room: UnixStream,
}

/// What a reader was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Frames are there.
    Frames,
    /// Nothing came for as long as it was to wait.
    Nothing,
    /// The port is gone, and every frame was taken.
    Closed,
}

#[derive(Debug)]
struct Ring {
    /// As many as a power of two.
    words: Box<[AtomicU64]>,
    /// Words ever written.
    head: AtomicU64,
    /// Words ever read.
    tail: AtomicU64,
    /// A frame was not taken for want of room.
    is_full: AtomicBool,
    /// The reader waits for the next frame.
    is_idle: AtomicBool,
    /// The reader can do nothing with frames.
    is_refusing: AtomicBool,
    /// The port is gone.
    is_closed: AtomicBool,
    /// Who reads, once it has waited.
    reader: OnceLock<Thread>,
}

impl Ring {
    fn word(&self, at: u64) -> &AtomicU64 {
        &self.words[at as usize & (self.words.len() - 1)]
    }

    /// Words that wait for the reader.
    fn used(&self) -> u64 {
        // `SeqCst`, as the flags are: each side moves its end first and looks at the flag of the
        // other second, and the other the other way round, so that one of them sees what is new.
        let head = self.head.load(Ordering::SeqCst);
        head - self.tail.load(Ordering::SeqCst)
    }

    fn half(&self) -> u64 {
        self.words.len() as u64 / 2
    }

    /// Copies a frame in; `false` when there is no room for it.
    fn push(&self, at_nanos: u64, frame: &[u8]) -> bool {
        let needed = HEADER_WORDS + frame.len().div_ceil(WORD_SIZE) as u64;
        if self.words.len() as u64 - self.used() < needed {
            return false;
        }
        let start = self.head.load(Ordering::Relaxed);
        self.word(start).store(at_nanos, Ordering::Relaxed);
        let size = frame.len() as u64;
        self.word(start + 1).store(size, Ordering::Relaxed);
        for (to, bytes) in (start + HEADER_WORDS..).zip(frame.chunks(WORD_SIZE)) {
            let mut word = [0; WORD_SIZE];
            word[..bytes.len()].copy_from_slice(bytes);
            let word = u64::from_ne_bytes(word);
            self.word(to).store(word, Ordering::Relaxed);
        }
        // What was stored is the reader's when it sees this.
        self.head.store(start + needed, Ordering::SeqCst);
        true
    }

    /// Takes the oldest frame out, into `frame`.
    fn pop(&self, frame: &mut Vec<u8>) -> Option<u64> {
        if self.used() == 0 {
            return None;
        }
        let start = self.tail.load(Ordering::Relaxed);
        let at_nanos = self.word(start).load(Ordering::Relaxed);
        let size = self.word(start + 1).load(Ordering::Relaxed) as usize;
        let words = size.div_ceil(WORD_SIZE) as u64;
        frame.clear();
        for from in start + HEADER_WORDS..start + HEADER_WORDS + words {
            let word = self.word(from).load(Ordering::Relaxed);
            frame.extend_from_slice(&word.to_ne_bytes());
        }
        frame.truncate(size);
        let end = start + HEADER_WORDS + words;
        self.tail.store(end, Ordering::SeqCst);
        Some(at_nanos)
    }

    fn wake_reader(&self) {
        if (self.is_idle.load(Ordering::SeqCst) || self.used() > self.half())
            && let Some(reader) = self.reader.get()
        {
            reader.unpark();
        }
    }
}

impl PortIo for SpoolPort {
    fn capabilities(&self) -> Capabilities {
        Capabilities::offloading(FRAME_SIZE_MAX)
    }

    fn recv(&mut self, _rx: &mut Batch) -> io::Result<usize> {
        // Nothing is received. What came of the other end has woken the worker, which is all.
        let mut noted = [0; 64];
        while self.room.read(&mut noted).is_ok_and(|count| count > 0) {}
        Err(ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        if self.ring.is_refusing.load(Ordering::Relaxed) {
            return Err(ErrorKind::StorageFull.into());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is shown as 1970; 64 bits of nanoseconds last until 2554.
        let now = now.unwrap_or_default().as_nanos() as u64;
        let mut sent = 0;
        for frame in &*frames {
            if !self.ring.push(now, frame.bytes()) {
                break;
            }
            sent += 1;
        }
        if sent == 0 && !frames.is_empty() {
            self.ring.is_full.store(true, Ordering::SeqCst);
            // Room that was made before the reader could see that it was missed.
            if !self.ring.push(now, frames[0].bytes()) {
                self.ring.wake_reader();
                return Err(ErrorKind::WouldBlock.into());
            }
            sent = 1;
        }
        self.ring.wake_reader();
        Ok(sent)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.room.as_fd())
    }
}

impl Drop for SpoolPort {
    fn drop(&mut self) {
        self.ring.is_closed.store(true, Ordering::SeqCst);
        if let Some(reader) = self.ring.reader.get() {
            reader.unpark();
        }
    }
}

impl SpoolReader {
    /// Waits for frames, for `patience` at most. Only ever called by one thread.
    pub fn wait(&mut self, patience: Duration) -> Woken {
        self.ring.reader.get_or_init(std::thread::current);
        let deadline = Instant::now() + patience;
        loop {
            // In this order: the port sends before it closes.
            let is_closed = self.ring.is_closed.load(Ordering::SeqCst);
            if self.ring.used() > 0 {
                return Woken::Frames;
            }
            if is_closed {
                return Woken::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Nothing;
            }
            self.ring.is_idle.store(true, Ordering::SeqCst);
            if self.ring.used() == 0 && !self.ring.is_closed.load(Ordering::SeqCst) {
                std::thread::park_timeout(left);
            }
            self.ring.is_idle.store(false, Ordering::SeqCst);
        }
    }

    /// Lets frames gather for some milliseconds, or until the ring is half full.
    pub fn gather(&self) {
        if !self.ring.is_closed.load(Ordering::SeqCst) {
            std::thread::park_timeout(GATHER);
        }
    }

    /// Takes the oldest frame into `frame`, and returns when it was sent, counted from the Unix
    /// epoch.
    pub fn take(&mut self, frame: &mut Vec<u8>) -> Option<Duration> {
        let at = self.ring.pop(frame)?;
        // Not for each frame that makes room for one.
        if self.ring.used() <= self.ring.half() && self.ring.is_full.swap(false, Ordering::SeqCst) {
            // A socket that is full has an event on its way.
            let _ = self.made_room.write(&[1]);
        }
        Some(Duration::from_nanos(at))
    }

    /// Has the port refuse frames.
    pub fn refuse(&self) {
        self.ring.is_refusing.store(true, Ordering::Relaxed);
    }

    /// Has the port take frames again.
    pub fn accept(&self) {
        self.ring.is_refusing.store(false, Ordering::Relaxed);
    }
}

impl Drop for SpoolReader {
    fn drop(&mut self) {
        self.refuse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn numbered(number: usize) -> FrameBuf {
        let mut bytes = vec![number as u8; number * 7 % 300];
        bytes.extend(number.to_be_bytes());
        FrameBuf::from_bytes(&bytes)
    }

    fn epoch_nanos() -> u128 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_nanos()
    }

    #[test]
    fn every_frame_comes_out_as_it_went_in_and_in_order_while_the_ring_goes_round() {
        let count = 20_000;
        let (mut port, mut reader) = pair_of_size(4_096).unwrap();
        let taking = std::thread::spawn(move || {
            let (mut frame, mut taken) = (Vec::new(), 0);
            while reader.wait(PATIENCE) != Woken::Closed {
                while reader.take(&mut frame).is_some() {
                    assert_eq!(frame, numbered(taken).bytes(), "frame {taken}");
                    taken += 1;
                }
            }
            taken
        });
        for number in 0..count {
            let mut frame = [numbered(number)];
            loop {
                match port.send(&mut frame) {
                    Ok(sent) => break assert_eq!(sent, 1),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                std::thread::yield_now();
            }
        }
        drop(port);
        assert_eq!(
            taking.join().unwrap(),
            count,
            "also what came before the end"
        );
    }

    #[test]
    fn frames_of_any_size_and_offload_are_taken_with_the_time_at_which_they_were_sent() {
        let (mut port, mut reader) = pair().unwrap();
        let mut frames: Vec<_> = [1, 8, 60, FRAME_SIZE_MAX]
            .map(|size| FrameBuf::from_bytes(&vec![7; size]))
            .into();
        frames[3].offload.gso_type = 1;
        assert!(
            frames
                .iter()
                .all(|frame| port.capabilities().accepts(frame))
        );
        let before = epoch_nanos();
        assert_eq!(port.send(&mut frames).unwrap(), 4);
        let after = epoch_nanos();
        assert_eq!(reader.wait(PATIENCE), Woken::Frames);
        let mut bytes = Vec::new();
        for frame in &frames {
            let at = reader.take(&mut bytes).unwrap().as_nanos();
            assert!((before..=after).contains(&at));
            assert_eq!(bytes, frame.bytes());
        }
        assert_eq!(reader.take(&mut bytes), None);
        assert_eq!(reader.wait(Duration::ZERO), Woken::Nothing);
        assert_eq!(
            port.recv(&mut Batch::new()).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_full_ring_refuses_the_newest_and_tells_when_there_is_room() {
        let (mut port, mut reader) = pair_of_size(1_024).unwrap();
        let mut frames = vec![FrameBuf::from_bytes(&[1; 240]); 5];
        assert_eq!(port.send(&mut frames).unwrap(), 4, "each with its header");
        let error = port.send(&mut frames[4..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let noted = |port: &mut SpoolPort| port.room.read(&mut [0; 8]).ok();
        assert_eq!(noted(&mut port), None);
        let mut bytes = Vec::new();
        assert!(reader.take(&mut bytes).is_some());
        assert_eq!(noted(&mut port), None, "room for one is no news");
        assert!(reader.take(&mut bytes).is_some());
        assert_eq!(noted(&mut port), Some(1), "half of it is");
        assert!(reader.take(&mut bytes).is_some());
        assert_eq!(noted(&mut port), None, "and told once");
        assert_eq!(port.send(&mut frames[3..]).unwrap(), 2);
    }

    #[test]
    fn a_reader_that_cannot_go_on_has_every_frame_refused_until_it_can() {
        let (mut port, reader) = pair().unwrap();
        let mut frames = [numbered(1)];
        let kind = |sent: io::Result<usize>| sent.unwrap_err().kind();
        reader.refuse();
        assert_eq!(kind(port.send(&mut frames)), ErrorKind::StorageFull);
        reader.accept();
        assert_eq!(port.send(&mut frames).unwrap(), 1);
        drop(reader);
        assert_eq!(kind(port.send(&mut frames)), ErrorKind::StorageFull);
    }

    #[test]
    fn a_reader_that_waits_is_woken_by_a_frame_and_by_the_end() {
        let (mut port, mut reader) = pair().unwrap();
        let waiting = std::thread::spawn(move || {
            let first = reader.wait(PATIENCE);
            let taken = reader.take(&mut Vec::new());
            (first, taken.is_some(), reader.wait(PATIENCE))
        });
        while !port.ring.is_idle.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let start = Instant::now();
        assert_eq!(port.send(&mut [numbered(1)]).unwrap(), 1);
        drop(port);
        let woken = waiting.join().unwrap();
        assert_eq!(woken, (Woken::Frames, true, Woken::Closed));
        assert!(start.elapsed() < PATIENCE / 2, "woken, not timed out");
    }
}
