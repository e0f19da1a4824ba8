//! One suite for all backends: what every [`PortIo`] must do, run by each backend's tests.
//!
//! A backend under test is a [`Subject`]: a port and what stands at the far end of its cable. The
//! checks look at frames only, so that memory, TAP and AF_PACKET are held to the same words of
//! the trait. Frames are compared by meaning: a kernel on the way may finish a checksum, but it
//! may not lose a tag, a byte or the order.
//!
//! Limits: for tests, it allocates and panics. Waiting is bounded by [`WAIT_MAX`].

mod frames;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use dataplane_core::frame::{FrameBuf, GsoKind, Offload};

use crate::memory::MemoryPeer;
use crate::{BATCH_MAX, Batch, PortIo};

use frames::{TAGGINGS, number_of};

pub use frames::{Packet, PacketKind, numbered};

/// How long a frame may take through a kernel on a busy machine before it counts as lost.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// Frames of the order check: several batches, so that a queue wraps.
const ORDER_FRAMES: u32 = 8 * BATCH_MAX as u32;

/// Frames thrown at a queue that nobody reads; more than any backend's queue holds.
const OVERFLOW_FRAMES: u32 = 20_000;

/// The far end of a port's cable.
pub trait Peer {
    /// Puts a frame on the cable; `false` when it has no room for it now.
    fn inject(&mut self, bytes: &[u8], offload: Offload) -> bool;
    /// The oldest frame that the port sent, if one has arrived.
    fn take(&mut self) -> Option<(Vec<u8>, Offload)>;
    /// Makes the port's device vanish.
    fn unplug(&mut self);
}

/// A port under test with its far end.
pub struct Subject<P, R> {
    /// The port.
    pub port: P,
    /// Its far end.
    pub peer: R,
    /// Largest frame without GSO that the cable carries, Ethernet header included.
    pub plain_size_max: usize,
    batch: Batch,
    received: VecDeque<(Vec<u8>, Offload)>,
}

/// Runs every check, each on a fresh subject.
///
/// # Panics
/// When the backend does not conform; the message says in what.
pub fn check_all<P: PortIo, R: Peer>(mut make: impl FnMut() -> Subject<P, R>) {
    make().drained_port_would_block();
    make().frame_after_a_drained_batch_is_received();
    make().every_size_passes_both_ways();
    make().tags_stay_in_the_bytes();
    make().unfinished_checksums_pass_or_are_finished();
    make().gso_frames_pass_with_their_description();
    make().order_is_kept();
    make().full_queue_refuses_and_recovers();
    make().bad_frames_are_refused_without_a_panic();
    make().readiness_follows_the_frames();
    make().vanished_device_is_an_error();
}

impl<P: PortIo, R: Peer> Subject<P, R> {
    /// Joins a port and its far end.
    pub fn new(port: P, peer: R, plain_size_max: usize) -> Self {
        Self {
            port,
            peer,
            plain_size_max,
            batch: Batch::new(),
            received: VecDeque::new(),
        }
    }

    /// Nothing sent, nothing received, and no other error.
    pub fn drained_port_would_block(mut self) {
        assert_eq!(self.recv_error(), io::ErrorKind::WouldBlock);
        self.inject(&numbered(60, 1), Offload::NONE);
        assert_eq!(self.receive().0, numbered(60, 1));
        assert_eq!(self.recv_error(), io::ErrorKind::WouldBlock);
        assert_eq!(
            self.port.send(&mut []).ok(),
            Some(0),
            "an empty send is no error"
        );
    }

    /// A batch that found the port drained says nothing about later: the caller may have taken up
    /// the event of a frame that came since, so the next `recv` must look.
    pub fn frame_after_a_drained_batch_is_received(mut self) {
        self.inject(&numbered(60, 1), Offload::NONE);
        assert_eq!(self.receive().0, numbered(60, 1));
        self.inject(&numbered(60, 2), Offload::NONE);
        if self.port.readiness().is_some() {
            assert!(wait(|| self.readable().then_some(())).is_some());
        }
        let received = self.port.recv(&mut self.batch);
        assert_eq!(received.ok(), Some(1), "the frame that waits");
    }

    /// From a bare header to the largest frame of the cable, in both directions.
    pub fn every_size_passes_both_ways(mut self) {
        let largest = self.plain_size_max;
        let sizes = (14..100).chain((100..largest).step_by(97)).chain([largest]);
        for (number, size) in (0u32..).zip(sizes) {
            let frame = numbered(size, number);
            self.inject(&frame, Offload::NONE);
            let (bytes, offload) = self.receive();
            assert_eq!(bytes, frame, "received, {size} bytes");
            assert!(!offload.needs_checksum() && offload.gso().is_none());
            self.send(&frame, Offload::NONE);
            assert_eq!(self.take().0, frame, "sent, {size} bytes");
        }
    }

    /// 802.1Q and 802.1ad tags are where they were, whatever the kernel does with them on the way.
    pub fn tags_stay_in_the_bytes(mut self) {
        for tags in TAGGINGS {
            let frame = Packet::new(PacketKind::TcpV4, tags, 100).complete();
            self.inject(&frame, Offload::NONE);
            assert_eq!(self.receive().0, frame, "received with {tags:x?}");
            self.send(&frame, Offload::NONE);
            assert_eq!(self.take().0, frame, "sent with {tags:x?}");
        }
    }

    /// A checksum that is still to do arrives as such with true offsets, or done.
    pub fn unfinished_checksums_pass_or_are_finished(mut self) {
        for (tags, kind) in every_packet() {
            let packet = Packet::new(kind, tags, 300);
            let (bytes, offload) = (packet.partial(), packet.checksum_offload());
            self.inject(&bytes, offload);
            let received = self.receive();
            packet.check_equivalent(&received.0, received.1);
            if !self.port.capabilities().checksum {
                assert!(
                    !received.1.needs_checksum(),
                    "a plain port gets complete frames"
                );
                continue;
            }
            self.send(&bytes, offload);
            let taken = self.take();
            packet.check_equivalent(&taken.0, taken.1);
        }
    }

    /// A 20 KB frame crosses in one piece, its segment size with it, tagged or not.
    pub fn gso_frames_pass_with_their_description(mut self) {
        let capabilities = self.port.capabilities();
        for (tags, kind) in every_packet() {
            let packet = Packet::new(kind, tags, 20_000);
            let (bytes, offload) = (packet.partial(), packet.gso_offload(1_400));
            let taken = match offload.gso() {
                Some(GsoKind::TcpV4 | GsoKind::TcpV6) => capabilities.gso_tcp,
                Some(GsoKind::UdpL4) => capabilities.gso_udp,
                Some(GsoKind::Fragments | GsoKind::UdpFragments | GsoKind::Other(_)) | None => {
                    false
                }
            };
            if !taken {
                continue;
            }
            self.inject(&bytes, offload);
            let received = self.receive();
            assert_eq!(
                received.1.gso_size, 1_400,
                "received {kind:?} with {tags:x?}"
            );
            assert_eq!(received.1.gso(), offload.gso());
            packet.check_equivalent(&received.0, received.1);
            self.send(&bytes, offload);
            let taken = self.take();
            assert_eq!(taken.1.gso_size, 1_400, "sent {kind:?} with {tags:x?}");
            assert_eq!(taken.1.gso(), offload.gso());
            packet.check_equivalent(&taken.0, taken.1);
        }
    }

    /// Many frames in flight, none lost and none overtaken while both sides keep up.
    pub fn order_is_kept(mut self) {
        for first in (0..ORDER_FRAMES).step_by(BATCH_MAX / 2) {
            let numbers = first..first + BATCH_MAX as u32 / 2;
            for number in numbers.clone() {
                self.inject(&numbered(90, number), Offload::NONE);
            }
            for number in numbers.clone() {
                assert_eq!(self.receive().0, numbered(90, number), "received");
            }
            let mut frames: Vec<FrameBuf> = numbers
                .clone()
                .map(|number| FrameBuf::from_bytes(&numbered(90, number)))
                .collect();
            self.send_all(&mut frames);
            for (number, frame) in numbers.zip(&frames) {
                assert_eq!(
                    frame.bytes(),
                    numbered(90, number),
                    "bytes are kept by send"
                );
                assert_eq!(self.take().0, numbered(90, number), "sent");
            }
        }
    }

    /// Nobody reads: the newest are refused or dropped, the queued stay in order, and once read
    /// the port works as before.
    pub fn full_queue_refuses_and_recovers(mut self) {
        for number in 0..OVERFLOW_FRAMES {
            if !self.peer.inject(&numbered(60, number), Offload::NONE) {
                break;
            }
        }
        let mut last = None;
        loop {
            match self.port.recv(&mut self.batch) {
                Ok(count) => assert!(count > 0 && count <= BATCH_MAX, "{count}"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
            for frame in self.batch.frames() {
                let number = number_of(frame.bytes());
                assert!(last < Some(number), "{last:?} came before {number}");
                last = Some(number);
            }
            self.batch.clear();
        }
        assert!(last.is_some(), "what was queued is received");

        let mut accepted = 0;
        for number in 0..OVERFLOW_FRAMES {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            match self.port.send(&mut frame) {
                Ok(count) => accepted += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ENOBUFS and the like: that one frame is lost.
                Err(error) => assert_ne!(error.kind(), io::ErrorKind::NotConnected, "{error}"),
            }
        }
        assert!(accepted > 0);
        let mut last = None;
        while let Some((bytes, _)) = self.peer.take() {
            let number = number_of(&bytes);
            assert!(last < Some(number), "{last:?} came before {number}");
            last = Some(number);
        }
        assert!(last.is_some(), "what was accepted arrives");

        self.send(&numbered(60, 7), Offload::NONE);
        assert_eq!(self.take().0, numbered(60, 7));
        self.inject(&numbered(60, 8), Offload::NONE);
        assert_eq!(self.receive().0, numbered(60, 8));
    }

    /// Frames that no cable carries: refused or lost, and the next good one passes.
    pub fn bad_frames_are_refused_without_a_panic(mut self) {
        let outside = Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 5_000,
            csum_offset: 16,
            ..Offload::NONE
        };
        let unknown = Offload {
            gso_type: 0x1f,
            gso_size: 100,
            ..Offload::NONE
        };
        for (size, offload) in [(0, Offload::NONE), (60, outside), (60, unknown)] {
            let mut frame = FrameBuf::from_bytes(&numbered(size.max(14), 1)[..size]);
            frame.offload = offload;
            if let Err(error) = self.port.send(&mut [frame]) {
                assert_ne!(error.kind(), io::ErrorKind::NotConnected, "{error}");
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            }
        }
        while self.peer.take().is_some() {}
        self.send(&numbered(60, 2), Offload::NONE);
        assert_eq!(self.take().0, numbered(60, 2));
        // A frame whose headroom is used up must still be sendable.
        let mut frame = FrameBuf::from_bytes(&numbered(100, 3));
        assert!(frame.insert(0, dataplane_core::frame::HEADROOM));
        let expected = frame.bytes().to_vec();
        self.send_all(std::slice::from_mut(&mut frame));
        assert_eq!(self.take().0, expected);
    }

    /// A descriptor is readable exactly while frames wait.
    pub fn readiness_follows_the_frames(mut self) {
        if self.port.readiness().is_none() {
            return;
        }
        assert!(!self.readable(), "nothing was sent yet");
        self.inject(&numbered(60, 1), Offload::NONE);
        assert!(wait(|| self.readable().then_some(())).is_some());
        self.receive();
        assert!(!self.readable(), "everything was received");
    }

    /// Without its device the port says so instead of looking idle, and nothing panics.
    pub fn vanished_device_is_an_error(mut self) {
        self.peer.unplug();
        let gone = wait(|| {
            self.batch.clear();
            let received = self.port.recv(&mut self.batch);
            let sent = self
                .port
                .send(&mut [FrameBuf::from_bytes(&numbered(60, 1))]);
            let not_connected = |kind| kind == io::ErrorKind::NotConnected;
            let both = received.is_err() && sent.is_err();
            let said = received.is_err_and(|e| not_connected(e.kind()))
                || sent.is_err_and(|e| not_connected(e.kind()));
            (both && said).then_some(())
        });
        assert!(gone.is_some(), "the port never reported NotConnected");
    }

    fn inject(&mut self, bytes: &[u8], offload: Offload) {
        let peer = &mut self.peer;
        let injected = wait(|| peer.inject(bytes, offload).then_some(()));
        assert!(injected.is_some(), "the far end accepts no frame");
    }

    fn take(&mut self) -> (Vec<u8>, Offload) {
        let taken = wait(|| self.peer.take());
        taken.unwrap_or_else(|| panic!("no frame arrived at the far end"))
    }

    fn send(&mut self, bytes: &[u8], offload: Offload) {
        let mut frame = FrameBuf::from_bytes(bytes);
        frame.offload = offload;
        self.send_all(std::slice::from_mut(&mut frame));
        assert_eq!(frame.offload, offload, "send keeps the offload");
    }

    fn send_all(&mut self, frames: &mut [FrameBuf]) {
        let mut sent = 0;
        let done = wait(|| {
            match self.port.send(&mut frames[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("send: {error}"),
            }
            (sent == frames.len()).then_some(())
        });
        assert!(done.is_some(), "the port accepts no frame");
    }

    /// The next frame; what else arrived with it waits.
    fn receive(&mut self) -> (Vec<u8>, Offload) {
        let (port, batch, received) = (&mut self.port, &mut self.batch, &mut self.received);
        let frame = wait(|| {
            if received.is_empty() {
                match port.recv(batch) {
                    Ok(_) => empty_into(batch, received),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("recv: {error}"),
                }
            }
            received.pop_front()
        });
        frame.unwrap_or_else(|| panic!("no frame arrived at the port"))
    }

    fn recv_error(&mut self) -> io::ErrorKind {
        match self.port.recv(&mut self.batch) {
            Ok(count) => panic!(
                "{count} frames came from nowhere: {:?}",
                self.batch.frames()
            ),
            Err(error) => error.kind(),
        }
    }

    fn readable(&self) -> bool {
        let fd = self.port.readiness().map(|fd| fd.as_raw_fd());
        fd.is_some_and(|fd| crate::sys::readable(fd).is_ok_and(|readable| readable))
    }
}

impl Peer for MemoryPeer {
    fn inject(&mut self, bytes: &[u8], offload: Offload) -> bool {
        MemoryPeer::inject(self, bytes, offload)
    }

    fn take(&mut self) -> Option<(Vec<u8>, Offload)> {
        MemoryPeer::take(self)
    }

    fn unplug(&mut self) {
        MemoryPeer::unplug(self);
    }
}

/// A port that plays the far end of another one's cable.
pub struct PortPeer<P, U> {
    port: P,
    unplug: U,
    batch: Batch,
    received: VecDeque<(Vec<u8>, Offload)>,
}

impl<P: PortIo, U: FnMut()> PortPeer<P, U> {
    /// `unplug` makes the device of the port under test vanish.
    pub fn new(port: P, unplug: U) -> Self {
        Self {
            port,
            unplug,
            batch: Batch::new(),
            received: VecDeque::new(),
        }
    }
}

impl<P: PortIo, U: FnMut()> Peer for PortPeer<P, U> {
    fn inject(&mut self, bytes: &[u8], offload: Offload) -> bool {
        let mut frame = FrameBuf::from_bytes(bytes);
        frame.offload = offload;
        matches!(self.port.send(&mut [frame]), Ok(1))
    }

    fn take(&mut self) -> Option<(Vec<u8>, Offload)> {
        if self.received.is_empty() && self.port.recv(&mut self.batch).is_ok() {
            empty_into(&mut self.batch, &mut self.received);
        }
        self.received.pop_front()
    }

    fn unplug(&mut self) {
        (self.unplug)();
    }
}

/// Every kind of packet with every kind of tag.
fn every_packet() -> impl Iterator<Item = (&'static [(u16, u16)], PacketKind)> {
    let with_kinds = |tags| PacketKind::ALL.into_iter().map(move |kind| (tags, kind));
    TAGGINGS.into_iter().flat_map(with_kinds)
}

/// Copies the frames of a batch out and empties it.
fn empty_into(batch: &mut Batch, received: &mut VecDeque<(Vec<u8>, Offload)>) {
    let frames = batch.frames().iter();
    received.extend(frames.map(|frame| (frame.bytes().to_vec(), frame.offload)));
    batch.clear();
}

/// Polls `condition` until it holds or [`WAIT_MAX`] has passed.
pub fn wait<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Capabilities;
    use crate::memory::MemoryPort;
    use dataplane_core::frame::FRAME_SIZE_MAX;

    #[test]
    fn memory_conforms() {
        check_all(|| {
            let (port, peer) =
                MemoryPort::pair(Capabilities::offloading(FRAME_SIZE_MAX), 2 * BATCH_MAX);
            Subject::new(port, peer, 9_014)
        });
    }
}
