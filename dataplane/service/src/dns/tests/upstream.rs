//! Questions that go upstream.

use hickory_proto::rr::rdata::{SOA, TXT};

use super::super::cache::NEGATIVE_TTL_SECONDS_MAX;
use super::super::message::UDP_SIZE_MAX;
use super::super::resolver::{
    ATTEMPT_MAX, ATTEMPTS_MAX, FAILING_TIME, WAIT_MAX, WAITING_PER_CLIENT_MAX,
};
use super::*;

#[test]
fn a_server_is_asked_for_other_names_and_its_answer_kept_for_its_time() {
    let mut world = World::new();
    world.ask("10.1.1.2", "Example.ORG.", RecordType::A);
    let send = world.sent();
    assert_eq!((send.server, send.transport), (server(1), Transport::Udp));
    let asked = Message::from_vec(&send.bytes).unwrap();
    assert!(asked.metadata.recursion_desired);
    assert_eq!(asked.edns.as_ref().unwrap().max_payload(), UDP_SIZE_MAX);
    world.pass(Duration::from_millis(20));
    world.reply_a(&send, [203, 0, 113, 5], 60);
    let (message, how) = world.take();
    let took = Duration::from_millis(20);
    assert_eq!(
        how,
        How::Upstream {
            server: server(1),
            took
        }
    );
    assert!(!message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(
        message.queries[0].name.to_ascii(),
        "Example.ORG.",
        "letter by letter"
    );
    assert_eq!(message.answers[0].ttl, 60);
    assert!(!world.resolver.is_open(send.exchange));

    world.pass(Duration::from_secs(59));
    let (message, how) = world.answer("10.1.1.3", "example.org.", RecordType::A);
    let age = Duration::from_secs(59);
    assert_eq!(
        how,
        How::Cache {
            server: server(1),
            age
        }
    );
    assert_eq!(message.answers[0].ttl, 1);
    world.pass(Duration::from_secs(1));
    world.ask("10.1.1.3", "example.org.", RecordType::A);
    world.sent();
    let read = world.counters.read();
    assert_eq!((read.get("cache_hits"), read.get("forwarded")), (1, 2));
    let (first, view) = read.upstreams[0];
    assert_eq!(
        (first, view.asked, view.answered, view.last_micros),
        (server(1), 2, 1, 20_000)
    );
}

#[test]
fn what_is_not_there_is_kept_as_the_zone_says_and_not_without_it() {
    for (with_soa, code) in [
        (true, ResponseCode::NXDomain),
        (true, ResponseCode::NoError),
        (false, ResponseCode::NXDomain),
    ] {
        let mut world = World::new();
        world.ask("10.1.1.2", "gone.example.", RecordType::A);
        let send = world.sent();
        world.reply(&send, |reply| {
            reply.metadata.response_code = code;
            if with_soa {
                let root = Name::root();
                let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 90_000);
                reply.add_authority(Record::from_rdata(root, 90_000, RData::SOA(soa)));
            }
        });
        assert_eq!(world.take().0.metadata.response_code, code);
        world.pass(Duration::from_secs(u64::from(NEGATIVE_TTL_SECONDS_MAX) - 1));
        world.ask("10.1.1.2", "gone.example.", RecordType::A);
        assert_eq!(world.resolver.take_send().is_none(), with_soa);
        if with_soa {
            world.pass(Duration::from_secs(1));
            world.ask("10.1.1.2", "gone.example.", RecordType::A);
            world.sent();
        }
    }
}

#[test]
fn equal_questions_of_a_time_are_asked_once_and_each_is_answered_its_own_way() {
    let mut world = World::new();
    for (source, name) in [("10.1.1.2", "example.org."), ("10.1.1.3", "EXAMPLE.org.")] {
        world.ask(source, name, RecordType::A);
    }
    world.ask("10.1.1.2", "example.org.", RecordType::AAAA);
    let (a, aaaa) = (world.sent(), world.sent());
    world.nothing_sent();
    world.reply_a(&a, [203, 0, 113, 5], 60);
    let names = [(); 2].map(|()| world.take().0.queries[0].name.to_ascii());
    assert_eq!(names, ["example.org.", "EXAMPLE.org."]);
    assert!(world.resolver.take_answer().is_none());
    world.reply(&aaaa, |_| {});
    assert!(world.take().0.answers.is_empty());
    assert_eq!(world.counters.coalesced.get(), 1);
}

#[test]
fn a_silent_server_is_followed_by_the_next_and_asked_last_for_a_while() {
    let mut world = World::new();
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    let first = world.sent();
    assert_eq!(world.resolver.next_due(world.now), Some(ATTEMPT_MAX));
    world.pass(ATTEMPT_MAX - Duration::from_millis(1));
    world.nothing_sent();
    world.pass(Duration::from_millis(1));
    let second = world.sent();
    assert_eq!(second.server, server(2));
    assert!(!world.resolver.is_open(first.exchange));
    world.reply_a(&first, [203, 0, 113, 66], 60);
    assert!(world.resolver.take_answer().is_none(), "too late");
    world.reply_a(&second, [203, 0, 113, 5], 1);
    assert!(world.resolver.take_answer().is_some());
    world.ask("10.1.1.2", "example.net.", RecordType::A);
    assert_eq!(world.sent().server, server(2));
    world.pass(FAILING_TIME);
    world.ask("10.1.1.2", "example.com.", RecordType::A);
    let sent: Vec<Send> = std::iter::from_fn(|| world.resolver.take_send()).collect();
    assert_eq!(
        sent.last().unwrap().server,
        server(1),
        "it gets a chance again"
    );
}

#[test]
fn when_all_fail_the_client_is_told_at_once_and_never_waits_for_long() {
    let mut world = World::new();
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    let mut attempts = 0;
    while let Some(send) = world.resolver.take_send() {
        attempts += 1;
        world.resolver.fail(send.exchange, world.now);
    }
    assert_eq!(attempts, ATTEMPTS_MAX);
    let (message, how) = world.take();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(how, How::Failed { attempts });

    // All have failed lately: one attempt has to do.
    world.ask("10.1.1.2", "example.net.", RecordType::A);
    world.sent();
    world.pass(ATTEMPT_MAX);
    world.nothing_sent();
    assert_eq!(
        world.take().0.metadata.response_code,
        ResponseCode::ServFail
    );

    world.pass(FAILING_TIME);
    let started = world.now;
    world.ask("10.1.1.2", "example.com.", RecordType::A);
    for _ in 0..ATTEMPTS_MAX {
        world.sent();
        world.pass(ATTEMPT_MAX);
    }
    assert_eq!(
        world.take().0.metadata.response_code,
        ResponseCode::ServFail
    );
    assert!(world.now.since(started) <= WAIT_MAX);
    assert_eq!(world.counters.servfail.get(), 3);
}

#[test]
fn a_server_that_says_that_it_fails_is_followed_by_the_next() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let mut world = World::new();
        world.ask("10.1.1.2", "example.org.", RecordType::A);
        let send = world.sent();
        world.reply(&send, |reply| reply.metadata.response_code = code);
        assert_eq!(world.sent().server, server(2));
        assert!(world.resolver.take_answer().is_none());
    }
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let mut world = World::new();
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    let send = world.sent();
    let id = Message::from_vec(&send.bytes).unwrap().metadata.id;
    let other = Name::from_str("evil.example.").unwrap();
    world.reply(&send, |reply| reply.metadata.id = id.wrapping_add(1));
    world.reply(&send, |reply| {
        reply.queries[0].set_name(other);
    });
    world.reply(&send, |reply| {
        reply.queries[0].set_query_type(RecordType::AAAA);
    });
    world.reply(&send, |reply| {
        reply.metadata.message_type = MessageType::Query;
    });
    world.reply(&send, |reply| reply.queries.clear());
    world.resolver.receive(send.exchange, b"garbage", world.now);
    world
        .resolver
        .receive(send.exchange + 1, b"garbage", world.now);
    assert!(world.resolver.take_answer().is_none());
    assert_eq!(world.counters.upstream_mismatches.get(), 6);
    world.reply_a(&send, [203, 0, 113, 5], 60);
    assert_eq!(world.take().0.answers.len(), 1);
}

#[test]
fn ids_differ_from_one_exchange_to_the_next() {
    let mut world = World::new();
    let ids: std::collections::BTreeSet<u16> = (0..32)
        .map(|number| {
            world.ask("10.1.1.2", &format!("n{number}.example."), RecordType::A);
            Message::from_vec(&world.sent().bytes).unwrap().metadata.id
        })
        .collect();
    assert!(ids.len() > 28, "{ids:?}");
}

#[test]
fn a_cut_answer_is_asked_for_again_by_tcp_and_cut_again_for_who_takes_less() {
    let mut world = World::new();
    world.ask("10.1.1.2", "large.example.", RecordType::TXT);
    let send = world.sent();
    world.reply(&send, |reply| reply.metadata.truncation = true);
    let again = world.sent();
    assert_eq!((again.server, again.transport), (server(1), Transport::Tcp));
    world.reply(&again, |reply| {
        let name = reply.queries[0].name.clone();
        for number in 0..20 {
            let text = TXT::new(vec![format!("{number:0>200}")]);
            reply.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(text)));
        }
    });
    let (message, _) = world.take();
    assert!(message.metadata.truncation && message.answers.is_empty());

    let mut edns = query("large.example.", RecordType::TXT);
    let mut takes = Edns::new();
    takes.set_max_payload(4_096);
    edns.set_edns(takes);
    world.put("10.1.1.2", &edns.to_vec().unwrap());
    let answer = world.resolver.take_answer().unwrap();
    assert!(
        answer.bytes.len() <= usize::from(UDP_SIZE_MAX),
        "no fragments"
    );
    assert!(
        Message::from_vec(&answer.bytes)
            .unwrap()
            .metadata
            .truncation
    );
    let by_tcp = Via {
        transport: Transport::Tcp,
        ..World::via("10.1.1.2")
    };
    let bytes = query("large.example.", RecordType::TXT).to_vec().unwrap();
    world.resolver.ask(9, by_tcp, &bytes, world.now);
    let (message, how) = world.take();
    assert_eq!(
        (message.metadata.truncation, message.answers.len()),
        (false, 20)
    );
    assert!(matches!(how, How::Cache { .. }));
}

#[test]
fn an_answer_that_fits_with_edns_is_not_cut() {
    let mut world = World::new();
    let mut edns = query("many.example.", RecordType::A);
    let mut takes = Edns::new();
    takes.set_max_payload(4_096);
    edns.set_edns(takes);
    world.put("10.1.1.2", &edns.to_vec().unwrap());
    let send = world.sent();
    world.reply(&send, |reply| {
        let name = reply.queries[0].name.clone();
        for number in 0..50 {
            let data = RData::A(A([203, 0, 113, number].into()));
            reply.add_answer(Record::from_rdata(name.clone(), 60, data));
        }
    });
    let (message, _) = world.take();
    assert_eq!(
        (message.answers.len(), message.metadata.truncation),
        (50, false)
    );
    let (message, _) = world.answer("10.1.1.2", "many.example.", RecordType::A);
    assert!(
        message.metadata.truncation,
        "without EDNS a client takes 512 bytes"
    );
}

#[test]
fn an_endpoint_with_servers_of_its_own_asks_those_and_shares_no_answer() {
    let mut world = World::new();
    world.ask("10.1.1.9", "example.org.", RecordType::A);
    let send = world.sent();
    assert_eq!(send.server, server(9));
    world.reply_a(&send, [203, 0, 113, 9], 60);
    world.take();
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    assert_eq!(world.sent().server, server(1));
}

#[test]
fn one_client_fills_its_share_and_not_that_of_others() {
    let mut world = World::new();
    for number in 0..WAITING_PER_CLIENT_MAX {
        world.ask("10.1.1.2", &format!("n{number}.example."), RecordType::A);
    }
    let outcome = world.code("10.1.1.2", "more.example.", RecordType::A);
    assert_eq!(outcome, (ResponseCode::Refused, How::Busy));
    let coalesced = world.code("10.1.1.2", "n0.example.", RecordType::A);
    assert_eq!(coalesced.1, How::Busy);
    world.ask("10.1.1.3", "more.example.", RecordType::A);
    assert!(world.resolver.take_answer().is_none(), "it waits");
    assert_eq!(world.counters.busy.get(), 2);
    assert_eq!(
        world.addresses("10.1.1.2", "web2.", RecordType::A),
        [ip("10.1.1.3")]
    );
    for _ in 0..ATTEMPTS_MAX {
        world.pass(ATTEMPT_MAX);
    }
    let told = std::iter::from_fn(|| world.resolver.take_answer()).count();
    assert_eq!(told, WAITING_PER_CLIENT_MAX + 1);
    while world.resolver.take_send().is_some() {}
    world.ask("10.1.1.2", "more.example.", RecordType::A);
    world.sent();
}

#[test]
fn no_server_is_an_answer_too_and_a_flush_forgets() {
    let mut world = World::new();
    let mut alone = network(WEB, "web", 1, Vec::new());
    alone.forward = Forward::To(Arc::default());
    world.resolver.follow(Arc::new(Zones::build(vec![alone])));
    let outcome = world.code("10.1.1.2", "example.org.", RecordType::A);
    assert_eq!(outcome, (ResponseCode::ServFail, How::NoServer));
    world.resolver.follow(zones());
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    let send = world.sent();
    world.reply_a(&send, [203, 0, 113, 9], 60);
    world.take();
    assert_eq!(world.resolver.flush(), 1);
    world.ask("10.1.1.2", "example.org.", RecordType::A);
    world.sent();
}
