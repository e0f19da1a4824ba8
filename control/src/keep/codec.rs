//! How kept sessions are written: a header, then records of a length, a checksum and a body.
//!
//! ```text
//! header   "cwsess" version:u16
//! record   size:u16 crc32(body):u32 body
//! body     1 slot:u64 session        a session, in place of what the slot had before
//!          2 slot:u64                the slot's session has ended
//! ```
//! Numbers are little-endian, times are seconds of the wall clock. A reader takes records up to the
//! first that is cut off or damaged, as the last one is after a crash, and believes none behind it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane_core::addr::{DomainId, L4Addr};
use dataplane_core::nat::{Dependence, NatProtocol, SavedSession, SlotId};
use dataplane_core::time::Instant;

/// What the file begins with.
const MAGIC: [u8; 6] = *b"cwsess";
/// Grows with every change of the format.
const VERSION: u16 = 1;
/// Bytes of a file without records.
pub const HEADER_SIZE: usize = 8;
/// Bytes of the largest record: a session with IPv6 addresses.
pub const RECORD_SIZE_MAX: usize = 144;
/// Bytes in front of a record's body.
const PREFIX_SIZE: usize = 6;
const PUT: u8 = 1;
const END: u8 = 2;

/// Why a file is not read at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else.
    #[error("it holds no sessions of ours")]
    Foreign,
    /// Another program's format.
    #[error("it has version {0}, this program knows {VERSION}")]
    Version(u16),
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Sessions that had not ended.
    pub sessions: Vec<SavedSession>,
    /// Bytes at the end that are no whole record.
    pub damaged: usize,
}

/// The wall clock beside the dataplane's, to write times that outlive the process.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The dataplane's.
    pub now: Instant,
    /// Seconds since 1970 at that moment.
    pub unix_seconds: u64,
}

impl Clocks {
    /// The wall clock as it is.
    pub fn at(now: Instant) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            now,
            unix_seconds: unix.map_or(0, |unix| unix.as_secs()),
        }
    }

    fn unix_of(self, then: Instant) -> u64 {
        let ago = u64::from(self.now.second().saturating_sub(then.second()));
        self.unix_seconds.saturating_sub(ago)
    }

    /// A time that the wall clock puts into the future was just now.
    fn instant_of(self, seconds: u64) -> Instant {
        let ago = self.unix_seconds.saturating_sub(seconds);
        Instant::from_secs(u64::from(self.now.second()).saturating_sub(ago))
    }
}

/// The header of a file.
pub fn header() -> [u8; HEADER_SIZE] {
    let [m0, m1, m2, m3, m4, m5] = MAGIC;
    let [v0, v1] = VERSION.to_le_bytes();
    [m0, m1, m2, m3, m4, m5, v0, v1]
}

/// Appends the record of a slot: its session, or that it has ended.
pub fn encode(out: &mut Vec<u8>, slot: SlotId, saved: Option<&SavedSession>, clocks: Clocks) {
    let begin = out.len();
    out.extend([0; PREFIX_SIZE]);
    out.push(if saved.is_some() { PUT } else { END });
    out.extend(slot.0.to_le_bytes());
    if let Some(saved) = saved {
        put_session(out, saved, clocks);
    }
    let body = &out[begin + PREFIX_SIZE..];
    // A body is smaller than RECORD_SIZE_MAX.
    let (size, sum) = (body.len() as u16, crc32(body));
    out[begin..begin + 2].copy_from_slice(&size.to_le_bytes());
    out[begin + 2..begin + PREFIX_SIZE].copy_from_slice(&sum.to_le_bytes());
}

fn put_session(out: &mut Vec<u8>, saved: &SavedSession, clocks: Clocks) {
    out.extend(saved.domain.0.to_le_bytes());
    out.push(saved.protocol as u8);
    for end in [saved.inside, saved.external, saved.remote] {
        put_end(out, end);
    }
    out.push(u8::from(saved.rule.is_some()));
    out.extend(saved.rule.unwrap_or(0).to_le_bytes());
    out.extend(saved.target.to_le_bytes());
    out.extend([saved.mapping as u8, saved.filtering as u8, saved.tcp]);
    for number in [
        clocks.unix_of(saved.created),
        clocks.unix_of(saved.last_seen),
        saved.packets_out,
        saved.packets_in,
        saved.bytes_out,
        saved.bytes_in,
    ] {
        out.extend(number.to_le_bytes());
    }
}

fn put_end(out: &mut Vec<u8>, end: L4Addr) {
    match end.ip {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(end.l4_port.0.to_le_bytes());
}

/// Reads a file.
///
/// # Errors
/// [`Error`], when nothing of it can be believed.
pub fn decode(bytes: &[u8], clocks: Clocks) -> Result<Contents, Error> {
    let mut reader = Reader(bytes);
    if reader.take::<6>() != Some(MAGIC) {
        return Err(Error::Foreign);
    }
    match reader.u16() {
        Some(VERSION) => {}
        Some(other) => return Err(Error::Version(other)),
        None => return Err(Error::Foreign),
    }
    let mut sessions = HashMap::new();
    let mut rest = reader.0;
    while let Some((slot, saved)) = read_record(&mut reader, clocks) {
        match saved {
            Some(saved) => sessions.insert(slot, saved),
            None => sessions.remove(&slot),
        };
        rest = reader.0;
    }
    let mut sessions: Vec<_> = sessions.into_iter().collect();
    sessions.sort_by_key(|(slot, _)| *slot);
    Ok(Contents {
        sessions: sessions.into_iter().map(|(_, saved)| saved).collect(),
        damaged: rest.len(),
    })
}

/// The next record; `None` at the end, and where it is damaged.
fn read_record(reader: &mut Reader<'_>, clocks: Clocks) -> Option<(SlotId, Option<SavedSession>)> {
    let size = usize::from(reader.u16()?);
    let sum = reader.u32()?;
    let body = reader.bytes(size)?;
    if crc32(body) != sum {
        return None;
    }
    let mut body = Reader(body);
    let [kind] = body.take()?;
    let slot = SlotId(body.u64()?);
    let saved = match kind {
        PUT => Some(read_session(&mut body, clocks)?),
        END => None,
        _ => return None,
    };
    body.0.is_empty().then_some((slot, saved))
}

fn read_session(body: &mut Reader<'_>, clocks: Clocks) -> Option<SavedSession> {
    let domain = DomainId(body.u16()?);
    let [protocol] = body.take()?;
    let protocol = [NatProtocol::Tcp, NatProtocol::Udp, NatProtocol::Icmp]
        .into_iter()
        .find(|known| *known as u8 == protocol)?;
    let (inside, external, remote) = (body.end()?, body.end()?, body.end()?);
    let [has_rule] = body.take()?;
    let (rule, target) = (body.u32()?, body.u16()?);
    let [mapping, filtering, tcp] = body.take()?;
    let dependence = |number: u8| {
        let mut all = Dependence::ALL.into_iter();
        all.find(|known| *known as u8 == number)
    };
    Some(SavedSession {
        domain,
        protocol,
        inside,
        external,
        remote,
        rule: (has_rule != 0).then_some(rule),
        target,
        mapping: dependence(mapping)?,
        filtering: dependence(filtering)?,
        tcp,
        created: clocks.instant_of(body.u64()?),
        last_seen: clocks.instant_of(body.u64()?),
        packets_out: body.u64()?,
        packets_in: body.u64()?,
        bytes_out: body.u64()?,
        bytes_in: body.u64()?,
    })
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn bytes(&mut self, size: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.first_chunk().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn end(&mut self) -> Option<L4Addr> {
        let ip: IpAddr = match self.take()? {
            [4] => self.take::<4>()?.into(),
            [6] => self.take::<16>()?.into(),
            _ => return None,
        };
        Some(L4Addr::new(ip, self.u16()?))
    }
}

/// CRC-32 as of Ethernet and zlib (ISO 3309), a bit at a time: records are short and few.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (POLYNOMIAL & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: Clocks = Clocks {
        now: Instant::from_secs(1_000_000),
        unix_seconds: 1_800_000_000,
    };

    fn any_session(rng: &mut fastrand::Rng) -> SavedSession {
        let v6 = rng.bool();
        let mut end = || {
            let ip: IpAddr = if v6 {
                rng.u128(..).to_be_bytes().into()
            } else {
                rng.u32(..).to_be_bytes().into()
            };
            L4Addr::new(ip, rng.u16(..))
        };
        let (inside, external, remote) = (end(), end(), end());
        SavedSession {
            domain: DomainId(rng.u16(..)),
            protocol: [NatProtocol::Tcp, NatProtocol::Udp, NatProtocol::Icmp][rng.usize(0..3)],
            inside,
            external,
            remote,
            rule: rng.bool().then(|| rng.u32(..)),
            target: rng.u16(..),
            mapping: Dependence::ALL[rng.usize(0..3)],
            filtering: Dependence::ALL[rng.usize(0..3)],
            tcp: rng.u8(..),
            created: Instant::from_secs(rng.u64(0..1_000_000)),
            last_seen: Instant::from_secs(rng.u64(0..1_000_000)),
            packets_out: rng.u64(..),
            packets_in: rng.u64(..),
            bytes_out: rng.u64(..),
            bytes_in: rng.u64(..),
        }
    }

    /// A file of `count` sessions in slots of their own.
    fn file(rng: &mut fastrand::Rng, count: u64) -> (Vec<u8>, Vec<SavedSession>) {
        let mut bytes = header().to_vec();
        let sessions: Vec<_> = (0..count).map(|_| any_session(rng)).collect();
        for (slot, saved) in (0..).zip(&sessions) {
            let before = bytes.len();
            encode(&mut bytes, SlotId(slot), Some(saved), CLOCKS);
            assert!(bytes.len() - before <= RECORD_SIZE_MAX);
        }
        (bytes, sessions)
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let (bytes, sessions) = file(&mut fastrand::Rng::with_seed(1), 500);
        let contents = decode(&bytes, CLOCKS).unwrap();
        assert_eq!(contents.sessions, sessions);
        assert_eq!(contents.damaged, 0);
    }

    #[test]
    fn the_last_record_of_a_slot_counts_and_an_ended_session_is_gone() {
        let rng = &mut fastrand::Rng::with_seed(2);
        let (mut bytes, sessions) = file(rng, 3);
        let newer = any_session(rng);
        encode(&mut bytes, SlotId(1), Some(&newer), CLOCKS);
        encode(&mut bytes, SlotId(0), None, CLOCKS);
        encode(&mut bytes, SlotId(9), None, CLOCKS);
        let contents = decode(&bytes, CLOCKS).unwrap();
        assert_eq!(contents.sessions, [newer, sessions[2]]);
    }

    #[test]
    fn time_goes_on_while_nobody_runs() {
        let rng = &mut fastrand::Rng::with_seed(3);
        let saved = SavedSession {
            created: Instant::from_secs(999_000),
            last_seen: Instant::from_secs(999_990),
            ..any_session(rng)
        };
        let mut bytes = header().to_vec();
        encode(&mut bytes, SlotId(0), Some(&saved), CLOCKS);
        let read = |now, unix_seconds| {
            let now = Instant::from_secs(now);
            let clocks = Clocks { now, unix_seconds };
            let read = decode(&bytes, clocks).unwrap().sessions[0];
            (read.created.second(), read.last_seen.second())
        };
        let later = CLOCKS.unix_seconds + 7;
        assert_eq!(read(5_000_000, later), (4_998_993, 4_999_983));
        assert_eq!(read(10, later), (0, 0), "older than the clock");
        let (_, heard) = read(5_000_000, CLOCKS.unix_seconds - 3_600);
        assert_eq!(heard, 5_000_000, "a clock that was set back");
    }

    #[test]
    fn a_tail_that_is_cut_off_is_left_out() {
        let (bytes, sessions) = file(&mut fastrand::Rng::with_seed(4), 20);
        for len in HEADER_SIZE..bytes.len() {
            let contents = decode(&bytes[..len], CLOCKS).unwrap();
            let whole = contents.sessions.len();
            assert_eq!(contents.sessions, sessions[..whole]);
            assert!(contents.damaged < RECORD_SIZE_MAX);
        }
    }

    #[test]
    fn another_file_and_another_version_are_refused() {
        for foreign in [&b""[..], b"cwses", b"SQLite format 3\0", b"cwsess\x01"] {
            assert_eq!(decode(foreign, CLOCKS), Err(Error::Foreign));
        }
        let told = decode(b"cwsess\x02\x00", CLOCKS).unwrap_err();
        assert_eq!(told, Error::Version(2));
        assert!(told.to_string().contains("version 2"));
    }

    #[test]
    fn whatever_a_file_holds_reading_it_does_not_panic() {
        let seed = std::env::var("SEED").map_or(5, |text| text.parse().unwrap());
        println!("SEED={seed}");
        let rng = &mut fastrand::Rng::with_seed(seed);
        let mut refused = 0;
        for _ in 0..4_000 {
            let (mut bytes, sessions) = file(rng, 4);
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(0..bytes.len());
                match rng.usize(0..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes.truncate(at.max(HEADER_SIZE)),
                    _ => bytes.insert(at, rng.u8(..)),
                }
            }
            match decode(&bytes, CLOCKS) {
                // A record whose sum is right is as it was written.
                Ok(read) => assert!(read.sessions.iter().all(|s| sessions.contains(s))),
                Err(_) => refused += 1,
            }
            let noise: Vec<u8> = header()
                .into_iter()
                .chain((0..rng.usize(0..200)).map(|_| rng.u8(..)))
                .collect();
            assert_eq!(decode(&noise, CLOCKS).unwrap().sessions, []);
        }
        assert!(refused > 0);
    }
}
