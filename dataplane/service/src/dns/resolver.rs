//! From a question to its answer: the zone, the cache, or the servers upstream.
//!
//! # Theory of operation
//! A question that goes upstream *waits* under its [`Key`]; whoever asks the same meanwhile waits
//! with it. One *exchange* is open for it at a time: a query to one server, by UDP or, when the
//! answer came cut, by TCP. An exchange ends with an answer, an error of the system, or after
//! [`ATTEMPT_MAX`]; then the next server is asked, and after [`ATTEMPTS_MAX`] attempts, or one where
//! all servers have failed lately, those who wait are told SERVFAIL. A server that failed is asked
//! after the others for [`FAILING_TIME`].
//!
//! An answer counts only with the id, name, type and class of the question, from the server that was
//! asked, at the port that it was asked from: ids and ports are random and new for each exchange.
//!
//! Limits: [`WAITING_MAX`] questions wait, and [`WAITERS_MAX`] clients for them, with
//! [`WAITING_PER_CLIENT_MAX`] of one client. One too many is refused, so that its client knows at once.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane_core::addr::DomainId;
use dataplane_core::time::{Duration, Instant};
use fastrand::Rng;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;
use rustc_hash::FxBuildHasher;

use super::cache::{Cache, Key};
use super::counters::{Counters, UpstreamView};
use super::message::{
    Authority, Question, Reply, Sections, Transport, Unserved, read_reply, upstream_query,
};
use super::zone::{Found, Missing, TTL_SECONDS, Zones};

/// Questions that wait for a server: a socket each.
pub const WAITING_MAX: usize = 512;
/// Questions of one client that wait: more than a busy program has at a time.
pub const WAITING_PER_CLIENT_MAX: usize = 64;
/// Clients that wait, together: what one waits for takes some hundred bytes.
pub const WAITERS_MAX: usize = 4_096;
/// How long a server may take. Beyond that, another one or a second try is the better bet.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// Attempts for one question, all servers together.
pub const ATTEMPTS_MAX: usize = 3;
/// What a client waits for at most: each attempt, and TCP after one of them. Below the five seconds
/// after which a stub resolver asks again.
pub const WAIT_MAX: Duration = Duration::from_secs(4);
/// How long a server that failed is asked last.
pub const FAILING_TIME: Duration = Duration::from_secs(10);

const _: () = assert!(ATTEMPT_MAX.as_secs() * (ATTEMPTS_MAX as u64 + 1) <= WAIT_MAX.as_secs());

/// Where a question comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Via {
    /// The network.
    pub domain: DomainId,
    /// The client's address.
    pub source: IpAddr,
    /// How it came.
    pub transport: Transport,
}

/// What a question has come to.
#[derive(Debug)]
pub struct Answer<C> {
    /// Who has asked.
    pub client: C,
    /// The message.
    pub bytes: Vec<u8>,
    /// Its code.
    pub code: ResponseCode,
    /// Its records.
    pub records: Vec<Record>,
    /// How it came to that.
    pub how: How,
}

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The network has the name.
    Zone,
    /// The name is this switch's to know, and does not exist.
    Missing(Missing),
    /// A server had said so before.
    Cache {
        /// Which.
        server: SocketAddr,
        /// How long ago.
        age: Duration,
    },
    /// A server has said so.
    Upstream {
        /// Which.
        server: SocketAddr,
        /// How long the client has waited.
        took: Duration,
    },
    /// No server is configured.
    NoServer,
    /// None has answered.
    Failed {
        /// How many were asked, each time counted.
        attempts: usize,
    },
    /// As many questions wait as may.
    Busy,
    /// It is no question that is served.
    Unserved,
}

/// A query to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Names the exchange; numbers are never given twice.
    pub exchange: u64,
    /// The server.
    pub server: SocketAddr,
    /// By what.
    pub transport: Transport,
    /// The message.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
struct Waiter<C> {
    client: C,
    via: Via,
    question: Question,
    since: Instant,
}

#[derive(Debug)]
struct Waiting<C> {
    waiters: Vec<Waiter<C>>,
    /// In the order in which they are asked.
    servers: Vec<SocketAddr>,
    attempts: usize,
    attempts_max: usize,
    exchange: u64,
    id: u16,
    transport: Transport,
    asked_at: Instant,
}

impl<C> Waiting<C> {
    fn server(&self) -> SocketAddr {
        self.servers[self.attempts % self.servers.len()]
    }
}

/// Answers questions for all networks. `C` says who has asked.
#[derive(Debug)]
pub struct Resolver<C> {
    zones: Arc<Zones>,
    cache: Cache,
    waiting: HashMap<Key, Waiting<C>, FxBuildHasher>,
    exchanges: HashMap<u64, Key, FxBuildHasher>,
    /// Questions that wait, by client.
    shares: HashMap<(DomainId, IpAddr), usize, FxBuildHasher>,
    waiters: usize,
    failing: HashMap<SocketAddr, Instant, FxBuildHasher>,
    last_exchange: u64,
    sends: VecDeque<Send>,
    answers: VecDeque<Answer<C>>,
    counters: Arc<Counters>,
    rng: Rng,
}

impl<C> Resolver<C> {
    /// One that knows no names yet.
    pub fn new(counters: Arc<Counters>, seed: u64) -> Self {
        Self {
            zones: Arc::default(),
            cache: Cache::default(),
            waiting: HashMap::default(),
            exchanges: HashMap::default(),
            shares: HashMap::default(),
            waiters: 0,
            failing: HashMap::default(),
            last_exchange: 0,
            sends: VecDeque::new(),
            answers: VecDeque::new(),
            counters,
            rng: Rng::with_seed(seed),
        }
    }

    /// Answers by other zones from now on.
    pub fn follow(&mut self, zones: Arc<Zones>) {
        self.zones = zones;
    }

    /// Forgets what servers have said; how many answers that were.
    pub fn flush(&mut self) -> usize {
        let count = self.cache.flush();
        self.failing.clear();
        self.note_sizes();
        count
    }

    /// Takes a message from a client.
    pub fn ask(&mut self, client: C, via: Via, bytes: &[u8], now: Instant) {
        self.counters.queries.add(1);
        let question = match Question::read(bytes, via.transport) {
            Ok(question) => question,
            Err(Unserved::Silence) => return self.counters.silent.add(1),
            Err(Unserved::Refused(code, bytes)) => {
                self.counters.record_code(code);
                return self.answers.push_back(Answer {
                    client,
                    bytes,
                    code,
                    records: Vec::new(),
                    how: How::Unserved,
                });
            }
        };
        let waiter = Waiter {
            client,
            via,
            question,
            since: now,
        };
        let query = &waiter.question.query;
        match self
            .zones
            .look_up(via.domain, via.source, &query.name, query.query_type)
        {
            Found::Records(mut records) => {
                // Whoever takes the first of several addresses takes each of them in turn.
                if records.len() > 1 {
                    let first = self.rng.usize(..records.len());
                    records.rotate_left(first);
                }
                let record = |data| Record::from_rdata(query.name.clone(), TTL_SECONDS, data);
                let sections = Sections {
                    answers: records.into_iter().map(record).collect(),
                    ..Sections::default()
                };
                self.tell_own(waiter, ResponseCode::NoError, &sections, How::Zone);
            }
            Found::NoData => {
                let none = Sections::default();
                self.tell_own(waiter, ResponseCode::NoError, &none, How::Zone);
            }
            Found::NoName(why) => {
                let none = Sections::default();
                self.tell_own(waiter, ResponseCode::NXDomain, &none, How::Missing(why));
            }
            Found::Elsewhere => self.ask_others(waiter, now),
        }
    }

    fn tell_own(&mut self, waiter: Waiter<C>, code: ResponseCode, sections: &Sections, how: How) {
        self.counters.own.add(1);
        self.tell(waiter, code, Authority::Own, sections, how);
    }

    fn tell(
        &mut self,
        waiter: Waiter<C>,
        code: ResponseCode,
        by: Authority,
        sections: &Sections,
        how: How,
    ) {
        self.counters.record_code(code);
        self.answers.push_back(Answer {
            client: waiter.client,
            bytes: waiter.question.answer(code, by, sections),
            code,
            records: sections.answers.clone(),
            how,
        });
    }

    fn tell_failure(&mut self, waiter: Waiter<C>, code: ResponseCode, how: How) {
        self.tell(waiter, code, Authority::Other, &Sections::default(), how);
    }

    fn ask_others(&mut self, waiter: Waiter<C>, now: Instant) {
        let Via { domain, source, .. } = waiter.via;
        let query = &waiter.question.query;
        let key = Key {
            name: query.name.clone(),
            rtype: query.query_type,
            dnssec_ok: waiter.question.dnssec_ok(),
            checking_disabled: waiter.question.checking_disabled,
            servers: self.zones.upstreams(domain, source),
        };
        if let Some(entry) = self.cache.get(&key, now) {
            self.counters.cache_hits.add(1);
            let how = How::Cache {
                server: entry.from,
                age: now.since(entry.since),
            };
            let (code, sections) = (entry.code, entry.sections_at(now));
            return self.tell(waiter, code, Authority::Other, &sections, how);
        }
        if key.servers.is_empty() {
            return self.tell_failure(waiter, ResponseCode::ServFail, How::NoServer);
        }
        let share = self.shares.get(&(domain, source)).copied().unwrap_or(0);
        let full = self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&key);
        if full || self.waiters >= WAITERS_MAX || share >= WAITING_PER_CLIENT_MAX {
            self.counters.busy.add(1);
            return self.tell_failure(waiter, ResponseCode::Refused, How::Busy);
        }
        self.shares.insert((domain, source), share + 1);
        self.waiters += 1;
        if let Some(waiting) = self.waiting.get_mut(&key) {
            self.counters.coalesced.add(1);
            waiting.waiters.push(waiter);
            return;
        }
        self.counters.forwarded.add(1);
        self.open(&key, waiter, now);
    }

    /// Begins to ask servers.
    fn open(&mut self, key: &Key, waiter: Waiter<C>, now: Instant) {
        self.failing.retain(|_, until| now < *until);
        let mut servers = key.servers.to_vec();
        servers.sort_by_key(|server| self.failing.contains_key(server));
        let all_fail = servers
            .iter()
            .all(|server| self.failing.contains_key(server));
        let waiting = Waiting {
            waiters: vec![waiter],
            servers,
            attempts: 0,
            attempts_max: if all_fail { 1 } else { ATTEMPTS_MAX },
            exchange: 0,
            id: 0,
            transport: Transport::Udp,
            asked_at: now,
        };
        self.waiting.insert(key.clone(), waiting);
        self.send(key, now);
        self.note_sizes();
    }

    /// Opens an exchange with the server whose turn it is.
    fn send(&mut self, key: &Key, now: Instant) {
        let Some(waiting) = self.waiting.get_mut(key) else {
            return;
        };
        self.exchanges.remove(&waiting.exchange);
        self.last_exchange += 1;
        waiting.exchange = self.last_exchange;
        waiting.id = self.rng.u16(..);
        waiting.asked_at = now;
        self.exchanges.insert(waiting.exchange, key.clone());
        let server = waiting.server();
        self.counters.of_upstream(server, |view| view.asked += 1);
        let (id, rtype) = (waiting.id, key.rtype);
        self.sends.push_back(Send {
            exchange: waiting.exchange,
            server,
            transport: waiting.transport,
            bytes: upstream_query(id, &key.name, rtype, key.dnssec_ok, key.checking_disabled),
        });
    }

    /// The next query that is to be sent.
    pub fn take_send(&mut self) -> Option<Send> {
        self.sends.pop_front()
    }

    /// The next answer that is to be given.
    pub fn take_answer(&mut self) -> Option<Answer<C>> {
        self.answers.pop_front()
    }

    /// Whether an exchange still counts. The sockets of others may be closed.
    pub fn is_open(&self, exchange: u64) -> bool {
        self.exchanges.contains_key(&exchange)
    }

    /// Takes what has come from the server of an exchange.
    pub fn receive(&mut self, exchange: u64, bytes: &[u8], now: Instant) {
        let Some(key) = self.exchanges.get(&exchange).cloned() else {
            return;
        };
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return;
        };
        let server = waiting.server();
        let Some(reply) = read_reply(bytes, waiting.id, &key.name, key.rtype) else {
            return self.counters.upstream_mismatches.add(1);
        };
        let took = now.since(waiting.asked_at);
        self.counters
            .of_upstream(server, |view| view.record_answer(took));
        if reply.truncated && waiting.transport == Transport::Udp {
            self.counters.upstream_tcp.add(1);
            waiting.transport = Transport::Tcp;
            return self.send(&key, now);
        }
        match reply.code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                self.failing.remove(&server);
                self.cache.put(&key, &reply, server, now);
                self.finish(&key, &reply, server, now);
            }
            _ => self.fail(exchange, now),
        }
    }

    /// Ends an exchange whose server could not be reached, or says that it fails.
    pub fn fail(&mut self, exchange: u64, now: Instant) {
        self.counters.upstream_failures.add(1);
        self.go_on(exchange, now, |view| view.failures += 1);
    }

    fn go_on(&mut self, exchange: u64, now: Instant, count: impl FnOnce(&mut UpstreamView)) {
        let Some(key) = self.exchanges.get(&exchange).cloned() else {
            return;
        };
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return;
        };
        let server = waiting.server();
        self.counters.of_upstream(server, count);
        self.failing.insert(server, now + FAILING_TIME);
        waiting.attempts += 1;
        waiting.transport = Transport::Udp;
        if waiting.attempts < waiting.attempts_max {
            return self.send(&key, now);
        }
        let attempts = waiting.attempts;
        for waiter in self.close(&key) {
            self.tell_failure(waiter, ResponseCode::ServFail, How::Failed { attempts });
        }
    }

    /// Tells everybody who waits.
    fn finish(&mut self, key: &Key, reply: &Reply, server: SocketAddr, now: Instant) {
        for waiter in self.close(key) {
            let took = now.since(waiter.since);
            let how = How::Upstream { server, took };
            self.tell(waiter, reply.code, Authority::Other, &reply.sections, how);
        }
    }

    fn close(&mut self, key: &Key) -> Vec<Waiter<C>> {
        let Some(waiting) = self.waiting.remove(key) else {
            return Vec::new();
        };
        self.exchanges.remove(&waiting.exchange);
        self.waiters -= waiting.waiters.len();
        for waiter in &waiting.waiters {
            let client = (waiter.via.domain, waiter.via.source);
            if let Some(share) = self.shares.get_mut(&client) {
                *share -= 1;
                if *share == 0 {
                    self.shares.remove(&client);
                }
            }
        }
        self.note_sizes();
        waiting.waiters
    }

    /// Lets time pass: servers that have not answered in time are given up.
    pub fn tick(&mut self, now: Instant) {
        let late = |waiting: &&Waiting<C>| now.since(waiting.asked_at) >= ATTEMPT_MAX;
        let late = self.waiting.values().filter(late);
        let late: Vec<u64> = late.map(|waiting| waiting.exchange).collect();
        for exchange in late {
            self.counters.upstream_timeouts.add(1);
            self.go_on(exchange, now, |view| view.timeouts += 1);
        }
    }

    /// In how long [`Resolver::tick`] has something to do; `None` for never.
    pub fn next_due(&self, now: Instant) -> Option<Duration> {
        let waits = self.waiting.values();
        waits
            .map(|waiting| ATTEMPT_MAX.saturating_sub(now.since(waiting.asked_at)))
            .min()
    }

    fn note_sizes(&self) {
        self.counters.cached.set(self.cache.len());
        self.counters.waiting.set(self.waiting.len());
    }
}
