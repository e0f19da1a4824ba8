//! What the service counts. Written by the service thread, read by anybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dataplane_core::time::Duration;
use hickory_proto::op::ResponseCode;

macro_rules! counters {
    ($($name:ident, $sentence:literal;)*) => {
        /// What the service has counted.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $sentence] pub $name: Count,)*
            upstreams: Mutex<BTreeMap<SocketAddr, UpstreamView>>,
        }

        impl Counters {
            /// Every counter with its name.
            pub fn read(&self) -> CountersView {
                let upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
                CountersView {
                    counts: vec![$((stringify!($name), self.$name.get()),)*],
                    upstreams: upstreams.iter().map(|(server, view)| (*server, *view)).collect(),
                }
            }
        }
    };
}

counters! {
    queries, "Messages from clients.";
    silent, "Messages that were met with silence: too short, or answers themselves.";
    answered, "Answers to clients.";
    noerror, "Answers among them that say what there is.";
    nxdomain, "Answers that a name does not exist.";
    servfail, "Answers that nobody could be asked.";
    refused, "Questions that are not served: ANY, zone transfers, other classes.";
    formerr, "Messages that could not be read.";
    notimp, "Operations other than a question.";
    badvers, "Questions by a version of EDNS that is not served (RFC 6891 section 6.1.3).";
    own, "Answers about endpoints' names.";
    cache_hits, "Answers that were kept from before.";
    forwarded, "Questions that went upstream.";
    coalesced, "Questions that waited for the answer to the same one.";
    busy, "Questions refused because as many wait as may.";
    upstream_timeouts, "Servers that did not answer in time.";
    upstream_failures, "Servers that could not be reached, or said that they fail.";
    upstream_mismatches, "Datagrams from servers that answer no question.";
    upstream_tcp, "Questions that were asked again by TCP.";
    cached, "Answers that are kept at the moment.";
    waiting, "Questions that wait for a server at the moment.";
    tcp_connections, "Connections that are open at the moment.";
    tcp_refused, "Connections that were refused or ended for a limit.";
    unsent, "Answers for which there was no room on the way out.";
}

/// One counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Says how many there are at the moment.
    pub fn set(&self, count: usize) {
        self.0.store(count as u64, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A reading of every counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersView {
    /// By name, in the order of their declaration.
    pub counts: Vec<(&'static str, u64)>,
    /// By server.
    pub upstreams: Vec<(SocketAddr, UpstreamView)>,
}

impl CountersView {
    /// One of them.
    pub fn get(&self, name: &str) -> u64 {
        let mut counts = self.counts.iter();
        counts
            .find(|(label, _)| *label == name)
            .map_or(0, |(_, count)| *count)
    }
}

/// What is counted of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamView {
    /// Questions that it was sent.
    pub asked: u64,
    /// Answers that came.
    pub answered: u64,
    /// Questions that it left unanswered in time.
    pub timeouts: u64,
    /// Questions that could not be sent to it, or that it said to fail at.
    pub failures: u64,
    /// Microseconds until the last answer.
    pub last_micros: u64,
    /// Microseconds until answers, added up.
    pub total_micros: u64,
}

/// Servers that are counted apart: more than anybody configures.
const UPSTREAMS_MAX: usize = 256;

impl Counters {
    /// Counts an answer to a client by its code.
    pub fn record_code(&self, code: ResponseCode) {
        self.answered.add(1);
        match code {
            ResponseCode::NoError => self.noerror.add(1),
            ResponseCode::NXDomain => self.nxdomain.add(1),
            ResponseCode::FormErr => self.formerr.add(1),
            ResponseCode::NotImp => self.notimp.add(1),
            ResponseCode::Refused => self.refused.add(1),
            ResponseCode::BADVERS => self.badvers.add(1),
            _ => self.servfail.add(1),
        }
    }

    /// Counts something of a server.
    pub(super) fn of_upstream(&self, server: SocketAddr, change: impl FnOnce(&mut UpstreamView)) {
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if upstreams.len() < UPSTREAMS_MAX || upstreams.contains_key(&server) {
            change(upstreams.entry(server).or_default());
        }
    }
}

impl UpstreamView {
    pub(super) fn record_answer(&mut self, took: Duration) {
        self.answered += 1;
        self.last_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.total_micros = self.total_micros.saturating_add(self.last_micros);
    }
}
