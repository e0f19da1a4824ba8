//! What a run that was killed leaves behind, and how it is found and cleaned.
//!
//! # Theory of operation
//! The namespaces of a run have no names: they vanish with the last process that is in them or
//! holds them. What can be left over is therefore processes, the reference switches that a run
//! starts, and temporary directories. A run marks itself with an environment variable that tells
//! its process id and start time ([`mark_this_process`]), which every process that it starts
//! inherits, daemons included. A marked process whose owner is gone is a leftover. The start time
//! makes it safe against ids that the kernel uses again.
//!
//! Only processes that carry the mark are ever signalled.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable that marks the processes of a run.
const MARK: &str = "CAUSEWAY_BENCH_RUN";
/// How the temporary directories of a run begin; then come the owner's id and a number.
const DIR_PREFIX: &str = "cw-bench";
/// How long a killed process may take to be gone.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// A process that was started by a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its name.
    pub name: String,
    start: u64,
    namespace: Option<PathBuf>,
}

/// What one or more runs have left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes that still run.
    pub processes: Vec<Process>,
    /// Temporary directories.
    pub dirs: Vec<PathBuf>,
}

/// Marks this process, by replacing it with itself. Returns when it is marked, or could not be.
///
/// # Errors
/// Why it could not be replaced.
pub fn mark_this_process() -> io::Result<()> {
    let mark = own_mark()?;
    if std::env::var(MARK).is_ok_and(|found| found == mark) {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    Err(again
        .args(std::env::args_os().skip(1))
        .env(MARK, mark)
        .exec())
}

/// What dead runs have left behind.
pub fn of_dead_runs() -> Leftovers {
    let alive = |owner: &(i32, u64)| start_time(owner.0) == Some(owner.1);
    Leftovers {
        processes: processes(|owner| !alive(owner)),
        dirs: dirs(|pid| start_time(pid).is_none()),
    }
}

/// What this run has started and not stopped yet.
pub fn of_this_run() -> Leftovers {
    let own = std::process::id() as i32;
    Leftovers {
        processes: processes(|owner| owner.0 == own && start_time(own) == Some(owner.1))
            .into_iter()
            .filter(|process| process.pid != own)
            .collect(),
        dirs: dirs(|pid| pid == own),
    }
}

impl Leftovers {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.dirs.is_empty()
    }

    /// Kills and removes it all; what could not be.
    pub fn clean(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for process in &self.processes {
            if let Err(error) = process.end() {
                failures.push(format!("{} ({}): {error}", process.name, process.pid));
            }
        }
        for dir in &self.dirs {
            if let Err(error) = fs::remove_dir_all(dir) {
                failures.push(format!("{}: {error}", dir.display()));
            }
        }
        failures
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spaces: BTreeSet<_> = self.processes.iter().map(|p| &p.namespace).collect();
        let names: Vec<String> = self
            .processes
            .iter()
            .map(|process| format!("{} ({})", process.name, process.pid))
            .collect();
        if !names.is_empty() {
            write!(
                f,
                "{} processes in {} namespaces: {}",
                names.len(),
                spaces.len(),
                names.join(", ")
            )?;
        }
        if !self.dirs.is_empty() {
            let and = if names.is_empty() { "" } else { "; " };
            write!(f, "{and}{} temporary directories", self.dirs.len())?;
        }
        Ok(())
    }
}

impl Process {
    /// Kills it and waits until it is gone; a zombie, which its parent has yet to reap, is.
    fn end(&self) -> io::Result<()> {
        // The id may be somebody else's by now.
        if start_time(self.pid) != Some(self.start) {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        let end = Instant::now() + DEADLINE;
        while start_time(self.pid) == Some(self.start) {
            if Instant::now() > end {
                return Err(io::Error::other("it does not die"));
            }
            std::thread::park_timeout(PAUSE);
        }
        Ok(())
    }
}

fn own_mark() -> io::Result<String> {
    let own = std::process::id() as i32;
    let start = start_time(own).ok_or_else(|| io::Error::other("/proc is not mounted"))?;
    Ok(format!("{own}:{start}"))
}

/// When a process was started, in ticks since boot; `None` when it is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state follows it.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    let start = rest.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(start)
}

/// Every marked process whose owner is wanted.
fn processes(wanted: impl Fn(&(i32, u64)) -> bool) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if let Some(owner) = owner(pid)
            && wanted(&owner)
            && let Some(start) = start_time(pid)
        {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(Process {
                pid,
                name: name.trim().to_owned(),
                start,
                namespace: fs::read_link(entry.path().join("ns/net")).ok(),
            });
        }
    }
    found
}

/// The run that a process belongs to, by its environment.
fn owner(pid: i32) -> Option<(i32, u64)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{MARK}=");
    let variables = environment.split(|byte| *byte == 0);
    let mark = variables
        .filter_map(|variable| std::str::from_utf8(variable).ok())
        .find_map(|variable| variable.strip_prefix(&prefix))?;
    let (pid, start) = mark.split_once(':')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Temporary directories of labs of a run, by the id of its process.
fn dirs(wanted: impl Fn(i32) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    let ours = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let mut parts = name.rsplit('-');
        let pid = parts.nth(1).and_then(|pid| pid.parse().ok());
        name.starts_with(DIR_PREFIX) && pid.is_some_and(&wanted)
    });
    ours.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use ::tests::lab::{DEADLINE, wait_for};

    use super::*;

    /// A process with a mark, which ends with this one at the latest.
    fn marked(mark: &str) -> Child {
        let own = format!("--pid={}", std::process::id());
        let mut command = Command::new("tail");
        command.args(["-f", "/dev/null", &own]).env(MARK, mark);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("tail starts")
    }

    #[test]
    fn a_marked_process_of_a_dead_run_is_found_and_ended_and_others_are_left_alone() {
        // No process has an id this high.
        let mut orphan = marked("999999999:1");
        let mut alive = marked(&own_mark().unwrap());
        // A process has no environment yet while it is being replaced by its program.
        let only = |all: fn() -> Leftovers, child: &Child| {
            wait_for(DEADLINE, "the process to be found", || {
                let mut found = all();
                found.processes.retain(|p| p.pid == child.id() as i32);
                found.dirs.clear();
                Some(found).filter(|found| !found.is_empty())
            })
        };
        let dead = only(of_dead_runs, &orphan);
        let mine = only(of_this_run, &alive);
        let dead_too = of_dead_runs().processes;
        assert!(!dead_too.iter().any(|p| p.pid == alive.id() as i32));
        assert_eq!(dead.clean(), [""; 0]);
        assert_eq!(alive.try_wait().unwrap(), None, "it was left alone");
        assert_eq!(mine.clean(), [""; 0]);
        for child in [&mut orphan, &mut alive] {
            assert!(!child.wait().unwrap().success(), "it was killed");
        }
    }
}
