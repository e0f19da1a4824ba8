//! Requests with more than one form, and what status tells: detaching by sandbox, publishing ranges
//! of any size, features, loads.

#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Lab, connect, require_root, wait_for};

/// How long publishing may take, however many ports it is, from the command to its answer, which
/// is given when every worker has the rule.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(1);
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

#[test]
fn an_endpoint_is_detached_by_its_sandbox_and_interface() {
    if !require_root("an_endpoint_is_detached_by_its_sandbox_and_interface") {
        return;
    }
    let lab = Lab::new("detach");
    let (host, a, empty) = (
        lab.namespace("host"),
        lab.namespace("a"),
        lab.namespace("empty"),
    );
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "first", &[]);
    daemon.attach(&a, "web", "second", &["--ifname", "eth1"]);
    let (a_path, empty_path) = (a.path(), empty.path());
    let (a_path, empty_path) = (path_text(&a_path), path_text(&empty_path));

    let other = daemon.refused(&["detach", "--netns", a_path, "--ifname", "eth7"]);
    assert!(
        other.contains("'eth7'") && other.contains(a_path),
        "{other}"
    );
    assert!(
        other.contains("choose with --ifname: eth0, eth1"),
        "{other}"
    );
    let nothing = daemon.refused(&["detach", "--netns", empty_path]);
    assert!(nothing.contains(empty_path), "{nothing}");
    assert!(
        nothing.contains("nothing of ours is attached there"),
        "{nothing}"
    );
    let missing = daemon.refused(&["detach", "--netns", "cw-demo-no-such"]);
    assert!(
        missing.contains("'cw-demo-no-such' does not exist"),
        "{missing}"
    );
    let dead = daemon.refused(&["detach", "--pid", "4294967295"]);
    assert!(dead.contains("no process 4294967295"), "{dead}");
    for wrong in [
        &["detach"][..],
        &["detach", "first", "--netns", a_path],
        &["detach", "--netns", a_path, "--pid", "1"],
        &["detach", "first", "--ifname", "eth0"],
    ] {
        assert_eq!(daemon.output(wrong).status.code(), Some(2), "{wrong:?}");
    }

    daemon.run(&["detach", "--netns", a_path]);
    let left =
        serde_json::from_str::<serde_json::Value>(&daemon.run(&["network", "inspect", "web"]))
            .unwrap();
    let names = |left: &serde_json::Value| left[0]["endpoints"][0]["name"].clone();
    assert_eq!(names(&left), "second");
    // By a process in the sandbox.
    let mut command = std::process::Command::new("cat");
    let mut process = a.start(command.stdin(std::process::Stdio::piped()));
    let pid = process.id().to_string();
    daemon.run(&["detach", "--pid", &pid, "--ifname", "eth1"]);
    drop(process.stdin.take());
    process.wait().unwrap();
    let left = daemon.json(&["status"]);
    assert_eq!(left["endpoints"], 0);
}

/// Covers: 60
#[test]
fn sixty_five_thousand_ports_are_one_rule() {
    if !require_root("sixty_five_thousand_ports_are_one_rule") {
        return;
    }
    let lab = Lab::new("range");
    let (host, outside) = lab.host_and_outside();
    let web = lab.namespace("web");
    host.set_sysctl(RESERVED, "70,1000-1010,65530");
    let mut daemon = Daemon::start_with_nat(&lab, &host, "port_first = 65024\n");
    let nat_only = "70,1000-1010,65024-65535";
    assert_eq!(host.sysctl(RESERVED), nat_only);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    let inside = daemon.attach(&web, "web", "web", &[]);

    // A program of the host has one of them: named, and nothing changes.
    let taken = host.run(|| TcpListener::bind("0.0.0.0:4711")).unwrap();
    let refused = daemon.refused(&["publish", "add", "1-65000:1-65000", "web"]);
    let owner = format!("(process {})", std::process::id());
    assert!(
        refused.contains("tcp port 4711 of all addresses"),
        "{refused}"
    );
    assert!(refused.contains(&owner), "{refused}");
    assert_eq!(host.sysctl(RESERVED), nat_only);
    drop(taken);

    let start = Instant::now();
    let made = daemon.json(&["publish", "add", "1-65000:1-65000", "web"]);
    let elapsed = start.elapsed();
    let _ = writeln!(
        io::stderr(),
        "publishing 65,000 ports took {} ms from the command to its answer",
        elapsed.as_millis()
    );
    assert!(elapsed < PUBLISH_TIME_MAX, "{elapsed:?}");
    assert_eq!(made["spec"], "1-65000:1-65000/tcp");
    assert_eq!(host.sysctl(RESERVED), "1-65000,65024-65535");
    assert_eq!(daemon.json(&["status"])["publications"], 1);
    let listed = daemon.run(&["port", "web"]);
    assert!(
        listed.starts_with("1-65000/tcp -> 0.0.0.0:1-65000\n"),
        "{listed}"
    );

    for port in [1, 4_711, 30_000, 65_000] {
        let address = SocketAddr::new(inside.parse().unwrap(), port);
        let listener = web.run(|| TcpListener::bind(address)).unwrap();
        let to: SocketAddr = format!("192.0.2.1:{port}").parse().unwrap();
        let client = outside.run(|| connect(DEADLINE, to));
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(
            peer,
            client.local_addr().unwrap(),
            "the client's address is kept"
        );
    }
    // No descriptor per port.
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    assert!(descriptors.count() < 300);

    // A crash and a start later it is the same, and withdrawing gives back what was before.
    daemon.kill();
    daemon.restart();
    assert_eq!(host.sysctl(RESERVED), "1-65000,65024-65535");
    daemon.run(&["publish", "rm", "1-65000:1-65000"]);
    assert_eq!(host.sysctl(RESERVED), nat_only);
    // With the endpoint goes its reservation.
    daemon.run(&["publish", "add", "2000-2999/udp", "web"]);
    daemon.run(&["publish", "add", "2000-2999:2000-2999/udp", "web"]);
    assert!(host.sysctl(RESERVED).contains("2000-2999"));
    daemon.run(&["detach", "web"]);
    assert_eq!(host.sysctl(RESERVED), nat_only);
    daemon.clean();
    assert_eq!(host.sysctl(RESERVED), "70,1000-1010,65530");
    let gone: SocketAddr = "192.0.2.1:30000".parse().unwrap();
    assert!(
        outside
            .run(|| TcpStream::connect_timeout(&gone, DEADLINE))
            .is_err()
    );
}

#[test]
fn what_the_kernel_refuses_is_listed_and_warned_of() {
    if !require_root("what_the_kernel_refuses_is_listed_and_warned_of") {
        return;
    }
    let lab = Lab::new("features");
    let (host, _outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let network = ["network", "create", "web", "--subnet", "10.88.0.0/24"];
    let options = ["--uplink", "up0"];
    let mut daemon = Daemon::start(&lab, &host, &options);
    daemon.run(&network);
    daemon.attach(&a, "web", "a", &[]);
    let status = daemon.json(&["status"]);
    let features = status["features"].as_array().unwrap();
    let of = |object: &str, feature: &str| {
        let found = features
            .iter()
            .find(|f| f["object"] == object && f["feature"] == feature);
        found.unwrap_or_else(|| panic!("{object}, {feature}: {status}"))
    };
    assert_eq!(of("host link causeway0", "device")["used"], "TAP");
    assert_eq!(of("endpoint 'a'", "offload")["replaced"], false);
    assert_eq!(of("uplink up0", "guard")["wanted"], "BPF program");
    daemon.clean();
    drop(daemon);

    // Without TAPs: a device file of that name which no driver serves, in mounts of its own.
    let bare = Lab::new("features-bare");
    let dir = bare.dir().join("devices");
    std::fs::create_dir(&dir).unwrap();
    std::thread::scope(|scope| {
        let start = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
            mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let device = dir.join("tun");
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mknod(&device, SFlag::S_IFCHR, mode, makedev(10, 254)).unwrap();
            mount(Some(&device), "/dev/net/tun", none, MsFlags::MS_BIND, none).unwrap();
            Daemon::start(&bare, &host, &options)
        };
        let mut daemon = scope.spawn(start).join().unwrap();
        daemon.run(&network);
        let status = daemon.json(&["status"]);
        let warning = "host link causeway0: device is veth instead of TAP, which this host refuses";
        assert_eq!(status["warnings"], serde_json::json!([warning]));
        let text = daemon.run(&["status"]);
        assert!(text.contains(&format!("warning: {warning}\n")), "{text}");
        daemon.clean();
    });
}

#[test]
fn status_tells_which_worker_and_port_is_busy() {
    if !require_root("status_tells_which_worker_and_port_is_busy") {
        return;
    }
    let lab = Lab::new("loads");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let options = ["--uplink", "none", "--workers", "2", "--waiting", "sleep"];
    let mut daemon = Daemon::start(&lab, &host, &options);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &["--backend", "tap-plain"]);
    let to = daemon.attach(&b, "web", "b", &[]);
    let socket = a.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect((to.as_str(), 9)).unwrap();
    let of = |status: &serde_json::Value, port: &str| {
        let loads = status["port_loads"].as_array().unwrap().clone();
        loads.into_iter().find(|load| load["port"] == port)
    };
    let busy = wait_for(DEADLINE, "a busy port in the status", || {
        for _ in 0..100 {
            // Nobody listens: the answers are errors of ICMP.
            let _ = socket.send(&[0; 100]);
        }
        let status = daemon.json(&["status"]);
        let load = of(&status, "a")?;
        (load["rx_frames_per_second"].as_f64()? > 10.0).then_some((status, load))
    });
    let (status, load) = busy;
    let share = |value: &serde_json::Value| value["busy"].as_f64().unwrap();
    assert!(share(&load) > 0.0 && share(&load) < 2.0, "{load}");
    assert!(load["rx_bytes_per_second"].as_f64() > load["rx_frames_per_second"].as_f64());
    let workers = status["worker_loads"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    assert!(
        workers.iter().all(|load| load["spinning"] == 0.0),
        "{status}"
    );
    let owner = load["worker"].as_u64().expect("one queue, one owner") as usize;
    assert!(share(&workers[owner]) > 0.0, "{status}");
    assert!(
        of(&status, "b").unwrap()["worker"].is_null(),
        "a queue on each"
    );
    let text = daemon.run(&["status"]);
    assert!(
        text.contains("worker 0: ") && text.contains(" % busy, "),
        "{text}"
    );
    wait_for(DEADLINE, "an idle port in the status", || {
        let status = daemon.json(&["status"]);
        let load = of(&status, "a")?;
        (load["rx_frames_per_second"] == 0.0).then_some(())
    });
    daemon.clean();
}
