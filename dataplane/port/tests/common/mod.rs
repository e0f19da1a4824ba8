//! Network namespaces for the tests of the kernel's backends.
//!
//! A test runs on a thread of its own in a namespace of its own, which vanishes with the thread
//! and everything in it. Nothing touches the machine's own interfaces.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Runs `test` in a fresh network namespace with loopback up and IPv6 off, so that the kernel
/// sends nothing by itself. Without root it says so and returns.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    // SAFETY: geteuid has no arguments and cannot fail.
    // JUSTIFICATION: std does not tell the user id.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let outcome = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; it moves this thread alone.
        // JUSTIFICATION: std does not enter namespaces.
        let returned = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(returned, 0, "{}", std::io::Error::last_os_error());
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            if std::path::Path::new(&path).exists() {
                std::fs::write(path, "1").unwrap();
            }
        }
        ip("link set lo up");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with the words of `arguments` in the calling thread's namespace.
#[track_caller]
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs `tc` like [`ip`] and returns what it printed.
#[allow(dead_code)]
#[track_caller]
pub fn tc(arguments: &str) -> String {
    run("tc", arguments)
}

/// Runs the program and arguments that are the words of `line`, and returns what it printed.
#[allow(dead_code)]
#[track_caller]
pub fn output_of(line: &str) -> String {
    let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
    run(program, arguments)
}

#[track_caller]
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
