//! The files of a mirror: which file may be one, where its last whole block ends, and how they
//! give way to each other.
//!
//! A file is only ever added to. What was cut off at its end, by a crash or by a full disk, is cut
//! away before anything is added, so that every block of it can be read.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;

use crate::model::FileTarget;

/// The type of a section header block: the same in either byte order.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// How a section header says which byte order its section has.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Type, size and, at the end, size again: what every block has.
const BLOCK_SIZE_MIN: u32 = 12;
/// No block of ours or of tcpdump's is larger, so one that says so is none.
const BLOCK_SIZE_MAX: u32 = 16 << 20;
/// Frames are nobody else's business.
const MODE: u32 = 0o600;

/// Why a file cannot be a mirror's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for it.
    #[error("there is no directory '{}'; make it first, or name a file elsewhere", .0.display())]
    Directory(PathBuf),
    /// A directory, a device, a pipe.
    #[error("'{}' is there and no regular file; name another one", .0.display())]
    NotAFile(PathBuf),
    /// It has something else in it.
    #[error("'{}' is there and not pcapng; name another file, or move that one away", .0.display())]
    NotPcapng(PathBuf),
    /// The system refuses.
    #[error("cannot write '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// An open file, at the end of its last whole block.
#[derive(Debug)]
pub struct Disk {
    target: FileTarget,
    file: File,
    /// Bytes of whole blocks.
    size: u64,
}

impl Disk {
    /// Opens a mirror's file, or makes it, and cuts off what is not whole at its end.
    ///
    /// # Errors
    /// See [`Error`]; nothing is changed.
    pub fn open(target: &FileTarget) -> Result<Self, Error> {
        let mut disk = Self {
            target: target.clone(),
            file: open(&target.path)?,
            size: 0,
        };
        let whole = whole_size(&mut disk.file);
        disk.size = whole.map_err(|source| disk.failed(source))?;
        let cut = disk.cut_off();
        cut.map_err(|source| disk.failed(source))?;
        Ok(disk)
    }

    /// Whether so many bytes more are too many for this file.
    pub fn is_full_with(&self, more: u64) -> bool {
        self.size + more > self.target.size_max
    }

    /// Adds whole blocks; all of them, or none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, blocks: &[u8]) -> Result<(), Error> {
        match self.file.write_all(blocks) {
            Ok(()) => {
                self.size += blocks.len() as u64;
                Ok(())
            }
            Err(source) => {
                // Where even that fails, the next opening does it.
                let _ = self.cut_off();
                Err(self.failed(source))
            }
        }
    }

    /// Makes sure that so many bytes more have a place on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn check_room(&mut self, more: u64) -> Result<(), Error> {
        let (start, more) = (self.size.cast_signed(), more.cast_signed());
        let there = posix_fallocate(&self.file, start, more).map_err(io::Error::from);
        let cut = self.cut_off();
        there.and(cut).map_err(|source| self.failed(source))
    }

    /// Begins the next file: this one is numbered 1, that one 2, and the last of as many as are
    /// kept ends.
    ///
    /// # Errors
    /// [`Error::Io`]; what was written stays under one name or another.
    pub fn rotate(&self) -> Result<Self, Error> {
        let path = &self.target.path;
        let numbered = |number: u32| match number {
            0 => path.clone(),
            number => {
                let mut name = path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        let failed = |source| self.failed(source);
        let last = numbered(self.target.files_max - 1);
        match fs::remove_file(last) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        for number in (0..self.target.files_max - 1).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Self::open(&self.target)
    }

    fn cut_off(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        self.file.seek(SeekFrom::Start(self.size))?;
        Ok(())
    }

    /// What the system said, with the file's name.
    pub fn failed(&self, source: io::Error) -> Error {
        let path = self.target.path.clone();
        Error::Io { path, source }
    }
}

/// Whether a mirror may write a file, which is made if it is not there.
///
/// # Errors
/// See [`Error`]; nothing is changed.
pub fn check(path: &Path) -> Result<(), Error> {
    open(path).map(drop)
}

fn open(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let directory = path.parent().unwrap_or(path);
    if !directory.is_dir() {
        return Err(Error::Directory(directory.to_owned()));
    }
    // Before it is opened: opening a device or a pipe does something, or waits.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(Error::NotAFile(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.mode(MODE).open(path).map_err(failed)?;
    match begins_section(&mut file).map_err(failed)? {
        true => Ok(file),
        false => Err(Error::NotPcapng(path.to_owned())),
    }
}

/// Whether a file is empty or begins as pcapng does.
fn begins_section(file: &mut File) -> io::Result<bool> {
    let mut start = [0; 12];
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    match file.read_exact(&mut start) {
        Ok(()) => Ok(byte_order(&start).is_some()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// How numbers of a section are read.
type ByteOrder = fn([u8; 4]) -> u32;

fn byte_order(start: &[u8; 12]) -> Option<ByteOrder> {
    let [a, b, c, d, _, _, _, _, mark @ ..] = *start;
    if u32::from_ne_bytes([a, b, c, d]) != SECTION_HEADER {
        return None;
    }
    let orders: [ByteOrder; 2] = [u32::from_le_bytes, u32::from_be_bytes];
    orders.into_iter().find(|order| order(mark) == BYTE_ORDER)
}

/// Bytes from the start of a file to the end of its last whole block. Each block is looked at, for
/// nothing but its neighbours tells where one begins.
fn whole_size(file: &mut File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::new(file);
    let mut order: Option<ByteOrder> = None;
    let mut whole = 0;
    while size - whole >= u64::from(BLOCK_SIZE_MIN) {
        let mut start = [0; 12];
        input.read_exact(&mut start)?;
        order = byte_order(&start).or(order);
        let Some(order) = order else {
            break;
        };
        let [_, _, _, _, e, f, g, h, ..] = start;
        let block = order([e, f, g, h]);
        let possible = (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block) && block % 4 == 0;
        if !possible || whole + u64::from(block) > size {
            break;
        }
        // Back over what was read, and on to the size at its end.
        input.seek_relative(i64::from(block) - 12 - 4)?;
        let mut end = [0; 4];
        input.read_exact(&mut end)?;
        if order(end) != block {
            break;
        }
        whole += u64::from(block);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror_file::tests::{Dir, frames_of, section_of};

    fn target(path: PathBuf, files_max: u32) -> FileTarget {
        FileTarget {
            path,
            size_max: 1_000,
            files_max,
        }
    }

    #[test]
    fn what_was_cut_off_is_cut_away_wherever_the_cut_is() {
        let dir = Dir::new();
        let target = target(dir.0.join("m.pcapng"), 2);
        let whole = [section_of(&[1, 2]), section_of(&[3])].concat();
        let header = section_of(&[]).len();
        for cut in 0..=whole.len() {
            fs::write(&target.path, &whole[..cut]).unwrap();
            if (1..12).contains(&cut) {
                assert!(
                    matches!(Disk::open(&target), Err(Error::NotPcapng(_))),
                    "{cut}"
                );
                continue;
            }
            let mut disk = Disk::open(&target).unwrap();
            assert!(disk.size <= cut as u64 && (cut < whole.len() || disk.size == cut as u64));
            disk.append(&section_of(&[9])).unwrap();
            let read = frames_of(&target.path);
            let kept = read.len() - 1;
            assert_eq!(read[..kept], [1, 2, 3][..kept], "{cut}");
            assert_eq!(read[kept], 9, "{cut}");
            let ends: Vec<_> = [1, 2]
                .map(|count| section_of(&[1, 2][..count]).len())
                .into();
            assert!(cut < ends[0] || kept >= 1, "{cut}: a whole frame is kept");
            assert!(cut < ends[1] || kept >= 2, "{cut}: a whole frame is kept");
            assert!(cut >= header || kept == 0);
        }
    }

    #[test]
    fn a_section_of_the_other_byte_order_is_followed() {
        let dir = Dir::new();
        let target = target(dir.0.join("m.pcapng"), 2);
        let mut foreign = Vec::new();
        for number in [
            SECTION_HEADER,
            28,
            BYTE_ORDER,
            0x0001_0000,
            u32::MAX,
            u32::MAX,
            28,
        ] {
            foreign.extend(match u32::from_ne_bytes([1, 0, 0, 0]) {
                1 => number.to_be_bytes(),
                _ => number.to_le_bytes(),
            });
        }
        foreign.extend([7; 5]);
        fs::write(&target.path, &foreign).unwrap();
        assert_eq!(Disk::open(&target).unwrap().size, 28);
        assert_eq!(fs::metadata(&target.path).unwrap().len(), 28);
    }

    #[test]
    fn what_cannot_be_a_mirrors_file_is_refused_by_name_and_stays_as_it_is() {
        let dir = Dir::new();
        let note = dir.0.join("note.pcapng");
        fs::write(&note, "dear diary, nothing happened").unwrap();
        let refused = |path: PathBuf| {
            let error = Disk::open(&target(path, 1)).unwrap_err().to_string();
            assert!(error.contains(dir.0.to_str().unwrap()), "{error}");
            error
        };
        assert!(refused(note.clone()).contains("not pcapng"));
        assert_eq!(fs::read(&note).unwrap(), b"dear diary, nothing happened");
        assert!(refused(dir.0.clone()).contains("no regular file"));
        assert!(refused(dir.0.join("none/m.pcapng")).contains("no directory"));
        assert!(!dir.0.join("none").exists());
    }

    #[test]
    fn as_many_files_are_kept_as_are_asked_for_and_the_first_is_the_newest() {
        for files_max in [1, 3] {
            let dir = Dir::new();
            let target = target(dir.0.join("m.pcapng"), files_max);
            let mut disk = Disk::open(&target).unwrap();
            for number in 1..=5 {
                disk.append(&section_of(&[number])).unwrap();
                if number < 5 {
                    disk = disk.rotate().unwrap();
                    assert_eq!(disk.size, 0);
                }
            }
            let names = ["m.pcapng", "m.pcapng.1", "m.pcapng.2", "m.pcapng.3"];
            let there = names
                .map(|name| dir.0.join(name))
                .into_iter()
                .filter(|p| p.exists());
            let found: Vec<u8> = there.flat_map(|path| frames_of(&path)).collect();
            assert_eq!(found, [5, 4, 3][..files_max as usize]);
        }
    }

    #[test]
    fn room_is_looked_for_without_leaving_a_trace() {
        let dir = Dir::new();
        let target = target(dir.0.join("m.pcapng"), 1);
        let mut disk = Disk::open(&target).unwrap();
        disk.append(&section_of(&[1])).unwrap();
        disk.check_room(1 << 16).unwrap();
        disk.append(&section_of(&[2])).unwrap();
        assert_eq!(frames_of(&target.path), [1, 2]);
    }
}
