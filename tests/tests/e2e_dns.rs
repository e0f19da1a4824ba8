//! Names at a network's gateway, asked by sandboxes over real sockets: their own, each other's, and
//! those that a server outside knows.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::netns::{Loopback, Netns};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tests::daemon::{Daemon, path_text};
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};

/// What stub resolvers wait for: an answer must be there before.
const STUB_TIMEOUT: Duration = Duration::from_secs(5);
/// The gateways of the networks.
const WEB: &str = "10.88.0.1";
const WEB6: &str = "fd00:88::1";
const DB: &str = "10.89.0.1";
/// The server outside.
const SERVER: &str = "192.0.2.2";

/// A resolver of our own in a sandbox.
struct Client {
    socket: UdpSocket,
    id: u16,
}

impl Client {
    fn new(ns: &Namespace, gateway: &str) -> Self {
        let socket = ns.run(|| {
            let any = match gateway.contains(':') {
                true => "[::]:0",
                false => "0.0.0.0:0",
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((ip(gateway), 53)).unwrap();
            socket
        });
        socket.set_read_timeout(Some(STUB_TIMEOUT)).unwrap();
        Self { socket, id: 0 }
    }

    /// Asks by UDP; `None` when nothing comes.
    fn try_ask(&mut self, name: &str, rtype: RecordType) -> Option<Message> {
        self.id = self.id.wrapping_add(1);
        let mut buffer = [0; 4_096];
        // The error of an earlier question may be pending.
        let bytes = question(self.id, name, rtype);
        self.socket
            .send(&bytes)
            .or_else(|_| self.socket.send(&bytes))
            .ok()?;
        loop {
            let size = self.socket.recv(&mut buffer).ok()?;
            let answer = Message::from_vec(&buffer[..size]).unwrap();
            // The answer to one that was given up may come late.
            if answer.metadata.id == self.id {
                return Some(answer);
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, name: &str, rtype: RecordType) -> Message {
        self.try_ask(name, rtype)
            .unwrap_or_else(|| panic!("{name} {rtype}: silence"))
    }

    #[track_caller]
    fn addresses(&mut self, name: &str, rtype: RecordType) -> BTreeSet<IpAddr> {
        let answer = self.ask(name, rtype);
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        answer
            .answers
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect()
    }

    #[track_caller]
    fn code(&mut self, name: &str, rtype: RecordType) -> ResponseCode {
        let answer = self.ask(name, rtype);
        assert!(answer.answers.is_empty(), "{name}: {:?}", answer.answers);
        answer.metadata.response_code
    }
}

fn question(id: u16, name: &str, rtype: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    let mut edns = Edns::new();
    edns.set_max_payload(4_096);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

/// Asks by TCP.
fn ask_tcp(ns: &Namespace, gateway: &str, name: &str, rtype: RecordType) -> Message {
    let mut stream = ns.run(|| TcpStream::connect((ip(gateway), 53)).unwrap());
    stream.set_read_timeout(Some(STUB_TIMEOUT)).unwrap();
    let bytes = question(7, name, rtype);
    let size = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&size[..], &bytes].concat()).unwrap();
    Message::from_vec(&read_message(&mut stream).unwrap()).unwrap()
}

fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut size = [0; 2];
    stream.read_exact(&mut size)?;
    let mut message = vec![0; u16::from_be_bytes(size).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// A name server outside that knows every name under `example`, counts its questions, and can keep
/// silent. `large.example` has an answer of some 4,000 bytes, which it gives by TCP alone.
struct Server {
    asked: Arc<AtomicU64>,
    silent: Arc<AtomicBool>,
}

impl Server {
    fn start(ns: &Namespace) -> Self {
        let server = Self {
            asked: Arc::default(),
            silent: Arc::default(),
        };
        let (asked, silent) = (Arc::clone(&server.asked), Arc::clone(&server.silent));
        let (datagrams, connections) = ns.run(|| {
            let address: SocketAddr = (ip(SERVER), 53).into();
            (
                UdpSocket::bind(address).unwrap(),
                TcpListener::bind(address).unwrap(),
            )
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok((size, client)) = datagrams.recv_from(&mut buffer) {
                asked.fetch_add(1, Ordering::Relaxed);
                if !silent.load(Ordering::Relaxed) {
                    let mut answer = knows(&buffer[..size]);
                    if answer.answers.len() > 10 {
                        answer.answers.clear();
                        answer.metadata.truncation = true;
                    }
                    let _ = datagrams.send_to(&answer.to_vec().unwrap(), client);
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = connections.accept() {
                if let Ok(message) = read_message(&mut stream) {
                    let answer = knows(&message).to_vec().unwrap();
                    let size = u16::try_from(answer.len()).unwrap().to_be_bytes();
                    let _ = stream.write_all(&[&size[..], &answer].concat());
                }
            }
        });
        server
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn knows(question: &[u8]) -> Message {
    let question = Message::from_vec(question).unwrap();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    let query = question.queries[0].clone();
    let name = query.name.clone();
    let text = name.to_ascii().to_ascii_lowercase();
    let mut add = |data| {
        answer.add_answer(Record::from_rdata(name.clone(), 60, data));
    };
    match query.query_type {
        RecordType::A => add(RData::A(A([203, 0, 113, 5].into()))),
        RecordType::AAAA => add(RData::AAAA(AAAA("2001:db8::5".parse().unwrap()))),
        RecordType::TXT if text.starts_with("large.") => {
            for number in 0..20 {
                add(RData::TXT(TXT::new(vec![format!("{number:0>190}")])));
            }
        }
        _ => {}
    }
    if !text.ends_with("example.") {
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer.add_query(query);
    answer
}

/// A host with two networks, a server outside, and `web1`, `web2` on one and `db1` on the other.
struct Site {
    lab: Lab,
    host: Namespace,
    outside: Namespace,
    web: [Namespace; 2],
    db1: Namespace,
    daemon: Daemon,
}

impl Site {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (host, outside) = lab.host_and_outside();
        let [web1, web2, db1] = lab.namespaces(["web1", "web2", "db1"]);
        let options = ["--uplink", "up0", "--dns", SERVER];
        let daemon = Daemon::start(&lab, &host, &options);
        let subnets = ["--subnet", "10.88.0.0/24", "--subnet6", "fd00:88::/64"];
        daemon.run(&[&["network", "create", "web"][..], &subnets].concat());
        daemon.run(&["network", "create", "db", "--subnet", "10.89.0.0/24"]);
        daemon.attach(
            &web1,
            "web",
            "web1",
            &["--alias", "www", "--alias", "front"],
        );
        daemon.attach(&web2, "web", "web2", &["--alias", "www"]);
        daemon.attach(&db1, "db", "db1", &[]);
        Self {
            lab,
            host,
            outside,
            web: [web1, web2],
            db1,
            daemon,
        }
    }

    fn count(&self, label: &str) -> u64 {
        let stats = self.daemon.json(&["dns", "stats"]);
        let mut counts = stats["counts"].as_array().unwrap().iter();
        let found = counts.find(|count| count["label"] == label);
        found.unwrap_or_else(|| panic!("no {label}"))["count"]
            .as_u64()
            .unwrap()
    }
}

/// Covers: 47
#[test]
fn names_are_answered_both_ways_within_a_network_and_not_across() {
    if !require_root("names_are_answered_both_ways_within_a_network_and_not_across") {
        return;
    }
    let site = Site::new("dns-names");
    let [web1, web2] = &site.web;
    let first = BTreeSet::from([ip("10.88.0.2")]);
    let second = BTreeSet::from([ip("10.88.0.3")]);
    for gateway in [WEB, WEB6] {
        let (mut one, mut two) = (Client::new(web1, gateway), Client::new(web2, gateway));
        assert_eq!(two.addresses("WEB1.", RecordType::A), first);
        assert_eq!(one.addresses("web2.web.", RecordType::A), second);
        assert_eq!(one.addresses("front.", RecordType::A), first);
        let both = one.addresses("www.", RecordType::A);
        assert_eq!(both, &first | &second);
        let six = one.addresses("web2.", RecordType::AAAA);
        assert_eq!(six, BTreeSet::from([ip("fd00:88::3")]));
        assert_eq!(one.code("web2.", RecordType::MX), ResponseCode::NoError);
        for name in ["db1.", "db1.db."] {
            assert_eq!(one.code(name, RecordType::A), ResponseCode::NXDomain);
        }
        let reverse = one.ask("3.0.88.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(reverse.answers[0].data.to_string(), "web2.web.");
    }
    let mut db1 = Client::new(&site.db1, DB);
    assert_eq!(db1.code("web1.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(
        db1.code("2.0.88.10.in-addr.arpa.", RecordType::PTR),
        ResponseCode::NXDomain
    );
    let by_tcp = ask_tcp(web1, WEB, "web2.", RecordType::A);
    assert_eq!(by_tcp.answers[0].data.ip_addr(), Some(ip("10.88.0.3")));

    // The host is answered at the same address, by either transport.
    let mut host = Client::new(&site.host, WEB);
    assert_eq!(host.addresses("web1.", RecordType::A), first);
    let by_tcp = ask_tcp(&site.host, WEB6, "web2.", RecordType::A);
    assert_eq!(by_tcp.answers[0].data.ip_addr(), Some(ip("10.88.0.3")));
    // Who is outside is not, though the host's stack takes in what is for an address of its own.
    site.outside.add_route("10.88.0.0/24", "192.0.2.1", "eth0");
    let mut stranger = Client::new(&site.outside, WEB);
    let moment = Some(Duration::from_millis(300));
    stranger.socket.set_read_timeout(moment).unwrap();
    assert!(stranger.try_ask("web1.", RecordType::A).is_none());

    let listed = site.daemon.json(&["dns", "ls", "web"]);
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].clone())
        .collect();
    for name in ["web1", "web1.web", "www", "www.web", "front"] {
        assert!(
            names.iter().any(|listed| listed == name),
            "{name} in {names:?}"
        );
    }
    let why = site.daemon.json(&["dns", "why", "db1", "--from", "web1"]);
    assert_eq!(
        (&why["code"], &why["source"]),
        (&"NXDOMAIN".into(), &"missing".into())
    );
    let text = site.daemon.run(&["dns", "why", "web2", "--from", "web1"]);
    assert!(
        text.contains("NOERROR") && text.contains("10.88.0.3"),
        "{text}"
    );
    let why = site.daemon.run(&["why", "web1", WEB, "udp", "53"]);
    assert!(why.contains("delivered to the service: dns"), "{why}");
    let refused = site
        .daemon
        .refused(&["dns", "why", "x", "--from", "nobody"]);
    assert!(refused.contains("nobody"), "{refused}");
    // A name goes with its endpoint, and comes with the next.
    site.daemon.run(&["detach", "web2"]);
    let mut one = Client::new(web1, WEB);
    assert_eq!(one.addresses("www.", RecordType::A), first);
    site.daemon
        .attach(web2, "web", "db1-copy", &["--ip", "10.88.0.77"]);
    let copy = one.addresses("db1-copy.", RecordType::A);
    assert_eq!(copy, BTreeSet::from([ip("10.88.0.77")]));
}

/// Covers: 50
#[test]
fn other_names_are_asked_outside_and_a_dead_server_is_no_silence() {
    if !require_root("other_names_are_asked_outside_and_a_dead_server_is_no_silence") {
        return;
    }
    let site = Site::new("dns-upstream");
    let server = Server::start(&site.outside);
    let [web1, web2] = &site.web;
    let mut one = Client::new(web1, WEB);
    for (rtype, address) in [
        (RecordType::A, "203.0.113.5"),
        (RecordType::AAAA, "2001:db8::5"),
    ] {
        let found = one.addresses("www.example.", rtype);
        assert_eq!(found, BTreeSet::from([ip(address)]));
    }
    assert_eq!(server.asked(), 2);
    let mut two = Client::new(web2, WEB6);
    two.addresses("WWW.example.", RecordType::A);
    assert_eq!(server.asked(), 2, "it was known by then");
    let why = site
        .daemon
        .json(&["dns", "why", "www.example", "--from", "web1"]);
    assert_eq!(
        (&why["source"], &why["server"]),
        (&"cache".into(), &"192.0.2.2:53".into())
    );
    assert_eq!(
        one.code("nobody.test.", RecordType::A),
        ResponseCode::NXDomain
    );
    site.daemon.run(&["dns", "flush"]);
    one.addresses("www.example.", RecordType::A);
    assert_eq!(server.asked(), 4);

    let cut = one.ask("large.example.", RecordType::TXT);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = ask_tcp(web1, WEB, "large.example.", RecordType::TXT);
    assert_eq!(whole.answers.len(), 20);
    assert!(whole.to_vec().unwrap().len() > 4_000);

    server.silent.store(true, Ordering::Relaxed);
    for (name, limit) in [
        ("a.example.", STUB_TIMEOUT),
        ("b.example.", STUB_TIMEOUT / 2),
    ] {
        let started = Instant::now();
        assert_eq!(one.code(name, RecordType::A), ResponseCode::ServFail);
        assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    }
    assert!(site.count("upstream_timeouts") >= 4);
    // Names of endpoints do not wait for anybody meanwhile.
    assert_eq!(one.addresses("web2.", RecordType::A).len(), 1);
    let asked = server.asked();
    site.daemon.run(&[
        "network",
        "create",
        "safe",
        "--internal",
        "--subnet",
        "10.90.0.0/24",
    ]);
    let [safe] = site.lab.namespaces(["safe"]);
    site.daemon.attach(&safe, "safe", "safe", &[]);
    let mut inside = Client::new(&safe, "10.90.0.1");
    assert_eq!(
        inside.code("c.example.", RecordType::A),
        ResponseCode::NXDomain
    );
    assert_eq!(inside.addresses("safe.", RecordType::A).len(), 1);
    assert_eq!(server.asked(), asked);
    // A port that nobody has is known at once.
    site.daemon
        .run(&["network", "set", "web", "--dns", "192.0.2.1"]);
    let started = Instant::now();
    assert_eq!(
        one.code("d.example.", RecordType::A),
        ResponseCode::ServFail
    );
    assert!(started.elapsed() < Duration::from_secs(1));
    site.daemon.run(&["network", "set", "web", "--dns", SERVER]);
    server.silent.store(false, Ordering::Relaxed);
    wait_until(DEADLINE, "the server is asked again", || {
        one.ask("e.example.", RecordType::A).metadata.response_code == ResponseCode::NoError
    });
}

#[test]
fn ten_thousand_questions_are_all_answered_and_garbage_does_no_harm() {
    if !require_root("ten_thousand_questions_are_all_answered_and_garbage_does_no_harm") {
        return;
    }
    let lab = Lab::new("dns-load");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&[
        "network",
        "create",
        "web",
        "--subnet",
        "10.88.0.0/24",
        "--no-host-link",
    ]);
    let sandboxes: Vec<Namespace> = (0..20)
        .map(|number| {
            let ns = lab.namespace(&format!("n{number}"));
            daemon.attach(&ns, "web", &format!("n{number}"), &[]);
            ns
        })
        .collect();
    std::thread::scope(|scope| {
        for (number, ns) in sandboxes.iter().enumerate() {
            scope.spawn(move || {
                let mut client = Client::new(ns, WEB);
                let neighbour = (number + 1) % 20;
                for _ in 0..500 {
                    let found = client.addresses(&format!("n{neighbour}."), RecordType::A);
                    assert_eq!(
                        found,
                        BTreeSet::from([ip(&format!("10.88.0.{}", neighbour + 2))])
                    );
                }
            });
        }
    });
    let mut rng = fastrand::Rng::with_seed(53);
    let mut client = Client::new(&sandboxes[0], WEB);
    let good = question(9, "n1.", RecordType::A);
    for round in 0..50_000 {
        let mut bytes: Vec<u8> = (0..rng.usize(..100)).map(|_| rng.u8(..)).collect();
        if round % 3 == 0 {
            bytes.clone_from(&good);
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        // A full queue on the way refuses some.
        let _ = client.socket.send(&bytes);
    }
    let mut stream = sandboxes[1].run(|| TcpStream::connect((ip(WEB), 53)).unwrap());
    let junk: Vec<u8> = (0..100_000).map(|_| rng.u8(..)).collect();
    let _ = stream.write_all(&junk);
    client = Client::new(&sandboxes[0], WEB);
    wait_until(DEADLINE, "it still answers", || {
        client.try_ask("n1.", RecordType::A).is_some()
    });
    assert_eq!(
        Client::new(&sandboxes[2], WEB)
            .addresses("n3.", RecordType::A)
            .len(),
        1
    );
    let status = daemon.json(&["status"]);
    assert_eq!(status["api_panics"], 0);
}

#[test]
fn a_daemon_that_was_killed_answers_again_without_being_told_anything() {
    if !require_root("a_daemon_that_was_killed_answers_again_without_being_told_anything") {
        return;
    }
    let mut site = Site::new("dns-killed");
    let mut one = Client::new(&site.web[0], WEB);
    let before = one.addresses("www.", RecordType::A);
    site.daemon.run(&["network", "set", "db", "--dns", "off"]);
    site.daemon.kill();
    site.daemon.restart();
    wait_until(DEADLINE, "it answers", || {
        one.socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        one.try_ask("www.", RecordType::A).is_some()
    });
    assert_eq!(one.addresses("www.", RecordType::A), before);
    let inspected: serde_json::Value =
        serde_json::from_str(&site.daemon.run(&["network", "inspect", "db"])).unwrap();
    assert_eq!(inspected[0]["dns"], serde_json::json!(["off"]));
}

#[test]
fn without_the_service_port_53_is_the_hosts() {
    if !require_root("without_the_service_port_53_is_the_hosts") {
        return;
    }
    let site = Site::new("dns-off");
    site.daemon.run(&["network", "set", "web", "--dns", "off"]);
    let own = site.host.run(|| UdpSocket::bind((ip(WEB), 53)).unwrap());
    site.host.spawn(move || {
        let mut buffer = [0; 512];
        let (size, client) = own.recv_from(&mut buffer).unwrap();
        own.send_to(&knows(&buffer[..size]).to_vec().unwrap(), client)
            .unwrap();
    });
    let mut one = Client::new(&site.web[0], WEB);
    let found = one.addresses("web2.example.", RecordType::A);
    assert_eq!(
        found,
        BTreeSet::from([ip("203.0.113.5")]),
        "the host's own server"
    );
    let refused = site.daemon.refused(&["dns", "ls", "web"]);
    assert!(refused.contains("network set --dns on"), "{refused}");
}

#[test]
fn a_name_server_in_a_sandbox_may_have_the_hosts_port() {
    if !require_root("a_name_server_in_a_sandbox_may_have_the_hosts_port") {
        return;
    }
    let site = Site::new("dns-published");
    let mut host = Client::new(&site.host, WEB);
    assert_eq!(host.addresses("web2.", RecordType::A).len(), 1);
    for spec in ["53:53/udp", "53:53/tcp"] {
        site.daemon.run(&["publish", "add", spec, "web1"]);
    }
    // Endpoints have the service all the same, and the host has it back with the port.
    let mut one = Client::new(&site.web[1], WEB);
    assert_eq!(one.addresses("web1.", RecordType::A).len(), 1);
    site.daemon
        .run(&["publish", "rm", "53:53/udp", "53:53/tcp"]);
    // What comes in the moment in which the port changes hands may get no answer, as any datagram.
    wait_until(DEADLINE, "the host has the service again", || {
        let answer = host.try_ask("web2.", RecordType::A);
        answer.is_some_and(|answer| answer.answers.len() == 1)
    });
}

#[test]
fn the_hosts_resolver_is_followed_when_it_changes() {
    if !require_root("the_hosts_resolver_is_followed_when_it_changes") {
        return;
    }
    let lab = Lab::new("dns-resolv-conf");
    let (host, outside) = lab.host_and_outside();
    let web1 = lab.namespace("web1");
    let (conf, config) = (
        lab.dir().join("resolv.conf"),
        lab.dir().join("causeway.toml"),
    );
    std::fs::write(&conf, "# nobody\n").unwrap();
    let text = format!("[dns]\nresolv_conf = {:?}\n", path_text(&conf));
    std::fs::write(&config, text).unwrap();
    let options = ["--uplink", "up0", "--config", path_text(&config)];
    let daemon = Daemon::start(&lab, &host, &options);
    daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&web1, "web", "web1", &[]);
    let mut one = Client::new(&web1, WEB);
    assert_eq!(
        one.code("a.example.", RecordType::A),
        ResponseCode::ServFail
    );
    let why = daemon.run(&["dns", "why", "a.example"]);
    assert!(why.contains("no server is known"), "{why}");
    let _server = Server::start(&outside);
    std::fs::write(&conf, format!("nameserver {WEB}\nnameserver {SERVER}\n")).unwrap();
    wait_until(DEADLINE, "the server is known", || {
        one.ask("a.example.", RecordType::A).metadata.response_code == ResponseCode::NoError
    });
}

/// Covers: 50
#[test]
fn resolvers_of_sandboxes_are_told_and_use_it() {
    if !require_root("resolvers_of_sandboxes_are_told_and_use_it") {
        return;
    }
    let site = Site::new("dns-resolvers");
    let run = [
        "run",
        "--network",
        "web",
        "--name",
        "r1",
        "--alias",
        "runner",
        "--",
    ];
    // The resolver of the C library, as every program has it.
    for name in ["web1", "runner", "web2.web"] {
        let words = [&run[..], &["getent", "ahostsv4", name]].concat();
        let found = site.daemon.run(&words);
        assert!(found.starts_with("10.88.0."), "{name}: {found}");
    }
    let words = [&run[..], &["getent", "hosts", "db1"]].concat();
    assert_eq!(
        site.daemon.output(&words).status.code(),
        Some(2),
        "no such name"
    );
    let shown = site
        .daemon
        .run(&[&run[..], &["cat", "/etc/resolv.conf"]].concat());
    assert!(shown.starts_with(&format!("nameserver {WEB}\n")), "{shown}");
    assert!(shown.ends_with("options ndots:0\n"), "{shown}");

    let name = format!("cw-dns-{}", std::process::id());
    let file = Path::new("/etc/netns").join(&name).join("resolv.conf");
    Netns::create_named(&name, Loopback::Up).unwrap();
    let attach = ["attach", "--netns", name.as_str(), "--network"];
    site.daemon
        .run(&[&attach[..], &["web", "--name", "named"]].concat());
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.contains(&format!("nameserver {WEB}\nnameserver {WEB6}\n")),
        "{text}"
    );
    site.daemon.run(&["detach", "named"]);
    assert!(!file.exists() && !file.parent().unwrap().exists());
    // Somebody's own file stays as it is.
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "nameserver 9.9.9.9\n").unwrap();
    site.daemon
        .run(&[&attach[..], &["db", "--name", "named"]].concat());
    site.daemon.run(&["detach", "named"]);
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    Netns::remove_named(&name).unwrap();
    assert_eq!(kept, "nameserver 9.9.9.9\n", "{}", path_text(&file));
}
