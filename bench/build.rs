//! Tells the program what it was built with, for the manifest of its results.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let version = output.map_or_else(
        |_| String::from("unknown"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    println!("cargo::rustc-env=BENCH_RUSTC={version}");
    // .../target/PROFILE/build/bench-HASH/out: PROFILE says more than the variable of that name,
    // which knows only debug and release.
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let profile = Path::new(&out)
        .ancestors()
        .nth(3)
        .and_then(Path::file_name)
        .map_or_else(|| "unknown".into(), |name| name.to_string_lossy());
    println!("cargo::rustc-env=BENCH_PROFILE={profile}");
}
