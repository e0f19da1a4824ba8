//! `causeway run` by an ordinary user.

#![allow(clippy::unwrap_used)]

mod program;
mod runs;

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tests::daemon::binary;
use tests::lab::{DEADLINE, block_on, ip, require_root, wait_until};

use program::*;
use runs::*;

/// The user and the group of nobody.
const NOBODY: u32 = 65_534;

/// The command line as an ordinary user has it.
fn as_nobody(site: &Site, words: &[&str]) -> Command {
    let program = site.lab.dir().join("causeway");
    if !program.exists() {
        fs::set_permissions(site.lab.dir(), Permissions::from_mode(0o755)).unwrap();
        // By a process of its own: a file that somebody writes cannot be run (ETXTBSY).
        let copied = Command::new("cp")
            .arg(binary())
            .arg(&program)
            .status()
            .unwrap();
        assert!(copied.success());
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(program);
    command
        .arg("--socket")
        .arg(site.daemon.socket())
        .args(words)
        .current_dir("/")
        .stdin(Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY);
    command
}

/// Covers: 15
#[test]
fn an_ordinary_user_runs_programs_in_sandboxes_of_its_own() {
    if !require_root("an_ordinary_user_runs_programs_in_sandboxes_of_its_own") {
        return;
    }
    let site = Site::new("run-user");
    let output = |words: &[&str]| {
        let mut command = as_nobody(&site, words);
        site.host.run(|| command.output()).unwrap()
    };
    let none = output(&[
        "run",
        "--network",
        "none",
        "--",
        "sh",
        "-c",
        "id -u; cat /proc/self/net/dev",
    ]);
    let text = String::from_utf8(none.stdout.clone()).unwrap();
    if text.is_empty() && none.status.code() == Some(125) {
        let error = String::from_utf8_lossy(&none.stderr);
        assert!(error.contains("user namespace"), "{error}");
        eprintln!("this kernel gives an ordinary user no user namespace: {error}");
        return;
    }
    assert!(text.starts_with("0\n") && text.contains("lo:"), "{none:?}");
    assert!(!text.contains("up0:"), "{text}");
    // The daemon's socket is root's, until root says otherwise.
    let denied = output(&["run", "--network", "web", "--", "true"]);
    let error = String::from_utf8_lossy(&denied.stderr);
    assert_eq!(denied.status.code(), Some(125), "{error}");
    assert!(error.contains("Permission denied"), "{error}");
    fs::set_permissions(site.daemon.socket(), Permissions::from_mode(0o666)).unwrap();
    let mut command = as_nobody(
        &site,
        &[
            "run",
            "--network",
            "web",
            "--name",
            "own",
            "-p",
            "8080:80",
            "--",
            "sleep",
            "600",
        ],
    );
    let started = Started {
        site: &site,
        child: Some(site.host.start(&mut command)),
    };
    let ns = site.sandbox("own");
    let _server = echo(&ns, "0.0.0.0:80");
    wait_until(DEADLINE, "it is published", || {
        site.published("own").len() == 1
    });
    assert_eq!(
        seen_address(&site.outside, "192.0.2.1:8080"),
        ip("192.0.2.2")
    );
    let reached = ns.run(|| TcpStream::connect_timeout(&"10.88.0.1:1".parse().unwrap(), DEADLINE));
    assert_eq!(
        reached.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert!(block_on(ns.netlink().link("eth0")).unwrap().is_some());
    drop(ns);
    started.end();
    let shown = output(&["run", "--network", "web", "--link", "nobody", "--", "true"]);
    assert_eq!(shown.status.code(), Some(125));
    let names = output(&[
        "run",
        "--network",
        "web",
        "--hostname",
        "mine",
        "--",
        "sh",
        "-c",
        "hostname; cat /etc/resolv.conf",
    ]);
    let text = String::from_utf8(names.stdout.clone()).unwrap();
    assert!(
        text.starts_with("mine\nnameserver 10.88.0.1\n"),
        "{names:?}"
    );
    // A sandbox of root's is not the user's to enter.
    let _api = site.start(&["--network", "web", "--name", "api"]);
    drop(site.sandbox("api"));
    let shared = output(&["run", "--network", "container:api", "--", "true"]);
    let error = String::from_utf8_lossy(&shared.stderr);
    assert_eq!(shared.status.code(), Some(125), "{error}");
}
