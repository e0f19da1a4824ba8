//! Which Debian package brings which system, and whether it is there.
//!
//! A package whose installation starts a daemon that changes the machine's network is not
//! installed: its programs are taken out of it, into a directory of the bench's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, io};

use super::{StartError, SystemName};

/// Where programs are that were taken out of a package, each in the directory of its package.
const TAKEN_DIR: &str = "/var/lib/causeway-bench";
/// The version of a package that programs were taken out of, beside them.
const TAKEN_VERSION: &str = "version";
/// Where Debian's packages have the programs that are taken out.
const TAKEN_FROM: &str = "usr/sbin";

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
    /// How the programs come here.
    way: Way,
}

/// How the programs of a package come to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The package is installed.
    Install,
    /// They are taken out of it.
    TakeOut,
}

const fn need(system: SystemName) -> Option<Need> {
    let (package, programs, version): (_, &[&str], &[&str]) = match system {
        SystemName::Causeway
        | SystemName::CausewayPacket
        | SystemName::CausewayPacketCalls
        | SystemName::CausewayXdp
        | SystemName::CausewayTapPlain
        | SystemName::Veth
        | SystemName::Bridge => return None,
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
    let way = match system {
        // Docker's daemon would set up a bridge and change the machine's rules.
        SystemName::DockerProxy => Way::TakeOut,
        _ => Way::Install,
    };
    Some(Need {
        package,
        programs,
        version,
        way,
    })
}

/// The version of a system that is here.
///
/// # Errors
/// [`StartError::Absent`] with the package that would bring it.
pub fn availability(name: SystemName) -> Result<String, StartError> {
    let Some(need) = need(name) else {
        return Ok(match name {
            ours if ours.is_causeway() => env!("CARGO_PKG_VERSION").to_owned(),
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
        let bring = match need.way {
            Way::Install => format!("install the Debian package {package} (or run with --install)"),
            Way::TakeOut => format!("--install takes it out of the Debian package {package}"),
        };
        return Err(StartError::Absent {
            system: name,
            reason: format!("no program '{missing}'; {bring}"),
        });
    }
    let version = package_version(need.package).or_else(|| taken_version(need.package));
    Ok(version.unwrap_or_else(|| said_version(&need)))
}

/// The version by the package manager: the most exact one.
fn package_version(package: &str) -> Option<String> {
    let mut command = Command::new("dpkg-query");
    let output = command.args(["-W", "-f", "${Version}", package]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!version.is_empty()).then(|| format!("{package} {version}"))
}

/// The version of the package that a program was taken out of.
fn taken_version(package: &str) -> Option<String> {
    let path = Path::new(TAKEN_DIR).join(package).join(TAKEN_VERSION);
    let version = fs::read_to_string(path).ok()?;
    Some(format!("{package} {}", version.trim()))
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

/// Where a program is; one that is installed comes first.
fn find(program: &str) -> Option<PathBuf> {
    let installed = PROGRAM_DIRS.iter().map(PathBuf::from);
    let packages = fs::read_dir(TAKEN_DIR).into_iter().flatten().flatten();
    let taken = packages.map(|package| package.path().join(TAKEN_FROM));
    let mut paths = installed.chain(taken).map(|dir| dir.join(program));
    paths.find(|path| path.is_file())
}

/// The path of a program that [`availability`] has found.
pub fn path(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| PathBuf::from(program))
}

/// Installs the Debian packages of those systems that are absent, or takes their programs out of
/// them, and returns the packages.
///
/// # Errors
/// What the package manager says.
pub fn install(names: &[SystemName]) -> io::Result<Vec<&'static str>> {
    let absent = names.iter().filter(|name| availability(**name).is_err());
    let mut needs: Vec<Need> = absent.filter_map(|name| need(*name)).collect();
    needs.sort_unstable_by_key(|need| need.package);
    needs.dedup_by_key(|need| need.package);
    let (whole, taken): (Vec<&Need>, Vec<&Need>) =
        needs.iter().partition(|need| need.way == Way::Install);
    let whole: Vec<&str> = whole.iter().map(|need| need.package).collect();
    if !whole.is_empty() {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&whole);
        run(&mut apt)?;
    }
    for need in taken {
        take_out(need, &Path::new(TAKEN_DIR).join(need.package))?;
    }
    Ok(needs.iter().map(|need| need.package).collect())
}

/// Takes the programs out of a package, which is downloaded and not installed, into `dir`.
fn take_out(need: &Need, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut download = Command::new("apt-get");
    run(download.args(["download", need.package]).current_dir(dir))?;
    let package = only_package(dir)?;
    unpack(need, &package, dir)?;
    fs::remove_file(package)
}

/// Unpacks the programs of a package, and notes its version.
fn unpack(need: &Need, package: &Path, dir: &Path) -> io::Result<()> {
    let mut version = Command::new("dpkg-deb");
    let version = run(version.arg("--field").arg(package).arg("Version"))?;
    let mut unpack = Command::new("dpkg-deb");
    let unpack = unpack.arg("--fsys-tarfile").arg(package);
    let mut unpacking = unpack.stdout(Stdio::piped()).spawn()?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--directory").arg(dir);
    tar.args(
        need.programs
            .iter()
            .map(|name| format!("./{TAKEN_FROM}/{name}")),
    );
    if let Some(bytes) = unpacking.stdout.take() {
        tar.stdin(bytes);
    }
    let extracted = tar.output();
    // Its end of the pipe closes with it, so that nobody waits for a reader that did not start.
    tar.stdin(Stdio::null());
    unpacking.wait()?;
    checked(&tar, &extracted?)?;
    fs::write(dir.join(TAKEN_VERSION), version)
}

/// The package that was downloaded into `dir`.
fn only_package(dir: &Path) -> io::Result<PathBuf> {
    let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    let mut paths = entries.iter().map(fs::DirEntry::path);
    let found = paths.find(|path| path.extension().is_some_and(|end| end == "deb"));
    found.ok_or_else(|| io::Error::other(format!("no package in {}", dir.display())))
}

/// Runs a command to its end; what it printed.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    checked(command, &output)
}

/// What a command printed, or why it failed.
fn checked(command: &Command, output: &Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let program = command.get_program().to_string_lossy();
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy());
    let arguments: Vec<_> = arguments.collect();
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program} {}: {}: {}; run 'apt-get update' when it knows no such package",
        arguments.join(" "),
        output.status,
        words.trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_that_are_needed_are_taken_out_of_a_package() {
        if find("dpkg-deb").is_none() {
            eprintln!("not tested: no dpkg-deb");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for (path, text) in [
            (
                "DEBIAN/control",
                "Package: relay\nVersion: 1.2-3\nArchitecture: all\nMaintainer: a <a@b>\n\
                 Description: relay\n",
            ),
            ("usr/sbin/relay", "the relay"),
            ("usr/sbin/daemon", "what nobody wants"),
        ] {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let package = dir.path().join("relay.deb");
        let mut build = Command::new("dpkg-deb");
        run(build.arg("--build").arg(&tree).arg(&package)).expect("a package");
        let need = Need {
            package: "relay",
            programs: &["relay"],
            version: &[],
            way: Way::TakeOut,
        };
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        unpack(&need, &package, &out).expect("it is unpacked");
        let read = |path: &str| fs::read_to_string(out.join(path)).ok();
        assert_eq!(read("usr/sbin/relay").as_deref(), Some("the relay"));
        assert_eq!(read("usr/sbin/daemon"), None);
        assert_eq!(read("version").as_deref(), Some("1.2-3\n"));
        let absent = Need {
            programs: &["another"],
            ..need
        };
        let error = unpack(&absent, &package, &out).expect_err("no such program");
        assert!(error.to_string().contains("usr/sbin/another"), "{error}");
    }
}
