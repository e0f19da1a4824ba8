//! What operators have beside the switch itself: metrics, rights, logs, the doctor, the systemd unit.

#![allow(clippy::unwrap_used)]

mod program;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};

use control::rights;
use serde_json::Value;
use tests::daemon::{Daemon, binary, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};

use program::*;

/// Where metrics are served in these tests; each host is a namespace of its own.
const METRICS: &str = "127.0.0.1:9309";

/// Asks over a stream and returns the status line, the headers and the body.
fn ask(mut stream: impl Read + Write, path: &str) -> (String, String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: causeway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_lowercase(), body.to_owned())
}

fn ask_by_tcp(host: &Namespace, path: &str) -> (String, String, String) {
    host.run(|| ask(TcpStream::connect(METRICS).unwrap(), path))
}

/// Samples by their series, as `name{labels}`. Every family must have a meaning and a type.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("# TYPE ") {
            let (name, kind) = words.split_once(' ').unwrap();
            families.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(families.contains_key(name), "no type: {line}");
            let before = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "twice: {line}");
        }
    }
    samples
}

fn port_series(name: &str, port: &str) -> String {
    format!("causeway_{name}{{port=\"{port}\",role=\"endpoint\",network=\"web\"}}")
}

#[test]
fn metrics_are_what_the_listings_say_and_are_told_to_this_host_alone() {
    if !require_root("metrics_are_what_the_listings_say_and_are_told_to_this_host_alone") {
        return;
    }
    let lab = Lab::new("metrics");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    host.set_up("lo");
    let options = ["--uplink", "none", "--metrics", METRICS];
    let daemon = Daemon::start(&lab, &host, &options);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    daemon.attach(&b, "web", "b", &[]);
    let _server = echo(&b, "10.88.0.3:7000");
    assert_eq!(seen_address(&a, "10.88.0.3:7000"), ip("10.88.0.2"));

    let (status, headers, text) = ask_by_tcp(&host, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(headers.contains("text/plain; version=0.0.4"), "{headers}");
    let told = samples(&text);
    let listed = daemon.json(&["port", "ls"]);
    let listed = listed.as_array().unwrap().iter();
    for port in listed.filter(|port| port["role"] == "endpoint") {
        let name = port["name"].as_str().unwrap();
        for (metric, key) in [
            ("port_receive_frames_total", "rx_frames"),
            ("port_receive_bytes_total", "rx_bytes"),
            ("port_transmit_frames_total", "tx_frames"),
        ] {
            let value = told[&port_series(metric, name)];
            // More may have come between the two looks.
            let later = port[key].as_u64().unwrap() as f64;
            assert!(
                value > 0.0 && value <= later,
                "{name} {key}: {value}, {later}"
            );
        }
        assert_eq!(told[&port_series("port_up", name)], 1.0);
    }
    assert_eq!(told["causeway_objects{kind=\"endpoint\"}"], 2.0);
    assert!(
        told["causeway_frames_forwarded_total{verdict=\"bridged\"}"] > 0.0,
        "{text}"
    );

    // The same by the socket, and nothing else by the port.
    let by_socket = ask(UnixStream::connect(daemon.socket()).unwrap(), "/metrics");
    assert_eq!(by_socket.0, status);
    assert!(samples(&by_socket.2).len() >= told.len());
    let (status, _, body) = ask_by_tcp(&host, "/v1/status");
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    assert!(body.contains("nothing here but /metrics"), "{body}");

    let refused = started(&lab, &host, &["--metrics", "0.0.0.0:9309"]);
    assert!(refused.contains("loopback interface only"), "{refused}");
    let taken = started(&lab, &host, &["--metrics", METRICS]);
    assert!(taken.contains("cannot listen on 127.0.0.1:9309"), "{taken}");
}

/// Starts a second daemon, which must refuse, and returns its message.
fn started(lab: &Lab, host: &Namespace, options: &[&str]) -> String {
    let mut command = Command::new(binary());
    let (state, socket) = (lab.dir().join("state2"), lab.dir().join("socket2"));
    command
        .args(["--socket", path_text(&socket), "daemon", "--uplink", "none"])
        .args(["--state-dir", path_text(&state)])
        .args(options)
        .stdin(Stdio::null());
    let output = host.run(|| command.output()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_thread_of_the_daemon_has_only_the_rights_that_it_needs() {
    if !require_root("every_thread_of_the_daemon_has_only_the_rights_that_it_needs") {
        return;
    }
    let lab = Lab::new("rights");
    let [host, a] = lab.namespaces(["host", "a"]);
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    let bit = |capability: &caps::Capability| capability.bitmask();
    let kept: u64 = rights::KEPT.iter().map(bit).sum();
    // What this test has is what the daemon could have had.
    let ours = mask("/proc/self/status", "CapPrm:");
    assert_ne!(ours & !kept, 0, "there is something to give up");
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = task.unwrap().path().join("status");
        let status = path_text(&status);
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(mask(status, set), ours & kept, "{set} {status}");
        }
        assert_eq!(mask(status, "CapInh:"), 0);
        threads += 1;
    }
    assert!(threads > 3, "the workers are among them");
}

fn mask(path: &str, set: &str) -> u64 {
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(set));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

#[test]
fn the_socket_is_its_owners_or_a_groups() {
    if !require_root("the_socket_is_its_owners_or_a_groups") {
        return;
    }
    let lab = Lab::new("group");
    let host = lab.namespace("host");
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    let socket = std::fs::metadata(daemon.socket()).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    daemon.clean();

    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    let daemon = Daemon::start(
        &lab,
        &host,
        &["--uplink", "none", "--socket-group", "daemon"],
    );
    let socket = std::fs::metadata(daemon.socket()).unwrap();
    assert_eq!(
        (socket.permissions().mode() & 0o777, socket.gid()),
        (0o660, group.gid.as_raw())
    );
    let refused = started(&lab, &host, &["--socket-group", "no-such-group"]);
    assert!(
        refused.contains("there is no group 'no-such-group'"),
        "{refused}"
    );
}

#[test]
fn the_log_may_be_json_and_systemd_is_told_when_requests_are_answered() {
    if !require_root("the_log_may_be_json_and_systemd_is_told_when_requests_are_answered") {
        return;
    }
    let lab = Lab::new("log");
    let host = lab.namespace("host");
    let notify = lab.dir().join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(DEADLINE)).unwrap();
    let log = lab.dir().join("json.log");
    let socket = lab.dir().join("socket");
    let mut command = Command::new(binary());
    command
        .args(["--socket", path_text(&socket), "daemon", "--uplink", "none"])
        .args([
            "--log",
            "json",
            "--state-dir",
            path_text(&lab.dir().join("state")),
        ])
        .env("NOTIFY_SOCKET", &notify)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut child = host.start(&mut command);
    let mut said = [0; 64];
    let size = systemd.recv(&mut said).unwrap();
    assert_eq!(&said[..size], b"READY=1");
    // What was said is true: the next request is answered.
    let (status, ..) = ask(UnixStream::connect(&socket).unwrap(), "/v1/status");
    assert_eq!(status, "HTTP/1.1 200 OK");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    let log = std::fs::read_to_string(&log).unwrap();
    let lines = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
        line["message"].as_str().unwrap_or_default().to_owned()
    });
    let messages: Vec<String> = lines.collect();
    assert!(messages.contains(&"serving".to_owned()), "{messages:?}");
}

#[test]
fn the_unit_for_systemd_grants_what_the_daemon_keeps() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../control/systemd/causeway.service"
    );
    let unit = std::fs::read_to_string(path).unwrap();
    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    assert_eq!(granted, Some(&*rights::unit_words()));
    // The tool says only what is wrong with the program as it is installed here.
    let here = tempfile::tempdir().unwrap();
    let copy = here.path().join("causeway.service");
    let program = binary();
    let unit = unit.replace("/usr/local/bin/causeway", path_text(&program));
    std::fs::write(&copy, unit).unwrap();
    match Command::new("systemd-analyze")
        .args(["verify", path_text(&copy)])
        .output()
    {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && !said.contains("causeway.service"),
                "{said}"
            );
        }
        Err(error) => println!("not tested: systemd-analyze does not start: {error}"),
    }
}

#[test]
fn the_doctor_names_what_is_in_the_way_and_the_cure_works() {
    if !require_root("the_doctor_names_what_is_in_the_way_and_the_cure_works") {
        return;
    }
    let lab = Lab::new("doctor");
    let (host, _outside) = lab.host_and_outside();
    let a = lab.namespace("a");
    let alone = lab.namespace("alone");
    let socket = lab.dir().join("none");
    let mut command = Command::new(binary());
    command.args(["--socket", path_text(&socket), "doctor", "--json"]);
    let output = alone.run(|| command.output()).unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        finding(&findings, "daemon")["severity"],
        "warning",
        "{findings}"
    );
    assert_eq!(finding(&findings, "tun")["severity"], "ok", "{findings}");
    assert!(output.status.success(), "a warning is no problem");

    let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    let sound = daemon.json(&["doctor"]);
    for check in [
        "daemon",
        "uplink",
        "mtu",
        "pool-clash",
        "duplicate-mac",
        "limits",
        "enslaved",
    ] {
        assert_eq!(finding(&sound, check)["severity"], "ok", "{sound}");
    }

    host.set_mtu("up0", 1_400);
    // As a VPN that comes up later would.
    host.add_route("10.88.0.128/25", "192.0.2.2", "up0");
    wait_until(DEADLINE, "the doctor sees the route", || {
        let output = daemon.output(&["doctor"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let seen = text.contains("PROBLEM pool-clash: network 'web' (10.88.0.0/24) overlaps")
            && text
                .contains("WARNING mtu: network 'web' has an MTU of 1500, uplink up0 one of 1400")
            && text.contains("create it with --mtu 1400");
        assert!(seen || output.status.success(), "{text}");
        seen && output.status.code() == Some(1)
    });

    // The cure that is named is one.
    daemon.run(&["detach", "a"]);
    daemon.run(&["network", "rm", "web"]);
    daemon.run(&[
        "network",
        "create",
        "web",
        "--subnet",
        "10.88.0.0/24",
        "--no-host-link",
        "--mtu",
        "1400",
    ]);
    let cured = daemon.json(&["doctor"]);
    for check in ["mtu", "pool-clash"] {
        assert_eq!(finding(&cured, check)["severity"], "ok", "{cured}");
    }
}

/// Covers: 54
#[test]
fn the_doctor_sees_a_packet_filter_that_drops_what_is_forwarded() {
    if !require_root("the_doctor_sees_a_packet_filter_that_drops_what_is_forwarded") {
        return;
    }
    let lab = Lab::new("forward");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let rules = "add table ip filter; \
                 add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    let filtered = host.run(|| Command::new("nft").arg(rules).status());
    match filtered {
        Ok(status) => assert!(status.success()),
        Err(error) => return println!("not tested: nft does not start: {error}"),
    }
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "web", "a", &[]);
    daemon.attach(&b, "web", "b", &[]);
    let findings = daemon.json(&["doctor"]);
    let found = finding(&findings, "forward-policy");
    assert_ne!(found["severity"], "ok", "{findings}");
    let text = found["text"].as_str().unwrap();
    assert!(
        text.contains("ip filter FORWARD drops forwarded packets"),
        "{text}"
    );
    // It says that networks of Causeway are not concerned, and they are not.
    let _server = echo(&b, "10.88.0.3:7000");
    assert_eq!(seen_address(&a, "10.88.0.3:7000"), ip("10.88.0.2"));
}

fn finding<'a>(findings: &'a Value, check: &str) -> &'a Value {
    let all = findings.as_array().unwrap();
    let found = all.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("nothing of {check}: {findings}"))
}
