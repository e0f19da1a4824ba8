//! Which sandbox a word means: a namespace's name or path, a process, or a container's id.
//!
//! A container is found by its processes' control groups, whose names engines make of its id:
//! `/docker/ID`, `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`, `lxc.payload.NAME`. No
//! engine is asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::netns::{NAMED_DIR, Netns};

/// The shortest part of an id that is taken for one; engines print twelve digits.
const ID_LEN_MIN: usize = 4;
/// What engines put before an id in the name of a control group.
const PREFIXES: [&str; 7] = [
    "docker-",
    "libpod-",
    "crio-",
    "cri-containerd-",
    "nerdctl-",
    "lxc.payload.",
    "machine-",
];

/// A sandbox, as the API takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A namespace by its name or path.
    Netns(String),
    /// That of a process.
    Pid(u32),
}

impl Guest {
    /// Finds what a word means.
    ///
    /// # Errors
    /// When it means nothing, or several containers.
    pub fn find(word: &str) -> anyhow::Result<Self> {
        if word.contains('/') {
            let path = std::path::absolute(word)?;
            return Ok(Self::Netns(path.display().to_string()));
        }
        if Path::new(NAMED_DIR).join(word).exists() {
            return Ok(Self::Netns(word.to_owned()));
        }
        if let Ok(pid) = word.parse()
            && Path::new("/proc").join(word).exists()
        {
            return Ok(Self::Pid(pid));
        }
        Ok(Self::Pid(process_of_container(word)?))
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is no namespace, or may not be entered.
    pub fn open(&self) -> anyhow::Result<Netns> {
        Ok(match self {
            Self::Netns(path) if path.contains('/') => Netns::from_path(path)?,
            Self::Netns(name) => Netns::from_name(name)?,
            Self::Pid(pid) => Netns::from_pid(*pid)?,
        })
    }
}

fn process_of_container(word: &str) -> anyhow::Result<u32> {
    // The first process of each container that fits.
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for entry in fs::read_dir("/proc")
        .context("cannot read /proc")?
        .flatten()
    {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Ended meanwhile, or somebody else's.
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if let Some(id) = container(&groups, word) {
            let first = found.entry(id.to_owned()).or_insert(pid);
            *first = pid.min(*first);
        }
    }
    let mut all = found.iter();
    match (all.next(), all.next()) {
        (Some((_, pid)), None) => Ok(*pid),
        (Some((one, _)), Some((two, _))) => bail!(
            "several containers are '{word}', {one} and {two} among them; give more of the id"
        ),
        (None, _) => bail!(
            "there is no container, process or network namespace '{word}'; give a name of `ip netns`, a \
             path, a process id, or the id that `docker ps` or `podman ps` prints"
        ),
    }
}

/// The container of control groups, as `/proc/PID/cgroup` lists them, if it is the one that is meant.
fn container<'t>(groups: &'t str, word: &str) -> Option<&'t str> {
    let lines = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let names = lines.flat_map(|path| path.split('/'));
    let ids = names.map(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let prefixes = PREFIXES.iter();
        let stripped = prefixes
            .filter_map(|prefix| name.strip_prefix(prefix))
            .next();
        stripped.unwrap_or(name)
    });
    let is_id =
        |word: &str| word.len() >= ID_LEN_MIN && word.bytes().all(|b| b.is_ascii_hexdigit());
    ids.into_iter().find(|id| {
        let part = is_id(word) && is_id(id) && id.starts_with(word);
        !id.is_empty() && (part || *id == word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

    #[test]
    fn containers_are_known_by_the_groups_that_engines_make() {
        for group in [
            format!("0::/docker/{ID}"),
            format!("0::/system.slice/docker-{ID}.scope"),
            format!("12:cpu,cpuacct:/kubepods/besteffort/pod1/cri-containerd-{ID}.scope\n0::/"),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
        ] {
            for word in [ID, &ID[..12], &ID[..4]] {
                assert_eq!(container(&group, word), Some(ID), "{group} {word}");
            }
            for other in ["", "4fa", "5fa6e0f0", "slice", "docker-4fa6"] {
                assert_eq!(container(&group, other), None, "{group} {other}");
            }
        }
        let lxc = "0::/lxc.payload.web1/init.scope";
        assert_eq!(container(lxc, "web1"), Some("web1"));
        assert_eq!(container(lxc, "web"), None);
        assert_eq!(container("0::/lxc/web1", "web1"), Some("web1"));
        assert_eq!(container("", "web1"), None);
    }

    #[test]
    fn what_means_nothing_is_named() {
        let error = Guest::find("cw-nobody").unwrap_err().to_string();
        assert!(
            error.contains("'cw-nobody'") && error.contains("docker ps"),
            "{error}"
        );
        let own = std::process::id();
        assert_eq!(Guest::find(&own.to_string()).unwrap(), Guest::Pid(own));
        let path = "/proc/self/ns/net";
        assert_eq!(Guest::find(path).unwrap(), Guest::Netns(path.to_owned()));
    }
}
