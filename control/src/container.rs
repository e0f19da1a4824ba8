//! Containers, as the control groups of processes show them.
//!
//! Engines name a group after the container's id: `/docker/ID`, `docker-ID.scope`,
//! `libpod-ID.scope`, `cri-containerd-ID.scope`, `/kubepods/…/ID`, `lxc.payload.NAME`. No engine is asked.

use std::collections::BTreeMap;
use std::fs;
use std::io;

/// The shortest part of an id that is taken for one; engines print twelve digits.
const ID_LEN_MIN: usize = 4;
/// Digits of a whole id.
const ID_LEN: usize = 64;
/// What engines put before an id.
const ID_PREFIXES: [&str; 5] = ["docker-", "libpod-", "crio-", "cri-containerd-", "nerdctl-"];
/// What engines put before a name.
const NAME_PREFIXES: [&str; 2] = ["lxc.payload.", "machine-"];

/// The container of control groups, as `/proc/PID/cgroup` lists them.
pub fn of_groups(groups: &str) -> Option<&str> {
    parts(groups).find_map(|part| match part {
        Part::Id(id) | Part::Name(id) => Some(id),
        Part::Plain(text) => (is_id(text) && text.len() == ID_LEN).then_some(text),
    })
}

/// The container of control groups, if it is the one that a word means: by its name, its id, or the
/// beginning of its id.
pub fn meant<'t>(groups: &'t str, word: &str) -> Option<&'t str> {
    parts(groups).find_map(|part| match part {
        Part::Id(text) | Part::Plain(text) => {
            let begins = is_id(word) && is_id(text) && text.starts_with(word);
            (!text.is_empty() && (begins || text == word)).then_some(text)
        }
        Part::Name(text) => (text == word).then_some(text),
    })
}

/// Every container that a word may mean, each with its first process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn find(word: &str) -> io::Result<BTreeMap<String, u32>> {
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Ended meanwhile, or somebody else's.
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if let Some(id) = meant(&groups, word) {
            let first = found.entry(id.to_owned()).or_insert(pid);
            *first = pid.min(*first);
        }
    }
    Ok(found)
}

/// A part of a group's path.
enum Part<'t> {
    /// What followed the prefix of an id.
    Id(&'t str),
    /// What followed the prefix of a name.
    Name(&'t str),
    /// A part without either.
    Plain(&'t str),
}

fn parts(groups: &str) -> impl Iterator<Item = Part<'_>> {
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let names = paths.flat_map(|path| path.split('/'));
    names.map(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let after = |prefixes: &[&str]| prefixes.iter().find_map(|p| name.strip_prefix(p));
        if let Some(id) = after(&ID_PREFIXES).filter(|id| is_id(id)) {
            return Part::Id(id);
        }
        match after(&NAME_PREFIXES).filter(|rest| !rest.is_empty()) {
            Some(rest) => Part::Name(rest),
            // Also what watches a container from outside: `libpod-conmon-ID`.
            None => Part::Plain(name),
        }
    })
}

fn is_id(text: &str) -> bool {
    text.len() >= ID_LEN_MIN && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
            format!("0::/kubepods/burstable/pod1/{ID}"),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
            format!("0::/user.slice/user-1000.slice/user@1000.service/nerdctl-{ID}.scope"),
        ] {
            assert_eq!(of_groups(&group), Some(ID), "{group}");
            for word in [ID, &ID[..12], &ID[..4]] {
                assert_eq!(meant(&group, word), Some(ID), "{group} {word}");
            }
            for other in ["", "4fa", "5fa6e0f0", "slice", "docker-4fa6"] {
                assert_eq!(meant(&group, other), None, "{group} {other}");
            }
        }
        let lxc = "0::/lxc.payload.web1/init.scope";
        assert_eq!(meant(lxc, "web1"), Some("web1"));
        assert_eq!(of_groups(lxc), Some("web1"));
        assert_eq!(meant(lxc, "web"), None);
        assert_eq!(meant("0::/lxc/web1", "web1"), Some("web1"));
        assert_eq!(meant("", "web1"), None);
    }

    #[test]
    fn what_is_beside_a_container_is_none() {
        for group in [
            format!("0::/machine.slice/libpod-conmon-{ID}.scope"),
            "0::/".to_owned(),
            "0::/system.slice/docker.service".to_owned(),
            "0::/user.slice/user-1000.slice/session-2.scope".to_owned(),
        ] {
            assert_eq!(of_groups(&group), None, "{group}");
            assert_eq!(meant(&group, ID), None, "{group}");
        }
    }
}
