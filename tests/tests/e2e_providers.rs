//! A host with two providers: what answers a client leaves by the one whose address was asked.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, UdpSocket};

use control::link::inet::Route;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, block_on, ip, prefix, require_root, wait_until};
use tests::talk::{Witness, ask_tcp, ask_udp, serve_tcp, serve_udp};

/// A host between two providers: by `up0` to `one`, which is its default route, and by `up1` to `two`,
/// each of which leads to the same client 203.0.113.9.
struct Providers {
    host: Namespace,
    one: Namespace,
    two: Namespace,
    client: Namespace,
    daemon: Daemon,
    /// Its endpoint goes when nobody holds it.
    _a: Namespace,
    _lab: Lab,
}

impl Providers {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let [host, one, two] = lab.namespaces(["host", "one", "two"]);
        let [client, a] = lab.namespaces(["client", "a"]);
        lab.cable(&host, "up0", &one, "eth0");
        lab.cable(&host, "up1", &two, "eth0");
        lab.cable(&one, "eth1", &client, "eth0");
        lab.cable(&two, "eth1", &client, "eth1");
        for (ns, link, address) in [
            (&host, "up0", "192.0.2.1/24"),
            (&one, "eth0", "192.0.2.2/24"),
            (&host, "up1", "198.51.100.1/24"),
            (&two, "eth0", "198.51.100.2/24"),
            (&one, "eth1", "10.9.0.1/24"),
            (&client, "eth0", "10.9.0.2/24"),
            (&two, "eth1", "10.9.1.1/24"),
            (&client, "eth1", "10.9.1.2/24"),
            (&client, "lo", "203.0.113.9/32"),
        ] {
            ns.add_address(link, address);
        }
        for (router, client_at) in [(&one, "10.9.0.2"), (&two, "10.9.1.2")] {
            router.set_sysctl("net/ipv4/ip_forward", "1");
            router.add_route("203.0.113.9/32", client_at, "eth1");
        }
        for (provider, router, link) in [
            ("192.0.2.0/24", "10.9.0.1", "eth0"),
            ("198.51.100.0/24", "10.9.1.1", "eth1"),
        ] {
            let mut route = Route::on_link(prefix(provider), client.link(link).index);
            route.gateway = Some(ip(router));
            route.source = Some(ip("203.0.113.9"));
            block_on(client.netlink().add_route(route)).unwrap();
        }
        for (router, link, metric) in [("192.0.2.2", "up0", 0), ("198.51.100.2", "up1", 200)] {
            let mut route = Route::on_link(prefix("0.0.0.0/0"), host.link(link).index);
            route.gateway = Some(ip(router));
            route.metric = metric;
            block_on(host.netlink().add_route(route)).unwrap();
        }
        serve_tcp(&a, "0.0.0.0:80");
        serve_udp(&a, "0.0.0.0:80");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "up0", "--uplink", "up1"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        daemon.attach(&a, "n", "a", &[]);
        daemon.run(&["publish", "add", "8080:80", "a"]);
        daemon.run(&["publish", "add", "8080:80/udp", "a"]);
        Self {
            host,
            one,
            two,
            client,
            daemon,
            _a: a,
            _lab: lab,
        }
    }

    /// How many frames came to `router` from an address of the host while `talk` went on.
    fn frames_from(router: &Namespace, address: &str, talk: impl FnOnce()) -> usize {
        let IpAddr::V4(address) = ip(address) else {
            panic!("{address} is IPv6")
        };
        let is_from = move |frame: &[u8]| {
            let ipv4 = frame.get(12..14)? == [0x08, 0x00];
            (ipv4 && frame.get(26..30)? == address.octets()).then_some(())
        };
        let watch = Witness::new(router, "eth0").watch(is_from);
        talk();
        let seen = watch.end();
        assert_eq!(seen.missed, 0);
        seen.kept.len()
    }
}

#[test]
fn an_answer_leaves_by_the_provider_whose_address_was_asked() {
    if !require_root("an_answer_leaves_by_the_provider_whose_address_was_asked") {
        return;
    }
    let providers = Providers::new("providers");
    let client = ip("203.0.113.9");
    let talk = |own: &str| {
        let at = format!("{own}:8080");
        assert_eq!(ask_tcp(&providers.client, &at, 100_000), client, "{own}");
        assert_eq!(ask_udp(&providers.client, &at, 1_000), client, "{own}");
        let fragments = ask_udp(&providers.client, &at, 4_000);
        assert_eq!(fragments, client, "in fragments, {own}");
    };
    for (own, right, wrong) in [
        ("192.0.2.1", &providers.one, &providers.two),
        ("198.51.100.1", &providers.two, &providers.one),
    ] {
        let astray = Providers::frames_from(wrong, own, || {
            let answers = Providers::frames_from(right, own, || talk(own));
            assert!(answers > 5, "{answers} frames from {own}");
        });
        assert_eq!(astray, 0, "from {own} by the wrong wire");
    }
    let why = ["why", "203.0.113.9", "198.51.100.1", "tcp", "8080"];
    let why = providers.daemon.run(&why);
    assert!(
        why.contains("by up1") && why.contains("routed to a"),
        "{why}"
    );

    // Without a route by it the second provider's answers have only the first one's.
    let mut lost = Route::on_link(prefix("0.0.0.0/0"), providers.host.link("up1").index);
    lost.gateway = Some(ip("198.51.100.2"));
    lost.metric = 200;
    block_on(providers.host.netlink().remove_route(lost)).unwrap();
    let mut stray = Witness::new(&providers.one, "eth0");
    wait_until(DEADLINE, "an answer comes by the default route", || {
        let socket = providers.client.run(|| UdpSocket::bind("203.0.113.9:0"));
        socket.unwrap().send_to(b"?", "198.51.100.1:8080").unwrap();
        let mut seen = false;
        while stray.look(|frame| seen |= frame.get(26..30) == Some(&[198, 51, 100, 1])) {}
        seen
    });
}
