//! The real program in a lab namespace: a daemon to drive, and a command line to drive it with.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{DEADLINE, Lab, Namespace, wait_until};

/// The program, as built beside the tests.
///
/// # Panics
/// When it was not built: `cargo test -p tests` alone does not; `tests/run` does.
pub fn binary() -> PathBuf {
    find_binary().expect("`causeway` lies beside the tests once `cargo build -p control` was run")
}

/// The program, if it was built beside this one.
pub fn find_binary() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    // A program lies in TARGET/PROFILE, a test in TARGET/PROFILE/deps.
    let mut beside = exe.ancestors().skip(1).take(2);
    let found = beside.find(|dir| dir.join("causeway").is_file())?;
    Some(found.join("causeway"))
}

/// A running daemon. It is stopped, and its traces cleaned away, when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    host: Namespace,
    dir: PathBuf,
    options: Vec<String>,
    socket: SocketOption,
    networks: FirstNetworks,
    means: Means,
    child: Option<Child>,
}

/// What networks a daemon has from its first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstNetworks {
    /// None: a test makes its own.
    None,
    /// Those that one without further options has.
    Usual,
}

/// What a daemon may have of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    All,
    /// No more locked memory than an ordinary process.
    LittleLockedMemory,
}

/// How a daemon is told of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketOption {
    CommandLine,
    ConfigurationFile,
}

impl Daemon {
    /// Starts a daemon that serves `host`.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn start(lab: &Lab, host: &Namespace, options: &[&str]) -> Self {
        Self::start_with(lab, host, options, SocketOption::CommandLine)
    }

    /// Starts a daemon that has the network `default`, as one without further options.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn start_as_usual(lab: &Lab, host: &Namespace, options: &[&str]) -> Self {
        let mut daemon = Self::of(lab, host, options, SocketOption::CommandLine);
        daemon.networks = FirstNetworks::Usual;
        daemon.restart();
        daemon
    }

    /// Starts a daemon whose configuration file names the socket, which is `socket` in the lab's
    /// directory.
    ///
    /// # Panics
    /// With its log, when it does not answer there.
    pub fn start_without_socket(lab: &Lab, host: &Namespace, options: &[&str]) -> Self {
        Self::start_with(lab, host, options, SocketOption::ConfigurationFile)
    }

    /// Starts a daemon with settings of the NAT, in a configuration file, and the uplink `up0`.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn start_with_nat(lab: &Lab, host: &Namespace, nat: &str) -> Self {
        let config = lab.dir().join("causeway.toml");
        std::fs::write(&config, format!("[nat]\n{nat}")).expect("a file in the lab's directory");
        let options = ["--uplink", "up0", "--config", path_text(&config)];
        Self::start(lab, host, &options)
    }

    /// Starts a daemon that may lock 64 KiB of memory, too little for AF_XDP.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn start_short_of_memory(lab: &Lab, host: &Namespace, options: &[&str]) -> Self {
        let mut daemon = Self::of(lab, host, options, SocketOption::CommandLine);
        daemon.means = Means::LittleLockedMemory;
        daemon.restart();
        daemon
    }

    fn start_with(lab: &Lab, host: &Namespace, options: &[&str], socket: SocketOption) -> Self {
        let mut daemon = Self::of(lab, host, options, socket);
        daemon.restart();
        daemon
    }

    fn of(lab: &Lab, host: &Namespace, options: &[&str], socket: SocketOption) -> Self {
        Self {
            host: host.clone(),
            dir: lab.dir().to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            socket,
            networks: FirstNetworks::None,
            means: Means::All,
            child: None,
        }
    }

    /// Starts it again, after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn restart(&mut self) {
        self.restart_without_waiting();
        self.wait();
    }

    /// Starts it again, and leaves it to the caller to wait.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub fn restart_without_waiting(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .expect("a log file");
        let mut command = match self.means {
            Means::All => Command::new(binary()),
            Means::LittleLockedMemory => {
                // Each becomes the next, so the process is the daemon's.
                let mut command = Command::new("setpriv");
                command
                    .args([
                        "--bounding-set=-ipc_lock",
                        "prlimit",
                        "--memlock=65536:65536",
                    ])
                    .arg(binary());
                command
            }
        };
        if self.socket == SocketOption::CommandLine {
            command.arg("--socket").arg(self.socket());
        }
        command
            .args(["daemon", "--debug-routes", "--state-dir"])
            .arg(self.state_dir())
            .args(match self.networks {
                FirstNetworks::None => &["--no-default-network"][..],
                FirstNetworks::Usual => &[],
            })
            .args(&self.options)
            .stdin(Stdio::null())
            .stderr(log);
        self.child = Some(self.host.start(&mut command));
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// With its log, when it does not.
    pub fn wait(&mut self) {
        let mut last = String::new();
        wait_until(DEADLINE, "the daemon answers", || {
            let child = self.child.as_mut().expect("it was started");
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let output = self.output(&["status"]);
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success()
        });
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Tells it to stop, and waits.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop(&mut self) {
        self.end(Signal::SIGTERM);
    }

    fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is ours");
        child.wait().expect("it is ours");
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The command line with these words, started in the daemon's namespace.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("--socket")
            .arg(self.socket())
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Runs the command line and returns what became of it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn output(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        let output = self.host.run(|| command.output());
        output.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Runs the command line and returns what it printed.
    ///
    /// # Panics
    /// With its message and the daemon's log, when it fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {error}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).expect("it prints UTF-8")
    }

    /// Runs the command line with `--json` and reads what it printed.
    ///
    /// # Panics
    /// When it fails, or prints something else.
    pub fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let text = self.run(&words);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?}: {e}: {text}"))
    }

    /// Runs the command line, which must fail with 1, and returns its message.
    ///
    /// # Panics
    /// When it succeeds, or fails otherwise.
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        error
    }

    /// Attaches a namespace and returns its first address, without the length.
    ///
    /// # Panics
    /// When it is refused.
    pub fn attach(&self, ns: &Namespace, network: &str, name: &str, more: &[&str]) -> String {
        let path = ns.path();
        let words = [&attach_words(&path, network, name)[..], more].concat();
        let made = self.json(&words);
        let address = made["addresses"][0].as_str().expect("it has an address");
        address.split('/').next().unwrap_or_default().to_owned()
    }

    /// Takes everything of ours off the host, and returns what was said.
    ///
    /// # Panics
    /// When something could not be removed.
    pub fn clean(&mut self) -> String {
        if self.child.is_some() {
            self.stop();
        }
        let state_dir = self.state_dir();
        self.run(&["clean", "--state-dir", path_text(&state_dir)])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let ended = child.kill().and_then(|()| child.wait());
            if let Err(error) = ended {
                eprintln!("cannot end the daemon: {error}");
            }
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// A listing without the sessions that published ports have at the moment.
pub fn without_sessions(mut listed: Value) -> Value {
    for object in listed.as_array_mut().into_iter().flatten() {
        let targets = object.get_mut("targets").and_then(Value::as_array_mut);
        for target in targets.into_iter().flatten() {
            target["live_sessions"].take();
        }
    }
    listed
}

/// The words that attach the namespace behind a path.
pub fn attach_words<'a>(path: &'a Path, network: &'a str, name: &'a str) -> [&'a str; 7] {
    let path = path_text(path);
    [
        "attach",
        "--netns",
        path,
        "--network",
        network,
        "--name",
        name,
    ]
}

/// A path that this lab has made is text.
pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("lab paths are UTF-8")
}
