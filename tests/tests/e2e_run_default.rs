//! `causeway run` without a network's name, and without its end.

#![allow(clippy::unwrap_used)]

mod runs;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, require_root, wait_until};

use runs::*;

/// Covers: 35
#[test]
fn without_a_name_a_program_is_on_the_default_network() {
    if !require_root("without_a_name_a_program_is_on_the_default_network") {
        return;
    }
    let lab = Lab::new("run-default");
    let (host, _outside) = lab.host_and_outside();
    let daemon = Daemon::start_as_usual(&lab, &host, &["--uplink", "up0"]);
    let script = "cat /proc/self/net/dev; exec 3<>/dev/tcp/192.0.2.2/9";
    let output = daemon.output(&["run", "--name", "usual", "--", "bash", "-c", script]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("eth0:") && !text.contains("up0:"), "{text}");
    // There is a way out, and nobody listens at its end.
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("Connection refused"), "{error}");
    let address = daemon.run(&[
        "run",
        "--ip",
        "172.17.0.9",
        "--",
        "cat",
        "/proc/self/net/fib_trie",
    ]);
    assert!(address.contains("172.17.0.9"), "{address}");
    daemon.run(&["network", "rm", "default"]);
    let missing = daemon.output(&["run", "--", "true"]);
    let error = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(125), "{error}");
    assert!(
        error.contains("'default'") && error.contains("--network"),
        "{error}"
    );
    let none = daemon.output(&["run", "--network", "none", "--", "true"]);
    assert_eq!(none.status.code(), Some(0));
}

/// Whether a process is at its end: gone, or only not waited for yet.
fn has_ended(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    match stat {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z'),
        Err(_) => true,
    }
}

#[test]
fn a_program_ends_with_a_run_that_is_killed_and_so_does_its_endpoint() {
    if !require_root("a_program_ends_with_a_run_that_is_killed_and_so_does_its_endpoint") {
        return;
    }
    let site = Site::new("run-killed");
    for network in ["web", "none", "host"] {
        let script = "echo $$; trap '' TERM HUP INT; while :; do read -r line; done";
        let words = ["run", "--network", network, "--", "bash", "-c", script];
        let mut command = site.daemon.command(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = site.host.start(&mut command);
        // Held open, so that the program ends by nothing else.
        let held = child.stdin.take().unwrap();
        let mut pid = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut pid).unwrap();
        let pid = pid.trim();
        assert!(!has_ended(pid), "{network}");
        let mut started = Started {
            site: &site,
            child: Some(child),
        };
        started.signal(Signal::SIGKILL);
        wait_until(DEADLINE, "the program has ended", || has_ended(pid));
        let status = started.child.take().unwrap().wait().unwrap();
        assert_eq!(status.code(), None, "{network}: {status}");
        drop(held);
        wait_until(DEADLINE, "its endpoint has gone", || {
            site.daemon.json(&["status"])["endpoints"] == 0
        });
    }
    site.assert_nothing_is_left();
}
