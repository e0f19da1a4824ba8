//! What the suites of the real program share.

#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use control::link::inet::Route;
use dataplane_core::addr::Prefix;
use tests::lab::{DEADLINE, Namespace, block_on, connect};

/// Everything of a namespace that `clean` must leave as it was.
#[derive(Debug, PartialEq)]
pub struct Footprint {
    pub links: Vec<(String, String)>,
    pub addresses: Vec<(u32, Prefix)>,
    pub routes: Vec<Route>,
    pub reserved_ports: String,
}

pub fn footprint(ns: &Namespace) -> Footprint {
    let netlink = ns.netlink();
    let links = block_on(netlink.links()).unwrap();
    let addresses = block_on(netlink.addresses()).unwrap();
    Footprint {
        links: links
            .into_iter()
            .map(|link| (link.name, link.qdisc))
            .collect(),
        // Without the tentative state, which ends by itself.
        addresses: addresses.into_iter().map(|x| (x.link, x.prefix)).collect(),
        routes: block_on(netlink.routes()).unwrap(),
        reserved_ports: ns.sysctl("net/ipv4/ip_local_reserved_ports"),
    }
}

/// Sends back what comes, with the client's address in front, until the listener is dropped.
pub fn echo(ns: &Namespace, address: &str) -> JoinHandle<()> {
    let listener = ns.run(|| TcpListener::bind(address)).unwrap();
    ns.spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = writeln!(stream, "{peer}");
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    })
}

/// Connects from `ns` and returns the address that the other side sees.
pub fn seen_address(ns: &Namespace, address: &str) -> IpAddr {
    let address: SocketAddr = address.parse().unwrap();
    let stream = ns.run(|| connect(DEADLINE, address));
    seen_on(&stream)
}

pub fn seen_on(stream: &TcpStream) -> IpAddr {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut line)
        .unwrap();
    let canonical: IpAddr = line.trim().parse().unwrap();
    canonical.to_canonical()
}

/// Whether a connection is refused or unanswered; quick, because answers take microseconds here.
pub fn unreachable(ns: &Namespace, address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let patience = std::time::Duration::from_millis(300);
    ns.run(|| TcpStream::connect_timeout(&address, patience))
        .is_err()
}
