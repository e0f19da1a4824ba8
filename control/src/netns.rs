//! Network namespaces: opening, creating, naming and entering them.
//!
//! `setns` and `unshare` change the calling thread, and a thread that comes back in another
//! namespace than it left is the worst kind of bug in a program like this. So every call of
//! either lives in this file and, [`enter_user_namespace`] and [`become_root`] aside, on a thread that ends with the
//! closure it was started for. [`Netns`] is an owned descriptor: the namespace lives at least as
//! long as the handle, and a handle can be shared between threads.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::link::Netlink;

/// Where `ip netns` keeps its namespaces.
pub const NAMED_DIR: &str = "/run/netns";
/// Longest name of a namespace: it is a file name (`NAME_MAX` of `limits.h`).
pub const NAME_LEN_MAX: usize = 255;

/// The namespace of the calling thread, whichever thread that is.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why a namespace could not be opened, created, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name under [`NAMED_DIR`].
    #[error(
        "network namespace '{0}' does not exist; create it with 'ip netns add {0}', \
         or pass the path of a namespace or a process id"
    )]
    UnknownName(String),
    /// Not a name that `ip netns` would take, or would not show in one line.
    #[error(
        "{0:?} cannot name a network namespace: write 1 to 255 characters, without '/' and control \
         characters, and neither '.' nor '..'"
    )]
    BadName(String),
    /// The name is in use.
    #[error("network namespace '{0}' already exists; remove it with 'ip netns del {0}'")]
    NameTaken(String),
    /// No process of that id.
    #[error("there is no process {0}; give the id of a running one")]
    UnknownProcess(u32),
    /// The path leads to something else.
    #[error("{} is not a network namespace; paths such as /run/netns/NAME and /proc/PID/ns/net are", .0.display())]
    NotANamespace(PathBuf),
    /// An ordinary user needs a user namespace and does not get one.
    #[error(
        "an ordinary user needs a user namespace here, and the kernel refuses to {action}: \
         {source}; run as root, or allow user namespaces (sysctls user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    UserNamespaceDenied {
        /// The step that was refused.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Root, but without what makes root able to work with namespaces.
    #[error(
        "root lacks {0} here; grant it, or run this as an ordinary user, who gets a user namespace"
    )]
    MissingCapabilities(String),
    /// The kernel refused.
    #[error("cannot {action} {object}: {source}{}", hint(.source))]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => "; run as root, or with CAP_SYS_ADMIN",
        Some(_) | None => "",
    }
}

fn refused(action: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let object = object.into();
    move |source| Error::Refused {
        action,
        object,
        source,
    }
}

/// What becomes of `lo` in a new namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// It is up, as programs expect it.
    Up,
    /// It is down, as the kernel makes it: nothing reaches 127.0.0.1.
    Down,
}

/// What makes two handles the same namespace: the inode of its file in nsfs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// The inode, as in the text of the symbolic link `/proc/PID/ns/net`.
    pub const fn inode(self) -> u64 {
        self.inode
    }
}

/// An open network namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    id: NetnsId,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Refused`] when `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::from_path(CURRENT)
    }

    /// A new namespace with `lo` up. It is gone when its last handle and its last process are.
    ///
    /// # Errors
    /// [`Error::Refused`] without `CAP_SYS_ADMIN`, or over `user.max_net_namespaces`.
    pub fn create_unnamed() -> Result<Self, Error> {
        let ns = Self::create_bare()?;
        ns.raise_loopback()?;
        Ok(ns)
    }

    /// A new namespace as the kernel makes it.
    fn create_bare() -> Result<Self, Error> {
        on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| refused("create", "a network namespace")(errno.into()))?;
            Self::current()
        })?
    }

    /// A new namespace under a name that `ip netns` lists and can remove.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NameTaken`], [`Error::Refused`].
    pub fn create_named(name: &str, loopback: Loopback) -> Result<Self, Error> {
        let path = named_path(name)?;
        // Before a namespace is made in vain.
        if path.symlink_metadata().is_ok() {
            return Err(Error::NameTaken(name.to_owned()));
        }
        let ns = match loopback {
            Loopback::Up => Self::create_unnamed()?,
            Loopback::Down => Self::create_bare()?,
        };
        ns.put_name(name)?;
        Ok(ns)
    }

    /// Gives a namespace a name that `ip netns` lists and can remove; it may have others.
    ///
    /// The name is a bind mount under [`NAMED_DIR`], which is made a shared mount first, as
    /// iproute2 does: processes in other mount namespaces then see the name come and go.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NameTaken`], [`Error::Refused`].
    pub fn put_name(&self, name: &str) -> Result<(), Error> {
        let path = named_path(name)?;
        fs::create_dir_all(NAMED_DIR).map_err(refused("create", NAMED_DIR))?;
        // The lock that `ip netns add` takes as well (iproute2 6.4, lib/namespace.c and
        // ip/ipnetns.c), so that two creators do not stack mounts on the directory.
        let _lock = lock_named_dir()?;
        share_named_dir()?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::NameTaken(name.to_owned()),
                _ => refused("create", path.display().to_string())(error),
            })?;
        let bind = || mount(Some(CURRENT), &path, NO_TEXT, MsFlags::MS_BIND, NO_TEXT);
        let bound = self.run(bind).and_then(|bound| {
            let failed = refused("mount", path.display().to_string());
            bound.map_err(|errno| failed(errno.into()))
        });
        if bound.is_err() {
            // The empty file would stay behind as a name that leads nowhere.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the name again");
            }
        }
        bound
    }

    /// Takes the name off a namespace, which lives on while anything else holds it.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::UnknownName`], [`Error::Refused`].
    pub fn remove_named(name: &str) -> Result<(), Error> {
        let path = named_path(name)?;
        if !path.exists() {
            return Err(Error::UnknownName(name.to_owned()));
        }
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: nothing is mounted there, for instance after a reboot. The file goes too.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => {
                return Err(refused("unmount", path.display().to_string())(errno.into()));
            }
        }
        fs::remove_file(&path).map_err(refused("remove", path.display().to_string()))
    }

    /// The namespace that `ip netns` knows by `name`.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::UnknownName`], [`Error::NotANamespace`], [`Error::Refused`].
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let path = named_path(name)?;
        Self::open(&path, || Error::UnknownName(name.to_owned()))
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// [`Error::UnknownProcess`], [`Error::Refused`].
    pub fn from_pid(pid: u32) -> Result<Self, Error> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Self::open(&path, || Error::UnknownProcess(pid))
    }

    /// The namespace behind a path.
    ///
    /// # Errors
    /// [`Error::NotANamespace`], [`Error::Refused`].
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let missing = || {
            let source = io::Error::from(io::ErrorKind::NotFound);
            refused("open", path.display().to_string())(source)
        };
        Self::open(path, missing)
    }

    fn open(path: &Path, missing: impl FnOnce() -> Error) -> Result<Self, Error> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(refused("open", path.display().to_string())(error)),
        };
        let object = || path.display().to_string();
        let kind = fstatfs(&file)
            .map_err(|errno| refused("examine", object())(errno.into()))?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(Error::NotANamespace(path.to_owned()));
        }
        let status = file.metadata().map_err(refused("examine", object()))?;
        let ns = Self {
            file: Arc::new(file),
            id: NetnsId {
                device: status.dev(),
                inode: status.ino(),
            },
        };
        // nsfs also holds mount, PID and other namespaces; entering tells them apart, and tells
        // now rather than half-way through an attach that the permission is missing.
        match ns.run(|| ()) {
            Ok(()) => Ok(ns),
            Err(Error::Refused { source, .. })
                if source.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                Err(Error::NotANamespace(path.to_owned()))
            }
            Err(other) => Err(other),
        }
    }

    /// The identity of the namespace.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// Sockets, TAP descriptors and files under `/proc/sys/net` that `work` opens belong to the
    /// namespace for good, whichever thread uses them later. A panic of `work` is the caller's.
    ///
    /// # Errors
    /// [`Error::Refused`] when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_new_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                let object = format!("network namespace {}", self.id.inode);
                refused("enter", object)(errno.into())
            })?;
            Ok(work())
        })?
    }

    /// Brings `lo` up, which a new namespace does not do by itself.
    fn raise_loopback(&self) -> Result<(), Error> {
        let failed = |source| refused("raise lo in", "a new network namespace")(source);
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(async {
                let netlink = Netlink::open_here()?;
                let lo = netlink.require("lo").await?;
                netlink.set_up(lo.index).await
            })
        })?
        .map_err(|error: crate::link::Error| failed(io::Error::other(error)))
    }
}

/// `None`, of the type that `mount` wants.
const NO_TEXT: Option<&str> = None;

fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(refused("start", "a thread"))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The path of a name.
///
/// # Errors
/// [`Error::BadName`].
pub fn named_path(name: &str) -> Result<PathBuf, Error> {
    let bad = name.is_empty()
        || name.len() > NAME_LEN_MAX
        || name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c.is_control());
    if bad {
        return Err(Error::BadName(name.to_owned()));
    }
    Ok(Path::new(NAMED_DIR).join(name))
}

fn lock_named_dir() -> Result<Flock<File>, Error> {
    let dir = File::open(NAMED_DIR).map_err(refused("open", NAMED_DIR))?;
    Flock::lock(dir, FlockArg::LockExclusive)
        .map_err(|(_, errno)| refused("lock", NAMED_DIR)(errno.into()))
}

fn share_named_dir() -> Result<(), Error> {
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(Some(""), NAMED_DIR, Some("none"), flags, NO_TEXT)
    };
    let result = match share() {
        // Not a mount point yet: it becomes one.
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NAMED_DIR), NAMED_DIR, Some("none"), flags, NO_TEXT).and_then(|()| share())
        }
        other => other,
    };
    result.map_err(|errno| refused("share the mount of", NAMED_DIR)(errno.into()))
}

/// Where the program runs after [`enter_user_namespace`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// The caller's namespaces, with the caller's rights.
    Own,
    /// A new user namespace, as its root.
    UserNamespace,
}

/// What a stage of namespaces takes: bits of `linux/capability.h`, with their names.
const CAPABILITIES_NEEDED: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
];

/// Refuses root without the capabilities that it is known for, as in most containers.
fn require_capabilities() -> Result<(), Error> {
    let path = "/proc/thread-self/status";
    let status = fs::read_to_string(path).map_err(refused("read", path))?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::MissingCapabilities(missing.join(" and ")))
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or_default();
    CAPABILITIES_NEEDED
        .into_iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| name)
        .collect()
}

/// Gives an ordinary user a network to be root of; root keeps its own.
///
/// Unshares the user, mount and network namespaces, maps the caller to root and mounts a private
/// tmpfs where named namespaces live, because the directory outside belongs to the real root.
/// Must be the first thing that `main` does: the kernel refuses with `EINVAL` once there is a
/// second thread (`unshare(2)`).
///
/// # Errors
/// [`Error::UserNamespaceDenied`] and [`Error::MissingCapabilities`] say what to change.
pub fn enter_user_namespace() -> Result<Privilege, Error> {
    if nix::unistd::geteuid().is_root() {
        require_capabilities()?;
        return Ok(Privilege::Own);
    }
    unshare_as_root(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(NO_TEXT, "/", NO_TEXT, private, NO_TEXT)
        .map_err(|errno| denied("make its mounts private")(errno.into()))?;
    // Without /run/netns there is nothing to mount over, and /run is not ours to add to.
    let target = if Path::new(NAMED_DIR).is_dir() {
        NAMED_DIR
    } else {
        "/run"
    };
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::empty(),
        NO_TEXT,
    )
    .map_err(|errno| denied("mount a tmpfs in it")(errno.into()))?;
    fs::create_dir_all(NAMED_DIR).map_err(refused("create", NAMED_DIR))?;
    Netns::current()?.raise_loopback()?;
    Ok(Privilege::UserNamespace)
}

/// Makes an ordinary user root of a user namespace, in the same mounts and network: namespaces that are
/// made from there are the user's own. Root stays as it is. Must come before any thread, as
/// [`enter_user_namespace`].
///
/// # Errors
/// [`Error::UserNamespaceDenied`].
pub fn become_root() -> Result<Privilege, Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Privilege::Own);
    }
    unshare_as_root(CloneFlags::empty())?;
    Ok(Privilege::UserNamespace)
}

// A kernel may also grant the namespace and no rights in it, hence one message for all steps.
fn denied(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::UserNamespaceDenied { action, source }
}

/// Makes a user namespace, and others, with the caller as its root.
fn unshare_as_root(others: CloneFlags) -> Result<(), Error> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | others)
        .map_err(|errno| denied("create one")(errno.into()))?;
    // A process may map only one group unless it gives up setgroups (user_namespaces(7)).
    for (path, line) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        fs::write(path, line).map_err(denied("map the user into it"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "a\nb"] {
            assert!(
                matches!(Netns::from_name(bad), Err(Error::BadName(_))),
                "{bad:?}"
            );
        }
        assert!(matches!(
            Netns::from_name(&"x".repeat(NAME_LEN_MAX + 1)),
            Err(Error::BadName(_))
        ));
    }

    #[test]
    fn capabilities_that_root_lacks_are_named() {
        let all = "Name:\tcauseway\nCapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(all).is_empty());
        let container = "CapEff:\t00000000a80425fb\n";
        assert_eq!(
            missing_capabilities(container),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
        );
    }

    #[test]
    fn what_is_missing_or_something_else_is_named() {
        let error = Netns::from_name("cw-no-such-namespace").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("'cw-no-such-namespace' does not exist")
        );
        assert!(matches!(
            Netns::from_pid(u32::MAX),
            Err(Error::UnknownProcess(_))
        ));
        assert!(matches!(
            Netns::from_path("/dev/null"),
            Err(Error::NotANamespace(_))
        ));
    }
}
