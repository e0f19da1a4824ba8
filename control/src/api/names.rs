//! Names: wire format and handlers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use dataplane::Answered;
use dataplane_service::dns::How;
use dataplane_service::dns::zone::{Listed, Missing};
use hickory_proto::rr::RecordType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{Path, Query};
use crate::engine::{Engine, NameQuestion};
use crate::error::Error;

/// A name with its addresses.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RecordView {
    /// The name, as it is asked for.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
}

impl From<Listed> for RecordView {
    fn from(listed: Listed) -> Self {
        Self {
            name: listed.name,
            addresses: listed.addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

/// `GET /v1/dns/why`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NameWhyQuery {
    /// The name, or an address for its name.
    pub name: String,
    /// The endpoint that asks.
    pub from: Option<String>,
    /// The network on which it is asked, where no endpoint is given.
    pub network: Option<String>,
    /// The record type; `A` when left out.
    #[serde(rename = "type")]
    pub rtype: Option<String>,
}

/// What a question comes to, and why.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameWhyView {
    /// What was asked for.
    pub name: String,
    /// The record type.
    #[serde(rename = "type")]
    pub rtype: String,
    /// The network on which it was asked.
    pub network: String,
    /// `zone`, `missing`, `cache`, `upstream` or `failed`: who knew.
    pub source: String,
    /// The same in words.
    pub reason: String,
    /// The server that said so, if one did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server: Option<String>,
    /// The answer's code, such as `NOERROR` or `NXDOMAIN`.
    pub code: String,
    /// Its records, as zone files have them.
    pub records: Vec<String>,
}

impl NameWhyView {
    /// From what the service has answered.
    pub fn new(name: &str, rtype: RecordType, network: &str, answer: &Answered) -> Self {
        let (source, reason, server) = reason(answer.how, network);
        Self {
            name: name.to_owned(),
            rtype: rtype.to_string(),
            network: network.to_owned(),
            source: source.to_owned(),
            reason,
            server: server.map(|server| server.to_string()),
            code: code_word(answer),
            records: answer.records.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The code as dig has it.
fn code_word(answer: &Answered) -> String {
    use hickory_proto::op::ResponseCode;
    match answer.code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        other => return other.to_string(),
    }
    .to_owned()
}

fn reason(how: How, network: &str) -> (&'static str, String, Option<SocketAddr>) {
    match how {
        How::Zone => (
            "zone",
            format!("an endpoint of network '{network}' has the name"),
            None,
        ),
        How::Missing(Missing::OtherNetwork) => (
            "missing",
            format!("an endpoint of another network has the name, none of '{network}'"),
            None,
        ),
        How::Missing(Missing::Address) => (
            "missing",
            format!("the address is this switch's, and no endpoint of '{network}' has it"),
            None,
        ),
        How::Missing(Missing::Internal) => (
            "missing",
            format!("network '{network}' is internal, and no endpoint of it has the name"),
            None,
        ),
        How::Cache { server, age } => (
            "cache",
            format!("{server} said so {} s ago", age.as_secs()),
            Some(server),
        ),
        How::Upstream { server, took } => (
            "upstream",
            format!("{server} says so, after {:.1} ms", took.as_secs_f64() * 1e3),
            Some(server),
        ),
        How::NoServer => (
            "failed",
            "no server is known that could be asked; give one by --dns, or in resolv.conf"
                .to_owned(),
            None,
        ),
        How::Failed { attempts } => (
            "failed",
            format!("no server has answered in {attempts} attempts; `dns stats` counts by server"),
            None,
        ),
        How::Busy => ("failed", "as many questions wait as may".to_owned(), None),
        How::Unserved => ("failed", "such questions are not served".to_owned(), None),
    }
}

/// `GET /v1/dns/stats`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameStatsView {
    /// Every counter.
    pub counts: Vec<NameCountView>,
    /// Every server that was asked.
    pub upstreams: Vec<UpstreamView>,
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameCountView {
    /// What is counted.
    pub label: String,
    /// How many.
    pub count: u64,
}

/// A server that was asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamView {
    /// Its address and port.
    pub server: String,
    /// Questions that it was sent.
    pub asked: u64,
    /// Answers that came.
    pub answered: u64,
    /// Questions that it left unanswered in time.
    pub timeouts: u64,
    /// Questions that could not be sent to it, or that it said to fail at.
    pub failures: u64,
    /// Milliseconds until the last answer.
    pub last_milliseconds: f64,
    /// Milliseconds until an answer, on average.
    pub average_milliseconds: f64,
}

impl UpstreamView {
    /// From what the service has counted.
    pub fn new((server, view): &(SocketAddr, dataplane_service::dns::UpstreamView)) -> Self {
        let average = view.total_micros as f64 / view.answered.max(1) as f64;
        Self {
            server: server.to_string(),
            asked: view.asked,
            answered: view.answered,
            timeouts: view.timeouts,
            failures: view.failures,
            last_milliseconds: view.last_micros as f64 / 1e3,
            average_milliseconds: average / 1e3,
        }
    }
}

/// `POST /v1/dns/flush`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlushedView {
    /// Answers that were kept until now.
    pub forgotten: usize,
}

type Shared = State<Arc<Engine>>;

/// `GET /v1/dns/why`
pub async fn why(
    State(engine): Shared,
    Query(query): Query<NameWhyQuery>,
) -> Result<Json<NameWhyView>, Error> {
    let question = NameQuestion {
        name: query.name,
        from: query.from,
        network: query.network,
        rtype: query.rtype,
    };
    Ok(Json(engine.why_name(question).await?))
}

/// `GET /v1/dns/stats`
pub async fn stats(State(engine): Shared) -> Json<NameStatsView> {
    Json(engine.name_stats())
}

/// `POST /v1/dns/flush`
pub async fn flush(State(engine): Shared) -> Json<FlushedView> {
    Json(FlushedView {
        forgotten: engine.flush_names(),
    })
}

/// `GET /v1/networks/{name}/dns`
pub async fn records(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<Json<Vec<RecordView>>, Error> {
    Ok(Json(engine.names(&name).await?))
}
