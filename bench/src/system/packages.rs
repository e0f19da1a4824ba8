//! Which Debian package brings which system, and whether it is there.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{StartError, SystemName};

/// Where programs of packages are; the search path of a service may lack `sbin`.
const PROGRAM_DIRS: [&str; 6] = [
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
];

/// What a system needs.
struct Need {
    /// The Debian package.
    package: &'static str,
    /// The programs that must be there.
    programs: &'static [&'static str],
    /// Asks the first program for its version.
    version: &'static [&'static str],
}

const fn need(system: SystemName) -> Option<Need> {
    let (package, programs, version): (_, &[&str], &[&str]) = match system {
        SystemName::Causeway | SystemName::Veth | SystemName::Bridge => return None,
        SystemName::Nft => ("nftables", &["nft"], &["--version"]),
        SystemName::OvsPacket | SystemName::OvsXdp => (
            "openvswitch-switch",
            &[
                "ovs-vswitchd",
                "ovsdb-server",
                "ovsdb-tool",
                "ovs-vsctl",
                "ovs-appctl",
            ],
            &["--version"],
        ),
        SystemName::Vde => ("vde2", &["vde_switch", "vde_plug2tap"], &["--version"]),
        SystemName::Pasta => ("passt", &["pasta"], &["--version"]),
        // It has no version of its own.
        SystemName::DockerProxy => ("docker.io", &["docker-proxy"], &[]),
    };
    Some(Need {
        package,
        programs,
        version,
    })
}

/// The version of a system that is here.
///
/// # Errors
/// [`StartError::Absent`] with the package that would bring it.
pub fn availability(name: SystemName) -> Result<String, StartError> {
    let Some(need) = need(name) else {
        return Ok(match name {
            SystemName::Causeway => env!("CARGO_PKG_VERSION").to_owned(),
            _ => format!(
                "Linux {}",
                std::fs::read_to_string("/proc/sys/kernel/osrelease")
                    .unwrap_or_default()
                    .trim()
            ),
        });
    };
    let missing = need.programs.iter().find(|name| find(name).is_none());
    if let Some(missing) = missing {
        let package = need.package;
        return Err(StartError::Absent {
            system: name,
            reason: format!(
                "no program '{missing}'; install the Debian package {package} (or run with \
                 --install)"
            ),
        });
    }
    Ok(package_version(need.package).unwrap_or_else(|| said_version(&need)))
}

/// The version by the package manager: the most exact one.
fn package_version(package: &str) -> Option<String> {
    let mut command = Command::new("dpkg-query");
    let output = command.args(["-W", "-f", "${Version}", package]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!version.is_empty()).then(|| format!("{package} {version}"))
}

/// The version by the program itself.
fn said_version(need: &Need) -> String {
    let said = find(need.programs[0])
        .filter(|_| !need.version.is_empty())
        .and_then(|program| Command::new(program).args(need.version).output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .and_then(|text| text.lines().next().map(str::to_owned));
    said.unwrap_or_else(|| "of unknown version".to_owned())
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    let paths = PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(program));
    let mut found = paths.filter(|path| path.is_file());
    found.next()
}

/// The path of a program that [`availability`] has found.
pub fn path(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| PathBuf::from(program))
}

/// Installs the Debian packages of those systems that are absent, and returns what was installed.
///
/// # Errors
/// What the package manager says.
pub fn install(names: &[SystemName]) -> io::Result<Vec<&'static str>> {
    let absent = names.iter().filter(|name| availability(**name).is_err());
    let mut packages: Vec<&str> = absent
        .filter_map(|name| need(*name).map(|need| need.package))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(packages);
    }
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&packages)
        .stdin(std::process::Stdio::null());
    let output = apt.output()?;
    if output.status.success() {
        return Ok(packages);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "apt-get install {}: {}: {}; run 'apt-get update' when it knows no such package",
        packages.join(" "),
        output.status,
        words.trim()
    )))
}
