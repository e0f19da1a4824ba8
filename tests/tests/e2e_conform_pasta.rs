//! `causeway nat conform` against pasta, a NAT that is a proxy: it ends connections and makes its own.
//! Its matrix takes two minutes, for it loses much and each loss is waited for, so that it runs with
//! `tests/run --engines`. Asserted are the rows that follow from being a proxy, whatever the version.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use control::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::conform::{Rows, Way, assert_finding, program, reports};
use tests::daemon::path_text;
use tests::lab::{DEADLINE, Namespace, block_on, require_root, wait_for, wait_until};

/// Pause between two looks whether pasta has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// Pasta with a command, in a namespace of its own.
struct Pasta {
    child: Child,
    /// The command's process, once it is known.
    command: Option<u32>,
}

impl Pasta {
    /// Starts it on the host, and waits until the command's namespace has its addresses.
    fn start(way: &Way, pasta: &Path) -> Self {
        // It resolves addresses from the host's default routes.
        way.host.add_default_route("up0", "2001:db8::2");
        // It pings by sockets, which a group must be allowed to have.
        let groups = "0 2147483647";
        way.host.set_sysctl("net/ipv4/ping_group_range", groups);
        let log = way.lab.dir().join("pasta.log");
        let mut command = Command::new(pasta);
        command
            .args(["--foreground", "--stderr", "--config-net"])
            .args(["--runas", "0:0", "--ns-ifname", "eth0", "--mtu", "1500"])
            .args(["--address", "10.0.0.2", "--netmask", "24"])
            .args(["--gateway", "10.0.0.1"])
            .args(["--address", "fd00::2", "--gateway", "fd00::1"])
            .args(["--tcp-ports", "none", "--udp-ports", "none"])
            .args(["--tcp-ns", "none", "--udp-ns", "none"])
            .args(["sleep", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a file in the lab's directory"));
        let mut started = Self {
            child: way.host.start(&mut command),
            command: None,
        };
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        let command = wait_for(DEADLINE, "pasta starts its command", || {
            let ended = started.child.try_wait().expect("it is ours");
            assert!(ended.is_none(), "{}", told());
            child_of(started.child.id())
        });
        started.command = Some(command);
        let netns = Netns::from_pid(command).expect("the command's namespace");
        let inside = Namespace::new("pasta", netns);
        wait_until(DEADLINE, "pasta gives it its addresses", || {
            let all = block_on(inside.netlink().addresses()).expect("the kernel lists them");
            let has = |text: &str| {
                let mut all = all.iter();
                all.any(|address| address.prefix.address.to_string() == text && !address.tentative)
            };
            has("10.0.0.2") && has("fd00::2")
        });
        started
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let command = self.command.map(|pid| Pid::from_raw(pid.cast_signed()));
        let ended = command.map_or(Ok(()), |pid| kill(pid, Signal::SIGKILL));
        // It takes its command's status and ends; killed before, it would leave that to nobody.
        let deadline = Instant::now() + DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::park_timeout(PAUSE);
        }
        let pasta_ended = self.child.kill().and_then(|()| self.child.wait());
        if ended.is_err() || pasta_ended.is_err() {
            eprintln!("cannot end pasta: {ended:?}, {pasta_ended:?}");
        }
    }
}

/// The process that a process has started, once it runs its command.
fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let mut children = children.split_whitespace();
    children.find_map(|child| {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "sleep").then(|| child.parse().ok())?
    })
}

fn assert_proxy(rows: &Rows) {
    for (name, observed) in [
        // The kernel's own connections, so that everything about them is in order,
        ("tcp-connection", "data passes both ways"),
        ("tcp-half-close", "data goes out after the remote's FIN"),
        ("tcp-forged-reset", "data passes both ways after it"),
        ("tcp-reopen", "data passes both ways"),
        ("tcp-filtering", "address-and-port-dependent"),
        ("fragments-in", "the datagram arrives whole"),
        ("fragments-in-shuffled", "the datagram arrives whole"),
        ("fragments-mixed", "2 of 2 arrive whole"),
        ("no-alg", "an inside address in it stays"),
        ("checksums", "packets looked at"),
    ] {
        assert_finding(rows, name, "pass", observed);
    }
    for (name, observed) in [
        // and nothing of the inside's is to be seen: ports, numbers, resets, errors.
        ("tcp-mapping", "address-and-port-dependent"),
        ("tcp-simultaneous-open", "the remote's SYN does not come in"),
        ("tcp-unsolicited-syn", "a reset after 0.0 s"),
        ("icmp-error-tcp", "does not come in"),
        ("fragments-out", "the datagram does not arrive whole"),
        ("ttl-exceeded", "the packet goes out"),
    ] {
        assert_finding(rows, name, "deviation", observed);
    }
}

#[test]
fn a_proxy_has_the_matrix_that_follows_from_being_one() {
    if !require_root("e2e_conform_pasta") {
        return;
    }
    if std::env::var_os("CAUSEWAY_ENGINES").is_none() {
        println!("left out: pasta's matrix takes two minutes; tests/run --engines has it");
        return;
    }
    let Some(pasta) = program("pasta's matrix", "pasta", "passt") else {
        return;
    };
    let way = Way::new("conform-pasta");
    let pasta = Pasta::start(&way, &pasta);
    let command = pasta.command.expect("it was waited for");
    let outside = way.outside.path();
    let target = format!("pasta={command},{}", path_text(&outside));
    let reports = reports(&["--target", &target]);
    let kinds: Vec<&str> = reports.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["IPv4 translated", "IPv6 translated"]);
    for (_, rows) in &reports {
        assert_proxy(rows);
    }
}
