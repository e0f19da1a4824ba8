//! `/etc/netns/NAME/resolv.conf`: what `ip netns exec` shows a named namespace in place of the host's
//! own (ip-netns(8)).
//!
//! A file of ours begins with [`MARK`]. Any other is somebody's, and is neither changed nor removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::names::ResolvConf;
use crate::netns::NAMED_DIR;

/// Where iproute2 looks.
pub const NETNS_ETC: &str = "/etc/netns";
/// The first line of our files.
pub const MARK: &str = "# made by causeway for this namespace's endpoints; goes with them";

/// The name of a sandbox in `ip netns`, if it has one.
pub fn netns_name(sandbox: &Path) -> Option<&str> {
    let under = |dir: &str| sandbox.strip_prefix(dir).ok();
    let name = under(NAMED_DIR).or_else(|| under("/var/run/netns"))?;
    let name = name.to_str().filter(|name| !name.contains('/'));
    name.filter(|name| !name.is_empty() && *name != "." && *name != "..")
}

/// Makes a namespace's file say that; without servers, there is to be none. `false` when somebody
/// else's is there.
///
/// # Errors
/// What the kernel said.
pub fn put(etc: &Path, netns: &str, conf: &ResolvConf) -> io::Result<bool> {
    let dir = etc.join(netns);
    let path = dir.join("resolv.conf");
    match fs::read_to_string(&path) {
        Ok(text) if !text.starts_with(MARK) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A link, a directory, or no text: not ours.
        Err(_) => return Ok(false),
    }
    if conf.servers.is_empty() {
        return remove(&dir, &path).map(|()| true);
    }
    let text = format!("{MARK}\n{}", conf.to_text());
    fs::create_dir_all(&dir)?;
    // Whole or not at all, for a reader in between.
    let new = dir.join(".resolv.conf.causeway");
    fs::write(&new, text)?;
    fs::rename(&new, &path)?;
    Ok(true)
}

fn remove(dir: &PathBuf, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    // Somebody may keep other files there.
    let _ = fs::remove_dir(dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(server: &str) -> ResolvConf {
        ResolvConf {
            servers: vec![server.parse().unwrap()],
            search: Vec::new(),
        }
    }

    #[test]
    fn a_file_of_ours_comes_changes_and_goes_and_somebody_elses_stays() {
        let etc = std::env::temp_dir().join(format!("cw-etc-{}", std::process::id()));
        let path = etc.join("blue/resolv.conf");
        let none = ResolvConf::default();
        assert!(put(&etc, "blue", &none).unwrap());
        assert!(!etc.exists(), "nothing to take away");
        for server in ["10.88.0.1", "10.89.0.1"] {
            assert!(put(&etc, "blue", &conf(server)).unwrap());
            let wanted = format!("{MARK}\nnameserver {server}\noptions ndots:0\n");
            assert_eq!(fs::read_to_string(&path).unwrap(), wanted);
        }
        assert!(put(&etc, "blue", &none).unwrap());
        assert!(!etc.join("blue").exists());
        fs::create_dir_all(etc.join("blue")).unwrap();
        fs::write(&path, "nameserver 9.9.9.9\n").unwrap();
        for conf in [conf("10.88.0.1"), none] {
            assert!(!put(&etc, "blue", &conf).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 9.9.9.9\n");
        }
        fs::remove_dir_all(&etc).unwrap();
    }

    #[test]
    fn only_a_sandbox_that_ip_netns_knows_has_a_name() {
        for (path, name) in [
            ("/run/netns/blue", Some("blue")),
            ("/var/run/netns/blue", Some("blue")),
            ("/run/netns/a/b", None),
            ("/run/netns/..", None),
            ("/proc/7/ns/net", None),
        ] {
            assert_eq!(netns_name(Path::new(path)), name);
        }
    }
}
