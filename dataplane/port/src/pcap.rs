//! Frames to and from capture files, as tcpdump and Wireshark read them.
//!
//! [`Recorder`] stands between a port and the switch and writes down what passes, in both
//! directions. [`Replay`] is a port whose frames come from a file. The format is the classic one
//! (draft-ietf-opsawg-pcap): written with microseconds in the machine's byte order, read in
//! either byte order and with nanoseconds too.
//!
//! Limits: Ethernet only. The format has no place for an [`Offload`]: unfinished checksums look
//! wrong in it and GSO frames oversized, as in tcpdump on the sending host; a replayed frame is
//! taken as complete. Records larger than a frame are skipped. Recording that fails stops, and
//! the traffic goes on. Not thread-safe.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf, Offload};

use crate::{BATCH_MAX, Batch, Capabilities, Carrier, EdgeStats, PortIo};

/// Largest record that is written or read: what tcpdump uses (`MAXIMUM_SNAPLEN`), more than any
/// frame.
pub const SNAPLEN: u32 = 262_144;

/// `LINKTYPE_ETHERNET`.
const LINKTYPE_ETHERNET: u32 = 1;
const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER_SIZE: usize = 24;
const RECORD_HEADER_SIZE: usize = 16;

/// Writes a capture file.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a file; `out` should be buffered.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut header = [0; FILE_HEADER_SIZE];
        header[..4].copy_from_slice(&MAGIC_MICROSECONDS.to_ne_bytes());
        header[4..6].copy_from_slice(&2u16.to_ne_bytes());
        header[6..8].copy_from_slice(&4u16.to_ne_bytes());
        header[16..20].copy_from_slice(&SNAPLEN.to_ne_bytes());
        header[20..24].copy_from_slice(&LINKTYPE_ETHERNET.to_ne_bytes());
        out.write_all(&header)?;
        Ok(Self { out })
    }

    /// Adds a frame that passed at `at`, counted from the Unix epoch.
    ///
    /// # Errors
    /// What the underlying writer says.
    pub fn write(&mut self, at: Duration, frame: &[u8]) -> io::Result<()> {
        let size = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let kept = size.min(SNAPLEN);
        // 32 bits of seconds, as the format has them, last until 2106.
        let fields = [at.as_secs() as u32, at.subsec_micros(), kept, size];
        let mut header = [0; RECORD_HEADER_SIZE];
        for (to, field) in header.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_ne_bytes());
        }
        self.out.write_all(&header)?;
        self.out.write_all(&frame[..kept as usize])
    }

    /// Hands everything to the file.
    ///
    /// # Errors
    /// What the underlying writer says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a capture file.
#[derive(Debug)]
pub struct PcapReader<R> {
    input: R,
    swapped: bool,
    fraction: Fraction,
}

/// The unit of a timestamp's second half.
#[derive(Clone, Copy, Debug)]
enum Fraction {
    Microseconds,
    Nanoseconds,
}

impl<R: Read> PcapReader<R> {
    /// Reads the file's header; `input` should be buffered.
    ///
    /// # Errors
    /// `InvalidData` when it is no classic capture of Ethernet.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut header = [0; FILE_HEADER_SIZE];
        input.read_exact(&mut header)?;
        let magic = u32_at(&header, 0);
        let (swapped, fraction) = match (magic, magic.swap_bytes()) {
            (MAGIC_MICROSECONDS, _) => (false, Fraction::Microseconds),
            (MAGIC_NANOSECONDS, _) => (false, Fraction::Nanoseconds),
            (_, MAGIC_MICROSECONDS) => (true, Fraction::Microseconds),
            (_, MAGIC_NANOSECONDS) => (true, Fraction::Nanoseconds),
            _ => return Err(invalid("not a pcap file; convert it by 'editcap -F pcap'")),
        };
        let reader = Self {
            input,
            swapped,
            fraction,
        };
        // The upper bits tell about the frame check sequence.
        if reader.field(&header, 20) & 0xffff != LINKTYPE_ETHERNET {
            return Err(invalid("the pcap file is not of Ethernet frames"));
        }
        Ok(reader)
    }

    /// Reads the next frame into `frame` and returns when it passed, counted from the Unix epoch;
    /// `None` at the end of the file. Records that do not fit are skipped.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends within a record, `InvalidData` when a record cannot be
    /// one.
    pub fn read(&mut self, frame: &mut FrameBuf) -> io::Result<Option<Duration>> {
        loop {
            let mut header = [0; RECORD_HEADER_SIZE];
            if !read_or_end(&mut self.input, &mut header)? {
                return Ok(None);
            }
            let size = self.field(&header, 8);
            if size > SNAPLEN {
                return Err(invalid(
                    "a record of the pcap file is larger than any frame",
                ));
            }
            let size = size as usize;
            frame.clear();
            let area = frame.receive_area(0);
            if size <= area.len().min(FRAME_SIZE_MAX) {
                self.input.read_exact(&mut area[..size])?;
                frame.set_received(size, Offload::NONE);
                return Ok(Some(self.timestamp(&header)));
            }
            let mut skipped = self.input.by_ref().take(size as u64);
            io::copy(&mut skipped, &mut io::sink())?;
        }
    }

    fn timestamp(&self, header: &[u8]) -> Duration {
        let fraction = u64::from(self.field(header, 4));
        let fraction = match self.fraction {
            Fraction::Microseconds => Duration::from_micros(fraction),
            Fraction::Nanoseconds => Duration::from_nanos(fraction),
        };
        Duration::from_secs(self.field(header, 0).into()) + fraction
    }

    fn field(&self, header: &[u8], at: usize) -> u32 {
        let value = u32_at(header, at);
        if self.swapped {
            value.swap_bytes()
        } else {
            value
        }
    }
}

/// A port whose frames are written down as they pass.
#[derive(Debug)]
pub struct Recorder<P, W> {
    inner: P,
    writer: Option<PcapWriter<W>>,
    failure: Option<io::Error>,
}

impl<P: PortIo, W: Write> Recorder<P, W> {
    /// Records what `inner` receives and sends. The clock is read once per call.
    pub fn new(inner: P, writer: PcapWriter<W>) -> Self {
        Self {
            inner,
            writer: Some(writer),
            failure: None,
        }
    }

    /// Why recording stopped, if it did.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    fn record(&mut self, frames: &[FrameBuf]) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is shown as 1970.
        let now = now.unwrap_or_default();
        let mut written = frames.iter().map(|frame| writer.write(now, frame.bytes()));
        if let Some(error) = written.find_map(Result::err) {
            self.failure = Some(error);
            self.writer = None;
        }
    }
}

impl<P: PortIo, W: Write + Send> PortIo for Recorder<P, W> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let before = rx.len();
        let count = self.inner.recv(rx)?;
        self.record(&rx.frames()[before..]);
        Ok(count)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        let count = self.inner.send(frames)?;
        self.record(&frames[..count]);
        Ok(count)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readiness()
    }

    fn busy_polled(&self) -> bool {
        self.inner.busy_polled()
    }

    fn busy_poll(&mut self) {
        self.inner.busy_poll();
    }

    fn set_carrier(&self, carrier: Carrier) -> io::Result<()> {
        self.inner.set_carrier(carrier)
    }

    fn edge_stats(&self) -> EdgeStats {
        self.inner.edge_stats()
    }
}

/// A port that receives the frames of a file, as fast as they are asked for, and forgets what it
/// sends. At the end of the file its device is gone.
#[derive(Debug)]
pub struct Replay<R> {
    reader: PcapReader<R>,
    ended: bool,
    sent: u64,
}

impl<R: Read> Replay<R> {
    /// Replays what `reader` has left.
    pub fn new(reader: PcapReader<R>) -> Self {
        Self {
            reader,
            ended: false,
            sent: 0,
        }
    }

    /// Frames that were sent and forgotten.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl<R: Read + Send> PortIo for Replay<R> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::offloading(FRAME_SIZE_MAX)
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let before = rx.len();
        for _ in 0..BATCH_MAX {
            if self.ended {
                break;
            }
            let Some(mut buf) = rx.take_buffer() else {
                break;
            };
            match self.reader.read(&mut buf) {
                Ok(Some(_)) => rx.push(buf),
                // A file that was cut off ends where it can no longer be read.
                Ok(None) | Err(_) => {
                    rx.recycle(buf);
                    self.ended = true;
                }
            }
        }
        if self.ended && rx.len() == before {
            return Err(ErrorKind::NotConnected.into());
        }
        Ok(rx.len() - before)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        if self.ended {
            return Err(ErrorKind::NotConnected.into());
        }
        self.sent += frames.len() as u64;
        Ok(frames.len())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Fills `buffer`; `false` when the input had ended before its first byte.
fn read_or_end(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let first = loop {
        match input.read(&mut buffer[..1]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    input.read_exact(&mut buffer[1..])?;
    Ok(true)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// A number in the machine's byte order; zero beyond the end, which no caller reaches.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.map_or(0, |&four| u32::from_ne_bytes(four))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Subject, check_all, numbered};
    use crate::memory::MemoryPort;

    fn file(frames: &[(Duration, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = PcapWriter::new(&mut bytes).unwrap();
        for (at, frame) in frames {
            writer.write(*at, frame).unwrap();
        }
        writer.flush().unwrap();
        bytes
    }

    #[test]
    fn written_frames_are_read_again() {
        let frames = [
            (Duration::new(1, 2_000), numbered(60, 1)),
            (
                Duration::new(1_700_000_000, 999_999_000),
                numbered(65_000, 2),
            ),
            (Duration::ZERO, Vec::new()),
        ];
        let file = file(&frames);
        let mut reader = PcapReader::new(&file[..]).unwrap();
        let mut frame = FrameBuf::new();
        for (at, bytes) in &frames {
            assert_eq!(reader.read(&mut frame).unwrap(), Some(*at));
            assert_eq!(frame.bytes(), bytes);
        }
        assert_eq!(reader.read(&mut frame).unwrap(), None);
    }

    #[test]
    fn other_byte_order_and_nanoseconds_are_read() {
        let mut file = Vec::new();
        file.extend(MAGIC_NANOSECONDS.swap_bytes().to_ne_bytes());
        file.extend([0; 16]);
        file.extend(LINKTYPE_ETHERNET.swap_bytes().to_ne_bytes());
        for field in [7u32, 5, 3, 3] {
            file.extend(field.swap_bytes().to_ne_bytes());
        }
        file.extend(*b"abc");
        let mut reader = PcapReader::new(&file[..]).unwrap();
        let mut frame = FrameBuf::new();
        assert_eq!(reader.read(&mut frame).unwrap(), Some(Duration::new(7, 5)));
        assert_eq!(frame.bytes(), b"abc");
    }

    #[test]
    fn oversized_records_are_skipped_and_broken_files_end() {
        let good = numbered(60, 1);
        let whole = file(&[
            (Duration::ZERO, vec![0; 200_000]),
            (Duration::ZERO, good.clone()),
        ]);
        let mut frame = FrameBuf::new();
        let mut reader = PcapReader::new(&whole[..]).unwrap();
        assert!(reader.read(&mut frame).unwrap().is_some());
        assert_eq!(frame.bytes(), good);

        let short = file(&[(Duration::ZERO, good)]);
        for size in 0..short.len() {
            let Ok(mut reader) = PcapReader::new(&short[..size]) else {
                assert!(size < FILE_HEADER_SIZE);
                continue;
            };
            match reader.read(&mut frame) {
                Ok(None) => assert_eq!(size, FILE_HEADER_SIZE),
                outcome => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::UnexpectedEof),
            }
        }
        let error = PcapReader::new(&[0; 24][..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn recorder_conforms_and_writes_both_directions() {
        check_all(|| {
            let (port, peer) = MemoryPort::pair(Capabilities::offloading(FRAME_SIZE_MAX), 128);
            let recorder = Recorder::new(port, PcapWriter::new(Vec::new()).unwrap());
            Subject::new(recorder, peer, 9_014)
        });
        let (port, peer) = MemoryPort::pair(Capabilities::plain(1_514), 8);
        let mut recorder = Recorder::new(port, PcapWriter::new(Vec::new()).unwrap());
        assert!(peer.inject(&numbered(60, 1), Offload::NONE));
        recorder.recv(&mut Batch::new()).unwrap();
        let mut frames = [FrameBuf::from_bytes(&numbered(70, 2))];
        recorder.send(&mut frames).unwrap();
        let file = recorder.writer.unwrap().out;
        let mut reader = PcapReader::new(&file[..]).unwrap();
        let mut frame = FrameBuf::new();
        for expected in [numbered(60, 1), numbered(70, 2)] {
            reader.read(&mut frame).unwrap();
            assert_eq!(frame.bytes(), expected);
        }
        assert_eq!(reader.read(&mut frame).unwrap(), None);
    }

    #[test]
    fn full_disk_stops_the_recording_and_not_the_traffic() {
        let (port, peer) = MemoryPort::pair(Capabilities::plain(1_514), 8);
        let mut disk = [0; 100];
        let writer = PcapWriter::new(&mut disk[..]).unwrap();
        let mut recorder = Recorder::new(port, writer);
        for number in 0..3 {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(recorder.send(&mut frame).unwrap(), 1);
        }
        assert!(recorder.failure().is_some());
        assert_eq!(peer.pending(), 3);
    }

    #[test]
    fn replay_delivers_the_file_and_is_then_gone() {
        let frames: Vec<_> = (0..200)
            .map(|n| (Duration::ZERO, numbered(60, n)))
            .collect();
        let file = file(&frames);
        let mut replay = Replay::new(PcapReader::new(&file[..]).unwrap());
        assert_eq!(replay.send(&mut [FrameBuf::new()]).unwrap(), 1);
        let mut rx = Batch::new();
        let mut seen = Vec::new();
        let error = loop {
            match replay.recv(&mut rx) {
                Ok(_) => seen.extend(rx.frames().iter().map(|f| f.bytes().to_vec())),
                Err(error) => break error,
            }
            rx.clear();
        };
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert!(seen.iter().eq(frames.iter().map(|(_, bytes)| bytes)));
        assert_eq!(replay.sent(), 1);
    }
}
