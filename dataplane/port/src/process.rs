//! Programs that end with whoever has started them.

use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::Command;

/// Has a program end by SIGKILL when the thread ends that starts it, however that ends (prctl(2),
/// PR_SET_PDEATHSIG). So the thread has to stay until the program is at its end.
///
/// The kernel forgets this for a program that is set-user-ID, set-group-ID or has capabilities of its
/// own, and what the program starts is not concerned.
pub fn end_with_starter(command: &mut Command) {
    let starter = std::process::id();
    let settle = move || {
        // SAFETY: with these arguments prctl reads no memory and writes none.
        // JUSTIFICATION: the child itself has to call it, between fork and exec.
        let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        match parent_id() == starter {
            true => Ok(()),
            // Killed before it was in force.
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing, so it may run between fork and
    // exec of a process with several threads.
    // JUSTIFICATION: there is no other way into the child before its program.
    unsafe { command.pre_exec(settle) };
}
