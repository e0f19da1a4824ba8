//! The story of a port's link: what a worker tells of frames before they enter the switch.

use std::fmt::Write as _;

use control::explain::{explain, summary};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::link::{Chance, Direction, Impairment, Link, LinkSpec, LossModel};
use dataplane_core::trace::Step;
use dataplane_core::verdict::{Awaited, DropReason, Verdict};
use tests::wire;
use tests::world::mac;

use super::super::Story;

/// Tells what becomes of a frame on its way to the switch.
fn tell(s: &mut Story, bytes: &[u8], verdict: Verdict) {
    let mut buf = FrameBuf::from_bytes(bytes);
    let entered = Step::ingress(&Frame::new(PortId(1), &mut buf));
    let _ = writeln!(s.text, "\n{}", summary(bytes));
    for line in explain(&[entered, Step::Verdict(verdict)], &s.world.sw.topology) {
        let _ = writeln!(s.text, "  {:<8} {}", line.stage, line.text);
    }
    if let Verdict::Drop(reason) = verdict {
        s.shown.insert(reason.label());
    }
}

/// Sends a frame over a link, to be told as held or dropped.
fn over(s: &mut Story, link: &mut Link, bytes: &[u8]) {
    let passed = link.pass(bytes.len(), s.world.now);
    let held = |_| Verdict::Held(Awaited::Link);
    tell(
        s,
        bytes,
        passed.map_or_else(|loss| Verdict::Drop(loss.reason()), held),
    );
}

pub fn links_before_the_switch(s: &mut Story) {
    let hello = wire::plain(wire::Link(mac(1), MacAddr::BROADCAST));
    s.say("a's link has a delay; when that has passed the frame enters the switch");
    let mut delayed = LinkSpec::default();
    delayed.impairment.delay = dataplane_core::time::Duration::from_secs(1);
    over(s, &mut Link::new(delayed, Direction::In), &hello);
    s.wait(1);
    s.send(1, &hello);
    s.say("it loses every frame");
    let impairment = Impairment {
        loss: LossModel::Random(Chance::ALWAYS),
        ..Impairment::default()
    };
    let lossy = LinkSpec {
        limit: None,
        impairment,
    };
    over(s, &mut Link::new(lossy, Direction::In), &hello);
    s.say("it has a rate, and 32 KiB wait already");
    let limited = LinkSpec {
        limit: "8kbit burst 100".parse().ok(),
        impairment: Impairment::default(),
    };
    let mut slow = Link::new(limited, Direction::In);
    while slow.pass(hello.len(), s.world.now).is_ok() {}
    over(s, &mut slow, &hello);
    s.say("more frames are on their way than are held at once");
    tell(s, &hello, Verdict::Drop(DropReason::LinkFull));
}
