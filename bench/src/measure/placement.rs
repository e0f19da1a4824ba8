//! Which CPUs the ends and the switch run on.

use std::io;

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
    match placement {
        Placement::Free => Ok(()),
        Placement::Together | Placement::Apart => pin(FIRST),
    }
}

/// Places the calling thread as a receiver.
///
/// # Errors
/// When there is no such CPU.
pub fn pin_receiver(placement: Placement) -> io::Result<()> {
    match placement {
        Placement::Free => Ok(()),
        Placement::Together => pin(FIRST),
        Placement::Apart => pin(SECOND),
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
