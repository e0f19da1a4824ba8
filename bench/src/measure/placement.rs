//! Which CPUs the ends and the switch run on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::cpu;
use crate::scenario::Placement;
use crate::system::{System, Work};

/// The CPU of the sender, and of both ends when they are together.
const FIRST: usize = 0;
/// The CPU of the receiver when they are apart.
const SECOND: usize = 1;
/// Where `/proc/PID/stat` has the CPU that a thread ran on last, from 1 (proc_pid_stat(5)).
const LAST_CPU_FIELD: usize = 39;

/// Threads of a switch that were put on CPUs; they may go anywhere again when this is dropped.
pub struct Pinned(Vec<(Pid, CpuSet)>);

impl Pinned {
    /// Puts the switch on the CPUs that the ends leave free, when they are together and there are
    /// such CPUs.
    ///
    /// # Errors
    /// When a process of the switch is gone.
    pub fn switch(system: &System, placement: Placement) -> io::Result<Self> {
        let mut pinned = Self(Vec::new());
        if placement != Placement::Together {
            return Ok(pinned);
        }
        let mut others = sched_getaffinity(Pid::this())?;
        others.unset(FIRST)?;
        if (0..CpuSet::count()).all(|cpu| others.is_set(cpu) != Ok(true)) {
            return Ok(pinned);
        }
        for work in &system.work {
            let threads = match work {
                Work::Process { pid, .. } => cpu::threads(&pid.to_string(), "")?,
                Work::Threads { prefix, .. } => cpu::threads("self", prefix)?,
            };
            for thread in threads.into_iter().map(Pid::from_raw) {
                let before = match sched_getaffinity(thread) {
                    Ok(before) => before,
                    Err(Errno::ESRCH) => continue, // it has ended
                    Err(errno) => return Err(errno.into()),
                };
                sched_setaffinity(thread, &others)?;
                pinned.0.push((thread, before));
            }
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // It may have ended.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

/// Places the calling thread as a sender.
///
/// # Errors
/// When there is no such CPU.
pub fn pin_sender(placement: Placement) -> io::Result<()> {
    sender_cpu(placement).map_or(Ok(()), pin)
}

/// Places the calling thread as a receiver.
///
/// # Errors
/// When there is no such CPU.
pub fn pin_receiver(placement: Placement) -> io::Result<()> {
    receiver_cpu(placement).map_or(Ok(()), pin)
}

const fn sender_cpu(placement: Placement) -> Option<usize> {
    match placement {
        Placement::Free => None,
        Placement::Together | Placement::Apart => Some(FIRST),
    }
}

const fn receiver_cpu(placement: Placement) -> Option<usize> {
    match placement {
        Placement::Free => None,
        Placement::Together => Some(FIRST),
        Placement::Apart => Some(SECOND),
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// On which CPUs the ends and the switch run, by who it is: `pinned to 1`, or `free on 0-1, last
/// seen on 1`. Asked by the thread that measures, while the switch is as it was placed.
///
/// # Errors
/// When /proc cannot be read.
pub fn places(system: &System, placement: Placement) -> io::Result<BTreeMap<String, String>> {
    let (everywhere, _) = place(Path::new("/proc/thread-self"))?;
    let end = |cpu: Option<usize>| match cpu {
        None => format!("free on {everywhere}"),
        Some(cpu) => format!("pinned to {cpu}"),
    };
    let mut places = BTreeMap::from([
        ("sender".to_owned(), end(sender_cpu(placement))),
        ("receiver".to_owned(), end(receiver_cpu(placement))),
    ]);
    if system.work.is_empty() {
        let kernel = "in the kernel, mostly on the sender's CPU".to_owned();
        places.insert("switch".to_owned(), kernel);
    }
    for work in &system.work {
        let (name, pid, prefix) = match work {
            Work::Process { name, pid } => (name, pid.to_string(), ""),
            Work::Threads { name, prefix } => (name, "self".to_owned(), prefix.as_str()),
        };
        let (mut allowed, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for thread in cpu::threads(&pid, prefix)? {
            // It may have ended.
            if let Ok((cpus, last)) = place(Path::new(&format!("/proc/{pid}/task/{thread}"))) {
                allowed.insert(cpus);
                seen.insert(last);
            }
        }
        let free = allowed.contains(&everywhere);
        let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
        let (allowed, seen) = (list(allowed), list(seen));
        let place = match free {
            true => format!("free on {allowed}, last seen on {seen}"),
            false => format!("pinned to {allowed}"),
        };
        places.insert(name.clone(), place);
    }
    Ok(places)
}

/// The CPUs that a thread may run on, and the one that it ran on last, by its directory in /proc.
fn place(thread: &Path) -> io::Result<(String, String)> {
    let status = fs::read_to_string(thread.join("status"))?;
    let lines = status.lines();
    let allowed = lines.filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let stat = fs::read_to_string(thread.join("stat"))?;
    // The name before may hold anything; the first field behind it is the third of all.
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let last = fields.split(' ').nth(LAST_CPU_FIELD - 3);
    let (allowed, last) = (allowed.map(str::trim).next(), last.map(str::trim));
    let unread = || io::Error::other(format!("{} tells of no CPU", thread.display()));
    Ok((
        allowed.ok_or_else(unread)?.to_owned(),
        last.ok_or_else(unread)?.to_owned(),
    ))
}
