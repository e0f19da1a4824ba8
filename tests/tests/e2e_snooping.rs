//! Snooping beside the kernel's own bridge: the same reports, leaves, queries and data in, the same
//! frames out of each port, byte for byte and in order.
//!
//! The core is compared with the kernel itself. Where the two are meant to differ (decision 0020)
//! the scripts do not go. `SEED=… SCRIPTS=1 cargo test -p tests --test e2e_snooping` plays one alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane_core::addr::MacAddr;
use fastrand::Rng;
use tests::bridges::bottle::Bottle;
use tests::bridges::script::{Op, Script};
use tests::bridges::{Change, Flag, PORTS, agree, play};
use tests::lab::{self, Lab};
use tests::oracle::kernel::KernelBridge;
use tests::world::groups::{
    ALLOW, IS_EX, IS_IN, QUERY, REPORT_V1, Record, TO_EX, TO_IN, data, group_query, igmp, ipv4,
    leave, mld_query, mld_report_v2, query, report, report_v3, v4, v6,
};

/// Scripts of a run, and frames of each. The kernel forgets in real time, so scripts end long before
/// a listener's 260 s.
const SCRIPTS: u64 = 20;
const FRAMES: usize = 120;
const SEED_DEFAULT: u64 = 0x0516_4f0f;
/// How long listeners may take to answer, in tenths of a second, and a pause in which they have.
const RESPONSE: u8 = 1;
const ANSWERED: Duration = Duration::from_millis(400);

/// A script with what it has in it.
struct Writer {
    rng: Rng,
    seed: u64,
    ops: Vec<Op>,
    frames: usize,
    covered: BTreeMap<&'static str, u64>,
    switched: BTreeMap<(usize, Flag), bool>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            seed,
            ops: Vec::new(),
            frames: 0,
            covered: BTreeMap::new(),
            switched: BTreeMap::new(),
        }
    }

    fn script(mut self) -> (Script, BTreeMap<&'static str, u64>) {
        self.queries(0);
        self.pass();
        while self.frames < FRAMES {
            self.step();
        }
        for ((port, flag), on) in std::mem::take(&mut self.switched) {
            if on != flag.default() {
                let on = flag.default();
                self.ops.push(Op::Change(Change::Flag { port, flag, on }));
            }
        }
        let script = Script {
            seed: self.seed,
            ops: self.ops,
        };
        (script, self.covered)
    }

    /// One of few groups of the script's own, or one that is nobody's.
    fn group(&mut self) -> IpAddr {
        let [.., a, b] = self.seed.to_be_bytes();
        let number = self.rng.u8(1..6);
        if self.rng.bool() {
            Ipv4Addr::new(239, a, b, number).into()
        } else {
            Ipv6Addr::new(
                0xff15,
                0,
                0,
                0,
                0,
                0,
                u16::from_be_bytes([a, b]),
                number.into(),
            )
            .into()
        }
    }

    fn mac(port: usize) -> MacAddr {
        MacAddr([0x06, 0, 0, 0, 0, port as u8 + 1])
    }

    fn send(&mut self, what: &'static str, port: usize, frame: Vec<u8>) {
        *self.covered.entry(what).or_default() += 1;
        self.frames += 1;
        self.ops.push(Op::Send { port, frame });
    }

    fn pass(&mut self) {
        self.ops.push(Op::Change(Change::Pass(ANSWERED)));
    }

    /// The querier of both families asks all, by whichever port it is behind.
    fn queries(&mut self, port: usize) {
        let mac = Self::mac(port);
        self.send("general query", port, query(mac, v4("10.0.0.4"), RESPONSE));
        let millis = u16::from(RESPONSE) * 100;
        self.send("general query", port, mld_query(mac, v6("fe80::4"), millis));
    }

    fn step(&mut self) {
        let (port, group) = (self.rng.usize(..PORTS), self.group());
        let mac = Self::mac(port);
        match self.rng.u8(..100) {
            0..40 => self.send("data", port, data(mac, group)),
            40..58 => self.send("report", port, report(mac, group)),
            58..60 => {
                let old = v4("239.255.0.1");
                let frame = ipv4(mac, v4("10.0.0.9"), old, 2, &igmp(REPORT_V1, 0, old));
                self.send("report of version 1", port, frame);
            }
            60..70 => self.records(port),
            70..76 => self.send("leave", port, leave(mac, group)),
            76..82 => {
                let flooded = ["224.0.0.251", "ff02::1", "224.0.0.1", "ff02::fb"];
                let group = flooded[self.rng.usize(..flooded.len())]
                    .parse()
                    .expect("a group");
                self.send("well-known group", port, data(mac, group));
            }
            82..86 => {
                let mut frame = report(mac, group);
                let last = frame.len() - 1;
                let sum = if group.is_ipv4() { 41 } else { last };
                frame[sum] ^= 0x55;
                self.send("wrong checksum", port, frame);
            }
            86..88 => self.queries(port),
            88..92 => {
                if let IpAddr::V4(group) = group {
                    let frame = group_query(mac, v4("10.0.0.4"), RESPONSE, group);
                    self.send("query about a group", port, frame);
                    self.pass();
                }
            }
            92..94 => {
                let odd = ipv4(
                    mac,
                    v4("10.0.0.9"),
                    v4("239.1.1.1"),
                    2,
                    &igmp(0x99, 0, v4("1.2.3.4")),
                );
                self.send("unknown type", port, odd);
            }
            94..96 => {
                let to_group = igmp(QUERY, 1, Ipv4Addr::UNSPECIFIED);
                let frame = ipv4(mac, v4("10.0.0.4"), v4("239.1.1.1"), 2, &to_group);
                self.send("general query to a group", port, frame);
            }
            _ => self.switch(port),
        }
    }

    /// A report of the newer version with a few records.
    fn records(&mut self, port: usize) {
        let family = self.rng.bool();
        let mut list: Vec<Record> = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let group = std::iter::repeat_with(|| self.group()).find(|g| g.is_ipv4() == family);
            let kinds = [
                (IS_EX, 0),
                (TO_EX, 1),
                (ALLOW, 2),
                (IS_IN, 1),
                (TO_IN, 0),
                (IS_IN, 0),
            ];
            let (kind, sources) = kinds[self.rng.usize(..kinds.len())];
            list.push((kind, group.expect("one of both families"), sources));
        }
        let mac = Self::mac(port);
        if family {
            self.send("IGMPv3", port, report_v3(mac, &list));
        } else {
            self.send("MLDv2", port, mld_report_v2(mac, &list));
        }
    }

    fn switch(&mut self, port: usize) {
        let flags = [Flag::Isolated, Flag::Hairpin, Flag::McastFlood];
        let flag = flags[self.rng.usize(..flags.len())];
        let on = self.switched.entry((port, flag)).or_insert(flag.default());
        *on = !*on;
        let on = *on;
        *self.covered.entry("flag").or_default() += 1;
        self.ops.push(Op::Change(Change::Flag { port, flag, on }));
    }
}

#[test]
fn groups_go_where_the_kernels_bridge_sends_them() {
    if !lab::require_root("groups_go_where_the_kernels_bridge_sends_them") {
        return;
    }
    let number = |name, default| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (first, count) = (number("SEED", SEED_DEFAULT), number("SCRIPTS", SCRIPTS));
    let lab = Lab::new("snooping");
    let (mut kernel, mut core) = (KernelBridge::snooping(&lab), Bottle::snooping());
    let mut covered: BTreeMap<&str, u64> = BTreeMap::new();
    let mut copies = 0;
    for seed in first..first + count {
        let (script, has) = Writer::new(seed).script();
        let mut wanted = play(&mut kernel, &script);
        // The kernel's bridge is a host too, and reports groups of its own.
        for frames in &mut wanted {
            frames.retain(|frame| frame[6..11] == Writer::mac(0).0[..5]);
        }
        agree("core", &script, &wanted, &play(&mut core, &script));
        copies += wanted.iter().map(Vec::len).sum::<usize>();
        for (what, times) in has {
            *covered.entry(what).or_default() += times;
        }
    }
    println!("covered: {copies} copies of {covered:?}");
    assert!(
        count < SCRIPTS || covered.values().all(|times| *times >= 20),
        "too rare"
    );
}
