//! Mirrors between real namespaces, driven by the command line: what a port shows of others, and what
//! a file has of them.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dataplane_core::addr::MacAddr;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_for, wait_until};
use tests::talk::{Witness, ask_tcp, ping, serve_tcp, unpingable};
use tests::wire::{self, Link};

/// Frames whose order is looked at, and how many are on their way at once.
const FRAMES: u32 = 2_000;
const WINDOW: u32 = 16;
/// How many of those that go to a file are on their way at once.
const FILE_WINDOW: usize = 100;
/// Bytes of a bulk transfer, there and back.
const BULK: usize = 4 << 20;

/// A network of a, b and ids, which is to show mirrors.
struct Floor {
    daemon: Daemon,
    a: Namespace,
    b: Namespace,
    address_of_b: String,
    ids: Namespace,
    lab: Lab,
}

impl Floor {
    /// A network whose ids is connected by that backend.
    fn new(name: &str, workers: &str, backend: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none", "--workers", workers]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        let [a, b, ids] = ["a", "b", "ids"].map(|name| {
            let ns = lab.namespace(name);
            let backend = if name == "ids" { backend } else { "tap" };
            let address = daemon.attach(&ns, "n", name, &["--backend", backend]);
            daemon.run(&["port", "set", name, "port-security", "off"]);
            (ns, address)
        });
        let ((a, _), (b, address_of_b), (ids, _)) = (a, b, ids);
        Self {
            daemon,
            a,
            b,
            address_of_b,
            ids,
            lab,
        }
    }

    /// Has all that enters by a written to that file of the lab's directory.
    fn write_to(&self, name: &str, more: &[&str]) -> PathBuf {
        let path = self.lab.dir().join(name);
        let add = [
            "mirror",
            "add",
            "m",
            "--from",
            "a",
            "--direction",
            "in",
            "-w",
        ];
        let words = [&add[..], &[path.to_str().unwrap()], more].concat();
        self.daemon.run(&words);
        path
    }

    /// Sends so many frames from a to b, of many sizes, and waits until no copy of any is on its way.
    fn send_numbered(&self, sender: &mut Witness, numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        let link = Link(self.a.mac("eth0"), self.b.mac("eth0"));
        let before = self.settled();
        let mut sent = Vec::new();
        for number in numbers {
            let mut frame = wire::plain(link);
            frame.resize(60 + (number as usize * 7) % 1_400, number as u8);
            frame.extend(number.to_be_bytes());
            sender.send(&frame);
            sent.push(frame);
            if sent.len().is_multiple_of(FILE_WINDOW) {
                wait_until(DEADLINE, "the copies", || {
                    self.settled() >= before + sent.len() as u64
                });
            }
        }
        sent
    }

    /// Copies that are in the file or lost, once that is all of them.
    fn settled(&self) -> u64 {
        wait_for(DEADLINE, "every copy is written or lost", || {
            let mirror = self.mirror("m");
            let count = |value: &Value| value.as_u64().unwrap();
            let settled = count(&mirror["file"]["written"]) + count(&mirror["dropped"]);
            (settled == count(&mirror["copies"])).then_some(settled)
        })
    }

    fn failure(&self) -> Option<String> {
        let failure = &self.mirror("m")["file"]["failure"];
        failure.as_str().map(str::to_owned)
    }

    fn mirror(&self, name: &str) -> Value {
        let listed = self.daemon.json(&["mirror", "ls"]);
        let mut listed = listed.as_array().unwrap().iter();
        listed
            .find(|mirror| mirror["name"] == name)
            .unwrap()
            .clone()
    }
}

/// Frames of the test's own that a witness has seen.
fn look(witness: &mut Witness, seen: &mut Vec<Vec<u8>>) {
    while witness.look(|frame| {
        if frame[12..14] == [0x88, 0xb5] {
            seen.push(frame.to_vec());
        }
    }) {}
}

#[test]
fn a_port_shows_the_frames_of_another_in_order_and_bit_by_bit() {
    if !require_root("a_port_shows_the_frames_of_another_in_order_and_bit_by_bit") {
        return;
    }
    // A plain TAP has one queue: with two workers the other one hands its copies over.
    for (workers, backend) in [("1", "packet"), ("2", "tap-plain")] {
        let floor = Floor::new("mirror-order", workers, backend);
        floor.daemon.run(&[
            "mirror",
            "add",
            "m",
            "--from",
            "a",
            "--direction",
            "in",
            "--to",
            "ids",
        ]);
        let mut ids = Witness::new(&floor.ids, "eth0");
        let mut sender = Witness::new(&floor.a, "eth0");
        let link = Link(floor.a.mac("eth0"), floor.b.mac("eth0"));
        let (mut sent, mut shown) = (Vec::new(), Vec::new());
        for number in 0..FRAMES {
            let mut frame = wire::plain(link);
            frame.resize(60 + (number as usize * 7) % 1_400, number as u8);
            frame.extend(number.to_be_bytes());
            sender.send(&frame);
            sent.push(frame);
            if number % WINDOW == WINDOW - 1 {
                wait_until(DEADLINE, "the copies", || {
                    look(&mut ids, &mut shown);
                    shown.len() >= sent.len()
                });
            }
        }
        assert!(
            shown == sent,
            "{workers} workers: {} of {}",
            shown.len(),
            sent.len()
        );
        let mirror = floor.mirror("m");
        assert!(
            mirror["copies"].as_u64().unwrap() >= u64::from(FRAMES),
            "{mirror}"
        );
        assert_eq!(mirror["dropped"], 0, "{mirror}");
    }
}

#[test]
fn a_port_that_shows_a_mirror_carries_nothing_else_until_it_ends() {
    if !require_root("a_port_that_shows_a_mirror_carries_nothing_else_until_it_ends") {
        return;
    }
    let mut floor = Floor::new("mirror-closed", "1", "packet");
    let gateway = ip("10.88.0.1");
    assert!(ping(&floor.ids, gateway, 56));
    let add = ["mirror", "add", "m", "--from", "a", "--to", "ids"];
    floor.daemon.run(&add);
    floor.daemon.kill();
    floor.daemon.restart();
    let wanted = json!({"name": "m", "port": "a", "network": null, "direction": "both", "to": "ids",
        "ingress": false});
    let mirror = floor.mirror("m");
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&mirror[key], value, "{key} after a restart");
    }
    assert!(unpingable(&floor.ids, gateway), "nothing enters");
    let mut ids = Witness::new(&floor.ids, "eth0");
    let mut b = Witness::new(&floor.b, "eth0");
    let mut shown = Vec::new();
    b.send(&wire::plain(Link(
        floor.b.mac("eth0"),
        MacAddr([2, 0, 0, 0, 0, 0x77]),
    )));
    let hello = wire::plain(Link(floor.b.mac("eth0"), floor.a.mac("eth0")));
    b.send(&hello);
    // What b floods to an unknown station leaves by a's port, and so does what is for a.
    wait_until(DEADLINE, "two copies", || {
        look(&mut ids, &mut shown);
        shown.len() >= 2
    });
    assert_eq!(shown.len(), 2, "one copy each, and no flood besides");
    assert_eq!(shown[1], hello);
    floor.daemon.run(&["mirror", "rm", "m"]);
    wait_until(DEADLINE, "an ordinary port", || {
        ping(&floor.ids, gateway, 56)
    });
    floor.daemon.run(&[&add[..], &["--ingress"]].concat());
    assert!(ping(&floor.ids, gateway, 56), "an ordinary port besides");
    floor.daemon.run(&["detach", "a"]);
    assert_eq!(
        floor.daemon.json(&["mirror", "ls"]),
        json!([]),
        "gone with its source"
    );
}

#[test]
fn bulk_tcp_is_shown_in_large_frames() {
    if !require_root("bulk_tcp_is_shown_in_large_frames") {
        return;
    }
    let floor = Floor::new("mirror-bulk", "1", "packet");
    let b = &floor.address_of_b;
    floor
        .daemon
        .run(&["mirror", "add", "m", "--network", "n", "--to", "ids"]);
    assert_eq!(floor.mirror("m")["direction"], "in", "each frame once");
    // What a and b have flooded before the mirror.
    let sent = || floor.daemon.json(&["port", "show", "ids"])["tx_frames"].as_u64();
    let copies = || floor.mirror("m")["copies"].as_u64();
    let before = wait_for(DEADLINE, "a moment without copies", || {
        let (first, sent, last) = (copies()?, sent()?, copies()?);
        (first == last).then(|| sent - first)
    });
    serve_tcp(&floor.b, &format!("{b}:7000"));
    let mut witness = Witness::new(&floor.ids, "eth0");
    let largest = |witness: &mut Witness| {
        ask_tcp(&floor.a, &format!("{b}:7000"), BULK);
        let mut largest = 0;
        while witness.look(|frame| largest = largest.max(frame.len())) {}
        largest
    };
    assert!(largest(&mut witness) > 1_514, "as the switch carries them");
    let port = floor.daemon.json(&["port", "show", "ids"]);
    let count = |name: &str| port[name].as_u64().unwrap();
    let (frames, bytes) = (count("tx_frames"), count("tx_bytes"));
    wait_until(DEADLINE, "each copy is sent or dropped", || {
        let port = floor.daemon.json(&["port", "show", "ids"]);
        let count = |name: &str| port[name].as_u64().unwrap();
        copies() == Some(count("tx_frames") + count("tx_dropped") - before)
    });
    assert!(bytes / frames > 1_514, "{frames} frames, {bytes} bytes");
    floor.daemon.run(&["port", "set", "ids", "offload", "off"]);
    // What was on its way before.
    while witness.look(|_| {}) {}
    assert_eq!(
        largest(&mut witness),
        1_514,
        "complete, for a tool that wants them so"
    );
}

#[test]
fn impossible_mirrors_are_refused_and_change_nothing() {
    if !require_root("impossible_mirrors_are_refused_and_change_nothing") {
        return;
    }
    let floor = Floor::new("mirror-refused", "1", "packet");
    let daemon = &floor.daemon;
    daemon.run(&["mirror", "add", "m", "--from", "a", "--to", "ids"]);
    // Without the counters: stations chatter by themselves.
    let listed = || {
        let mut mirrors = daemon.json(&["mirror", "ls"]);
        for mirror in mirrors.as_array_mut().unwrap() {
            for counter in ["copies", "dropped"] {
                mirror[counter].take();
            }
        }
        mirrors
    };
    let before = listed();
    let station = "02:00:00:00:00:07";
    daemon.run(&["fdb", "add", "n", station, "--port", "b"]);
    for (words, said) in [
        (
            &["mirror", "add", "m", "--from", "b", "--to", "ids"][..],
            "already a mirror",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "a"],
            "cannot show itself",
        ),
        (
            &["mirror", "add", "x", "--from", "nobody", "--to", "ids"],
            "causeway port ls",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "nobody"],
            "causeway port ls",
        ),
        (
            &["mirror", "add", "x", "--network", "none", "--to", "ids"],
            "no network",
        ),
        (
            &[
                "mirror",
                "add",
                "x",
                "--from",
                "a",
                "--direction",
                "up",
                "--to",
                "ids",
            ],
            "in, out or both",
        ),
        (
            &["mirror", "add", "x", "--from", "a", "--to", "b"],
            "static or local FDB entries",
        ),
        (
            &["fdb", "add", "n", station, "--port", "ids"],
            "shows a mirror",
        ),
        (&["mirror", "rm", "x"], "causeway mirror ls"),
    ] {
        let error = daemon.refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    assert_eq!(listed(), before);
    for number in 1..16 {
        let name = format!("m{number}");
        daemon.run(&["mirror", "add", &name, "--from", "a", "--to", "ids"]);
    }
    let error = daemon.refused(&["mirror", "add", "m16", "--from", "a", "--to", "ids"]);
    assert!(error.contains("limited to 16"), "{error}");
}

/// The sections of a file, and its frames.
fn read_file(path: &Path) -> (usize, Vec<Vec<u8>>) {
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    let (mut sections, mut frames) = (1, Vec::new());
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::SectionHeader(_) => sections += 1,
            Block::EnhancedPacket(block) => frames.push(block.data.into_owned()),
            _ => {}
        }
    }
    (sections, frames)
}

/// Those of a test, among what stations send by themselves.
fn of_the_test(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let ours = |frame: &Vec<u8>| frame[12..14] == [0x88, 0xb5];
    frames.into_iter().filter(ours).collect()
}

#[test]
fn a_file_has_the_frames_in_order_and_bit_by_bit_over_a_crash_and_the_end() {
    if !require_root("a_file_has_the_frames_in_order_and_bit_by_bit_over_a_crash_and_the_end") {
        return;
    }
    for workers in ["1", "2"] {
        let mut floor = Floor::new("mirror-file", workers, "packet");
        let path = floor.write_to("m.pcapng", &[]);
        let mut sender = Witness::new(&floor.a, "eth0");
        let half = FRAMES / 2;
        let mut sent = floor.send_numbered(&mut sender, 0..half);
        floor.daemon.kill();
        // As if it had been killed while it wrote.
        let mut torn = fs::read(&path).unwrap();
        torn.extend([6, 0, 0, 0, 100, 0]);
        fs::write(&path, torn).unwrap();
        floor.daemon.restart();
        let mirror = floor.mirror("m");
        assert_eq!(mirror["to"], path.to_str().unwrap());
        assert_eq!(mirror["file"]["limit_size"], 1 << 30, "{mirror}");
        sent.extend(floor.send_numbered(&mut sender, half..FRAMES));
        assert_eq!(floor.mirror("m")["dropped"], 0);
        floor.daemon.run(&["mirror", "rm", "m"]);
        let (sections, frames) = read_file(&path);
        let frames = of_the_test(frames);
        assert_eq!(sections, 2, "one of each daemon");
        assert!(
            frames == sent,
            "{workers} workers: {} of {}",
            frames.len(),
            sent.len()
        );
        let ports = floor.daemon.json(&["port", "ls"]).to_string();
        assert!(!ports.contains("mirror"), "its port is gone: {ports}");
        assert_eq!(floor.daemon.json(&["mirror", "ls"]), json!([]));
    }
}

#[test]
fn files_give_way_when_they_are_full_and_the_mirror_ends_with_what_it_watches() {
    if !require_root("files_give_way_when_they_are_full_and_the_mirror_ends_with_what_it_watches") {
        return;
    }
    let floor = Floor::new("mirror-rotate", "1", "packet");
    let path = floor.write_to("m.pcapng", &["--limit-size", "128k", "--rotate", "3"]);
    let mut sender = Witness::new(&floor.a, "eth0");
    let sent = floor.send_numbered(&mut sender, 0..800);
    floor.daemon.run(&["detach", "a"]);
    assert_eq!(floor.daemon.json(&["mirror", "ls"]), json!([]));
    let older = |number: u32| floor.lab.dir().join(format!("m.pcapng.{number}"));
    assert!(!older(3).exists());
    let mut kept = Vec::new();
    for file in [older(2), older(1), path] {
        assert!(file.metadata().unwrap().len() <= 128 << 10);
        kept.extend(of_the_test(read_file(&file).1));
    }
    assert!(kept.len() > 300, "{}", kept.len());
    assert!(
        kept == sent[sent.len() - kept.len()..],
        "the newest, in order"
    );
}

#[test]
fn bulk_tcp_is_in_the_file_in_large_frames() {
    if !require_root("bulk_tcp_is_in_the_file_in_large_frames") {
        return;
    }
    let floor = Floor::new("mirror-file-bulk", "2", "packet");
    let path = floor.lab.dir().join("n.pcapng");
    let add = ["mirror", "add", "m", "--network", "n", "-w"];
    floor
        .daemon
        .run(&[&add[..], &[path.to_str().unwrap()]].concat());
    let b = &floor.address_of_b;
    serve_tcp(&floor.b, &format!("{b}:7000"));
    ask_tcp(&floor.a, &format!("{b}:7000"), BULK);
    floor.settled();
    let mirror = floor.mirror("m");
    floor.daemon.run(&["mirror", "rm", "m"]);
    let (_, frames) = read_file(&path);
    assert!(frames.len() as u64 >= mirror["file"]["written"].as_u64().unwrap());
    let largest = frames.iter().map(Vec::len).max();
    assert!(
        largest > Some(1_514),
        "as the switch carries them: {largest:?}"
    );
    if mirror["dropped"] == 0 {
        let bytes: usize = frames.iter().map(Vec::len).sum();
        assert!(bytes > 2 * BULK, "there and back: {bytes}");
    }
}

#[test]
fn a_full_disk_costs_copies_that_are_counted_and_nothing_else() {
    if !require_root("a_full_disk_costs_copies_that_are_counted_and_nothing_else") {
        return;
    }
    let on_a_small_disk = || {
        // In mounts of its own, which the daemon inherits: they end with the two.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let floor = Floor::new("mirror-full", "1", "packet");
        let disk = floor.lab.dir().join("disk");
        fs::create_dir(&disk).unwrap();
        // The daemon is in the same mounts, so that it sees this one too.
        let size = Some("size=2m");
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        let _mounted = Mounted(disk);
        check_full_disk(&floor);
    };
    std::thread::scope(|scope| scope.spawn(on_a_small_disk).join().unwrap());
}

/// A mount that is gone before the lab, whose directory it would keep.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn check_full_disk(floor: &Floor) {
    let path = floor.write_to("disk/m.pcapng", &[]);
    let b = ip(&floor.address_of_b);
    let mut sender = Witness::new(&floor.a, "eth0");
    let (mut sent, mut next) = (Vec::new(), 0);
    let failure = wait_for(DEADLINE, "a full disk", || {
        sent.extend(floor.send_numbered(&mut sender, next..next + 500));
        next += 500;
        floor.failure()
    });
    assert!(failure.contains("No space left"), "{failure}");
    assert!(failure.contains(path.to_str().unwrap()), "{failure}");
    assert!(
        floor
            .daemon
            .run(&["mirror", "ls"])
            .contains("No space left")
    );
    wait_until(DEADLINE, "an event", || {
        let told = floor.daemon.run(&["events", "--kind", "mirror_failed"]);
        told.contains("mirror 'm' loses its copies") && told.contains("No space left")
    });
    let lost = || floor.mirror("m")["dropped"].as_u64().unwrap();
    let before = lost();
    sent.extend(floor.send_numbered(&mut sender, next..next + 500));
    assert!(lost() >= before + 500, "each is counted");
    let drops = floor.daemon.run(&["drops"]);
    assert!(
        drops.contains("refused") && drops.contains("mirror:m"),
        "{drops}"
    );
    assert!(ping(&floor.a, b, 56), "what is watched goes on");

    let written = floor.mirror("m")["file"]["written"].as_u64().unwrap();
    let (_, frames) = read_file(&path);
    assert_eq!(frames.len() as u64, written, "whole to the last");
    let frames = of_the_test(frames);
    assert!(frames.len() > 500 && frames == sent[..frames.len()]);

    fs::remove_file(&path).unwrap();
    wait_until(DEADLINE, "room again", || floor.failure().is_none());
    wait_until(DEADLINE, "an event", || {
        let told = floor.daemon.run(&["events", "--kind", "mirror_resumed"]);
        told.contains("mirror 'm' writes to")
    });
    let sent = floor.send_numbered(&mut sender, 0..FILE_WINDOW as u32);
    floor.daemon.run(&["mirror", "rm", "m"]);
    assert!(of_the_test(read_file(&path).1) == sent);
}

#[test]
fn files_that_cannot_be_are_refused_by_name_and_change_nothing() {
    if !require_root("files_that_cannot_be_are_refused_by_name_and_change_nothing") {
        return;
    }
    let floor = Floor::new("mirror-file-refused", "1", "packet");
    let dir = floor.lab.dir();
    let diary = dir.join("diary.txt");
    fs::write(&diary, "dear diary, nothing happened").unwrap();
    let text = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let refused = |path: &str, more: &[&str], said: &str| {
        let add = ["mirror", "add", "x", "--from", "a", "-w", path];
        let error = floor.daemon.refused(&[&add[..], more].concat());
        assert!(error.contains(said), "{path}: {error}");
        assert_eq!(floor.daemon.json(&["mirror", "ls"]), json!([]));
    };
    let none = format!("there is no directory '{}'", text("none"));
    refused(&text("none/m.pcapng"), &[], &none);
    refused(
        &text("diary.txt"),
        &[],
        "diary.txt' is there and not pcapng",
    );
    refused("/dev/full", &[], "'/dev/full' is there and no regular file");
    let new = text("m.pcapng");
    refused(
        &new,
        &["--limit-size", "127k"],
        "give 131072 to 1099511627776",
    );
    refused(&new, &["--rotate", "0"], "give 1 to 1000");
    assert_eq!(fs::read(&diary).unwrap(), b"dear diary, nothing happened");
    assert!(!dir.join("m.pcapng").exists());
    let both = [
        "mirror", "add", "x", "--from", "a", "-w", &new, "--to", "ids",
    ];
    assert_eq!(floor.daemon.output(&both).status.code(), Some(2));
    for number in 0..8 {
        let (name, path) = (format!("f{number}"), text(&format!("{number}.pcapng")));
        let add = ["mirror", "add", &name, "--from", "a", "-w", &path];
        floor.daemon.run(&add);
        let again = ["mirror", "add", "x", "--from", "a", "-w", &path];
        let error = floor.daemon.refused(&again);
        assert!(error.contains(&format!("by mirror '{name}'")), "{error}");
    }
    let ninth = ["mirror", "add", "x", "--from", "a", "-w", &new];
    let error = floor.daemon.refused(&ninth);
    assert!(
        error.contains("mirrors to files are limited to 8"),
        "{error}"
    );
    for name in (0..8).map(|number| format!("f{number}")) {
        floor.daemon.run(&["mirror", "rm", &name]);
    }
    let mode = fs::metadata(dir.join("0.pcapng")).unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
}
