//! The network namespaces of this machine, also those that nobody has named.
//!
//! The kernel has no list of them. A namespace lives by what refers to it, so all of that is looked
//! through: the processes in it, the mounts of nsfs that it has (names of `ip netns` among them), and the
//! descriptors that hold it open. What is looked at may end meanwhile, and what belongs to others cannot be
//! looked at by everybody; how many processes that were is told.
//!
//! Not seen: a namespace that only a mount of another mount namespace, a single thread of a process, a socket
//! or a device's parent refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::container;
use crate::netns::NAMED_DIR;

/// Where names of `ip netns` are, as mounts show them: the second leads to the first on most systems.
const NAMED_DIRS: [&str; 2] = [NAMED_DIR, "/var/run/netns"];

/// A name under [`NAMED_DIR`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The namespace's inode; `None` for a name that leads nowhere, as after a reboot.
    pub inode: Option<u64>,
}

/// A process that keeps a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// Its control group: of several hierarchies the one with the longest path.
    pub cgroup: String,
    /// Its container's id or name.
    pub container: Option<String>,
}

/// A namespace with all that refers to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its names in `ip netns`.
    pub names: BTreeSet<String>,
    /// Where else it is mounted.
    pub mounts: BTreeSet<PathBuf>,
    /// The processes in it, by id.
    pub processes: Vec<Process>,
    /// Processes in others that hold it open.
    pub holders: Vec<Process>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// By inode.
    pub namespaces: BTreeMap<u64, Found>,
    /// Processes that could not be looked into.
    pub hidden_processes: usize,
}

/// The names of `ip netns`, in order.
///
/// # Errors
/// When the directory is there and cannot be read.
pub fn named() -> io::Result<Vec<Named>> {
    let entries = match fs::read_dir(NAMED_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut named: Vec<Named> = entries
        .flatten()
        .map(|entry| Named {
            name: entry.file_name().to_string_lossy().into_owned(),
            inode: inode_at(&entry.path()),
        })
        .collect();
    named.sort();
    Ok(named)
}

/// The inode of the namespace at a path, which nobody need be able to enter.
pub fn inode_at(path: &Path) -> Option<u64> {
    let kind = statfs(path).ok()?.filesystem_type();
    (kind == NSFS_MAGIC).then_some(())?;
    Some(fs::metadata(path).ok()?.ino())
}

/// Looks for all namespaces.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn discover() -> io::Result<Discovery> {
    let mut all = Discovery::default();
    add_mounts(&mut all, &fs::read("/proc/self/mountinfo")?);
    for pid in pids()? {
        add_process(&mut all, pid);
    }
    Ok(all)
}

/// A path to each of these namespaces, where there is one: by a name, or by a process that is in it.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn paths_to(inodes: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for named in named()? {
        if let Some(inode) = named.inode.filter(|inode| inodes.contains(inode)) {
            found.insert(inode, Path::new(NAMED_DIR).join(named.name));
        }
    }
    for pid in pids()? {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let link = fs::read_link(&path).ok();
        let inode = link.and_then(|link| inode_of(link.as_os_str()));
        if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
            found.entry(inode).or_insert(path);
        }
    }
    Ok(found)
}

fn pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

fn add_mounts(all: &mut Discovery, mountinfo: &[u8]) {
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let Some((inode, path)) = mount_of(line) else {
            continue;
        };
        let found = all.namespaces.entry(inode).or_default();
        let named = NAMED_DIRS
            .iter()
            .find_map(|dir| path.strip_prefix(dir).ok());
        match named.and_then(Path::to_str) {
            Some(name) => found.names.insert(name.to_owned()),
            None => found.mounts.insert(path),
        };
    }
}

/// The namespace and the path of a line of mountinfo (proc_pid_mountinfo(5)), if it is one of nsfs.
fn mount_of(line: &[u8]) -> Option<(u64, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = fields.nth(3)?;
    let path = fields.next()?;
    let inode = inode_of(OsStr::from_bytes(root))?;
    Some((inode, PathBuf::from(OsStr::from_bytes(&unescape(path)))))
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// The inode that a link such as `net:[4026531840]` names.
fn inode_of(link: &OsStr) -> Option<u64> {
    let inside = link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
    inside.parse().ok()
}

fn add_process(all: &mut Discovery, pid: u32) {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let own = match fs::read_link(dir.join("ns/net")) {
        Ok(link) => inode_of(link.as_os_str()),
        Err(error) => {
            // It may as well have ended.
            all.hidden_processes += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
            return;
        }
    };
    let mut process = None;
    let mut describe = || process.get_or_insert_with(|| describe(pid, &dir)).clone();
    if let Some(inode) = own {
        let found = all.namespaces.entry(inode).or_default();
        found.processes.push(describe());
    }
    for inode in held_by(&dir) {
        if Some(inode) != own {
            let found = all.namespaces.entry(inode).or_default();
            found.holders.push(describe());
        }
    }
}

/// The namespaces that a process has open.
fn held_by(dir: &Path) -> BTreeSet<u64> {
    let descriptors = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| inode_of(link.as_os_str()))
        .collect()
}

fn describe(pid: u32, dir: &Path) -> Process {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let groups = read("cgroup");
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    Process {
        pid,
        program: read("comm").trim_end().to_owned(),
        cgroup: paths
            .max_by_key(|path| path.len())
            .unwrap_or_default()
            .to_owned(),
        container: container::of_groups(&groups).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_told_from_others_and_names_from_paths() {
        let mountinfo = br"24 30 0:22 / /proc rw,nosuid shared:13 - proc proc rw
417 26 0:4 net:[4026532281] /run/netns/blue rw shared:2 - nsfs nsfs rw
418 26 0:4 net:[4026532281] /var/run/netns/blue rw shared:2 - nsfs nsfs rw
419 26 0:4 net:[4026532282] /run/docker/netns/a\040b rw shared:2 - nsfs nsfs rw
420 26 0:4 mnt:[4026532283] /run/other rw - nsfs nsfs rw
";
        let mut all = Discovery::default();
        add_mounts(&mut all, mountinfo);
        let inodes: Vec<u64> = all.namespaces.keys().copied().collect();
        assert_eq!(inodes, [4_026_532_281, 4_026_532_282]);
        let found = &all.namespaces[&4_026_532_281];
        assert_eq!(found.names, ["blue".to_owned()].into());
        assert!(found.mounts.is_empty());
        let found = &all.namespaces[&4_026_532_282];
        assert_eq!(found.mounts, ["/run/docker/netns/a b".into()].into());
    }

    #[test]
    fn this_process_is_found_in_its_own_namespace() {
        let own = inode_at(Path::new("/proc/self/ns/net")).unwrap();
        let all = discover().unwrap();
        let processes = &all.namespaces[&own].processes;
        assert!(
            processes
                .iter()
                .any(|found| found.pid == std::process::id())
        );
        assert_eq!(inode_at(Path::new("/dev/null")), None);
    }
}
