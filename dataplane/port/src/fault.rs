//! A cable that harms its frames: loss, duplication, reordering and corruption, from a seed.
//!
//! [`Faulty`] stands between a port and the switch and treats both directions alike, each at
//! rates of its own. The same seed and the same calls give the same faults.
//!
//! A reordered frame is held back until the next one has passed; if none comes, the next call
//! lets it go, so nothing is delayed for ever. Corruption flips one bit. Faults are drawn in the
//! order loss, corruption, duplication, reordering, and may coincide.
//!
//! Limits: one frame held back per direction. A direction without faults costs nothing. Where
//! the inner port refuses a duplicate or a held frame for want of room, it is lost, as on a cable.

use std::io;
use std::os::fd::BorrowedFd;

use dataplane_core::frame::FrameBuf;
use fastrand::Rng;

use crate::{BATCH_MAX, Batch, Capabilities, Carrier, EdgeStats, PortIo};

/// Of this many frames, the rates of [`FaultRates`] count.
pub const PER: u32 = 1_000_000;

/// How often each fault happens, in frames per [`PER`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// The frame vanishes.
    pub loss: u32,
    /// One bit is flipped.
    pub corruption: u32,
    /// The frame arrives twice.
    pub duplication: u32,
    /// The frame arrives behind the next one.
    pub reordering: u32,
}

impl FaultRates {
    /// No faults.
    pub const NONE: Self = Self {
        loss: 0,
        corruption: 0,
        duplication: 0,
        reordering: 0,
    };
}

/// Faults that have happened in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultStats {
    /// Frames that vanished.
    pub lost: u64,
    /// Frames with a flipped bit.
    pub corrupted: u64,
    /// Frames that arrived twice.
    pub duplicated: u64,
    /// Frames that were held back.
    pub reordered: u64,
}

/// A port behind a bad cable.
#[derive(Debug)]
pub struct Faulty<P> {
    inner: P,
    rx: Direction,
    tx: Direction,
    /// A list to put into the batch while its own is gone through.
    spare: Vec<FrameBuf>,
}

#[derive(Debug)]
struct Direction {
    rates: FaultRates,
    stats: FaultStats,
    random: Rng,
    held: FrameBuf,
    holding: bool,
    /// What is sent in place of a frame whose owner keeps it as it is.
    copy: FrameBuf,
}

/// What happens to one frame.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    lost: bool,
    corrupted: bool,
    duplicated: bool,
    reordered: bool,
}

impl<P: PortIo> Faulty<P> {
    /// Harms what `inner` receives at the rates `rx`, and what it sends at the rates `tx`.
    pub fn new(inner: P, seed: u64, rx: FaultRates, tx: FaultRates) -> Self {
        let mut seeds = Rng::with_seed(seed);
        Self {
            inner,
            rx: Direction::new(rx, seeds.u64(..)),
            tx: Direction::new(tx, seeds.u64(..)),
            spare: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// What has happened to received frames.
    pub fn rx_stats(&self) -> FaultStats {
        self.rx.stats
    }

    /// What has happened to sent frames.
    pub fn tx_stats(&self) -> FaultStats {
        self.tx.stats
    }

    /// Sends one frame through the faults; an error means that nothing has happened.
    fn send_one(&mut self, frame: &mut FrameBuf) -> io::Result<()> {
        let fate = self.tx.draw();
        if fate.lost {
            self.tx.stats.lost += 1;
            return Ok(());
        }
        let release = self.tx.holding;
        if fate.reordered && !release {
            copy(frame, &mut self.tx.held);
            self.tx.harm(fate, Which::Held);
            self.tx.holding = true;
            self.tx.stats.reordered += 1;
            self.tx.stats.corrupted += u64::from(fate.corrupted);
        } else {
            copy(frame, &mut self.tx.copy);
            self.tx.harm(fate, Which::Copy);
            send_whole(&mut self.inner, &mut self.tx.copy)?;
            self.tx.stats.corrupted += u64::from(fate.corrupted);
        }
        if fate.duplicated {
            copy(frame, &mut self.tx.copy);
            if send_whole(&mut self.inner, &mut self.tx.copy).is_ok() {
                self.tx.stats.duplicated += 1;
            }
        }
        if release {
            self.release_tx();
        }
        Ok(())
    }

    /// Lets the held frame go.
    fn release_tx(&mut self) {
        if std::mem::take(&mut self.tx.holding)
            && send_whole(&mut self.inner, &mut self.tx.held).is_err()
        {
            self.tx.stats.lost += 1;
        }
    }

    /// Gives a received frame its fate.
    fn accept(&mut self, mut frame: FrameBuf, rx: &mut Batch) {
        let fate = self.rx.draw();
        if fate.lost {
            self.rx.stats.lost += 1;
            return rx.recycle(frame);
        }
        if fate.duplicated
            && let Some(mut twin) = rx.take_buffer()
        {
            copy(&frame, &mut twin);
            rx.push(twin);
            self.rx.stats.duplicated += 1;
        }
        if fate.corrupted {
            flip_bit(&mut frame, &mut self.rx.random);
            self.rx.stats.corrupted += 1;
        }
        if self.rx.holding {
            rx.push(frame);
            return self.release_rx(rx);
        }
        if fate.reordered {
            // The held buffer takes the frame's place in the batch's pool.
            std::mem::swap(&mut frame, &mut self.rx.held);
            rx.recycle(frame);
            self.rx.holding = true;
            self.rx.stats.reordered += 1;
            return;
        }
        rx.push(frame);
    }

    fn release_rx(&mut self, rx: &mut Batch) {
        self.rx.holding = false;
        let Some(mut frame) = rx.take_buffer() else {
            self.rx.stats.lost += 1;
            return;
        };
        std::mem::swap(&mut frame, &mut self.rx.held);
        rx.push(frame);
    }
}

impl<P: PortIo> PortIo for Faulty<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        self.release_tx();
        if self.rx.rates == FaultRates::NONE {
            return self.inner.recv(rx);
        }
        let before = rx.len();
        let outcome = self.inner.recv(rx);
        if outcome.is_err() {
            // Nothing comes behind a held frame: it goes now.
            if self.rx.holding {
                self.release_rx(rx);
                return Ok(rx.len() - before);
            }
            return outcome;
        }
        let mut frames = rx.take_frames();
        rx.return_list(std::mem::take(&mut self.spare));
        for (index, frame) in frames.drain(..).enumerate() {
            if index < before {
                rx.push(frame);
            } else {
                self.accept(frame, rx);
            }
        }
        self.spare = frames;
        Ok(rx.len().saturating_sub(before))
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        if self.tx.rates == FaultRates::NONE {
            return self.inner.send(frames);
        }
        for (sent, frame) in frames.iter_mut().enumerate() {
            match self.send_one(frame) {
                Ok(()) => {}
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
        }
        Ok(frames.len())
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

/// Which of a direction's buffers.
#[derive(Clone, Copy)]
enum Which {
    Held,
    Copy,
}

impl Direction {
    fn new(rates: FaultRates, seed: u64) -> Self {
        Self {
            rates,
            stats: FaultStats::default(),
            random: Rng::with_seed(seed),
            held: FrameBuf::new(),
            holding: false,
            copy: FrameBuf::new(),
        }
    }

    /// Draws all four every time, so that one rate does not shift the others' sequence.
    fn draw(&mut self) -> Fate {
        let mut happens = |rate: u32| self.random.u32(..PER) < rate;
        Fate {
            lost: happens(self.rates.loss),
            corrupted: happens(self.rates.corruption),
            duplicated: happens(self.rates.duplication),
            reordered: happens(self.rates.reordering),
        }
    }

    /// Flips a bit where that is the fate.
    fn harm(&mut self, fate: Fate, which: Which) {
        if !fate.corrupted {
            return;
        }
        let frame = match which {
            Which::Held => &mut self.held,
            Which::Copy => &mut self.copy,
        };
        flip_bit(frame, &mut self.random);
    }
}

fn copy(from: &FrameBuf, to: &mut FrameBuf) {
    to.copy_from(from.bytes(), from.offload);
}

fn flip_bit(frame: &mut FrameBuf, random: &mut Rng) {
    if frame.is_empty() {
        return;
    }
    let at = random.usize(..frame.len());
    frame.bytes_mut()[at] ^= 1 << random.u8(..8);
}

/// Sends one frame; "none accepted" is an error like any other.
fn send_whole<P: PortIo>(port: &mut P, frame: &mut FrameBuf) -> io::Result<()> {
    match port.send(std::slice::from_mut(frame))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Subject, check_all, numbered};
    use crate::memory::{MemoryPeer, MemoryPort};
    use dataplane_core::frame::{FRAME_SIZE_MAX, Offload};

    const FRAMES: u32 = 10_000;

    fn bad_cable(seed: u64, rx: FaultRates, tx: FaultRates) -> (Faulty<MemoryPort>, MemoryPeer) {
        let (port, peer) = MemoryPort::pair(Capabilities::plain(1_514), 256);
        (Faulty::new(port, seed, rx, tx), peer)
    }

    /// What of [`FRAMES`] numbered frames the switch receives.
    fn received(seed: u64, rates: FaultRates) -> (Vec<Vec<u8>>, FaultStats) {
        let (mut port, peer) = bad_cable(seed, rates, FaultRates::NONE);
        let mut batch = Batch::new();
        let mut seen = Vec::new();
        for number in 0..FRAMES {
            assert!(peer.inject(&numbered(60, number), Offload::NONE));
            if number % 7 == 0 || number + 1 == FRAMES {
                while port.recv(&mut batch).is_ok() {
                    seen.extend(batch.frames().iter().map(|f| f.bytes().to_vec()));
                    batch.clear();
                }
            }
        }
        (seen, port.rx_stats())
    }

    /// What of [`FRAMES`] numbered frames the peer gets.
    fn sent(seed: u64, rates: FaultRates) -> (Vec<Vec<u8>>, FaultStats) {
        let (mut port, peer) = bad_cable(seed, FaultRates::NONE, rates);
        let mut seen = Vec::new();
        for number in 0..FRAMES {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(port.send(&mut frame).unwrap(), 1);
            assert_eq!(
                frame[0].bytes(),
                numbered(60, number),
                "the owner's frame is whole"
            );
            seen.extend(std::iter::from_fn(|| peer.take()).map(|(bytes, _)| bytes));
        }
        drop(port.recv(&mut Batch::new()));
        seen.extend(std::iter::from_fn(|| peer.take()).map(|(bytes, _)| bytes));
        (seen, port.tx_stats())
    }

    #[test]
    fn port_without_faults_conforms() {
        check_all(|| {
            let (port, peer) = MemoryPort::pair(Capabilities::offloading(FRAME_SIZE_MAX), 128);
            let port = Faulty::new(port, 1, FaultRates::NONE, FaultRates::NONE);
            Subject::new(port, peer, 9_014)
        });
    }

    #[test]
    fn each_fault_does_what_it_says_and_is_counted() {
        let rate = PER / 10;
        for run in [received, sent] {
            let (seen, stats) = run(
                1,
                FaultRates {
                    loss: rate,
                    ..FaultRates::NONE
                },
            );
            assert_eq!(seen.len() as u64, u64::from(FRAMES) - stats.lost);
            assert!((800..1_200).contains(&stats.lost), "{stats:?}");
            assert!(
                seen.is_sorted_by(|a, b| a[14..18] < b[14..18]),
                "order is kept"
            );

            let duplication = FaultRates {
                duplication: rate,
                ..FaultRates::NONE
            };
            let (seen, stats) = run(2, duplication);
            assert_eq!(seen.len() as u64, u64::from(FRAMES) + stats.duplicated);
            assert!((800..1_200).contains(&stats.duplicated), "{stats:?}");

            let (seen, stats) = run(
                3,
                FaultRates {
                    reordering: rate,
                    ..FaultRates::NONE
                },
            );
            assert_eq!(seen.len(), FRAMES as usize, "delayed, not lost");
            assert!(!seen.is_sorted() && stats.reordered > 500, "{stats:?}");
            let mut numbers = seen;
            numbers.sort();
            numbers.dedup();
            assert_eq!(numbers.len(), FRAMES as usize);

            let (seen, stats) = run(
                4,
                FaultRates {
                    corruption: rate,
                    ..FaultRates::NONE
                },
            );
            let harmed = (0..FRAMES)
                .zip(&seen)
                .filter(|(number, bytes)| numbered(60, *number) != **bytes);
            assert_eq!(harmed.count() as u64, stats.corrupted);
            assert!((800..1_200).contains(&stats.corrupted), "{stats:?}");
        }
    }

    #[test]
    fn same_seed_same_faults() {
        let rates = FaultRates {
            loss: PER / 20,
            corruption: PER / 20,
            duplication: PER / 20,
            reordering: PER / 20,
        };
        assert_eq!(received(42, rates), received(42, rates));
        assert_ne!(received(42, rates), received(43, rates));
        assert_eq!(sent(42, rates), sent(42, rates));
    }

    #[test]
    fn last_frame_is_not_held_for_ever() {
        let always = FaultRates {
            reordering: PER,
            ..FaultRates::NONE
        };
        let (mut port, peer) = bad_cable(1, always, always);
        assert!(peer.inject(&numbered(60, 1), Offload::NONE));
        let mut batch = Batch::new();
        let first = port.recv(&mut batch);
        let second = port.recv(&mut batch);
        assert_eq!((first.unwrap(), second.unwrap()), (0, 1));
        assert_eq!(
            port.recv(&mut batch).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            port.send(&mut [FrameBuf::from_bytes(&numbered(60, 2))])
                .unwrap(),
            1
        );
        assert!(peer.take().is_none());
        drop(port.recv(&mut batch));
        assert_eq!(peer.take().unwrap().0, numbered(60, 2));
    }
}
