//! Starts a program in a sandbox and waits for it, passing signals on.
//!
//! The program ends with this process, also by SIGKILL. What the kernel looks at is the thread that has
//! started it, so that thread waits for the program's end.

use std::future::poll_fn;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::task::Poll;

use anyhow::Context;
use dataplane_port::process::end_with_starter;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio::sync::oneshot;

use super::files::Shown;
use crate::netns::Netns;

/// The exit status of a program that cannot be found, as shells have it.
const NOT_FOUND: u8 = 127;
/// The exit status of a program that cannot be started, as shells have it.
const NOT_STARTED: u8 = 126;
/// Added to a signal's number for the exit status, as shells do it.
const SIGNALLED: i32 = 128;
/// The signals that are passed on. Those by which a terminal stops and continues reach the program by
/// itself, and SIGKILL and SIGSTOP nobody passes on.
const PASSED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Starts a program in a namespace, or in the caller's, and waits for its end.
///
/// # Errors
/// When what it is to see cannot be shown to it.
pub async fn supervise(
    words: &[std::ffi::OsString],
    ns: Option<Arc<Netns>>,
    shown: Shown,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let (program, arguments) = words.split_first().context("no program was given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    end_with_starter(&mut command);
    let (told, started) = oneshot::channel();
    let life = move || -> anyhow::Result<io::Result<ExitStatus>> {
        shown.show()?;
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Err(error)),
        };
        // Whoever would be told is there: it waits for this thread's end.
        let _ = told.send(Pid::from_raw(child.id().cast_signed()));
        Ok(Ok(child.wait()?))
    };
    // The thread's namespaces are the program's alone, and end with it.
    let mut ended = tokio::task::spawn_blocking(move || match ns {
        Some(ns) => ns.run(life)?,
        None => match std::thread::spawn(life).join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    });
    let ended = match started.await {
        Ok(pid) => loop {
            let passed = tokio::select! {
                ended = &mut ended => break ended,
                signal = signals.next() => signal,
            };
            // It may have ended in this instant.
            let _ = kill(pid, passed);
        },
        // It was not started, and the thread says why.
        Err(_) => ended.await,
    };
    match ended.context("the waiting thread ended")?? {
        Ok(status) => Ok(ExitCode::from(exit_code(status))),
        Err(error) => {
            eprintln!("causeway: cannot start '{}': {error}", program.display());
            Ok(ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_STARTED,
            }))
        }
    }
}

/// The signals that are passed on, caught.
pub struct Signals(Vec<(Signal, UnixSignal)>);

impl Signals {
    /// Catches them from here on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn catch() -> anyhow::Result<Self> {
        let caught = PASSED.map(|passed| {
            let caught = signal(SignalKind::from_raw(passed as i32));
            Ok((passed, caught.context("cannot handle signals")?))
        });
        Ok(Self(
            caught.into_iter().collect::<anyhow::Result<Vec<_>>>()?,
        ))
    }

    /// The next one. A terminal sends SIGINT to the program as well; a second one does no harm.
    async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, caught) in &mut self.0 {
                if caught.poll_recv(context).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = match status.signal() {
        Some(signal) => SIGNALLED + signal,
        None => status.code().unwrap_or(1),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
