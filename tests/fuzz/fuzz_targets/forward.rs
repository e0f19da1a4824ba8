//! Any frames, one after the other, on any port of the bottled world: one verdict each.

#![no_main]

#[path = "../../../dataplane/core/tests/world/mod.rs"]
mod world;

use arbitrary::Arbitrary;
use dataplane_core::frame::Offload;
use dataplane_core::verdict::Verdict;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    port: u8,
    wait: u8,
    partial: Option<(u16, u16)>,
    bytes: &'a [u8],
}

fuzz_target!(|inputs: Vec<Input<'_>>| {
    let mut world = world::World::new();
    for input in inputs {
        let offload = match input.partial {
            None => Offload::NONE,
            Some((csum_start, csum_offset)) => Offload {
                flags: Offload::NEEDS_CSUM,
                csum_start,
                csum_offset,
                ..Offload::NONE
            },
        };
        world.wait(u64::from(input.wait));
        let port = u16::from(input.port % 11);
        // The world checks the law of frames after each.
        let out = world.send_offloaded(port, input.bytes, offload);
        if let Verdict::Bridged(to) = out.verdict {
            assert_ne!(to.0, port);
        }
    }
});
