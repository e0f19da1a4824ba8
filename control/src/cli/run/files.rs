//! What a program sees of the host beside the network: its resolver's file, its names, the host's name.
//!
//! The program's thread gets mount and UTS namespaces of its own where something differs, and only then. Files
//! are put over the host's by bind mounts of files that have no name any more.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use crate::config::RESOLV_CONF_DEFAULT;
use crate::names::ResolvConf;

/// The names that every program has, before any server is asked.
const HOSTS: &str = "/etc/hosts";
/// Longest name of a host (`__NEW_UTS_LEN` of the kernel).
const HOSTNAME_LEN_MAX: usize = 64;
const NO_TEXT: Option<&str> = None;

/// Addresses with their names.
pub type HostLine = (IpAddr, Vec<String>);

/// What is to be shown; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The servers of the resolver.
    pub servers: Vec<IpAddr>,
    /// Lines of `/etc/hosts`, before the host's own.
    pub hosts: Vec<HostLine>,
    /// The host's name.
    pub hostname: Option<String>,
}

impl Shown {
    /// Shows it to this thread, and to the programs that it starts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn show(&self) -> anyhow::Result<()> {
        if let Some(name) = &self.hostname {
            unshare(CloneFlags::CLONE_NEWUTS).context("cannot have a hostname of its own")?;
            sethostname(name).with_context(|| format!("cannot set the hostname '{name}'"))?;
        }
        if self.servers.is_empty() && self.hosts.is_empty() {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of its own")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NO_TEXT, "/", NO_TEXT, private, NO_TEXT)
            .context("cannot keep its mounts to itself")?;
        if !self.hosts.is_empty() {
            let own = fs::read_to_string(HOSTS).unwrap_or_default();
            put_over(HOSTS, &hosts_text(&self.hosts, &own))?;
        }
        if self.servers.is_empty() {
            return Ok(());
        }
        let own = fs::read_to_string(RESOLV_CONF_DEFAULT).unwrap_or_default();
        let conf = ResolvConf {
            servers: self.servers.clone(),
            search: ResolvConf::read(&own).search,
        };
        match put_over(RESOLV_CONF_DEFAULT, &conf.to_text()) {
            // Where there is none, resolvers ask this very machine, which has nothing there.
            Err(error) if Path::new(RESOLV_CONF_DEFAULT).exists() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Reads a name for the host.
///
/// # Errors
/// When it cannot be one.
pub fn hostname(text: &str) -> anyhow::Result<String> {
    let part = |part: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !part.is_empty() && part.bytes().all(good) && !part.starts_with('-') && !part.ends_with('-')
    };
    if text.len() > HOSTNAME_LEN_MAX || !text.split('.').all(part) {
        bail!(
            "'{text}' cannot be a hostname; write at most {HOSTNAME_LEN_MAX} letters, digits and '-', \
             parts separated by '.'"
        );
    }
    Ok(text.to_owned())
}

fn hosts_text(lines: &[HostLine], own: &str) -> String {
    let mut text = String::new();
    for (address, names) in lines {
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text + own
}

/// Puts a file over another one.
fn put_over(target: &str, text: &str) -> anyhow::Result<()> {
    let file = target.rsplit('/').next().unwrap_or_default();
    let path = std::env::temp_dir().join(format!("causeway-{file}-{}", std::process::id()));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let bound = mount(Some(&path), target, NO_TEXT, MsFlags::MS_BIND, NO_TEXT);
    // Without a name once it is mounted.
    fs::remove_file(&path)?;
    bound.with_context(|| format!("cannot put a file over {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_hosts_stand_before_the_hosts_own() {
        let lines = [(
            IpAddr::from([10, 88, 0, 2]),
            vec!["database".to_owned(), "db".to_owned()],
        )];
        let text = hosts_text(&lines, "127.0.0.1\tlocalhost\n");
        assert_eq!(text, "10.88.0.2\tdatabase db\n127.0.0.1\tlocalhost\n");
    }

    #[test]
    fn hostnames_are_labels_with_dots() {
        for good in ["web", "web-1.example", "0"] {
            assert_eq!(hostname(good).unwrap(), good);
        }
        for wrong in ["", ".", "a..b", "-a", "a-", "a b", "ä", &"x".repeat(65)] {
            assert!(hostname(wrong).is_err(), "{wrong:?}");
        }
    }
}
