//! Any frame under any offload is segmented or refused, and its checksum completed or refused.

#![no_main]

use arbitrary::Arbitrary;
use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::gso::{SEGMENTS_MAX, Segmenter, segment_count};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    bytes: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut buf = FrameBuf::from_bytes(input.bytes);
    buf.offload = Offload {
        flags: input.flags,
        gso_type: input.gso_type,
        hdr_len: input.hdr_len,
        gso_size: input.gso_size,
        csum_start: input.csum_start,
        csum_offset: input.csum_offset,
    };
    let announced = segment_count(&buf);
    let mut emitted = 0;
    let made = Segmenter::new().segment(&buf, |segment| {
        assert!(segment.len() <= buf.len() && !segment.offload.needs_checksum());
        emitted += 1;
    });
    match made {
        Ok(made) => {
            assert_eq!((made, Ok(made)), (emitted, announced));
            assert!(made <= SEGMENTS_MAX);
        }
        Err(_) => assert_eq!(emitted, 0),
    }
    let _ = checksum::complete(&mut buf);
});
