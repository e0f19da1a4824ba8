//! The resolver on a virtual clock: names of two networks, servers that answer, fail or keep silent.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use dataplane_core::addr::{DomainId, Prefix};
use dataplane_core::time::{Duration, Instant};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::message::Transport;
use super::zone::{Forward, Missing, TTL_SECONDS};
use super::*;

mod garbled;
mod upstream;

const WEB: DomainId = DomainId(1);
const DB: DomainId = DomainId(2);
const VAULT: DomainId = DomainId(3);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn server(last: u8) -> SocketAddr {
    SocketAddr::new(ip(&format!("198.51.100.{last}")), 53)
}

fn endpoint(names: &[&str], addresses: &[&str]) -> EndpointNames {
    EndpointNames {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        upstreams: Vec::new(),
        links: Vec::new(),
    }
}

fn network(domain: DomainId, name: &str, third: u8, endpoints: Vec<EndpointNames>) -> NetworkNames {
    let servers: Arc<[SocketAddr]> = [server(1), server(2)].into();
    NetworkNames {
        domain,
        name: name.to_owned(),
        subnets: vec![
            Prefix::new(ip(&format!("10.1.{third}.0")), 24),
            Prefix::new(ip(&format!("fd00:{third}::")), 64),
        ],
        forward: match domain {
            VAULT => Forward::Nobody,
            _ => Forward::To(servers),
        },
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    }
}

fn zones() -> Arc<Zones> {
    let mut own_servers = endpoint(&["picky"], &["10.1.1.9"]);
    own_servers.upstreams = vec![server(9)];
    own_servers.links = vec![
        ("Mate".to_owned(), "Web1".to_owned()),
        ("web2".to_owned(), "Web1".to_owned()),
        // Only an alias of others, and nobody's own name.
        ("gone".to_owned(), "www".to_owned()),
    ];
    let web = vec![
        endpoint(&["Web1", "www"], &["10.1.1.2", "fd00:1::2"]),
        endpoint(&["web2", "www"], &["10.1.1.3"]),
        endpoint(&["six"], &["fd00:1::4"]),
        own_servers,
    ];
    let db = vec![endpoint(&["db1", "example.com"], &["10.1.2.2"])];
    let vault = vec![endpoint(&["safe"], &["10.1.3.2"])];
    Arc::new(Zones::build(vec![
        network(WEB, "web", 1, web),
        network(DB, "db", 2, db),
        network(VAULT, "vault", 3, vault),
    ]))
}

/// A resolver with a clock.
struct World {
    resolver: Resolver<u32>,
    counters: Arc<Counters>,
    now: Instant,
    asked: u32,
}

impl World {
    fn new() -> Self {
        let counters = Arc::new(Counters::default());
        let mut resolver = Resolver::new(Arc::clone(&counters), 7);
        resolver.follow(zones());
        Self {
            resolver,
            counters,
            now: Instant::from_secs(1_000),
            asked: 0,
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.resolver.tick(self.now);
    }

    fn via(source: &str) -> Via {
        Via {
            domain: match source {
                "10.1.2.2" => DB,
                "10.1.3.2" => VAULT,
                _ => WEB,
            },
            source: ip(source),
            transport: Transport::Udp,
        }
    }

    fn put(&mut self, source: &str, bytes: &[u8]) {
        self.asked += 1;
        let via = Self::via(source);
        self.resolver.ask(self.asked, via, bytes, self.now);
    }

    fn ask(&mut self, source: &str, name: &str, rtype: RecordType) {
        self.put(source, &query(name, rtype).to_vec().unwrap());
    }

    /// Asks, and takes the answer that must be there at once.
    fn answer(&mut self, source: &str, name: &str, rtype: RecordType) -> (Message, How) {
        self.ask(source, name, rtype);
        self.take()
    }

    fn take(&mut self) -> (Message, How) {
        let answer = self.resolver.take_answer().expect("an answer");
        let message = Message::from_vec(&answer.bytes).unwrap();
        assert_eq!(message.metadata.response_code.low(), answer.code.low());
        (message, answer.how)
    }

    fn code(&mut self, source: &str, name: &str, rtype: RecordType) -> (ResponseCode, How) {
        let (message, how) = self.answer(source, name, rtype);
        assert!(message.answers.is_empty());
        (message.metadata.response_code, how)
    }

    fn addresses(&mut self, source: &str, name: &str, rtype: RecordType) -> Vec<IpAddr> {
        let (message, how) = self.answer(source, name, rtype);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert_eq!(how, How::Zone);
        assert!(message.metadata.authoritative && message.metadata.recursion_available);
        let record = |record: &Record| {
            assert_eq!(record.ttl, TTL_SECONDS);
            assert_eq!(record.name, message.queries[0].name);
            record.data.ip_addr().unwrap()
        };
        message.answers.iter().map(record).collect()
    }

    /// The query that is sent now.
    fn sent(&mut self) -> Send {
        self.resolver.take_send().expect("a query to a server")
    }

    fn nothing_sent(&mut self) {
        assert_eq!(self.resolver.take_send(), None);
    }

    fn reply(&mut self, send: &Send, change: impl FnOnce(&mut Message)) {
        let asked = Message::from_vec(&send.bytes).unwrap();
        let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        reply.add_queries(asked.queries.clone());
        change(&mut reply);
        let bytes = reply.to_vec().unwrap();
        self.resolver.receive(send.exchange, &bytes, self.now);
    }

    fn reply_a(&mut self, send: &Send, address: [u8; 4], ttl: u32) {
        self.reply(send, |reply| {
            let name = reply.queries[0].name.clone();
            reply.add_answer(Record::from_rdata(name, ttl, RData::A(A(address.into()))));
        });
    }
}

fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message
}

#[test]
fn endpoints_are_known_by_name_alias_and_network_in_any_letter_case() {
    let mut world = World::new();
    let first = [ip("10.1.1.2")];
    for name in ["web1.", "WEB1.", "Web1.web.", "web1.WEB."] {
        assert_eq!(world.addresses("10.1.1.3", name, RecordType::A), first);
    }
    let six = [ip("fd00:1::2")];
    assert_eq!(world.addresses("10.1.1.3", "web1.", RecordType::AAAA), six);
    world.nothing_sent();
    let read = world.counters.read();
    assert_eq!(
        (read.get("queries"), read.get("own"), read.get("noerror")),
        (5, 5, 5)
    );
}

#[test]
fn a_link_is_known_to_the_endpoint_that_has_it_and_to_nobody_else() {
    let mut world = World::new();
    let mate = [ip("10.1.1.2")];
    for name in ["mate.", "MATE.", "web2."] {
        assert_eq!(world.addresses("10.1.1.9", name, RecordType::A), mate);
    }
    let six = [ip("fd00:1::2")];
    assert_eq!(world.addresses("10.1.1.9", "mate.", RecordType::AAAA), six);
    let gone = world.code("10.1.1.9", "gone.", RecordType::A);
    assert_eq!(gone, (ResponseCode::NoError, How::Zone));
    world.nothing_sent();
    // To the one that is linked, it is any name.
    let other = [ip("10.1.1.3")];
    assert_eq!(world.addresses("10.1.1.2", "web2.", RecordType::A), other);
    let missing = world.code("10.1.3.2", "mate.", RecordType::A);
    assert_eq!(
        missing,
        (ResponseCode::NXDomain, How::Missing(Missing::Internal))
    );
}

#[test]
fn an_alias_of_several_endpoints_has_the_addresses_of_all_each_first_in_turn() {
    let mut world = World::new();
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let mut all = world.addresses("10.1.1.9", "www.web.", RecordType::A);
        first.insert(all[0]);
        all.sort();
        assert_eq!(all, [ip("10.1.1.2"), ip("10.1.1.3")]);
    }
    assert_eq!(first.len(), 2);
}

#[test]
fn a_name_without_an_address_of_the_family_is_there_all_the_same() {
    let mut world = World::new();
    for (name, rtype) in [
        ("web2.", RecordType::AAAA),
        ("six.", RecordType::A),
        ("web1.", RecordType::MX),
        ("web1.web.", RecordType::TXT),
    ] {
        let outcome = world.code("10.1.1.2", name, rtype);
        assert_eq!(
            outcome,
            (ResponseCode::NoError, How::Zone),
            "{name} {rtype}"
        );
    }
}

#[test]
fn names_of_other_networks_do_not_exist_and_nobody_is_asked_for_them() {
    let mut world = World::new();
    let other = How::Missing(Missing::OtherNetwork);
    for (source, name) in [
        ("10.1.1.2", "db1."),
        ("10.1.1.2", "db1.db."),
        ("10.1.1.2", "example.com.db."),
        ("10.1.2.2", "web1."),
        ("10.1.3.2", "www."),
    ] {
        let outcome = world.code(source, name, RecordType::A);
        assert_eq!(outcome, (ResponseCode::NXDomain, other), "{name}");
    }
    world.nothing_sent();
    // An endpoint elsewhere takes no name of the Internet from this network.
    world.ask("10.1.1.2", "example.com.", RecordType::A);
    assert_eq!(world.sent().server, server(1));
    assert_eq!(
        world.addresses("10.1.2.2", "example.com.", RecordType::A),
        [ip("10.1.2.2")]
    );
}

#[test]
fn addresses_have_the_name_of_their_endpoint_and_no_other_network_sees_it() {
    let mut world = World::new();
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
    for reverse in ["2.1.1.10.in-addr.arpa.", v6] {
        let (message, _) = world.answer("10.1.1.3", reverse, RecordType::PTR);
        let [record] = &message.answers[..] else {
            panic!("{message:?}")
        };
        let RData::PTR(name) = &record.data else {
            panic!("{record:?}")
        };
        assert_eq!(name.0, Name::from_str("web1.web.").unwrap());
    }
    let missing = (ResponseCode::NXDomain, How::Missing(Missing::Address));
    for (source, reverse) in [
        ("10.1.1.3", "77.1.1.10.in-addr.arpa."),
        ("10.1.1.3", "2.2.1.10.in-addr.arpa."),
        ("10.1.2.2", v6),
    ] {
        assert_eq!(world.code(source, reverse, RecordType::PTR), missing);
    }
    let no_data = world.code("10.1.1.3", "2.1.1.10.in-addr.arpa.", RecordType::A);
    assert_eq!(no_data, (ResponseCode::NoError, How::Zone));
    world.nothing_sent();
    for reverse in [
        "8.8.8.8.in-addr.arpa.",
        "1.10.in-addr.arpa.",
        "x.in-addr.arpa.",
    ] {
        world.ask("10.1.1.3", reverse, RecordType::PTR);
        world.sent();
    }
}

#[test]
fn an_internal_network_asks_nobody() {
    let mut world = World::new();
    let internal = How::Missing(Missing::Internal);
    for (name, rtype) in [
        ("example.com.", RecordType::A),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR),
    ] {
        let outcome = world.code("10.1.3.2", name, rtype);
        assert_eq!(outcome, (ResponseCode::NXDomain, internal));
    }
    world.nothing_sent();
    assert_eq!(
        world.addresses("10.1.3.2", "safe.", RecordType::A),
        [ip("10.1.3.2")]
    );
}

#[test]
fn what_is_not_served_is_refused_by_the_code_that_it_has() {
    let mut world = World::new();
    for rtype in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
        let outcome = world.code("10.1.1.2", "web1.", rtype);
        assert_eq!(outcome, (ResponseCode::Refused, How::Unserved), "{rtype}");
    }
    let mut cases: Vec<(Message, ResponseCode)> = Vec::new();
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    cases.push((chaos, ResponseCode::Refused));
    let mut status = query("web1.", RecordType::A);
    status.metadata.op_code = OpCode::Status;
    cases.push((status, ResponseCode::NotImp));
    let mut update = query("web1.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    cases.push((update, ResponseCode::NotImp));
    let mut two = query("web1.", RecordType::A);
    two.add_query(two.queries[0].clone());
    cases.push((two, ResponseCode::FormErr));
    let mut none = query("web1.", RecordType::A);
    none.queries.clear();
    cases.push((none, ResponseCode::FormErr));
    for (message, code) in cases {
        world.put("10.1.1.2", &message.to_vec().unwrap());
        let (answer, _) = world.take();
        assert_eq!(
            (answer.metadata.id, answer.metadata.response_code),
            (4_711, code)
        );
        assert_eq!(answer.metadata.message_type, MessageType::Response);
    }
    let mut edns1 = query("web1.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    edns1.set_edns(edns);
    world.put("10.1.1.2", &edns1.to_vec().unwrap());
    let (answer, _) = world.take();
    assert_eq!(answer.edns.unwrap().rcode_high(), 1, "BADVERS");
}

#[test]
fn what_is_no_question_is_met_with_silence() {
    let mut world = World::new();
    let mut response = query("web1.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let question = query("web1.", RecordType::A).to_vec().unwrap();
    for bytes in [&response.to_vec().unwrap()[..], &question[..11], &[]] {
        world.put("10.1.1.2", bytes);
        assert!(world.resolver.take_answer().is_none());
    }
    assert_eq!(world.counters.silent.get(), 3);
    world.put("10.1.1.2", &question[..question.len() - 1]);
    assert_eq!(world.take().0.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn nothing_that_comes_in_does_harm() {
    let mut rng = fastrand::Rng::with_seed(24);
    let mut world = World::new();
    let good = query("web1.web.", RecordType::A).to_vec().unwrap();
    for round in 0..50_000_u32 {
        let mut bytes = good.clone();
        if round % 2 == 0 {
            bytes = (0..rng.usize(..80)).map(|_| rng.u8(..)).collect();
        }
        for _ in 0..rng.usize(..4) {
            if !bytes.is_empty() {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        world.put("10.1.1.2", &bytes);
        while let Some(answer) = world.resolver.take_answer() {
            assert_eq!(answer.bytes[..2], bytes[..2], "of round {round}");
            assert!(answer.bytes[2] & 0x80 != 0 && answer.bytes.len() <= 1_232);
        }
        if let Some(send) = world.resolver.take_send() {
            let junk: Vec<u8> = (0..rng.usize(..80)).map(|_| rng.u8(..)).collect();
            world.resolver.receive(send.exchange, &junk, world.now);
            world.resolver.fail(send.exchange, world.now);
        }
        while let Some(send) = world.resolver.take_send() {
            world.resolver.fail(send.exchange, world.now);
        }
        while world.resolver.take_answer().is_some() {}
    }
    assert_eq!(
        world.addresses("10.1.1.3", "web1.", RecordType::A),
        [ip("10.1.1.2")]
    );
}
