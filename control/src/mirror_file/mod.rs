//! Mirrors whose copies go to a file: the port that takes them, and the thread that writes.
//!
//! # Theory of operation
//! A worker gives copies to a [`SpoolPort`], as to any port, and goes on. The thread takes them from
//! its ring, writes whole blocks of pcapng, and begins another file when one is full. When the disk
//! refuses, the thread cuts off what it could not finish, counts what it had, says why, and has the
//! port refuse frames, which the worker counts (`refused`); every `RETRY_EVERY` it tries whether
//! there is room again. A disk that is only slow fills the ring (`queue_full`). No worker ever
//! waits for a file.
//!
//! Each opening of a file adds a section to it, so a restart goes on in the same file.

pub mod disk;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use crossbeam::channel::{Receiver, bounded};
use dataplane_port::spool::{self, SpoolPort, SpoolReader, Woken};

use crate::model::FileTarget;
use crate::pcapng::{FrameWriter, InterfaceId, Packet};
use disk::Disk;

/// Bytes that are gathered for one write.
const CHUNK_SIZE: usize = 256 << 10;
/// How often a file that failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// Room that a disk has to have for a file that failed to be taken up again, so that a full one
/// does not come and go with every frame.
const RESUME_ROOM: u64 = 1 << 20;
/// How long the end of a mirror waits for what is still to be written.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// How long the thread waits for a frame before it waits for the next.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Bytes of each frame that are kept: all of it.
const SNAP_SIZE: usize = 262_144;
/// Bytes of a frame's block besides the frame itself, which is padded to four.
const PACKET_OVERHEAD: u64 = 32;

/// What writes a mirror's file.
#[derive(Debug)]
pub struct MirrorFile {
    progress: Arc<Progress>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

/// How far it has come.
#[derive(Debug, Default)]
struct Progress {
    written: AtomicU64,
    lost: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl MirrorFile {
    /// Starts to write what is sent to the port that it returns. The frames are of an interface of
    /// that name.
    ///
    /// # Errors
    /// When there is no descriptor or thread left.
    pub fn start(target: FileTarget, interface: &str) -> io::Result<(Self, SpoolPort)> {
        let (port, reader) = spool::pair()?;
        let progress = Arc::new(Progress::default());
        let (alive, ended) = bounded(0);
        let writer = Writer {
            reader,
            target,
            interface: interface.to_owned(),
            progress: Arc::clone(&progress),
        };
        let write = move || {
            writer.run();
            drop(alive);
        };
        thread::Builder::new()
            .name("mirror-file".to_owned())
            .spawn(write)?;
        Ok((Self { progress, ended }, port))
    }

    /// Frames in the file.
    pub fn written(&self) -> u64 {
        self.progress.written.load(Ordering::Relaxed)
    }

    /// Frames that the port took and the disk did not.
    pub fn lost(&self) -> u64 {
        self.progress.lost.load(Ordering::Relaxed)
    }

    /// Why nothing is written, if so.
    pub fn failure(&self) -> Option<String> {
        self.progress.failure().clone()
    }

    /// Waits until everything is written, after the port is gone. A disk that does not answer is
    /// left to itself.
    pub fn finish(&self) {
        let _ = self.ended.recv_timeout(FINISH_MAX);
    }
}

impl Progress {
    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing in here panics half-way.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
struct Writer {
    reader: SpoolReader,
    target: FileTarget,
    interface: String,
    progress: Arc<Progress>,
}

impl Writer {
    fn run(mut self) {
        let mut opened =
            Disk::open(&self.target).and_then(|disk| Output::begin(disk, &self.interface));
        loop {
            match opened {
                Ok(output) => {
                    self.reader.accept();
                    *self.progress.failure() = None;
                    match self.write_frames(output) {
                        Ok(()) => return,
                        Err(error) => opened = Err(error),
                    }
                }
                Err(error) => {
                    self.reader.refuse();
                    *self.progress.failure() = Some(error.to_string());
                    if self.await_retry() == Woken::Closed {
                        return;
                    }
                    opened = self.reopen();
                }
            }
        }
    }

    /// Writes until the port is gone.
    ///
    /// # Errors
    /// What the disk says; what was not written is counted.
    fn write_frames(&mut self, mut output: Output) -> Result<(), disk::Error> {
        let mut frame = Vec::new();
        while self.reader.wait(WAIT_MAX) != Woken::Closed {
            while let Some(at) = self.reader.take(&mut frame) {
                let added = output.add(at, &frame, &self.progress);
                added.inspect_err(|_| self.lose(output.unwritten + 1))?;
            }
            let written = output.write(&self.progress);
            written.inspect_err(|_| self.lose(output.unwritten))?;
            self.reader.gather();
        }
        Ok(())
    }

    /// Waits, and loses what was sent before the port could know.
    fn await_retry(&mut self) -> Woken {
        let mut frame = Vec::new();
        loop {
            let woken = self.reader.wait(RETRY_EVERY);
            if woken != Woken::Frames {
                return woken;
            }
            while self.reader.take(&mut frame).is_some() {
                self.lose(1);
            }
        }
    }

    fn reopen(&self) -> Result<Output, disk::Error> {
        let mut disk = Disk::open(&self.target)?;
        disk.check_room(RESUME_ROOM)?;
        Output::begin(disk, &self.interface)
    }

    fn lose(&self, count: u64) {
        self.progress.lost.fetch_add(count, Ordering::Relaxed);
    }
}

/// An open file with what is gathered for it.
struct Output {
    disk: Disk,
    /// The blocks that are written next.
    section: FrameWriter<Vec<u8>>,
    interface: InterfaceId,
    name: String,
    /// Frames among them.
    unwritten: u64,
}

impl Output {
    /// Begins a section, which is in the file when this returns.
    fn begin(mut disk: Disk, name: &str) -> Result<Self, disk::Error> {
        let section = |disk: &Disk| {
            let blocks = Vec::with_capacity(CHUNK_SIZE);
            let mut section = FrameWriter::new(blocks).map_err(|error| disk.failed(error))?;
            let interface = section.interface(name, SNAP_SIZE);
            let interface = interface.map_err(|error| disk.failed(error))?;
            Ok((section, interface))
        };
        let (mut section, interface) = section(&disk)?;
        disk.append(section.get_mut())?;
        section.get_mut().clear();
        Ok(Self {
            disk,
            section,
            interface,
            name: name.to_owned(),
            unwritten: 0,
        })
    }

    /// Adds a frame, in the next file if this one is full.
    fn add(&mut self, at: Duration, frame: &[u8], progress: &Progress) -> Result<(), disk::Error> {
        let block = PACKET_OVERHEAD + frame.len().next_multiple_of(4) as u64;
        let gathered = self.section.get_mut().len() as u64 + block;
        if self.disk.is_full_with(gathered) {
            self.write(progress)?;
            *self = Self::begin(self.disk.rotate()?, &self.name)?;
        } else if gathered > CHUNK_SIZE as u64 {
            self.write(progress)?;
        }
        let packet = Packet {
            interface: self.interface,
            at,
            bytes: frame,
            size: frame.len(),
        };
        let added = self.section.packet(&packet, Vec::new());
        added.map_err(|error| self.disk.failed(error))?;
        self.unwritten += 1;
        Ok(())
    }

    /// Writes what is gathered.
    fn write(&mut self, progress: &Progress) -> Result<(), disk::Error> {
        let blocks = self.section.get_mut();
        if blocks.is_empty() {
            return Ok(());
        }
        self.disk.append(blocks)?;
        blocks.clear();
        progress
            .written
            .fetch_add(self.unwritten, Ordering::Relaxed);
        self.unwritten = 0;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf};
    use dataplane_port::PortIo;
    use pcap_file::pcapng::{Block, PcapNgReader};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A directory that is gone afterwards.
    pub struct Dir(pub PathBuf);

    impl Dir {
        pub fn new() -> Self {
            let name = format!("causeway-mirror-{:x}", fastrand::u64(..));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A section with frames of one byte each.
    pub fn section_of(frames: &[u8]) -> Vec<u8> {
        let mut section = FrameWriter::new(Vec::new()).unwrap();
        let interface = section.interface("web", SNAP_SIZE).unwrap();
        for byte in frames {
            let packet = Packet {
                interface,
                at: Duration::ZERO,
                bytes: &[*byte],
                size: 1,
            };
            section.packet(&packet, Vec::new()).unwrap();
        }
        std::mem::take(section.get_mut())
    }

    /// Every frame of a file, with its time.
    fn packets_of(path: &Path) -> Vec<(Duration, Vec<u8>)> {
        let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(block) = block.unwrap() {
                assert_eq!(block.original_len as usize, block.data.len());
                packets.push((block.timestamp, block.data.into_owned()));
            }
        }
        packets
    }

    /// The first byte of every frame of a file.
    pub fn frames_of(path: &Path) -> Vec<u8> {
        packets_of(path).iter().map(|(_, frame)| frame[0]).collect()
    }

    fn numbered(number: u32) -> FrameBuf {
        let mut bytes = vec![number as u8; 60 + number as usize * 7 % 1_400];
        bytes.extend(number.to_be_bytes());
        FrameBuf::from_bytes(&bytes)
    }

    fn send(port: &mut SpoolPort, frame: FrameBuf) {
        let mut frame = [frame];
        while port.send(&mut frame).is_err() {
            thread::yield_now();
        }
    }

    #[track_caller]
    fn until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    fn target(path: PathBuf, size_max: u64) -> FileTarget {
        FileTarget {
            path,
            size_max,
            files_max: 20,
        }
    }

    #[test]
    fn frames_are_in_the_files_in_order_and_with_their_times_and_no_file_is_larger_than_allowed() {
        let dir = Dir::new();
        let target = target(dir.0.join("m.pcapng"), 200_000);
        let (count, mut sent) = (1_500, Vec::new());
        for part in 0..2 {
            // The second one goes on in the file of the first, and with one of the largest frames.
            let (file, mut port) = MirrorFile::start(target.clone(), "web").unwrap();
            for number in part * count..(part + 1) * count {
                send(&mut port, numbered(number));
                sent.push(numbered(number).bytes().to_vec());
                // Some of them are written before others come.
                if number % count == 10 {
                    until(|| file.written() == 11);
                }
            }
            let large = FrameBuf::from_bytes(&[9; FRAME_SIZE_MAX]);
            sent.push(large.bytes().to_vec());
            send(&mut port, large);
            drop(port);
            file.finish();
            assert_eq!(file.written(), u64::from(count) + 1);
            assert_eq!((file.lost(), file.failure()), (0, None));
        }
        let mut paths: Vec<_> = (1..20)
            .map(|n| dir.0.join(format!("m.pcapng.{n}")))
            .collect();
        paths.retain(|path| path.exists());
        paths.reverse();
        paths.push(target.path);
        assert!(paths.len() > 10, "{paths:?}");
        let mut packets = Vec::new();
        for path in &paths {
            let size = path.metadata().unwrap().len();
            assert!(size <= 200_000, "{size}");
            packets.extend(packets_of(path));
        }
        assert!(packets.is_sorted_by_key(|(at, _)| *at));
        assert!(packets.iter().any(|(at, _)| at.subsec_nanos() % 1_000 != 0));
        let packets: Vec<_> = packets.into_iter().map(|(_, frame)| frame).collect();
        assert!(packets == sent, "{} of {}", packets.len(), sent.len());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_told_of_and_taken_up_when_it_can() {
        let dir = Dir::new();
        let target = target(dir.0.join("later/m.pcapng"), 200_000);
        let (file, mut port) = MirrorFile::start(target.clone(), "web").unwrap();
        until(|| file.failure().is_some());
        assert!(file.failure().unwrap().contains("no directory"));
        until(|| port.send(&mut [numbered(1)]).is_err());
        std::fs::create_dir(target.path.parent().unwrap()).unwrap();
        until(|| file.failure().is_none());
        send(&mut port, numbered(2));
        drop(port);
        file.finish();
        assert_eq!(frames_of(&target.path), [2]);
        assert_eq!(file.written(), 1);
    }
}
