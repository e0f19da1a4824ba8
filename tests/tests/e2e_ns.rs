//! Namespaces as an operator has them: made, named, found, exposed, attached to and removed, by this program
//! and by `ip netns` in turns.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use control::netns::{NAMED_DIR, Netns};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tests::daemon::{Daemon, binary, path_text};
use tests::lab::{Lab, Namespace, Running, block_on, require_root};

/// From the end of a namespace to the event that says that its endpoint is gone, when the machine is not
/// somebody else's at that moment.
const REMOVAL_SEEN_MAX: Duration = Duration::from_millis(100);
/// The same on a busy machine, as other tests make it: less than the time between two sweeps of the daemon, which
/// would find it too.
const REMOVAL_SEEN_LATE_MAX: Duration = Duration::from_secs(1);
/// Removals of each kind, the quickest of which counts, and how many more there are until one is quick enough.
const REMOVALS_MIN: usize = 3;
const REMOVALS_MAX: usize = 20;

/// A name of a namespace that no other test has; whatever has it at the end loses it.
struct Named(String);

impl Named {
    fn new(label: &str) -> Self {
        Self(format!("cw-{label}-{}", std::process::id()))
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMED_DIR).join(&self.0)
    }

    fn open(&self) -> Namespace {
        Namespace::new(&self.0, Netns::from_name(&self.0).unwrap())
    }

    fn inode(&self) -> u64 {
        Netns::from_name(&self.0).unwrap().id().inode()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.path().symlink_metadata().is_ok() {
            let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
            let _ = std::fs::remove_file(self.path());
        }
    }
}

/// The command line where no daemon is.
fn alone(words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(["--socket", "/nowhere/socket"]).args(words);
    command.stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn done(words: &[&str]) -> String {
    let output = alone(words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(words: &[&str]) -> String {
    let output = alone(words);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[track_caller]
fn ip_netns(words: &[&str]) -> String {
    let output = Command::new("ip")
        .arg("netns")
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "ip netns {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names that `ip netns list` prints.
fn listed_by_ip() -> Vec<String> {
    let text = ip_netns(&["list"]);
    let names = text.lines().filter_map(|line| line.split(" (id:").next());
    names.map(str::to_owned).collect()
}

/// What `ns ls` and `ns discover` say of a name or an inode.
fn entry(listed: &Value, is_meant: impl Fn(&Value) -> bool) -> Option<Value> {
    listed
        .as_array()
        .unwrap()
        .iter()
        .find(|one| is_meant(one))
        .cloned()
}

fn named_entry(listed: &Value, name: &str) -> Option<Value> {
    entry(listed, |one| one["name"] == name)
}

fn found(inode: u64) -> Value {
    let listed: Value = serde_json::from_str(&done(&["ns", "discover", "--json"])).unwrap();
    entry(&listed, |one| one["inode"] == inode).unwrap_or(Value::Null)
}

fn propagation(path: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut here = lines.filter(|fields| Path::new(fields[4]) == path);
    here.next().map(|fields| fields[6].to_owned())
}

/// Covers: 2, 3
#[test]
fn a_namespace_made_here_is_ip_netns_own_and_the_other_way_round() {
    if !require_root("a_namespace_made_here_is_ip_netns_own_and_the_other_way_round") {
        return;
    }
    let (ours, theirs) = (Named::new("ours"), Named::new("theirs"));
    done(&["ns", "add", &ours.0]);
    ip_netns(&["add", &theirs.0]);
    let by_ip = listed_by_ip();
    assert!(
        by_ip.contains(&ours.0) && by_ip.contains(&theirs.0),
        "{by_ip:?}"
    );
    let listed: Value = serde_json::from_str(&done(&["ns", "ls", "--json"])).unwrap();
    for named in [&ours, &theirs] {
        let wanted = json!({
            "name": named.0, "inode": named.inode(), "exposed": false, "endpoints": null,
        });
        assert_eq!(named_entry(&listed, &named.0), Some(wanted));
        let seen = ip_netns(&["exec", &named.0, "readlink", "/proc/self/ns/net"]);
        assert_eq!(seen.trim(), format!("net:[{}]", named.inode()));
        // Comes and goes in other mount namespaces as well.
        let shared = propagation(&named.path()).unwrap();
        assert!(shared.starts_with("shared:"), "{shared}");
    }
    let taken = refused(&["ns", "add", &theirs.0]);
    assert!(taken.contains("already exists"), "{taken}");
    ip_netns(&["del", &ours.0]);
    done(&["ns", "rm", &theirs.0]);
    let by_ip = listed_by_ip();
    assert!(
        !by_ip.contains(&ours.0) && !by_ip.contains(&theirs.0),
        "{by_ip:?}"
    );
    for named in [&ours, &theirs] {
        assert_eq!(propagation(&named.path()), None);
        assert!(!named.path().exists());
        let gone = refused(&["ns", "rm", &named.0]);
        assert!(gone.contains("does not exist"), "{gone}");
    }
}

/// Covers: 1, 5
#[test]
fn a_new_namespace_has_a_stack_of_its_own_with_lo_up_unless_told_otherwise() {
    if !require_root("a_new_namespace_has_a_stack_of_its_own_with_lo_up_unless_told_otherwise") {
        return;
    }
    let (up, down) = (Named::new("up"), Named::new("down"));
    done(&["ns", "add", &up.0]);
    done(&["ns", "add", &down.0, "--lo", "down"]);
    let reach = |named: &Named| {
        let ns = named.open();
        let server = ns.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap();
        let reached = ns.run(|| TcpStream::connect("127.0.0.1:8080"));
        drop(server);
        reached.map(drop).map_err(|error| error.kind())
    };
    assert_eq!(reach(&up), Ok(()));
    assert_eq!(reach(&down), Err(ErrorKind::NetworkUnreachable));
    let ns = up.open();
    assert!(ns.link("lo").up && !down.open().link("lo").up);
    // Nothing of the host's: no interface but what the kernel gives everyone, no route, no rule.
    let links = block_on(ns.netlink().links()).unwrap();
    assert!(
        links.iter().all(|link| link.loopback || !link.up),
        "{links:?}"
    );
    let routes = block_on(ns.netlink().routes()).unwrap();
    let lo = ns.link("lo").index;
    assert!(routes.iter().all(|route| route.link == lo), "{routes:?}");
    let sockets = ns
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))
        .unwrap();
    assert_eq!(sockets.lines().count(), 1, "only the heading: {sockets}");
}

/// Covers: 2
#[test]
fn names_that_cannot_be_are_refused_and_odd_ones_are_not() {
    if !require_root("names_that_cannot_be_are_refused_and_odd_ones_are_not") {
        return;
    }
    let long = "x".repeat(300);
    let inside = "a/b";
    for name in [
        "",
        ".",
        "..",
        inside,
        "../escaped",
        "/etc/hosts",
        "a\nb",
        &long,
    ] {
        for words in [
            vec!["ns", "add", name],
            vec!["ns", "rm", name],
            vec!["ns", "unexpose", name],
            vec!["ns", "expose", "1", name],
        ] {
            let error = refused(&words);
            assert!(
                error.contains("cannot name a network namespace"),
                "{words:?}: {error}"
            );
        }
    }
    assert!(Path::new("/etc/hosts").is_file());
    for odd in ["a b", "ö'\"$(x)", ".hidden", "255"] {
        let named = Named(format!("{odd}-{}", std::process::id()));
        done(&["ns", "add", &named.0]);
        assert!(listed_by_ip().contains(&named.0), "{odd}");
        done(&["ns", "rm", &named.0]);
        assert!(!named.path().exists(), "{odd}");
    }
    // What is left of a namespace after a reboot: a name that leads nowhere.
    let stale = Named::new("stale");
    std::fs::write(stale.path(), "").unwrap();
    let listed: Value = serde_json::from_str(&done(&["ns", "ls", "--json"])).unwrap();
    assert_eq!(
        named_entry(&listed, &stale.0).unwrap()["inode"],
        Value::Null
    );
    done(&["ns", "rm", &stale.0]);
    assert!(!stale.path().exists());
}

/// A process in a namespace that nobody has named.
fn hidden_process(ns: &Namespace) -> Running {
    Running(ns.start(Command::new("sleep").arg("600").stdin(Stdio::null())))
}

/// Covers: 16
#[test]
fn a_hidden_namespace_is_found_exposed_attached_and_hidden_again() {
    if !require_root("a_hidden_namespace_is_found_exposed_attached_and_hidden_again") {
        return;
    }
    let lab = Lab::new("hidden");
    let [host, a] = lab.namespaces(["host", "a"]);
    let process = hidden_process(&a);
    let (pid, inode) = (process.0.id(), a.netns().id().inode());
    let entry = found(inode);
    assert_eq!(
        (&entry["names"], &entry["own"]),
        (&json!([]), &json!(false))
    );
    assert_eq!(entry["processes"].as_array().unwrap().len(), 1, "{entry}");
    let within = &entry["processes"][0];
    assert_eq!(
        (&within["pid"], &within["program"]),
        (&json!(pid), &json!("sleep"))
    );
    let holders = entry["holders"].as_array().unwrap();
    assert!(
        holders.iter().any(|one| one["pid"] == std::process::id()),
        "{entry}"
    );

    let named = Named::new("hidden");
    let pid_text = pid.to_string();
    let path = done(&["ns", "expose", &pid_text, &named.0]);
    assert_eq!(path.trim(), path_text(&named.path()));
    assert_eq!(named.inode(), inode);
    assert!(listed_by_ip().contains(&named.0));
    assert_eq!(found(inode)["names"], json!([named.0]));
    let taken = refused(&["ns", "expose", &pid_text, &named.0]);
    assert!(taken.contains("already exists"), "{taken}");

    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.run(&[
        "attach",
        "--netns",
        &named.0,
        "--network",
        "n",
        "--name",
        "web",
    ]);
    let listed = daemon.json(&["ns", "ls"]);
    let wanted = json!({
        "name": named.0, "inode": inode, "exposed": true, "endpoints": ["web"],
    });
    assert_eq!(named_entry(&listed, &named.0), Some(wanted));
    let attached = daemon.run(&["ns", "discover"]);
    let line = attached
        .lines()
        .find(|line| line.starts_with(&inode.to_string()));
    let line = line.unwrap();
    for part in [&named.0, &format!("{pid} sleep"), "web"] {
        assert!(line.contains(part), "{line}");
    }
    let busy = daemon.refused(&["ns", "unexpose", &named.0]);
    assert!(busy.contains("causeway detach web"), "{busy}");
    daemon.run(&["detach", "web"]);
    daemon.run(&["ns", "unexpose", &named.0]);
    assert!(!named.path().exists());
    // The namespace has noticed nothing.
    assert_eq!(found(inode)["processes"][0]["pid"], pid);
    let gone = refused(&["ns", "unexpose", &named.0]);
    assert!(gone.contains("was not exposed"), "{gone}");
}

/// Covers: 16
#[test]
fn only_names_that_were_given_here_are_taken_away_again() {
    if !require_root("only_names_that_were_given_here_are_taken_away_again") {
        return;
    }
    let lab = Lab::new("foreign");
    let a = lab.namespace("a");
    let process = hidden_process(&a);
    let pid = process.0.id().to_string();
    let (theirs, ours) = (Named::new("foreign"), Named::new("moved"));
    ip_netns(&["add", &theirs.0]);
    let kept = refused(&["ns", "unexpose", &theirs.0]);
    assert!(kept.contains("was not exposed by causeway"), "{kept}");
    assert!(theirs.path().exists());
    // The name was removed behind our back, and somebody has taken it since.
    done(&["ns", "expose", &pid, &ours.0]);
    ip_netns(&["del", &ours.0]);
    ip_netns(&["add", &ours.0]);
    let kept = refused(&["ns", "unexpose", &ours.0]);
    assert!(kept.contains("leads to another namespace"), "{kept}");
    assert!(ours.path().exists());
    done(&["ns", "rm", &theirs.0, &ours.0]);
    for wrong in ["4294967295", "cafecafecafe"] {
        let error = refused(&["ns", "expose", wrong, &ours.0]);
        assert!(error.contains(wrong) && !ours.path().exists(), "{error}");
    }
}

/// Shows a command other control groups of processes than they have: files over those of /proc, in a
/// mount namespace of its own.
fn with_groups(lab: &Lab, groups: &[(u32, String)], mut command: Command) -> Output {
    let started = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            for (pid, text) in groups {
                let file = lab.dir().join(format!("cgroup-{pid}"));
                std::fs::write(&file, text).unwrap();
                let target = PathBuf::from(format!("/proc/{pid}/cgroup"));
                mount(Some(&file), &target, none, MsFlags::MS_BIND, none).unwrap();
            }
            command.output()
        });
        thread.join().unwrap()
    });
    started.unwrap()
}

/// Covers: 16
#[test]
fn a_container_is_attached_by_its_id() {
    if !require_root("a_container_is_attached_by_its_id") {
        return;
    }
    let lab = Lab::new("container");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let (one, two) = (hidden_process(&a), hidden_process(&b));
    let tail = "2c54a1f0c6786287e131c3852c58a2e01cc697a68231826813597e4994";
    let ids = [format!("4fa6e0{tail}"), format!("4fa6ff{tail}")];
    let groups = [
        (one.0.id(), format!("12:pids:/docker/{}\n0::/\n", ids[0])),
        (
            two.0.id(),
            format!("0::/machine.slice/libpod-{}.scope/container\n", ids[1]),
        ),
    ];
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let run = |words: &[&str]| with_groups(&lab, &groups, daemon.command(words));
    let attach = |id: &str| run(&["attach", "--network", "n", "--name", "c", "--container", id]);
    let both = attach("4fa6");
    let error = String::from_utf8(both.stderr).unwrap();
    assert!(error.contains("2 containers are '4fa6'"), "{error}");
    assert!(ids.iter().all(|id| error.contains(id)), "{error}");
    let nobody = attach("4fa7");
    let error = String::from_utf8(nobody.stderr).unwrap();
    assert!(error.contains("there is no container"), "{error}");
    for (ns, id) in [(&a, &ids[0][..8]), (&b, &ids[1])] {
        let done = attach(id);
        assert!(done.status.success(), "{done:?}");
        assert!(
            block_on(ns.netlink().link("eth0")).unwrap().is_some(),
            "{id}"
        );
        let discovered = run(&["ns", "discover", "--json"]);
        let listed: Value = serde_json::from_slice(&discovered.stdout).unwrap();
        let inode = ns.netns().id().inode();
        let entry = entry(&listed, |one| one["inode"] == inode).unwrap();
        assert!(
            entry["processes"][0]["container"]
                .as_str()
                .unwrap()
                .starts_with(id),
            "{entry}"
        );
        assert_eq!(entry["endpoints"], json!(["c"]));
        let done = run(&["detach", "--container", id]);
        assert!(done.status.success(), "{done:?}");
        assert!(
            block_on(ns.netlink().link("eth0")).unwrap().is_none(),
            "{id}"
        );
    }
}

/// Covers: 17
#[test]
fn the_end_of_a_namespace_is_seen_at_once_and_takes_its_endpoint_along() {
    if !require_root("the_end_of_a_namespace_is_seen_at_once_and_takes_its_endpoint_along") {
        return;
    }
    let lab = Lab::new("ends-seen");
    let (host, outside) = lab.host_and_outside();
    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let mut follower = daemon
        .command(&["events", "-f", "--json", "--kind", "endpoint_detached"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut events = BufReader::new(follower.0.stdout.take().unwrap());
    for (backend, how) in [
        ("tap", "dies"),
        ("packet", "dies"),
        ("xdp", "dies"),
        ("tap", "unnamed"),
        ("tap", "rm"),
        ("tap", "process"),
    ] {
        let mut times = Vec::new();
        for round in 0..REMOVALS_MAX {
            let named = Named::new(&format!("{backend}-{how}-{round}"));
            done(&["ns", "add", &named.0]);
            let ns = named.open();
            // A process keeps a namespace whose name is gone, and a name one whose process is.
            let mut process = ["unnamed", "process"]
                .contains(&how)
                .then(|| hidden_process(&ns));
            let pid = process.as_ref().map_or(0, |one| one.0.id()).to_string();
            let sandbox = match how {
                "process" => ["--pid", &pid],
                _ => ["--netns", &named.0],
            };
            let attach = [
                "attach",
                "--network",
                "n",
                "--name",
                "c",
                "--backend",
                backend,
            ];
            daemon.run(&[&attach[..], &sandbox].concat());
            daemon.run(&["publish", "add", "8080:80", "c"]);
            let server = ns.run(|| TcpListener::bind("0.0.0.0:80")).unwrap();
            let client = outside
                .run(|| TcpStream::connect("192.0.2.1:8080"))
                .unwrap();
            drop((server, client));
            assert_ne!(daemon.json(&["nat", "sessions"]), json!([]));
            drop(ns);
            let start = Instant::now();
            match how {
                "rm" => drop(daemon.run(&["ns", "rm", &named.0])),
                "process" => drop(process.take()),
                _ => drop(ip_netns(&["del", &named.0])),
            }
            let mut line = String::new();
            events.read_line(&mut line).unwrap();
            times.push(start.elapsed());
            assert!(line.contains("endpoint 'c' was detached"), "{line}");
            assert_eq!(daemon.json(&["publish", "ls"]), json!([]));
            assert_eq!(daemon.json(&["nat", "sessions"]), json!([]));
            assert_eq!(daemon.json(&["fdb", "show", "n"]), json!([]));
            // Its address is free at once.
            let view = &daemon.json(&["network", "ls"])[0];
            assert_eq!(view["endpoints"], json!([]), "{view}");
            let still_there = match (how, process) {
                ("process", _) => Some(named.open()),
                (_, Some(process)) => {
                    let netns = Netns::from_pid(process.0.id()).unwrap();
                    Some(Namespace::new(how, netns))
                }
                (_, None) => None,
            };
            if let Some(ns) = still_there {
                let left = block_on(ns.netlink().link("eth0")).unwrap();
                assert_eq!(
                    left.map(|link| link.name),
                    None,
                    "nothing of ours is left in it"
                );
            }
            if times.len() >= REMOVALS_MIN && times.iter().min() < Some(&REMOVAL_SEEN_MAX) {
                break;
            }
        }
        times.sort();
        println!("{backend}, {how}: {times:?}");
        let (quickest, slowest) = (times[0], times[times.len() - 1]);
        assert!(quickest < REMOVAL_SEEN_MAX, "{backend}, {how}: {times:?}");
        assert!(
            slowest < REMOVAL_SEEN_LATE_MAX,
            "{backend}, {how}: {times:?}"
        );
    }
    let links = block_on(host.netlink().links()).unwrap();
    assert!(
        links.iter().all(|link| !link.name.starts_with("cw")),
        "{links:?}"
    );
}
