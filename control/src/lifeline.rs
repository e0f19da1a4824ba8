//! The lifeline: a process that outlives a daemon which holds the host's own address.
//!
//! # Theory of operation
//! A daemon that moves the host's address to a port of its own starts the lifeline first: the same
//! program, in a process group of its own, with a pipe whose other end the daemon has. The daemon says
//! that it is done, or the pipe closes because it has died, however that came. Then the lifeline waits:
//! a daemon that comes back has locked the state, and a lifeline of its own. When none has come within
//! the time, the lifeline puts addresses and routes back on the NIC, as `causeway clean` would.
//!
//! SIGTERM ends the waiting and not the lifeline, so that a service manager which stops a whole control
//! group gives the host its address back at once. SIGKILL to both leaves the host without it until the
//! next start, or `causeway clean`.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::device::Devices;
use crate::engine;
use crate::error::Error;
use crate::link::Netlink;
use crate::netns::Netns;
use crate::store::Store;

/// The program that runs, also when its file was replaced by an upgrade.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// What a daemon says that needs no lifeline any more.
const DONE: &[u8] = b"done\n";
/// What the lifeline says when nothing ends it unheard.
const READY: &[u8] = b"ready\n";
/// How often the lifeline looks whether it is still needed while it waits.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A running lifeline, as its daemon holds it.
#[derive(Debug)]
pub struct Lifeline {
    child: Child,
    pipe: ChildStdin,
    within_seconds: u32,
}

impl Lifeline {
    /// Starts one that waits for so long when this process has died.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(state_dir: &Path, within_seconds: u32) -> Result<Self, Error> {
        let failed = |error| Error::io("start the lifeline", error);
        let mut child = Command::new(OWN_PROGRAM)
            .arg("lifeline")
            .arg("--state-dir")
            .arg(state_dir)
            .arg("--within")
            .arg(within_seconds.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A terminal's ^C is for the daemon.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let broken = || failed(std::io::ErrorKind::BrokenPipe.into());
        let pipe = child.stdin.take().ok_or_else(broken)?;
        let mut said = child.stdout.take().ok_or_else(broken)?;
        // Nothing is changed before a signal would find it waiting.
        let mut ready = [0; READY.len()];
        tokio::task::block_in_place(|| said.read_exact(&mut ready)).map_err(failed)?;
        Ok(Self {
            child,
            pipe,
            within_seconds,
        })
    }

    /// Whether it lives, and waits for at least so long.
    pub fn holds(&mut self, within_seconds: u32) -> bool {
        self.within_seconds >= within_seconds && matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it: there is nothing to give back.
    pub fn release(mut self) {
        if let Err(error) = self.pipe.write_all(DONE) {
            tracing::debug!(%error, "the lifeline has ended before");
        }
        // It ends by itself; somebody has to be told.
        let reaper = std::thread::Builder::new().name("lifeline".to_owned());
        if let Err(error) = reaper.spawn(move || self.child.wait()) {
            tracing::warn!(%error, "cannot wait for the lifeline's end");
        }
    }
}

/// Is the lifeline: waits for its daemon's end, and for another one's beginning.
///
/// # Errors
/// When the standard input is no pipe, or the state cannot be read.
pub async fn hold(state_dir: &Path, within_seconds: u32) -> anyhow::Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let pipe = pipe::Receiver::from_owned_fd(stdin)?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A terminal that goes away takes the daemon along, not us.
    let _hangup = signal(SignalKind::hangup())?;
    let _interrupt = signal(SignalKind::interrupt())?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush())?;
    let mut within = Duration::from_secs(within_seconds.into());
    loop {
        tokio::select! {
            said = read(&pipe) => match said {
                Said::Done => return Ok(()),
                Said::Nothing => break,
            },
            _ = terminate.recv() => within = Duration::ZERO,
        }
    }
    if wait_for_daemon(state_dir, within, &mut terminate).await == Waited::NotNeeded {
        return Ok(());
    }
    match Store::open(state_dir) {
        // The daemon that came back has a lifeline of its own.
        Err(crate::store::Error::Locked { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(store) => give_all_back(&store).await,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Done,
    Nothing,
}

#[derive(Debug, PartialEq, Eq)]
enum Waited {
    InVain,
    NotNeeded,
}

async fn read(pipe: &pipe::Receiver) -> Said {
    let mut bytes = [0; DONE.len()];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut bytes) {
            Ok(0) => return Said::Nothing,
            Ok(_) => return Said::Done,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Said::Nothing,
        }
    }
    Said::Nothing
}

/// Waits until the time is over, or somebody has cleaned up.
async fn wait_for_daemon(state_dir: &Path, within: Duration, terminate: &mut Signal) -> Waited {
    let end = Instant::now() + within;
    while Instant::now() < end && state_dir.exists() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY.min(within)) => {}
            _ = terminate.recv() => break,
        }
    }
    match state_dir.exists() {
        true => Waited::InVain,
        false => Waited::NotNeeded,
    }
}

async fn give_all_back(store: &Store) -> anyhow::Result<()> {
    let host = Netns::current()?;
    let devices = Devices {
        netlink: Netlink::open(&host)?,
        host,
        instance: store.instance().to_owned(),
        workers: 1,
        busy_poll_frames: None,
    };
    for (what, failed) in
        engine::give_nics_back(&devices, store, engine::Which::WithAddress).await?
    {
        tracing::warn!("no daemon came back, so {what} was given back to the host");
        for error in failed {
            tracing::error!(%error, "not as it was");
        }
    }
    Ok(())
}
