//! An address by DHCP for a sandbox, by the client that the host has, as pipework gets it.
//!
//! The client runs in the sandbox's network and the host's files, so it gets a script of ours that only
//! notes the lease: its own would write the host's `resolv.conf`. It ends once it has a lease, which
//! nobody renews.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use dataplane_core::addr::Prefix;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

/// In pipework's order.
const CLIENTS: [&str; 3] = ["udhcpc", "dhcpcd", "dhclient"];
/// Questions, and seconds between two of them: a server on a LAN answers the first.
const TRIES_MAX: &str = "15";
const TRY_SECONDS: &str = "1";

/// What a server gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address, with the subnet's length.
    pub address: Prefix,
    /// The router.
    pub router: Option<IpAddr>,
}

/// Asks for an address in a sandbox.
///
/// # Errors
/// When there is no client, or it got no lease.
pub fn ask(ns: &Netns, ifname: &str) -> anyhow::Result<Lease> {
    let Some((client, program)) = client() else {
        bail!(
            "no DHCP client was found in PATH; install one of {}, or give an address",
            CLIENTS.join(", ")
        );
    };
    let dir = Scratch::new()?;
    let noted = dir.0.join("lease");
    let script = dir.script(&noted)?;
    let mut command = Command::new(&program);
    let pid_file = dir.0.join("pid");
    match client {
        "udhcpc" => command
            .args([
                "-i",
                ifname,
                "-f",
                "-q",
                "-n",
                "-t",
                TRIES_MAX,
                "-T",
                TRY_SECONDS,
            ])
            .arg("-s")
            .arg(&script),
        "dhcpcd" => command
            .args(["-1", "-4", "-B", "-p", "-t", TRIES_MAX, "-c"])
            .arg(&script)
            .arg(ifname),
        _ => command
            .args(["-1", "-q", "-sf"])
            .arg(&script)
            .arg("-lf")
            .arg(dir.0.join("leases"))
            .arg("-pf")
            .arg(&pid_file)
            .arg(ifname),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let ended = ns.run(|| command.status())?;
    ended.with_context(|| format!("cannot start {}", program.display()))?;
    // dhclient goes on in the background, and would keep the sandbox alive.
    let left = fs::read_to_string(&pid_file).ok();
    if let Some(pid) = left.and_then(|text| text.trim().parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let text = fs::read_to_string(&noted).unwrap_or_default();
    read(&text).with_context(|| {
        format!("{client} got no lease by '{ifname}'; is there a DHCP server on the network?")
    })
}

/// The first client that is there.
fn client() -> Option<(&'static str, PathBuf)> {
    let path = std::env::var_os("PATH")?;
    CLIENTS.into_iter().find_map(|client| {
        let mut places = std::env::split_paths(&path).map(|dir| dir.join(client));
        Some((client, places.find(|place| place.is_file())?))
    })
}

/// Reads `ADDRESS MASK [ROUTER]...`, the mask as a length or in dots.
fn read(text: &str) -> Option<Lease> {
    let mut words = text.split_whitespace();
    let address: IpAddr = words.next()?.parse().ok()?;
    let mask = words.next()?;
    let len = match mask.parse::<u8>() {
        Ok(len) => len,
        Err(_) => {
            let mask: std::net::Ipv4Addr = mask.parse().ok()?;
            ipnet::ipv4_mask_to_prefix(mask).ok()?
        }
    };
    Some(Lease {
        address: Prefix::new(address, len),
        router: words.next().and_then(|router| router.parse().ok()),
    })
}

/// A directory that goes with the question.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!(
            "causeway-dhcp-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        );
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self(dir))
    }

    /// The script that clients call: udhcpc with a word, the others with `reason` in the environment.
    fn script(&self, noted: &Path) -> anyhow::Result<PathBuf> {
        let path = self.0.join("note");
        let noted = noted.display();
        let text = format!(
            "#!/bin/sh\n\
             case \"$1$reason\" in\n\
             bound|renew) echo \"$ip ${{mask:-$subnet}} $router\" >{noted} ;;\n\
             BOUND|RENEW|REBOOT|REBIND)\n\
             echo \"$new_ip_address $new_subnet_mask $new_routers\" >{noted} ;;\n\
             esac\n\
             exit 0\n"
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("causeway: cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_with_either_form_of_mask() {
        let expected = Lease {
            address: Prefix::new("192.168.7.9".parse().unwrap(), 24),
            router: Some("192.168.7.1".parse().unwrap()),
        };
        assert_eq!(read("192.168.7.9 24 192.168.7.1\n"), Some(expected));
        let two = "192.168.7.9 255.255.255.0 192.168.7.1 192.168.7.2\n";
        assert_eq!(read(two), Some(expected));
        let none = read("192.168.7.9 255.255.255.0 \n").unwrap();
        assert_eq!(none.router, None);
        for wrong in ["", "x 24", "192.168.7.9", "192.168.7.9 255.0.255.0"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
