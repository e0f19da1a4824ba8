//! Every system that is present starts on each shape that it has, carries a datagram and a byte of
//! TCP, and leaves nothing behind.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bench::measure::{Request, measure};
use bench::scenario::{MeasureName, Placement};
use bench::system::{self, Path, Setup, Shape, StartError, System, SystemName, Work};
use tests::lab;

/// Namespaces and threads of the whole process are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SHAPES: [Shape; 4] = [Shape::Pair, Shape::Star, Shape::NatOut, Shape::PortForward];

/// Connections tried for one byte: pasta loses the first one, or answers it for a server that it
/// cannot reach yet.
const CONNECTIONS_MAX: usize = 5;

/// A byte there and back.
fn tcp_byte(path: &Path) {
    let listener = path.to.run(|| TcpListener::bind(path.listen));
    let listener = listener.expect("a listening socket");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_ok() {
                    let _ = stream.write_all(&byte);
                }
            }
        });
        let mut echoed = Vec::new();
        while echoed.len() < CONNECTIONS_MAX && !matches!(echoed.last(), Some(Ok(7))) {
            echoed.push(echo(path));
        }
        done.store(true, Ordering::Relaxed);
        // Wakes the server from its last accept.
        let _ = path.to.run(|| TcpStream::connect(path.listen));
        let last = echoed.last().expect("one attempt at least");
        assert!(matches!(last, Ok(7)), "{echoed:?}");
    });
}

fn echo(path: &Path) -> io::Result<u8> {
    let connect = || TcpStream::connect_timeout(&path.connect, lab::DEADLINE);
    let mut client = path.from.run(connect)?;
    client.set_read_timeout(Some(lab::DEADLINE))?;
    client.write_all(&[7])?;
    let mut byte = [0];
    client.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A datagram, sent again until it arrives: the first ones may wait for addresses.
fn datagram(path: &Path) {
    let server = path.to.run(|| UdpSocket::bind(path.listen)).expect("bound");
    server.set_nonblocking(true).expect("set");
    let client = path
        .from
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .expect("bound");
    lab::wait_until(lab::DEADLINE, "a datagram", || {
        let sent = client.send_to(b"hello", path.connect);
        sent.expect("sent");
        let mut buffer = [0; 16];
        matches!(server.recv(&mut buffer), Ok(5))
    });
}

/// A few frames of the generator on every path, which passes the sandbox's own stack by.
fn frames(system: &System) {
    let mut request = Request::new(MeasureName::Frames);
    request.flows = u16::try_from(system.paths.len()).expect("few paths");
    request.load.rate = 2_000.0;
    request.load.warm_up_ms = 50;
    request.load.duration_ms = 200;
    let sample = measure(&request, system).expect("a sample");
    let figure = |name: &str| sample.metrics.iter().find(|metric| metric.name == name);
    let loss = figure("loss").expect("a loss").value;
    // A busy machine may lose some; a system that does not carry them loses all.
    assert!(loss < 50.0, "{}: {sample:?}", system.name);
}

/// Directories of running systems.
fn dirs() -> Vec<PathBuf> {
    let own = format!("-{}-", std::process::id());
    let entries = fs::read_dir(std::env::temp_dir()).expect("a temporary directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let name = |path: &PathBuf| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    paths
        .filter(|path| name(path).starts_with("cw-bench-") && name(path).contains(&own))
        .collect()
}

/// Network namespaces that descriptors of this process keep alive.
fn namespaces() -> usize {
    let fds = fs::read_dir("/proc/self/fd").expect("descriptors");
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("net:"))
        .count()
}

#[test]
fn every_system_carries_traffic_on_its_shapes_and_leaves_nothing() {
    if !lab::require_root("systems") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut carried = 0;
    for name in SystemName::ALL {
        match system::availability(name) {
            Ok(version) => println!("{name}: {version}"),
            Err(absent) => {
                println!("not tested: {absent}");
                continue;
            }
        }
        for shape in SHAPES {
            let setup = Setup {
                shape,
                ports: if shape == Shape::Star { 4 } else { 2 },
                ..Setup::default()
            };
            let before = namespaces();
            let system = match system::start(name, &setup) {
                Ok(system) => system,
                Err(refused @ (StartError::Impossible { .. } | StartError::Absent { .. })) => {
                    println!("no such shape: {refused}");
                    continue;
                }
                Err(failed) => panic!("{shape}: {failed}"),
            };
            println!("{name}, {shape}: {:?}", system.facts);

            for path in &system.paths {
                tcp_byte(path);
                datagram(path);
            }
            frames(&system);
            carried += system.paths.len();
            let pids: Vec<u32> = system
                .work
                .iter()
                .filter_map(|work| match work {
                    Work::Process { pid, .. } => Some(*pid),
                    Work::Threads { .. } => None,
                })
                .collect();
            drop(system);
            for pid in pids {
                let path = format!("/proc/{pid}");
                assert!(!fs::exists(&path).expect("/proc"), "{name}: process {pid}");
            }
            assert_eq!(dirs(), Vec::<PathBuf>::new(), "{name}");
            // Handles in tasks of the netlink connections go a moment later.
            lab::wait_until(lab::DEADLINE, "namespaces to go", || namespaces() <= before);
        }
    }
    println!("covered: {carried} paths");
    assert!(carried >= 9, "Causeway, veth and the bridge at least");
}

#[test]
fn a_stream_is_measured_on_every_in_kernel_system() {
    if !lab::require_root("systems") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for name in [SystemName::Causeway, SystemName::Veth, SystemName::Bridge] {
        let system = system::start(name, &Setup::default()).expect("a system");
        let mut request = Request::new(MeasureName::TcpBulk);
        request.load.duration_ms = 100;
        request.load.warm_up_ms = 20;
        request.flows = 2;
        let sample = measure(&request, &system).expect("a sample");
        println!("{name}: {sample:?}");
        let switch = match name {
            SystemName::Causeway => "causeway",
            _ => "switch",
        };
        let whose: Vec<&str> = sample.places.keys().map(String::as_str).collect();
        let mut wanted = ["receiver", "sender", switch];
        wanted.sort_unstable();
        assert_eq!(whose, wanted);
        assert!(
            sample.places["sender"].starts_with("free on "),
            "{sample:?}"
        );
        let main = &sample.metrics[0];
        assert_eq!(
            (main.name.as_str(), main.unit.as_str()),
            ("throughput", "Gbit/s")
        );
        assert!(main.value > 0.1, "{main:?}");
        let fairness = sample
            .metrics
            .iter()
            .find(|metric| metric.name == "fairness");
        assert!(fairness.is_some_and(|metric| metric.value <= 1.0));
    }
}

#[test]
fn a_result_says_where_ends_and_switch_ran() {
    if !lab::require_root("systems") {
        return;
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        println!("not tested: placement, with one CPU only");
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let system = system::start(SystemName::Causeway, &Setup::default()).expect("a system");
    let others = match cpus {
        2 => "pinned to 1".to_owned(),
        cpus => format!("pinned to 1-{}", cpus - 1),
    };
    for name in [
        MeasureName::RoundTrip,
        MeasureName::Frames,
        MeasureName::TcpBulk,
    ] {
        for (placement, receiver) in [(Placement::Together, "0"), (Placement::Apart, "1")] {
            let mut request = Request::new(name);
            request.load.placement = placement;
            request.load.round_trips = 100;
            request.load.duration_ms = 50;
            request.load.warm_up_ms = 10;
            request.load.rate = 2_000.0;
            let places = measure(&request, &system).expect("a sample").places;
            println!("{name:?}: {places:?}");
            assert_eq!(places["sender"], "pinned to 0");
            assert_eq!(places["receiver"], format!("pinned to {receiver}"));
            match placement {
                Placement::Together => assert_eq!(places["causeway"], others),
                _ => assert!(places["causeway"].starts_with("free on 0-"), "{places:?}"),
            }
        }
    }
}
