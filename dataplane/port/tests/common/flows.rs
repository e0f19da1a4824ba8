//! Flows over the queues of a port.

use dataplane_core::frame::FrameBuf;
use dataplane_port::conformance::wait;
use dataplane_port::packet::PacketSocket;
use dataplane_port::{Batch, PortIo as _};

const FLOWS: u16 = 32;
const ROUNDS: u8 = 8;

/// A UDP datagram without checksum from `port`, with one byte of payload.
pub fn datagram(port: u16, payload: u8) -> FrameBuf {
    let [port_high, port_low] = port.to_be_bytes();
    let mut bytes = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b, 0x08, 0x00];
    bytes.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0xf6, 0xce]);
    bytes.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    bytes.extend([port_high, port_low, 0x13, 0x88, 0, 9, 0, 0, payload]);
    FrameBuf::from_bytes(&bytes)
}

/// Sends datagrams of several flows from the far end to a port of two queues: each queue has its share
/// of them, and each flow one queue and its order.
pub fn each_keeps_its_queue_and_its_order(queues: &mut [PacketSocket], far_end: &mut PacketSocket) {
    for round in 0..ROUNDS {
        let mut frames: Vec<_> = (0..FLOWS).map(|it| datagram(5_000 + it, round)).collect();
        assert_eq!(far_end.send(&mut frames).unwrap(), frames.len());
    }
    let mut seen = vec![(None, 0u8); usize::from(FLOWS)];
    let mut share = [0; 2];
    let mut rx = Batch::new();
    let done = wait(|| {
        for (index, queue) in queues.iter_mut().enumerate() {
            share[index] += queue.recv(&mut rx).unwrap_or(0);
            for frame in rx.frames() {
                let bytes = frame.bytes();
                let port = u16::from_be_bytes([bytes[34], bytes[35]]);
                let (owner, next) = &mut seen[usize::from(port - 5_000)];
                let owner = *owner.get_or_insert(index);
                assert_eq!(owner, index, "a flow changed its queue");
                assert_eq!(bytes[42], *next, "a flow was reordered");
                *next += 1;
            }
            rx.clear();
        }
        let all = usize::from(ROUNDS) * usize::from(FLOWS);
        (share.iter().sum::<usize>() == all).then_some(())
    });
    assert!(done.is_some(), "{share:?}");
    assert!(share.iter().all(|&count| count > 0), "{share:?}");
}
