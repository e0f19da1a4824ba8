//! `causeway nat conform`: what our NAT and the kernel's do, side by side, and that the checker
//! leaves nothing behind. Comparisons need nftables (`tests/run --references`); without it they say
//! so.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::conform::{Rows, Way, assert_finding, conform, found, program, reports, with_verdict};
use tests::daemon::{Daemon, binary, path_text};
use tests::lab::{DEADLINE, require_root, wait_until};

/// Deviations that the requirements allow us: well-known ports belong to the host that we share the
/// address with.
const ALLOWED: [&str; 2] = ["port-class-low", "port-class-low-contended"];
/// Rows that a run without timers leaves untested, whatever the NAT.
const UNTESTED: [&str; 11] = [
    "address-conflict",
    "udp-timer",
    "udp-timer-answered",
    "udp-timer-dns",
    "udp-refresh-outbound",
    "udp-refresh-inbound",
    "icmp-timer",
    "tcp-timer-opening",
    "tcp-timer-closing",
    "tcp-timer-reset",
    "tcp-timer-established",
];
/// Rows that conntrack, a plain router and ours pass alike, in either family.
const PASSES_ANYWHERE: [&str; 17] = [
    "icmp-reply",
    "icmp-error-udp",
    "icmp-error-tcp",
    "icmp-error-query",
    "icmp-error-too-big",
    "icmp-error-outbound",
    "tcp-connection",
    "tcp-half-close",
    "fragments-out",
    "fragments-out-shuffled",
    "fragments-in",
    "fragments-in-shuffled",
    "fragments-mixed",
    "checksums",
    "ttl",
    "ttl-exceeded",
    "too-big",
];
/// Rows that IPv6 has nothing for.
const UNTESTED_V6: [&str; 1] = ["udp-zero-checksum"];
/// What makes a network of both families.
const NETWORK: [&str; 7] = [
    "network",
    "create",
    "net",
    "--subnet",
    "10.0.0.0/24",
    "--subnet6",
    "fd00::/64",
];

fn ours(name: &str) -> (Way, Daemon) {
    ours_with(name, "", &NETWORK)
}

/// Ours with settings of the NAT and a network.
fn ours_with(name: &str, settings: &str, network: &[&str]) -> (Way, Daemon) {
    let mut way = Way::new(name);
    let daemon = Daemon::start_with_nat(&way.lab, &way.host, settings);
    // Larger than the outside's, so that something is too big.
    daemon.run(&[network, &["--mtu", "1500"]].concat());
    daemon.attach(&way.inside, "net", "inside", &[]);
    let second = way.lab.namespace("second");
    daemon.attach(&second, "net", "second", &[]);
    way.second = Some(second);
    (way, daemon)
}

fn assert_ours(rows: &Rows, more_untested: &[&str]) {
    let deviations = with_verdict(rows, "deviation");
    let unexpected: Vec<&&str> = deviations
        .iter()
        .filter(|name| !ALLOWED.contains(name))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    for name in ["udp-mapping", "tcp-mapping", "icmp-mapping"] {
        assert_finding(rows, name, "pass", "endpoint-independent");
    }
    for name in ["udp-filtering", "tcp-filtering"] {
        assert_finding(rows, name, "pass", "address-and-port-dependent");
    }
    for name in ["udp-overloading-contended", "tcp-overloading-contended"] {
        let observed = "shared towards one remote 0 of 16, towards two 0 of 16";
        assert_finding(rows, name, "pass", observed);
    }
    for name in ["udp-mapping-contended", "tcp-mapping-contended"] {
        assert_finding(rows, name, "pass", "endpoint-independent");
    }
    assert_finding(rows, "delivery-contended", "pass", "4 of 4 answers");
    for name in ["port-parity-contended", "port-class-high-contended"] {
        assert_finding(rows, name, "pass", "kept for 16 of 16");
    }
    let mut untested = with_verdict(rows, "not-tested");
    untested.sort_unstable();
    let mut wanted = [&UNTESTED, more_untested].concat();
    wanted.sort_unstable();
    assert_eq!(untested, wanted);
}

#[test]
fn ours_deviates_in_nothing_but_what_is_allowed() {
    if !require_root("e2e_conform") {
        return;
    }
    let rows = found(&[]);
    assert_eq!(rows.len(), 2, "a table for each family");
    assert_ours(&rows[0], &[]);
    assert_ours(&rows[1], &UNTESTED_V6);
    let leftovers = std::fs::read_dir(std::env::temp_dir()).expect("a temporary directory");
    let lab = format!("causeway-lab-{}", std::process::id());
    for entry in leftovers.flatten() {
        let name = entry.file_name();
        assert!(!name.to_string_lossy().starts_with(&lab), "{name:?}");
    }
}

#[test]
fn the_kernels_masquerade_has_the_matrix_that_it_is_known_for() {
    if !require_root("e2e_conform") {
        return;
    }
    let Some(nft) = program("the kernel's masquerade", "nft", "nftables") else {
        return;
    };
    let kernel = Way::nft("conform-nft", &nft);
    let (way, _daemon) = ours("conform-ours");
    let ways = [&kernel, &way];
    let before = ways.map(Way::addresses);
    let targets = [kernel.target("nft"), way.target("causeway")];
    let rows = found(&["--target", &targets[0], "--target", &targets[1]]);
    assert_eq!(rows.len(), 4, "two NATs, two families");
    assert_kernel(&rows[0], "fragmentation needed");
    assert_kernel(&rows[1], "packet too big");
    assert_ours(&rows[2], &[]);
    assert_ours(&rows[3], &UNTESTED_V6);
    let after = ways.map(Way::addresses);
    assert_eq!(after, before, "what was borrowed is given back");
}

/// Masquerade is the same in both families, the name of the answer to a packet too large aside.
fn assert_kernel(rows: &Rows, too_big: &str) {
    for name in ["udp-mapping", "tcp-mapping", "icmp-mapping"] {
        assert_finding(rows, name, "pass", "endpoint-independent");
    }
    for name in ["udp-filtering", "tcp-filtering"] {
        assert_finding(rows, name, "pass", "address-and-port-dependent");
    }
    for (name, observed) in [
        ("port-choice", "kept 64 of 64 above 49151, 32 of 32 below"),
        ("port-parity", "kept for 96 of 96"),
        ("too-big", &format!("1500 bytes: {too_big}, MTU 1400")),
    ] {
        assert_finding(rows, name, "pass", observed);
    }
    for (name, observed) in [
        ("hairpin-source", "nothing was hairpinned"),
        ("hairpin-icmp-error", "no hairpinned packet"),
    ] {
        assert_finding(rows, name, "not-tested", observed);
    }
    for (name, observed) in [
        ("hairpin-udp", "not delivered"),
        ("hairpin-tcp", "not delivered"),
        ("tcp-unsolicited-syn", "a reset after 0.0 s"),
    ] {
        assert_finding(rows, name, "deviation", observed);
    }
    assert_contended_kernel(rows);
    for name in PASSES_ANYWHERE {
        assert_eq!(rows[name].0, "pass", "{name}: {:?}", rows[name]);
    }
}

/// Conntrack keeps a port for two hosts as long as their remotes differ, and gives way at random where
/// they do not: its mapping is endpoint-independent only while nobody else wants the port.
fn assert_contended_kernel(rows: &Rows) {
    for name in ["udp-overloading-contended", "tcp-overloading-contended"] {
        let observed = "shared towards one remote 0 of 16, towards two 16 of 16";
        assert_finding(rows, name, "deviation", observed);
    }
    for name in ["udp-mapping-contended", "tcp-mapping-contended"] {
        assert_finding(rows, name, "deviation", "address-and-port-dependent");
    }
    assert_finding(rows, "delivery-contended", "pass", "4 of 4 answers");
    assert_finding(rows, "port-parity-contended", "deviation", "of 16");
    for (name, count) in [
        ("port-class-low-contended", 8),
        ("port-class-high-contended", 16),
    ] {
        let observed = format!("kept for {count} of {count}");
        assert_finding(rows, name, "pass", &observed);
    }
}

#[test]
fn a_second_inside_host_that_the_nat_does_not_know_is_no_finding() {
    if !require_root("e2e_conform") {
        return;
    }
    let (mut way, _daemon) = ours("conform-stranger");
    // Borrowed, and nothing that ours has attached.
    way.second = None;
    let before = way.addresses();
    let rows = found(&["--family", "4", "--target", &way.target("ours")]);
    for (name, finding) in rows[0]
        .iter()
        .filter(|(name, _)| name.ends_with("-contended"))
    {
        assert_eq!(finding.0, "not-tested", "{name}: {finding:?}");
        assert!(
            finding.1.contains("name a namespace as SECOND"),
            "{finding:?}"
        );
    }
    assert_eq!(way.addresses(), before, "what was borrowed is given back");
}

#[test]
fn a_router_is_no_failure_and_what_it_does_without_a_translation_is_told() {
    if !require_root("e2e_conform") {
        return;
    }
    let router = Way::routed("conform-router");
    let network = ["network", "create", "net", "--subnet6", "fd00::/64"];
    let network = [&network[..], &["--nat6", "routed"]].concat();
    let (ours, _daemon) = ours_with("conform-routed-net", "", &network);
    for way in [&router, &ours] {
        way.outside.add_route("fd00::/64", "2001:db8::1", "eth0");
    }
    router.outside.add_route("10.0.0.0/24", "192.0.2.1", "eth0");
    let targets = [router.target("router"), ours.target("routed")];
    let reports = reports(&["--target", &targets[0], "--target", &targets[1]]);
    let kinds: Vec<&str> = reports.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["IPv4 routed", "IPv6 routed", "IPv6 routed"]);
    for (kind, rows) in &reports {
        for name in ["udp-mapping", "port-choice", "hairpin-udp", "udp-timer"] {
            assert_finding(rows, name, "not-tested", "no translation: routed");
        }
        assert_eq!(with_verdict(rows, "deviation"), [""; 0], "{kind}");
        for name in PASSES_ANYWHERE {
            assert_eq!(rows[name].0, "pass", "{kind}, {name}: {:?}", rows[name]);
        }
    }
    for (_, rows) in &reports[..2] {
        assert_finding(rows, "udp-filtering", "pass", "endpoint-independent");
        let observed = "the filter lets the SYN in";
        assert_finding(rows, "tcp-unsolicited-syn", "not-tested", observed);
    }
    // Ours lets in what was asked for.
    let observed = "address-and-port-dependent";
    assert_finding(&reports[2].1, "udp-filtering", "pass", observed);

    // What one family cannot do is said, and takes nothing from the other.
    router.host.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    let output = conform(&["--csv", "--target", &targets[0]]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (table, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{error}");
    assert!(error.contains("router: IPv6 is not looked at: "), "{error}");
    assert!(error.contains("does not arrive there"), "{error}");
    assert!(table.contains("router,IPv4,") && !table.contains("router,IPv6,"));
}

/// A timer of so many seconds is told as an interval that holds it, and falls short of the RFC.
fn assert_timer(rows: &Rows, name: &str, seconds: u64) {
    let (verdict, observed) = &rows[name];
    let wanted = if name == "udp-timer-dns" {
        "pass"
    } else {
        "deviation"
    };
    assert_eq!(verdict, wanted, "{name}: {observed}");
    let words = observed.split(' ').filter_map(|word| word.parse().ok());
    let [alive, dead]: [u64; 2] = words.collect::<Vec<u64>>()[..]
        .try_into()
        .unwrap_or_else(|_| panic!("{name}: {observed}"));
    // Timers are to the second, and so is what is printed; looks are up to two seconds apart here.
    let holds = alive <= seconds + 1 && seconds <= dead + 1;
    let holds = holds && dead <= seconds + 4 && seconds <= alive + 4;
    assert!(holds, "{name}: {observed}, set to {seconds} s");
}

#[test]
fn timers_are_observed_by_waiting_and_not_otherwise() {
    if !require_root("e2e_conform") {
        return;
    }
    let Some(nft) = program("timers of the kernel's masquerade", "nft", "nftables") else {
        return;
    };
    let kernel = Way::nft("conform-timers", &nft);
    for (name, seconds) in [
        ("udp_timeout", "3"),
        ("udp_timeout_stream", "6"),
        ("icmp_timeout", "4"),
        ("icmpv6_timeout", "4"),
        ("tcp_timeout_syn_sent", "5"),
        ("tcp_timeout_time_wait", "7"),
        ("tcp_timeout_close", "2"),
        ("tcp_timeout_established", "600"),
    ] {
        let name = format!("net/netfilter/nf_conntrack_{name}");
        kernel.host.set_sysctl(&name, seconds);
    }
    let all = found(&["--target", &kernel.target("nft"), "--timers", "10"]);
    assert_eq!(all.len(), 2, "IPv4 and IPv6");
    for rows in &all {
        for (name, seconds) in [
            ("udp-timer", 3),
            ("udp-timer-answered", 6),
            ("udp-timer-dns", 3),
            ("icmp-timer", 4),
            ("tcp-timer-opening", 5),
            ("tcp-timer-closing", 7),
            ("tcp-timer-reset", 2),
        ] {
            assert_timer(rows, name, seconds);
        }
        assert_finding(rows, "tcp-timer-established", "not-tested", "> 10 s");
        for name in ["udp-refresh-outbound", "udp-refresh-inbound"] {
            assert_finding(rows, name, "pass", "kept busy it lives on");
        }
    }
}

#[test]
fn our_timers_are_what_was_set_and_what_nobody_waited_for_is_not_tested() {
    if !require_root("e2e_conform") {
        return;
    }
    let settings = "force = true\n\
                    udp_timeout_seconds = 4\n\
                    udp_dns_timeout_seconds = 2\n\
                    icmp_timeout_seconds = 3\n\
                    tcp_opening_timeout_seconds = 5\n\
                    tcp_closing_timeout_seconds = 6\n\
                    tcp_established_timeout_seconds = 8\n";
    let (way, _daemon) = ours_with("conform-ours-timers", settings, &NETWORK);
    let target = way.target("ours");
    // It ends early: all timers have run out long before.
    let since = std::time::Instant::now();
    let all = found(&["--target", &target, "--timers", "200"]);
    assert!(since.elapsed() < std::time::Duration::from_secs(100));
    assert_eq!(all.len(), 2, "IPv4 and IPv6");
    for rows in &all {
        for (name, seconds) in [
            ("udp-timer", 4),
            ("udp-timer-answered", 4),
            ("udp-timer-dns", 2),
            ("icmp-timer", 3),
            ("tcp-timer-opening", 5),
            ("tcp-timer-closing", 6),
            ("tcp-timer-reset", 6),
            ("tcp-timer-established", 8),
        ] {
            assert_timer(rows, name, seconds);
        }
        for name in ["udp-refresh-outbound", "udp-refresh-inbound"] {
            assert_finding(rows, name, "pass", "kept busy it lives on");
        }
    }
}

#[test]
fn defaults_outlive_a_short_wait_and_are_not_called_a_pass() {
    if !require_root("e2e_conform") {
        return;
    }
    let settings = "force = true\nudp_timeout_seconds = 2\nudp_inbound_refresh = false\n";
    let (way, _daemon) = ours_with("conform-defaults", settings, &NETWORK);
    let target = way.target("ours");
    let words = ["--family", "4", "--target", &target, "--timers", "4"];
    let output = conform(&[&words[..], &["--csv"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.starts_with("takes about 19 s at most: "), "{error}");
    assert!(error.contains("up to 4 s"), "{error}");
    let rows = &found(&words)[0];
    assert_timer(rows, "udp-timer", 2);
    assert_finding(
        rows,
        "udp-refresh-outbound",
        "pass",
        "kept busy it lives on",
    );
    assert_finding(rows, "udp-refresh-inbound", "pass", "kept busy it dies");
    for (name, seconds) in [
        ("icmp-timer", 60),
        ("tcp-timer-opening", 240),
        ("tcp-timer-closing", 240),
        ("tcp-timer-reset", 240),
        ("tcp-timer-established", 7_440),
    ] {
        let observed = format!("> 4 s; it takes --timers {seconds} to tell");
        assert_finding(rows, name, "not-tested", &observed);
    }
}

#[test]
fn defaults_of_the_kernels_timers_are_the_known_ones() {
    if !require_root("e2e_conform") {
        return;
    }
    let Some(nft) = program("defaults of the kernel's timers", "nft", "nftables") else {
        return;
    };
    let kernel = Way::nft("conform-sysctl", &nft);
    for (name, seconds) in [
        ("udp_timeout", "30"),
        ("udp_timeout_stream", "120"),
        ("icmp_timeout", "30"),
        ("tcp_timeout_established", "432000"),
    ] {
        let name = format!("net/netfilter/nf_conntrack_{name}");
        assert_eq!(kernel.host.sysctl(&name), seconds, "{name}");
    }
}

#[test]
fn a_signal_takes_the_borrowed_address_and_the_lab_away() {
    if !require_root("e2e_conform") {
        return;
    }
    let (way, _daemon) = ours("conform-signal");
    let target = way.target("ours");
    let before = way.addresses();
    for (words, borrows) in [(vec!["--target", &target], true), (vec![], false)] {
        let mut command = Command::new(binary());
        command
            .args(["nat", "conform", "--timers", "60"])
            .args(words);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let dir = std::env::temp_dir().join(format!("causeway-lab-{}.0", child.id()));
        wait_until(DEADLINE, "it is at work", || {
            way.addresses() != before || dir.exists()
        });
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGINT).expect("it is ours");
        let status = child.wait().expect("it is ours");
        assert_eq!(
            status.code(),
            Some(128 + Signal::SIGINT as i32),
            "{borrows}"
        );
        assert_eq!(way.addresses(), before, "borrows: {borrows}");
        assert!(!dir.exists(), "{}", dir.display());
    }
}

#[test]
fn what_cannot_be_checked_is_an_error_and_no_table() {
    if !require_root("e2e_conform") {
        return;
    }
    let refused = |words: &[&str], message: &str| {
        let output = conform(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.contains(message), "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
    };
    let routed = Way::routed("conform-routed");
    let before = routed.addresses();
    let target = routed.target("routed");
    // The outside has no way back to the inside's own address, and sees it all the same.
    refused(&["--target", &target], "there is no NAT between these");
    let six = ["--family", "6", "--target", &target];
    refused(&six, "there is no NAT between these");
    routed.host.set_sysctl("net/ipv4/ip_forward", "0");
    refused(&["--target", &target], "does not arrive there");
    assert_eq!(routed.addresses(), before);
    let inside = routed.inside.path();
    let same = format!("{0},{0}", path_text(&inside));
    refused(&["--target", &same], "one namespace");
    let lone = Way::new("conform-lone");
    refused(
        &["--target", &lone.target("lone")],
        "has no route to 192.0.2.2",
    );
    refused(
        &["--target", "nowhere-a,nowhere-b"],
        "'nowhere-a' does not exist",
    );
    // Above what a process id can be.
    refused(
        &["--target", "4194305,nowhere-b"],
        "there is no process 4194305",
    );
    refused(
        &["--target", &target, "--remote", "203.0.113.9"],
        "no address 203.0.113.9",
    );
    refused(
        &["--target", &target, "--remote", "2001:db8::9"],
        "no address 2001:db8::9",
    );
    let four = Way::routed("conform-four");
    four.outside
        .set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    refused(
        &["--target", &four.target("four"), "--family", "6"],
        "no IPv6 address",
    );
}
