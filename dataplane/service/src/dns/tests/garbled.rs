//! Questions and replies that are damaged in every way: each question gets one answer that can be read, or
//! silence where it is no question, and nothing waits for ever. `SEED` replays.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::*;

/// Messages of the loop.
const MESSAGES: u32 = 100_000;
/// Longer than any question waits for its servers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest message that is made up.
const BYTES_MAX: usize = 300;

const NAMES: [&str; 8] = [
    "web1.",
    "WWW.web.",
    "mate.",
    "nobody.web.",
    "db1.",
    "2.1.1.10.in-addr.arpa.",
    "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
    "example.org.",
];
const TYPES: [RecordType; 7] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::PTR,
    RecordType::MX,
    RecordType::ANY,
    RecordType::AXFR,
    RecordType::TXT,
];
const SOURCES: [&str; 5] = ["10.1.1.2", "10.1.1.9", "fd00:1::4", "10.1.2.2", "10.1.3.2"];

fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

/// Damages a message: bytes changed, cut off, repeated, or counts in the header that are not true.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(..4) {
        if bytes.is_empty() {
            return;
        }
        match rng.u8(..5) {
            0 => {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            1 => bytes.truncate(rng.usize(..=bytes.len())),
            2 => {
                let from = rng.usize(..bytes.len());
                bytes.extend_from_within(from..);
                bytes.truncate(BYTES_MAX);
            }
            3 => {
                let at = rng.usize(4..12).min(bytes.len() - 1);
                bytes[at] = rng.u8(..3);
            }
            _ => {
                // A name that points: ahead, back, or to itself.
                let at = rng.usize(..bytes.len());
                bytes[at] = 0xc0;
            }
        }
    }
}

fn question(rng: &mut Rng) -> Vec<u8> {
    if rng.u8(..16) == 0 {
        let mut bytes = vec![0; rng.usize(..BYTES_MAX)];
        rng.fill(&mut bytes);
        return bytes;
    }
    let mut message = query(pick(rng, &NAMES), pick(rng, &TYPES));
    message.metadata.id = rng.u16(..);
    if rng.bool() {
        let mut edns = Edns::new();
        edns.set_max_payload(rng.u16(..));
        edns.set_version(rng.u8(..8) / 7);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn reply(rng: &mut Rng, send: &Send) -> Vec<u8> {
    let asked = Message::from_vec(&send.bytes).unwrap();
    let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.truncation = rng.u8(..8) == 0;
    reply.metadata.response_code = ResponseCode::from(0, rng.u8(..6) % 4);
    reply.add_queries(asked.queries.clone());
    for _ in 0..rng.usize(..4) {
        let (name, address) = (reply.queries[0].name.clone(), [198, 51, 100, rng.u8(..)]);
        let ttl = rng.u32(..120);
        reply.add_answer(Record::from_rdata(name, ttl, RData::A(A(address.into()))));
    }
    reply.to_vec().unwrap()
}

/// What an answer to `asked` has to be, whatever it says.
fn check(asked: &[u8], bytes: &[u8]) {
    assert!(bytes.len() >= 12 && bytes.len() <= 1_232, "{}", bytes.len());
    assert_eq!(bytes[..2], asked[..2], "of the same question");
    assert_ne!(bytes[2] & 0x80, 0, "an answer");
    let read = Message::from_vec(bytes).unwrap();
    let has_edns = Message::from_vec(asked).is_ok_and(|asked| asked.edns.is_some());
    assert!(read.edns.is_none() || has_edns, "EDNS that nobody offered");
    assert!(bytes.len() <= 512 || has_edns, "{}", bytes.len());
}

#[test]
fn whatever_is_asked_or_replied_is_answered_once_and_can_be_read() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new();
    let mut asked: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let (mut answered, mut replied) = (0_u64, 0_u64);
    let mut codes: BTreeMap<u8, u64> = BTreeMap::new();
    let mut take = |world: &mut World, asked: &mut BTreeMap<u32, Vec<u8>>| {
        while let Some(answer) = world.resolver.take_answer() {
            let question = asked.remove(&answer.client);
            check(&question.expect("one answer each"), &answer.bytes);
            *codes.entry(answer.code.low()).or_default() += 1;
            answered += 1;
        }
    };
    for _ in 0..MESSAGES {
        let mut bytes = question(&mut rng);
        if rng.u8(..4) > 0 {
            damage(&mut rng, &mut bytes);
        }
        world.put(pick(&mut rng, &SOURCES), &bytes);
        asked.insert(world.asked, bytes);
        while let Some(send) = world.resolver.take_send() {
            let mut bytes = reply(&mut rng, &send);
            if rng.bool() {
                damage(&mut rng, &mut bytes);
            }
            if rng.u8(..4) > 0 {
                let now = world.now;
                world.resolver.receive(send.exchange, &bytes, now);
                replied += 1;
            }
        }
        take(&mut world, &mut asked);
        world.pass(Duration::from_millis(rng.u64(..40)));
    }
    // Each further server is asked after the one before, of which one kept silent.
    for _ in 0..10 {
        world.pass(PATIENCE);
        while world.resolver.take_send().is_some() {}
        take(&mut world, &mut asked);
    }
    let read = world.counters.read();
    assert_eq!(read.get("queries"), u64::from(MESSAGES));
    assert_eq!(read.get("silent"), asked.len() as u64, "nobody waits");
    assert_eq!(answered + read.get("silent"), u64::from(MESSAGES));
    for bytes in asked.values() {
        let is_question = bytes.len() >= 12 && bytes[2] & 0x80 == 0;
        assert!(!is_question, "{bytes:02x?} was left without an answer");
    }
    let by_code = [
        "noerror", "nxdomain", "formerr", "notimp", "refused", "badvers", "servfail",
    ];
    let counted: Vec<u64> = by_code.iter().map(|code| read.get(code)).collect();
    assert_eq!(counted.iter().sum::<u64>(), answered);
    assert_eq!(counted[6], codes[&ResponseCode::ServFail.low()], "{read:?}");
    println!(
        "covered: {answered} answers, by code {codes:?}, {replied} replies of servers, {read:?}"
    );
    for code in [
        ResponseCode::NoError,
        ResponseCode::FormErr,
        ResponseCode::ServFail,
        ResponseCode::NXDomain,
        ResponseCode::NotImp,
        ResponseCode::Refused,
    ] {
        assert!(
            codes.get(&code.low()).is_some_and(|&n| n >= 50),
            "{code}: {codes:?}"
        );
    }
    for count in [
        "upstream_mismatches",
        "upstream_tcp",
        "cache_hits",
        "coalesced",
    ] {
        assert!(read.get(count) > 100, "{count}: {read:?}");
    }
}
