//! `causeway demo` as its users start it: root, an ordinary user, somebody without the rights,
//! somebody who has seen enough half-way. Whatever happens, nothing is left behind.

#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use serde_json::Value;
use tests::daemon::binary;
use tests::lab::{DEADLINE, Lab, require_root, wait_for, wait_until};

/// The user and the group of nobody.
const NOBODY: u32 = 65_534;
const NO_TEXT: Option<&str> = None;

/// A copy of the program where anybody may run it, and a directory for temporary files beside it
/// that only this copy uses: what is in there afterwards was left behind.
struct Theatre {
    lab: Lab,
}

impl Theatre {
    fn open(name: &str) -> Self {
        let lab = Lab::new(name);
        set_mode(lab.dir(), 0o755);
        let theatre = Self { lab };
        // By a process of its own: a descriptor that writes the file here would be inherited by what
        // other tests start at the same time, and a file that is written cannot be run (ETXTBSY).
        let mut copy = Command::new("cp");
        let copied = copy.arg(binary()).arg(theatre.program()).status().unwrap();
        assert!(copied.success());
        set_mode(&theatre.program(), 0o755);
        fs::create_dir(theatre.temporary()).unwrap();
        set_mode(&theatre.temporary(), 0o1777);
        theatre
    }

    fn program(&self) -> PathBuf {
        self.lab.dir().join("causeway")
    }

    fn temporary(&self) -> PathBuf {
        self.lab.dir().join("tmp")
    }

    fn demo(&self, options: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.arg("demo").args(options);
        self.surround(&mut command);
        command
    }

    /// The demo by way of a program that takes rights away first.
    fn demo_by(&self, wrapper: &str, words: &[&str]) -> Command {
        let mut command = Command::new(wrapper);
        command.args(words).arg(self.program()).arg("demo");
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .env("TMPDIR", self.temporary())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Processes of this copy, whatever became of the file.
    fn processes(&self) -> Vec<String> {
        let program = self.program();
        let ours = |entry: &fs::DirEntry| {
            fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(ours);
        processes
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Namespaces without a name live as long as a process in them, so this is about them too.
    #[track_caller]
    fn assert_nothing_is_left(&self) {
        wait_until(DEADLINE, "every process has ended", || {
            self.processes().is_empty()
        });
        let files: Vec<_> = fs::read_dir(self.temporary()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mark = self.lab.dir().to_str().unwrap();
        assert!(!mounts.contains(mark), "{mounts}");
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn as_nobody(command: &mut Command) -> &mut Command {
    // Without supplementary groups: the standard library drops them with root's id.
    command.uid(NOBODY).gid(NOBODY)
}

/// Starts a command where `/dev/net/tun` has `mode`, in mounts of its own: the machine's device
/// is not touched.
fn spawn_with_tun(theatre: &Theatre, mode: u32, command: &mut Command) -> io::Result<Child> {
    let dir = theatre.lab.dir().join("devices");
    fs::create_dir_all(&dir)?;
    with_own_mounts(|| {
        mount(
            Some("tmpfs"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            NO_TEXT,
        )?;
        let device = dir.join("tun");
        let owner = Mode::from_bits_truncate(mode);
        mknod(&device, SFlag::S_IFCHR, owner, makedev(10, 200))?;
        set_mode(&device, mode);
        mount(
            Some(&device),
            "/dev/net/tun",
            NO_TEXT,
            MsFlags::MS_BIND,
            NO_TEXT,
        )?;
        command.spawn()
    })
}

/// Runs `work` on a thread with private mounts; what it starts inherits them.
fn with_own_mounts<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(NO_TEXT, "/", NO_TEXT, private, NO_TEXT)?;
            work()
        });
        thread.join().unwrap()
    })
}

#[track_caller]
fn assert_shown(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {error}\n{text}",
        output.status
    );
    assert_eq!(error, "");
    assert!(text.contains("7 scenes in "), "{text}");
    assert!(!text.contains("\n   NOT "), "{text}");
    text
}

/// Exactly one message, exit status 1, and nothing shown before.
#[track_caller]
fn assert_refused(output: &Output, message: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, message);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

/// Whether a tool of util-linux is here; if not, says which test goes without.
fn require_tool(tool: &str, test: &str) -> bool {
    let present = Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !present {
        let _ = writeln!(io::stderr(), "needs {tool}: {test}");
    }
    present
}

#[test]
fn root_sees_every_outcome() {
    if !require_root("root_sees_every_outcome") {
        return;
    }
    let theatre = Theatre::open("demo-root");
    let text = assert_shown(&theatre.demo(&[]).output().unwrap());
    assert!(text.contains("web is 10.1.0.2 by "), "{text}");
    theatre.assert_nothing_is_left();
}

#[test]
fn an_ordinary_user_sees_it_by_taps_where_the_device_is_open_to_all() {
    if !require_root("an_ordinary_user_sees_it_by_taps_where_the_device_is_open_to_all") {
        return;
    }
    let theatre = Theatre::open("demo-0666");
    let mut demo = theatre.demo(&[]);
    let child = spawn_with_tun(&theatre, 0o666, as_nobody(&mut demo)).unwrap();
    let text = assert_shown(&child.wait_with_output().unwrap());
    assert!(text.contains("web is 10.1.0.2 by tap\n"), "{text}");
    theatre.assert_nothing_is_left();
}

#[test]
fn an_ordinary_user_sees_it_by_veths_where_the_device_is_roots() {
    if !require_root("an_ordinary_user_sees_it_by_veths_where_the_device_is_roots") {
        return;
    }
    let theatre = Theatre::open("demo-0600");
    let mut demo = theatre.demo(&[]);
    let child = spawn_with_tun(&theatre, 0o600, as_nobody(&mut demo)).unwrap();
    let text = assert_shown(&child.wait_with_output().unwrap());
    let says_so = "/dev/net/tun cannot be opened (Permission denied (os error 13)): containers \
                   get a veth that the switch holds by AF_PACKET\n";
    assert!(text.contains(says_so), "{text}");
    assert!(text.contains("web is 10.1.0.2 by packet\n"), "{text}");
    theatre.assert_nothing_is_left();
}

#[test]
fn programs_get_an_object_per_line() {
    if !require_root("programs_get_an_object_per_line") {
        return;
    }
    let theatre = Theatre::open("demo-json");
    let output = theatre.demo(&["--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let kinds = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!(kinds("scene"), 7, "{text}");
    assert!(kinds("frame") >= 6 && kinds("note") > 0, "{text}");
    let outcomes = lines.iter().filter(|line| line["kind"] == "outcome");
    assert!(outcomes.clone().count() >= 15, "{text}");
    assert!(outcomes.clone().all(|line| line["shown"] == true), "{text}");
    let end = lines.last().unwrap();
    assert_eq!(
        (&end["kind"], &end["differing"]),
        (&"end".into(), &0.into())
    );
    assert!(end["seconds"].as_f64().unwrap() < 30.0, "{end}");
    theatre.assert_nothing_is_left();
}

#[test]
fn a_user_who_gets_no_user_namespace_is_told_so_in_one_message() {
    if !require_root("a_user_who_gets_no_user_namespace_is_told_so_in_one_message") {
        return;
    }
    let theatre = Theatre::open("demo-denied");
    let root = theatre.lab.dir().join("root");
    fs::create_dir(&root).unwrap();
    // In a changed root directory the kernel gives nobody a user namespace (unshare(2), EPERM).
    let mut demo = theatre.demo(&[]);
    let child = with_own_mounts(|| {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some("/"), &root, NO_TEXT, flags, NO_TEXT)?;
        nix::unistd::chroot(&root)?;
        as_nobody(&mut demo).spawn()
    });
    let output = child.unwrap().wait_with_output().unwrap();
    assert_refused(&output, &denied("Operation not permitted (os error 1)"));
    theatre.assert_nothing_is_left();
}

#[test]
fn a_user_who_may_have_no_user_namespace_more_is_told_so_in_one_message() {
    let test = "a_user_who_may_have_no_user_namespace_more_is_told_so_in_one_message";
    if !require_root(test) || !require_tool("unshare", test) {
        return;
    }
    let theatre = Theatre::open("demo-limit");
    // The limit is that of the user namespace, so the machine's own is not touched.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    let map = ["--user", "--map-user=65534", "--map-group=65534"];
    let words = [&map[..], &["--keep-caps", "sh", "-c", script]].concat();
    let output = theatre.demo_by("unshare", &words).output().unwrap();
    assert_refused(&output, &denied("No space left on device (os error 28)"));
    theatre.assert_nothing_is_left();
}

fn denied(cause: &str) -> String {
    format!(
        "causeway: an ordinary user needs a user namespace here, and the kernel refuses to create \
         one: {cause}\n  hint: run as root, or allow user namespaces (sysctls \
         user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)\n"
    )
}

#[test]
fn root_without_its_capabilities_is_told_which_in_one_message() {
    let test = "root_without_its_capabilities_is_told_which_in_one_message";
    if !require_root(test) || !require_tool("setpriv", test) {
        return;
    }
    let theatre = Theatre::open("demo-caps");
    for (dropped, lacks) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-all", "CAP_NET_ADMIN and CAP_NET_RAW and CAP_SYS_ADMIN"),
    ] {
        let (bounding, inherited) = (
            format!("--bounding-set={dropped}"),
            format!("--inh-caps={dropped}"),
        );
        let output = theatre
            .demo_by("setpriv", &[&bounding, &inherited])
            .output()
            .unwrap();
        let message = format!(
            "causeway: root lacks {lacks} here\n  hint: grant it, or run this as an ordinary \
             user, who gets a user namespace\n"
        );
        assert_refused(&output, &message);
    }
    theatre.assert_nothing_is_left();
}

/// A demo that is on, told as JSON.
struct Playing {
    child: Child,
    lines: io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Playing {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let lines = BufReader::new(stdout).lines();
        Self { child, lines }
    }

    /// Reads until a scene begins.
    #[track_caller]
    fn read_to_scene(&mut self, number: u64) {
        let begins = |line: &Value| line["kind"] == "scene" && line["number"] == number;
        let found = self
            .lines
            .by_ref()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .any(|line: Value| begins(&line));
        assert!(found, "scene {number} does not begin");
    }

    /// The daemon: its only child.
    fn daemon(&self) -> u32 {
        let parent = self.child.id();
        wait_for(DEADLINE, "the demo has a daemon", || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            processes
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .find(|pid| parent_of(*pid) == Some(parent))
        })
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for the end; the exit status, 128 and more for a signal, and what it complained of.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.lines);
        let mut error = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut error).unwrap();
        (self.child.wait().unwrap().code(), error)
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line?.trim().parse().ok()
}

#[test]
fn a_signal_half_way_leaves_nothing_behind() {
    if !require_root("a_signal_half_way_leaves_nothing_behind") {
        return;
    }
    let theatre = Theatre::open("demo-signal");
    for (signal, scene, status) in [
        (Signal::SIGINT, 1, 130),
        // The transfer: the demo sits in a blocking call.
        (Signal::SIGINT, 2, 130),
        (Signal::SIGTERM, 5, 143),
    ] {
        let mut playing = Playing::start(&mut theatre.demo(&["--json"]));
        playing.read_to_scene(scene);
        playing.signal(signal);
        assert_eq!(playing.end(), (Some(status), String::new()));
        theatre.assert_nothing_is_left();
    }
    // And an ordinary user's.
    let mut demo = theatre.demo(&["--json"]);
    let mut playing = Playing::start(as_nobody(&mut demo));
    playing.read_to_scene(3);
    playing.signal(Signal::SIGINT);
    assert_eq!(playing.end().0, Some(130));
    theatre.assert_nothing_is_left();
}

#[test]
fn a_daemon_that_dies_ends_the_demo_with_a_message() {
    if !require_root("a_daemon_that_dies_ends_the_demo_with_a_message") {
        return;
    }
    let theatre = Theatre::open("demo-dies");
    let mut playing = Playing::start(&mut theatre.demo(&["--json"]));
    playing.read_to_scene(1);
    let daemon = playing.daemon();
    let exe = fs::read_link(format!("/proc/{daemon}/exe")).unwrap();
    assert_eq!(exe, theatre.program());
    kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGKILL).unwrap();
    // Reading on, so that the demo does not end of a closed pipe.
    let rest: Vec<String> = playing.lines.by_ref().map(Result::unwrap).collect();
    assert!(!rest.iter().any(|line| line.contains("\"kind\":\"end\"")));
    let (status, error) = playing.end();
    assert_eq!(status, Some(1), "{error}");
    assert!(
        error.starts_with("causeway: the demo's daemon was ended by signal 9 (SIGKILL)"),
        "{error}"
    );
    theatre.assert_nothing_is_left();
}

#[test]
fn the_daemon_of_a_killed_demo_ends_too() {
    if !require_root("the_daemon_of_a_killed_demo_ends_too") {
        return;
    }
    let theatre = Theatre::open("demo-killed");
    let mut playing = Playing::start(&mut theatre.demo(&["--json"]));
    playing.read_to_scene(1);
    playing.signal(Signal::SIGKILL);
    assert_eq!(playing.end().0, None);
    wait_until(DEADLINE, "the daemon has ended", || {
        theatre.processes().is_empty()
    });
    // A directory remains of it, which nobody else can enter.
    let left: Vec<_> = fs::read_dir(theatre.temporary())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].metadata().unwrap().mode() & 0o777, 0o700);
}
