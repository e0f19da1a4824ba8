//! Golden traces: stories told as frames, rendered as `causeway trace` renders them, and compared
//! with `golden/*.txt`. `UPDATE_GOLDEN=1` writes the files anew; read the difference before
//! committing it.

#![allow(clippy::unwrap_used)]

mod stories;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use control::explain::{explain, summary};
use dataplane_core::addr::{L4Addr, MacAddr, PortId};
use dataplane_core::nat::{Duty, StaticRule, StaticRules, Target, Transport};
use dataplane_core::policy::{Action, Policy, Rule, RuleSlot, Side};
use dataplane_core::route::EARLY_PER_SENDER_MAX;
use dataplane_core::topology::NatMode;
use dataplane_core::trace::Step;
use dataplane_core::verdict::{DropReason, Verdict};
use tests::wire::{self, Link, at, flags};
use tests::world::{
    BLUE, HOST_LINK, HOST_MAC, Outcome, RED, ROUTER_MAC, UPLINK, UPLINK_MAC, VAULT, World,
    gateway_mac, ip, mac,
};

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OUTSIDE: &str = "198.51.100.9:443";
const HOST: &str = "192.0.2.1";

/// A world that writes down what happens in it.
struct Story {
    world: World,
    text: String,
    shown: BTreeSet<&'static str>,
}

impl Story {
    fn new() -> Self {
        Self {
            world: World::new(),
            text: String::new(),
            shown: BTreeSet::new(),
        }
    }

    /// A heading between frames.
    fn say(&mut self, note: &str) {
        let _ = writeln!(self.text, "\n# {note}");
    }

    fn wait(&mut self, seconds: u64) {
        self.world.wait(seconds);
        let _ = writeln!(self.text, "\n({seconds} s pass)");
    }

    fn send(&mut self, port: u16, bytes: &[u8]) -> Outcome {
        let topology = std::sync::Arc::clone(&self.world.sw.topology);
        let outcome = self.world.send(port, bytes);
        let _ = writeln!(self.text, "\n{}", summary(bytes));
        for line in explain(&outcome.steps, &topology) {
            let _ = writeln!(self.text, "  {:<8} {}", line.stage, line.text);
        }
        let refused = outcome.steps.iter().filter_map(|step| match step {
            Step::Refused(reason) => Some(reason.label()),
            _ => None,
        });
        self.shown.extend(refused);
        if let Verdict::Drop(reason) = outcome.verdict {
            self.shown.insert(reason.label());
            return outcome;
        }
        self.text += &stories::leaving(&self.world.sw, PortId(port), &outcome);
        wire::check(outcome.frame.bytes(), &outcome.frame.offload).expect("what leaves is sound");
        outcome
    }
}

/// From endpoint a of red to its gateway.
fn a_out() -> Link {
    Link(mac(1), gateway_mac(RED))
}

/// From the router outside to the host's card.
fn from_router() -> Link {
    Link(ROUTER_MAC, UPLINK_MAC)
}

/// External 8080 of TCP leads to b, port 80; 8081 only for one client.
fn publish(world: &mut World) {
    let target = Target::new(0, RED, L4Addr::new(B.into(), 80));
    let rule = |id, port, from: Option<&str>| StaticRule {
        from: from.map(|client| dataplane_core::addr::Prefix::new(ip(client), 32)),
        ..StaticRule::new(id, Transport::Tcp, port..=port, target)
    };
    let rules = vec![rule(1, 8080, None), rule(2, 8081, Some("198.51.100.7"))];
    let rules = StaticRules::build(rules).expect("the rules are sound");
    world.edit(|t| t.statics = rules);
}

fn first_ping(s: &mut Story) {
    s.say("a does not know b's MAC and asks everyone");
    s.send(1, &wire::arp_request(mac(1), A, B));
    s.say("b answers: the switch has learned where a is, and learns where b is");
    s.send(2, &wire::arp_reply(Link(mac(2), mac(1)), B, A));
    s.say("the ping and its answer go straight through");
    s.send(
        1,
        &wire::echo(Link(mac(1), mac(2)), A.into(), B.into(), true, 7),
    );
    s.send(
        2,
        &wire::echo(Link(mac(2), mac(1)), B.into(), A.into(), false, 7),
    );
}

fn stations_move_age_and_are_flushed(s: &mut Story) {
    let hello = wire::plain(Link(mac(9), MacAddr::BROADCAST));
    s.send(1, &hello);
    s.say("the station is plugged in elsewhere");
    s.send(3, &hello);
    s.send(2, &wire::plain(Link(mac(2), mac(9))));
    s.wait(301);
    s.say("too long silent, it is forgotten");
    s.send(2, &wire::plain(Link(mac(2), mac(9))));
    s.say("heard again, and its port flushed");
    s.send(3, &hello);
    s.world.fdb.flush_port(PortId(3));
    s.send(2, &wire::plain(Link(mac(2), mac(9))));
}

fn the_gateway_answers(s: &mut Story) {
    s.send(1, &wire::arp_request(mac(1), A, GATEWAY));
    s.send(1, &wire::echo(a_out(), A.into(), GATEWAY.into(), true, 3));
    let (a, gateway) = ("fd00:1::2".parse().unwrap(), "fd00:1::1".parse().unwrap());
    s.send(1, &wire::solicitation(mac(1), a, gateway));
    s.send(1, &wire::echo(a_out(), a.into(), gateway.into(), true, 4));
}

fn snat_out_and_back(s: &mut Story) {
    let (inside, outside) = (at("10.1.0.2:40000"), at(OUTSIDE));
    s.say("a opens a connection to the outside");
    let out = s.send(1, &wire::tcp(a_out(), inside, outside, flags::SYN, b""));
    let external = external_port(&out);
    let back = at(&format!("{HOST}:{external}"));
    s.send(
        9,
        &wire::tcp(from_router(), outside, back, flags::SYN_ACK, b""),
    );
    s.send(
        1,
        &wire::tcp(a_out(), inside, outside, flags::ACK, b"GET /"),
    );
    s.say("someone else tries the same external port");
    s.send(
        9,
        &wire::tcp(from_router(), at("203.0.113.5:443"), back, flags::ACK, b""),
    );
    s.say("and a port that nobody opened");
    let unopened = at(&format!("{HOST}:60001"));
    s.send(
        9,
        &wire::tcp(from_router(), outside, unopened, flags::SYN, b""),
    );
    s.send(
        9,
        &wire::tcp(from_router(), outside, unopened, flags::SYN, b""),
    );
    s.say("a datagram, and an echo with its identifier translated");
    let name_server = at("198.51.100.53:53");
    s.send(
        1,
        &wire::udp(a_out(), at("10.1.0.2:5353"), name_server, 64, b"who?"),
    );
    s.send(
        1,
        &wire::echo(a_out(), A.into(), ip("198.51.100.9"), true, 77),
    );
    s.say("IPv6 by the same code");
    let (inside, outside) = (at("[fd00:1::2]:40000"), at("[2001:db8:9::9]:443"));
    s.send(1, &wire::tcp(a_out(), inside, outside, flags::SYN, b""));
}

fn published_port_in_and_back(s: &mut Story) {
    publish(&mut s.world);
    let (client, published) = (at("198.51.100.9:50000"), at(&format!("{HOST}:8080")));
    s.say("a client outside reaches b, which sees the client's own address");
    s.send(
        9,
        &wire::tcp(from_router(), client, published, flags::SYN, b""),
    );
    let b_out = Link(mac(2), gateway_mac(RED));
    s.send(
        2,
        &wire::tcp(b_out, at("10.1.0.3:80"), client, flags::SYN_ACK, b""),
    );
    s.say("a port published for another client");
    let reserved = at(&format!("{HOST}:8081"));
    s.send(
        9,
        &wire::tcp(from_router(), client, reserved, flags::SYN, b""),
    );
    s.say("hairpin: a reaches b by the host's address");
    s.send(
        1,
        &wire::tcp(a_out(), at("10.1.0.2:40001"), published, flags::SYN, b""),
    );
}

fn isolation(s: &mut Story) {
    let (blue, vault) = (
        Link(mac(4), gateway_mac(BLUE)),
        Link(mac(5), gateway_mac(VAULT)),
    );
    s.say("red and blue cannot reach each other");
    let red_to_blue = wire::udp(a_out(), at("10.1.0.2:1"), at("10.2.0.2:2"), 64, b"psst");
    s.send(1, &red_to_blue);
    s.send(
        4,
        &wire::udp(blue, at("10.2.0.2:2"), at("10.1.0.2:1"), 64, b"psst"),
    );
    s.say("broadcasts stay in their network");
    s.send(4, &wire::plain(Link(mac(4), MacAddr::BROADCAST)));
    s.say("an internal network reaches nothing outside");
    s.send(
        5,
        &wire::udp(vault, at("10.3.0.2:1"), at(OUTSIDE), 64, b"hello?"),
    );
    s.say("an outsider that routes straight into a network");
    s.send(
        9,
        &wire::udp(from_router(), at(OUTSIDE), at("10.1.0.2:1"), 64, b"hi"),
    );
    s.say("until someone allows the passage");
    s.world.edit(|t| {
        let (red, blue) = (Side::Network(RED), Side::Network(BLUE));
        t.policy = Policy::new([Rule::new(RuleSlot(0), "to-blue", Action::Allow, red, blue)]);
    });
    s.send(1, &red_to_blue);
    s.say("a source that is not of the network");
    s.send(
        1,
        &wire::udp(a_out(), at("10.9.0.2:1"), at(OUTSIDE), 64, b"spoof"),
    );
}

fn errors_that_the_gateway_sends(s: &mut Story) {
    let from = at("10.1.0.2:1");
    s.say("no hops left");
    let last_hop = wire::udp(a_out(), from, at(OUTSIDE), 1, b"trace");
    s.send(1, &last_hop);
    s.say("too big, and not to be fragmented");
    let mut big = wire::udp(a_out(), from, at(OUTSIDE), 64, &[7; 1_600]);
    wire::set_dont_fragment(&mut big, true);
    s.send(1, &big);
    s.say("too big, and cut on its way out");
    wire::set_dont_fragment(&mut big, false);
    s.send(1, &big);
    s.say("no such endpoint");
    s.send(1, &wire::udp(a_out(), from, at("10.1.0.99:1"), 64, b""));
    s.say("routed by an interface that is no uplink");
    s.send(1, &wire::udp(a_out(), from, at("203.0.113.9:1"), 64, b""));
    s.say("no route, once the default is gone");
    s.world
        .edit(|t| t.routes.retain(|route| route.prefix.len != 0));
    s.send(1, &wire::udp(a_out(), from, at("8.8.8.8:1"), 64, b""));
    s.say("no service at the gateway of a network without the host");
    s.world
        .edit(|t| t.domains[RED.index()].as_mut().unwrap().host_link = false);
    s.send(1, &wire::udp(a_out(), from, at("10.1.0.1:53"), 64, b""));
    s.say("an error is never sent about an error");
    let about = wire::udp(a_out(), at("10.1.0.99:5"), from, 64, b"");
    let error = wire::icmp_error(a_out(), A, Ipv4Addr::new(10, 1, 0, 99), (3, 3), &about);
    s.send(1, &error);
    s.say("nor when the gateway itself or the hops are the trouble");
    let mut error = wire::icmp_error(a_out(), A, GATEWAY, (3, 3), &about);
    s.send(1, &error);
    error[30..34].copy_from_slice(&[198, 51, 100, 9]);
    error[22] = 1;
    wire::repair_ipv4(&mut error);
    s.send(1, &error);
    s.say("nor when no route is the trouble");
    let mut nobody = wire::icmp_error(a_out(), A, Ipv4Addr::new(8, 8, 8, 8), (3, 3), &about);
    nobody[22] = 64;
    wire::repair_ipv4(&mut nobody);
    s.send(1, &nobody);
}

fn icmp_errors_cross_the_translation(s: &mut Story) {
    let out = wire::udp(a_out(), at("10.1.0.2:50000"), at(OUTSIDE), 64, b"ping");
    let sent = s.send(1, &out);
    s.say("a router outside says that the datagram went nowhere");
    let router = Ipv4Addr::new(192, 0, 2, 254);
    let host = Ipv4Addr::new(192, 0, 2, 1);
    s.send(
        9,
        &wire::icmp_error(from_router(), router, host, (3, 1), sent.frame.bytes()),
    );
    s.say("about a packet that we never sent");
    let strange = wire::udp(
        from_router(),
        at("192.0.2.1:50001"),
        at(OUTSIDE),
        64,
        b"ping",
    );
    s.send(
        9,
        &wire::icmp_error(from_router(), router, host, (3, 1), &strange),
    );
    s.say("the endpoint sends such errors too");
    s.send(
        1,
        &wire::icmp_error(a_out(), A, Ipv4Addr::new(198, 51, 100, 9), (3, 3), &strange),
    );
    s.say("with a quotation that ends too soon");
    let short = wire::icmp_error(
        a_out(),
        A,
        Ipv4Addr::new(198, 51, 100, 9),
        (3, 3),
        &strange[..30],
    );
    s.send(1, &short);
}

fn the_host_link(s: &mut Story) {
    s.say("a asks the host at its gateway address");
    s.send(
        1,
        &wire::udp(
            a_out(),
            at("10.1.0.2:5000"),
            at("10.1.0.1:53"),
            64,
            b"name?",
        ),
    );
    let down = Link(HOST_MAC, MacAddr([2, 0, 0, 0, 0, 0xaa]));
    s.send(
        8,
        &wire::udp(down, at("10.1.0.1:53"), at("10.1.0.2:5000"), 64, b"address"),
    );
    s.say("the host forwards for someone else");
    s.send(
        8,
        &wire::udp(down, at("172.16.0.1:53"), at("10.1.0.2:5000"), 64, b""),
    );
    s.say("the host addresses nobody of ours, and nobody at all");
    s.send(
        8,
        &wire::udp(down, at("10.1.0.1:53"), at("10.1.0.77:5000"), 64, b""),
    );
    s.send(
        8,
        &wire::udp(down, at("10.1.0.1:53"), at("10.77.0.1:5000"), 64, b""),
    );
    s.send(8, &wire::plain(down));
    s.say("a network without a link to the host");
    s.world
        .edit(|t| t.domains[RED.index()].as_mut().unwrap().host_link = false);
    s.send(
        1,
        &wire::udp(
            a_out(),
            at("10.1.0.2:5000"),
            at("192.0.2.1:53"),
            64,
            b"name?",
        ),
    );
}

fn held_until_the_next_hop_is_known(s: &mut Story) {
    let out = wire::udp(
        a_out(),
        at("10.1.0.2:1"),
        at("192.0.2.99:9"),
        64,
        b"anyone?",
    );
    s.send(1, &out);
    let topology = std::sync::Arc::clone(&s.world.sw.topology);
    s.say("the next hop does not answer");
    s.wait(4);
    let counters = std::sync::Arc::clone(&s.world.sw.counters);
    let released = s
        .world
        .sw
        .gateway
        .release(&topology, &counters, s.world.now);
    let (_, _, verdict) = released.expect("one frame is held");
    assert_eq!(verdict, Verdict::Drop(DropReason::NextHopUnresolved));
    s.shown.insert(DropReason::NextHopUnresolved.label());
    let _ = writeln!(s.text, "  released: {verdict}");
    s.say("another one, and this time the neighbour is found");
    s.send(1, &out);
    s.world.edit(|t| {
        t.uplinks[0].neighbours.insert(ip("192.0.2.99"), mac(0x99));
    });
    let topology = std::sync::Arc::clone(&s.world.sw.topology);
    let released = s
        .world
        .sw
        .gateway
        .release(&topology, &counters, s.world.now);
    let (_, buf, verdict) = released.expect("one frame is held");
    let _ = writeln!(s.text, "  released: {verdict}: {}", summary(buf.bytes()));
}

fn frames_that_end_at_once(s: &mut Story) {
    s.send(1, &[0xff; 13]);
    s.send(1, &wire::plain(Link(MacAddr::ZERO, mac(2))));
    s.send(1, &wire::plain(Link(MacAddr::BROADCAST, mac(2))));
    s.send(
        1,
        &wire::plain(Link(mac(1), MacAddr([1, 0x80, 0xc2, 0, 0, 0]))),
    );
    s.say("the destination is where the frame came from");
    s.send(1, &wire::plain(Link(mac(9), mac(1))));
    s.send(1, &wire::plain(Link(mac(1), mac(9))));
    s.say("alone in its network");
    s.send(4, &wire::plain(Link(mac(4), MacAddr::BROADCAST)));
    s.say("b's port goes down");
    s.send(2, &wire::plain(Link(mac(2), MacAddr::BROADCAST)));
    s.world.edit(|t| t.ports[2].as_mut().unwrap().up = false);
    s.send(2, &wire::plain(Link(mac(2), MacAddr::BROADCAST)));
    s.send(1, &wire::plain(Link(mac(1), mac(2))));
}

fn what_the_gateway_does_not_take(s: &mut Story) {
    s.send(1, &wire::plain(a_out()));
    let mut tagged = wire::udp(a_out(), at("10.1.0.2:1"), at(OUTSIDE), 64, b"");
    wire::tag(&mut tagged, 0x8100, 7);
    s.send(1, &tagged);
    s.say("an IHL of 3");
    let mut bad = wire::udp(a_out(), at("10.1.0.2:1"), at(OUTSIDE), 64, b"");
    bad[14] = 0x43;
    s.send(1, &bad);
    s.say("a TCP header that is cut");
    let mut cut = wire::tcp(a_out(), at("10.1.0.2:1"), at(OUTSIDE), flags::SYN, b"");
    cut.truncate(14 + 20 + 10);
    cut[17] = 30;
    wire::repair_ipv4(&mut cut);
    s.send(1, &cut);
    s.say("ARP that asks nothing of the gateway");
    s.send(1, &wire::arp_reply(a_out(), A, GATEWAY));
    s.say("a multicast address behind the gateway's MAC");
    s.send(
        1,
        &wire::udp(a_out(), at("10.1.0.2:1"), at("224.0.0.5:1"), 64, b""),
    );
    s.say("a protocol without ports");
    let mut gre = wire::udp(a_out(), at("10.1.0.2:1"), at(OUTSIDE), 64, b"");
    gre[23] = 47;
    wire::repair_ipv4(&mut gre);
    s.send(1, &gre);
    s.say("a later fragment waits for its first, but not as many as anyone likes to send");
    let whole = wire::udp(a_out(), at("10.1.0.2:1"), at(OUTSIDE), 64, &[7; 600]);
    let pieces = wire::fragments(&whole, 5, 200);
    s.send(1, &pieces[1]);
    for _ in 1..EARLY_PER_SENDER_MAX {
        s.world.send(1, &pieces[1]);
    }
    s.send(1, &pieces[1]);
    s.say("in order they pass, and no byte twice");
    s.send(1, &pieces[0]);
    s.send(1, &pieces[1]);
    s.send(1, &pieces[1]);
    s.say("no IPv6 address to translate to");
    s.world.edit(|t| t.uplinks[0].addresses.truncate(1));
    let (inside, outside) = (at("[fd00:1::2]:40000"), at("[2001:db8:9::9]:443"));
    s.send(1, &wire::tcp(a_out(), inside, outside, flags::SYN, b""));
    s.say("one session of an endpoint at most, then one in all");
    s.world.edit(|t| t.nat.sessions_per_endpoint_max = 1);
    s.send(
        1,
        &wire::udp(a_out(), at("10.1.0.2:2"), at(OUTSIDE), 64, b""),
    );
    s.world.edit(|t| {
        t.nat.sessions_per_endpoint_max = 100;
        t.nat.sessions_max = 1;
    });
    let b_out = Link(mac(2), gateway_mac(RED));
    s.send(2, &wire::udp(b_out, at("10.1.0.3:2"), at(OUTSIDE), 64, b""));
}

fn frames_that_are_the_hosts(s: &mut Story) {
    s.say("a reply to the host's own connection");
    let own = at(&format!("{HOST}:33000"));
    s.send(
        9,
        &wire::tcp(from_router(), at(OUTSIDE), own, flags::SYN_ACK, b""),
    );
    s.say("ARP on the card");
    let router = Ipv4Addr::new(192, 0, 2, 254);
    s.send(
        9,
        &wire::arp_request(ROUTER_MAC, router, Ipv4Addr::new(192, 0, 2, 1)),
    );
    s.say("a frame to another station");
    let other = Link(ROUTER_MAC, mac(0x77));
    s.send(
        9,
        &wire::udp(other, at(OUTSIDE), at("192.0.2.77:1"), 64, b""),
    );
}

fn external_port(out: &Outcome) -> u16 {
    assert_eq!(out.verdict, Verdict::Routed(UPLINK));
    u16::from_be_bytes([out.frame.bytes()[34], out.frame.bytes()[35]])
}

fn the_last_external_port(s: &mut Story) {
    s.world.edit(|t| t.nat.port_range = 50_000..=50_000);
    let remote = at("198.51.100.53:53");
    s.say("one external port is all there is, and a takes it");
    s.send(
        1,
        &wire::udp(a_out(), at("10.1.0.2:50000"), remote, 64, b"who?"),
    );
    s.say("b asks the same remote, whose answers could not be told apart");
    let b_out = Link(mac(2), gateway_mac(RED));
    s.send(
        2,
        &wire::udp(b_out, at("10.1.0.3:50000"), remote, 64, b"who?"),
    );
}

fn several_targets(s: &mut Story) {
    let lead = |s: &mut Story, duties: [Duty; 2]| {
        let target = |(id, duty)| {
            let inside = Ipv4Addr::new(10, 1, 0, 3 + id as u8);
            Target {
                duty,
                ..Target::new(id, RED, L4Addr::new(inside.into(), 80))
            }
        };
        let targets: Vec<Target> = (0..).zip(duties).map(target).collect();
        let rule = StaticRule {
            targets: targets.clone(),
            ..StaticRule::new(1, Transport::Tcp, 8_080..=8_080, targets[0])
        };
        s.world
            .edit(|t| t.statics = StaticRules::build(vec![rule]).expect("a sound rule"));
    };
    let published = at(&format!("{HOST}:8080"));
    let from = |number: u8, flags| {
        let client = at(&format!("198.51.100.{number}:50000"));
        wire::tcp(from_router(), client, published, flags, b"")
    };
    lead(s, [Duty::Serving; 2]);
    s.say("new connections take turns between b and c");
    s.send(9, &from(9, flags::SYN));
    s.send(9, &from(10, flags::SYN));
    s.say("a connection from before: either could have it, and the wrong one would reset it");
    s.send(9, &from(11, flags::ACK));
    s.say("b drains: it keeps its connection, and the next ones go to c");
    lead(s, [Duty::Draining, Duty::Serving]);
    s.send(9, &from(9, flags::ACK));
    s.send(9, &from(12, flags::SYN));
    s.say("so does c: there is nobody left for a new one, and a sender inside is told so");
    lead(s, [Duty::Draining; 2]);
    s.send(9, &from(13, flags::SYN));
    let inside = at("10.1.0.2:40001");
    s.send(1, &wire::tcp(a_out(), inside, published, flags::SYN, b""));
}

fn a_routed_network(s: &mut Story) {
    let (inside, remote) = (at("[fd00:1::2]:40000"), at("[2001:db8:9::9]:53"));
    s.world
        .edit(|t| t.domains[RED.index()].as_mut().unwrap().modes.v6 = NatMode::Routed);
    s.say("a asks under its own address, and the answer comes in");
    s.send(1, &wire::udp(a_out(), inside, remote, 64, b"who?"));
    s.send(9, &wire::udp(from_router(), remote, inside, 64, b"me"));
    s.say("nobody has asked another");
    let stranger = at("[2001:db8:9::8]:53");
    s.send(9, &wire::udp(from_router(), stranger, inside, 64, b"me"));
}

/// A story's name, and how it is told.
type Tale = (&'static str, fn(&mut Story));

const STORIES: [Tale; 33] = [
    ("01-first-ping", first_ping),
    ("02-moves-and-ageing", stations_move_age_and_are_flushed),
    ("03-gateway-answers", the_gateway_answers),
    ("04-snat", snat_out_and_back),
    ("05-published-port", published_port_in_and_back),
    ("06-isolation", isolation),
    ("07-errors", errors_that_the_gateway_sends),
    (
        "08-icmp-errors-translated",
        icmp_errors_cross_the_translation,
    ),
    ("09-host-link", the_host_link),
    ("10-held", held_until_the_next_hop_is_known),
    ("11-frames-that-end-at-once", frames_that_end_at_once),
    ("12-not-for-the-gateway", what_the_gateway_does_not_take),
    ("13-left-to-the-host", frames_that_are_the_hosts),
    ("14-no-port-left", the_last_external_port),
    ("15-several-targets", several_targets),
    ("16-routed-network", a_routed_network),
    ("17-port-flags", stories::flags_of_ports),
    ("18-set-entries", stories::entries_that_are_set),
    ("19-two-uplinks", stories::uplinks::two_uplinks),
    ("20-port-security", stories::a_secured_port),
    ("21-vlans", stories::vlans::access_and_trunk),
    (
        "22-gateway-in-a-vlan",
        stories::vlans::the_gateway_in_its_vlan,
    ),
    ("23-mirror-port", stories::a_port_that_shows_a_mirror),
    ("24-storm-control", stories::storm_control),
    ("25-links", stories::links::links_before_the_switch),
    ("26-multicast", stories::groups::snooping),
    ("27-loop-probe", stories::a_loop_that_is_found),
    ("28-nic", stories::nic::a_card_and_the_hosts_port),
    ("30-mac-nat", stories::mac_nat::one_mac),
    ("32-names", stories::names::at_the_gateway),
    ("33-rules", stories::rules::in_order_and_back),
    ("34-icc-off", stories::rules::icc_off),
    ("35-reject", stories::rules::rejected),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

#[test]
fn stories_are_told_as_they_were() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut shown = BTreeSet::new();
    let mut differ = Vec::new();
    let mut names = BTreeSet::new();
    for (name, tell) in STORIES {
        let mut story = Story::new();
        tell(&mut story);
        shown.extend(story.shown);
        let path = folder().join(format!("{name}.txt"));
        if update {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &story.text).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        if wanted != story.text {
            differ.push(format!(
                "{name}:\n{}",
                first_difference(&wanted, &story.text)
            ));
        }
        names.insert(format!("{name}.txt"));
    }
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("tests/golden is there")
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    println!(
        "covered: {} stories, {} of {} drop reasons",
        names.len(),
        shown.len(),
        DropReason::COUNT
    );
    assert!(
        differ.is_empty(),
        "{}\nUPDATE_GOLDEN=1 rewrites",
        differ.join("\n")
    );
    assert_eq!(found, names, "one file for each story");
    let untold: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !shown.contains(reason.label()))
        .collect();
    assert!(untold.is_empty(), "no story shows {untold:?}");
}

fn first_difference(wanted: &str, found: &str) -> String {
    let pairs = wanted.lines().map(Some).chain(std::iter::repeat(None));
    for (number, (wanted, found)) in pairs.zip(found.lines()).enumerate() {
        if wanted != Some(found) {
            let wanted = wanted.unwrap_or("(nothing)");
            return format!("  line {}\n  - {wanted}\n  + {found}", number + 1);
        }
    }
    "  it ends sooner than it did".to_owned()
}

#[test]
fn every_port_of_the_picture_speaks() {
    // The constants that the stories use are those of the world.
    let world = World::new();
    for (id, name) in [(PortId(1), "p1"), (HOST_LINK, "host"), (UPLINK, "eth9")] {
        assert_eq!(&*world.sw.topology.port(id).unwrap().name, name);
    }
}
