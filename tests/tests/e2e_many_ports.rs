//! Very many ports on one network, by the real daemon: the kernel's bridge stops at 1,024.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, require_root, wait_until};
use tests::talk::{Witness, ping};

/// Endpoints of the short run and of the long one (`tests/run --engines`).
const ENDPOINTS: usize = 120;
const ENDPOINTS_MANY: usize = 2_000;
/// Endpoints whose times are compared, first and last.
const COMPARED: usize = 40;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// How long all may take to hear one broadcast.
const PATIENCE: Duration = Duration::from_secs(30);

/// An endpoint, with how long it took to be attached.
struct Endpoint {
    ns: Namespace,
    took: Duration,
}

fn median(endpoints: &[Endpoint]) -> Duration {
    let mut times: Vec<Duration> = endpoints.iter().map(|endpoint| endpoint.took).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Detaches every second endpoint at once, after a request that names one which is not there; how many.
fn detach_half(daemon: &Daemon, endpoints: &[Endpoint]) -> usize {
    let names: Vec<String> = (0..endpoints.len())
        .step_by(2)
        .map(|n| format!("e{n}"))
        .collect();
    let words = |more: Option<&'static str>| -> Vec<String> {
        let names = names.iter().map(String::as_str);
        let all = ["detach"].into_iter().chain(names).chain(more);
        all.map(str::to_owned).collect()
    };
    let request = words(Some("ghost"));
    let error = daemon.refused(&request.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("ghost"), "{error}");
    let listed = |daemon: &Daemon| daemon.json(&["port", "ls"]).as_array().unwrap().len();
    let before = listed(daemon);
    assert!(before >= endpoints.len(), "none has left: {before}");
    let request = words(None);
    let start = Instant::now();
    daemon.run(&request.iter().map(String::as_str).collect::<Vec<_>>());
    println!("{} detached at once in {:?}", names.len(), start.elapsed());
    assert_eq!(listed(daemon), before - names.len());
    for (number, endpoint) in endpoints.iter().enumerate() {
        let links = block_on(endpoint.ns.netlink().links()).unwrap();
        let there = links.iter().any(|link| link.name == "eth0");
        assert_eq!(there, number % 2 == 1, "e{number}");
    }
    assert!(
        ping(&endpoints[1].ns, GATEWAY.into(), 56),
        "the others go on"
    );
    names.len()
}

/// Memory of a process that is there, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// Covers: 22
#[test]
fn every_port_of_a_large_network_pings_its_gateway_and_hears_a_broadcast() {
    if !require_root("every_port_of_a_large_network_pings_its_gateway") {
        return;
    }
    let count = match std::env::var_os("CAUSEWAY_ENGINES") {
        Some(_) => ENDPOINTS_MANY,
        None => ENDPOINTS,
    };
    // A namespace, a netlink socket and a packet socket for each.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let lab = Lab::new("many-ports");
    let host = lab.namespace("host");
    let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "large", "--subnet", "10.64.0.0/16"]);
    let before = resident_kib(daemon.pid());
    let attach = |number: usize| {
        let ns = lab.namespace("endpoint");
        // What each stack tells all others of its IPv6 groups would be millions of frames.
        for scope in ["all", "default"] {
            ns.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        let start = Instant::now();
        daemon.attach(&ns, "large", &format!("e{number}"), &[]);
        Endpoint {
            ns,
            took: start.elapsed(),
        }
    };
    let endpoints: Vec<Endpoint> = (0..count).map(attach).collect();
    let (first, last) = (
        median(&endpoints[..COMPARED]),
        median(&endpoints[count - COMPARED..]),
    );
    let memory = (resident_kib(daemon.pid()) - before) as usize / count;
    println!(
        "{count} ports: attached in {first:?} at first and {last:?} at last (medians of {COMPARED}), \
         {memory} KiB of the daemon's for each"
    );
    for endpoint in &endpoints {
        assert!(ping(&endpoint.ns, GATEWAY.into(), 56));
        // The kernel has one table of neighbours for all namespaces, of 1,024 by its default
        // (`net.ipv4.neigh.default.gc_thresh3`): each leaves its place to the next.
        let (netlink, link) = (endpoint.ns.netlink(), endpoint.ns.link("eth0").index);
        block_on(netlink.remove_neighbour(link, GATEWAY.into())).unwrap();
    }
    let mut witnesses: Vec<Witness> = endpoints
        .iter()
        .map(|endpoint| Witness::new(&endpoint.ns, "eth0"))
        .collect();
    let sender = endpoints[0].ns.mac("eth0");
    let mut broadcast = [[0xff; 6], sender.0].concat();
    broadcast.extend([0x88, 0xb5]);
    broadcast.resize(60, 0x5a);
    let start = Instant::now();
    witnesses[0].send(&broadcast);
    let mut deaf: Vec<&mut Witness> = witnesses.iter_mut().skip(1).collect();
    wait_until(PATIENCE, "every other port hears the broadcast", || {
        deaf.retain_mut(|witness| {
            let mut heard = false;
            witness.look(|frame| heard |= frame == broadcast);
            !heard
        });
        deaf.is_empty()
    });
    println!("all heard the broadcast within {:?}", start.elapsed());

    let start = Instant::now();
    let listed = daemon.json(&["port", "ls"]);
    let ports = listed.as_array().unwrap().len();
    assert!(ports >= count, "{ports} ports are listed");
    println!("port ls: {:?}", start.elapsed());
    let detached = detach_half(&daemon, &endpoints);
    let start = Instant::now();
    drop(endpoints);
    drop(witnesses);
    wait_until(
        DEADLINE * 6,
        "the ports of namespaces that are gone go",
        || {
            let listed = daemon.json(&["port", "ls"]);
            listed.as_array().unwrap().len() <= ports - count
        },
    );
    println!(
        "{} gone {:?} after their namespaces were let go",
        count - detached,
        start.elapsed()
    );
}
