//! A program of a system: started with a log of its own, ended and reaped with its handle.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::Namespace;

/// How long a program may take to be ready, or to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Bytes of a program's log that an error shows: its last words.
const LOG_SHOWN_MAX: usize = 2_000;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside `ns`, in a process group of its own so that Ctrl-C reaches only the
    /// bench, which then ends it. Its standard input stays
    /// open and silent, what it prints goes to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// With its name, when it cannot be started.
    pub fn start(
        name: &str,
        ns: &Namespace,
        dir: &Path,
        command: &mut Command,
    ) -> Result<Self, String> {
        let log = dir.join(format!("{name}.log"));
        let mut start = || -> io::Result<Child> {
            let out = File::create(&log)?;
            command
                .stdin(Stdio::piped())
                .stdout(out.try_clone()?)
                .stderr(out)
                .process_group(0);
            ns.run(|| command.spawn())
        };
        let child = start().map_err(|error| format!("{name}: {error}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready`.
    ///
    /// # Errors
    /// With its last words, when it ends before, or is not ready in time.
    pub fn wait_until(
        &mut self,
        what: &str,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while !ready() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!(
                    "{} ended, {status}: {}",
                    self.name,
                    self.last_words()
                ));
            }
            if Instant::now() > end {
                let (name, words) = (&self.name, self.last_words());
                return Err(format!("{name}: waited {PATIENCE:?} for {what}: {words}"));
            }
            std::thread::park_timeout(LOOK_PAUSE);
        }
        Ok(())
    }

    /// Waits until it has done its work; what it printed.
    ///
    /// # Errors
    /// With its last words, when it fails or does not end in time.
    pub fn finish(mut self) -> Result<String, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let looked = self.child.try_wait();
            let (name, words) = (&self.name, || self.last_words());
            match looked {
                Ok(Some(status)) if status.success() => return Ok(words()),
                Ok(Some(status)) => return Err(format!("{name} failed, {status}: {}", words())),
                Ok(None) if Instant::now() < end => std::thread::park_timeout(LOOK_PAUSE),
                Ok(None) => return Err(format!("{name} does not end: {}", words())),
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text));
        if let Err(error) = read {
            return format!("{}: {error}", self.log.display());
        }
        let shown = text.len().saturating_sub(LOG_SHOWN_MAX);
        let shown = (shown..=text.len()).find(|at| text.is_char_boundary(*at));
        text[shown.unwrap_or(0)..].trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return; // its id may be another's by now
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let asked = kill(pid, Signal::SIGTERM);
        let end = Instant::now() + PATIENCE;
        while asked.is_ok() && Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => std::thread::park_timeout(LOOK_PAUSE),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // It does not listen. An error means that it has just ended; reaping is what is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
