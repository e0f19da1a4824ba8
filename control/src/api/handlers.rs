//! One function per route: from the wire to the engine and back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, NoContent, Response};
use dataplane::tracing::SNAP_SIZE;
use dataplane_core::addr::{MacAddr, MacAddrError};
use dataplane_core::l2::Families;
use dataplane_core::nat::{Balance, Duty};
use futures::stream;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::types::{
    DetachBody, DropView, EndpointCreate, EndpointView, NatUsageView, NetworkCreate, NetworkSet,
    NetworkView, NicBody, PublicationChange, PublicationCreate, PublicationView, RuleView,
    SessionView, StatusView, TargetPatch, TraceView,
};
use super::wire::{Created, JsonBody, Path, Query};
use crate::config::DEFAULT_NETWORK;
use crate::engine::{
    AttachRequest, Clash, Engine, HostAddress, LanGateway, Namesake, NetworkChange, NetworkRequest,
    NicChange, NicMacs, NicRequest, PublishRequest, SandboxRef, TargetChange,
    WITHIN_SECONDS_DEFAULT,
};
use crate::error::Error;
use crate::flood_settings::FloodChange;
use crate::model::dns::{endpoint_dns, network_dns};
use crate::model::{
    self, Asked, Backend, BackendAsked, Icc, NatRequest, NicBackend, NicBackendError, StaticRoute,
};
use crate::vlans::{self, NetworkVlansChange, VlanFiltering};

type Shared = State<Arc<Engine>>;
type Answer<T> = Result<Json<T>, Error>;

/// Traced frames that wait for a slow client; beyond, they are left out.
const TRACE_BACKLOG_MAX: usize = 1_024;
/// How often an idle trace looks whether its client is still there.
const TRACE_LOOK: Duration = Duration::from_millis(200);
/// The interface's name when a request names none.
const IFNAME_DEFAULT: &str = "eth0";

fn parse<T: std::str::FromStr>(what: &str, text: Option<&String>) -> Result<Option<T>, Error> {
    text.map(|text| {
        text.parse()
            .map_err(|_| Error::Invalid(format!("'{text}' is no {what}")))
    })
    .transpose()
}

/// What a request says of a setting: nothing, `default` or `auto`, or a value.
fn asked<T, E: Into<Error>>(
    text: Option<&String>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Asked<T>, Error> {
    match text.map(String::as_str) {
        None => Ok(Asked::Nothing),
        Some("default" | "auto") => Ok(Asked::Default),
        Some(text) => parse(text).map(Asked::Value).map_err(Into::into),
    }
}

pub async fn status(State(engine): Shared) -> Json<StatusView> {
    Json(engine.status().await)
}

pub async fn networks(State(engine): Shared) -> Json<Vec<NetworkView>> {
    Json(engine.networks().await)
}

pub async fn network(State(engine): Shared, Path(name): Path<String>) -> Answer<NetworkView> {
    Ok(Json(engine.network(&name).await?))
}

pub async fn create_network(
    State(engine): Shared,
    JsonBody(body): JsonBody<NetworkCreate>,
) -> Result<Created<NetworkView>, Error> {
    let subnet = "subnet; write it as 10.88.0.0/24 or fd00:88::/64";
    let request = NetworkRequest {
        subnet: parse::<IpNet>(subnet, body.subnet.as_ref())?,
        gateway: parse::<IpAddr>("IP address", body.gateway.as_ref())?,
        subnet6: parse::<IpNet>(subnet, body.subnet6.as_ref())?,
        gateway6: parse::<IpAddr>("IP address", body.gateway6.as_ref())?,
        ip_range: parse::<IpNet>(subnet, body.ip_range.as_ref())?,
        internal: body.internal,
        no_host_link: body.no_host_link,
        mtu: body.mtu,
        ageing_seconds: body.ageing_seconds,
        stp_frames: body.stp_frames.as_deref().map(str::parse).transpose()?,
        loop_detect: body.loop_detect.as_deref().map(str::parse).transpose()?,
        vlans: vlans_request(body.vlan_filtering, body.gateway_vlan)?,
        icc: body.icc.map(Icc::from),
        flood: FloodChange {
            mcast_snooping: body.mcast_snooping,
            mcast_querier: body.mcast_querier,
            arp_suppression: body.arp_suppression,
        },
        nat: nat_request(
            [&body.nat_mapping, &body.nat_filtering],
            [&body.nat4, &body.nat6],
        )?,
        dns: network_dns(&body.dns)?,
        lan_gateway: lan_gateway(&body.lan_gateway)?,
        nic: body.nic.map(nic_request).transpose()?,
        foreign: None,
        name: body.name,
    };
    let name = engine.create_network(request).await?.name;
    let view = engine.network(name.as_str()).await?;
    Ok(Created(view))
}

/// Whose a network's way out is.
fn lan_gateway(texts: &[String]) -> Result<Option<LanGateway>, Error> {
    match texts {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(LanGateway::Unknown)),
        texts => Ok(Some(LanGateway::At(addresses(texts)?))),
    }
}

/// What is asked of a network's NIC.
fn nic_request(body: NicBody) -> Result<NicRequest, Error> {
    let address = match (
        body.take_address,
        body.no_confirm,
        body.confirm_within_seconds,
    ) {
        (false, false, None) => HostAddress::Absent,
        (false, _, _) => {
            let problem = "there is a move to confirm only with --take-address; give it as well";
            return Err(Error::Invalid(problem.to_owned()));
        }
        (true, true, None) => HostAddress::MovesUnasked,
        (true, true, Some(_)) => {
            let problem = "either the move is confirmed within a time or nobody is asked; give one of \
                           --confirm-within and --no-confirm";
            return Err(Error::Invalid(problem.to_owned()));
        }
        (true, false, seconds) => HostAddress::Moves(seconds.unwrap_or(WITHIN_SECONDS_DEFAULT)),
    };
    Ok(NicRequest {
        name: body.name,
        address,
        macs: match body.mac_nat {
            true => NicMacs::Card,
            false => NicMacs::Own,
        },
        backend: match body.backend {
            Some(word) => word
                .parse()
                .map_err(|error: NicBackendError| Error::Invalid(error.to_string()))?,
            None => NicBackend::default(),
        },
    })
}

/// What is asked of a network's VLANs.
fn vlans_request(
    filtering: Option<bool>,
    gateway: Option<i64>,
) -> Result<NetworkVlansChange, Error> {
    Ok(NetworkVlansChange {
        filtering: filtering.map(|filtering| match filtering {
            true => VlanFiltering::On,
            false => VlanFiltering::Off,
        }),
        gateway: gateway.map(vlans::vlan).transpose()?,
    })
}

/// What is asked of a network's NAT: its mapping and filtering, and its modes in IPv4 and IPv6.
fn nat_request(
    [mapping, filtering]: [&Option<String>; 2],
    [v4, v6]: [&Option<String>; 2],
) -> Result<NatRequest, Error> {
    Ok(NatRequest {
        mapping: asked(mapping.as_ref(), model::dependence)?,
        filtering: asked(filtering.as_ref(), model::dependence)?,
        v4: asked(v4.as_ref(), model::nat_mode)?,
        v6: asked(v6.as_ref(), model::nat_mode)?,
    })
}

pub async fn change_network(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<NetworkSet>,
) -> Answer<NetworkView> {
    let change = NetworkChange {
        ageing_seconds: body.ageing_seconds,
        stp_frames: body.stp_frames.as_deref().map(str::parse).transpose()?,
        loop_detect: body.loop_detect.as_deref().map(str::parse).transpose()?,
        vlans: vlans_request(body.vlan_filtering, body.gateway_vlan)?,
        icc: body.icc.map(Icc::from),
        flood: FloodChange {
            mcast_snooping: body.mcast_snooping,
            mcast_querier: body.mcast_querier,
            arp_suppression: body.arp_suppression,
        },
        nat: nat_request(
            [&body.nat_mapping, &body.nat_filtering],
            [&body.nat4, &body.nat6],
        )?,
        dns: match body.dns.as_slice() {
            [] => None,
            words => Some(network_dns(words)?),
        },
    };
    engine.change_network(&name, change).await?;
    match body.nic {
        Some(nic) if nic.name == "none" => engine.set_nic(&name, NicChange::Take).await?,
        Some(nic) => {
            let change = NicChange::Put(nic_request(nic)?);
            engine.set_nic(&name, change).await?;
        }
        None => {}
    }
    Ok(Json(engine.network(&name).await?))
}

/// Keeps a network's NIC with the host's addresses moved.
pub async fn confirm_nic(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<NoContent, Error> {
    engine.confirm_nic(&name).await?;
    Ok(NoContent)
}

pub async fn remove_network(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<NoContent, Error> {
    engine.remove_network(&name).await?;
    Ok(NoContent)
}

/// Removes the networks that nobody uses.
pub async fn prune_networks(State(engine): Shared) -> Answer<Vec<String>> {
    let pruned = engine.prune_networks().await?;
    Ok(Json(pruned.iter().map(ToString::to_string).collect()))
}

pub async fn endpoints(State(engine): Shared) -> Json<Vec<EndpointView>> {
    Json(engine.endpoints().await)
}

pub async fn endpoint(State(engine): Shared, Path(name): Path<String>) -> Answer<EndpointView> {
    Ok(Json(engine.endpoint_named(&name).await?))
}

pub async fn attach(
    State(engine): Shared,
    JsonBody(body): JsonBody<EndpointCreate>,
) -> Result<Created<EndpointView>, Error> {
    let sandbox = sandbox(body.netns, body.pid)?;
    let backend = body
        .backend
        .as_deref()
        .map_or(Ok(BackendAsked::Named(Backend::Tap)), str::parse)?;
    let mac = body.mac.as_deref().map(mac_request).transpose()?;
    let request = AttachRequest {
        sandbox,
        network: match body.network {
            none if none.is_empty() => DEFAULT_NETWORK.to_owned(),
            name => name,
        },
        name: body.name,
        ifname: body.ifname.unwrap_or_else(|| IFNAME_DEFAULT.to_owned()),
        addresses: addresses(&body.addresses)?,
        without: families(&body.without)?,
        mac,
        backend,
        dns: endpoint_dns(&body.aliases, &body.dns, &body.links)?,
        gw_priority: body.gw_priority.unwrap_or_default(),
        routes: routes(&body.routes)?,
        foreign: None,
        namesake: if body.replace {
            Namesake::GivesWay
        } else {
            Namesake::Stays
        },
    };
    let name = engine.attach(request).await?.name;
    let view = engine.endpoint_named(name.as_str()).await?;
    Ok(Created(view))
}

fn routes(texts: &[String]) -> Result<Vec<StaticRoute>, Error> {
    let routes = texts.iter().map(|text| Ok(text.parse()?));
    routes.collect()
}

/// A MAC, or a random one that is nobody's but for a chance of one in 2⁴⁶.
fn mac_request(text: &str) -> Result<MacAddr, Error> {
    match text {
        "random" => {
            let [.., first, b, c, d, e, f] = fastrand::u64(..).to_be_bytes();
            // One station's, and administered here.
            Ok(MacAddr([first & 0xfc | 0x02, b, c, d, e, f]))
        }
        text => text
            .parse()
            .map_err(|error: MacAddrError| Error::Invalid(error.to_string())),
    }
}

fn sandbox(netns: Option<String>, pid: Option<u32>) -> Result<SandboxRef, Error> {
    match (netns, pid) {
        (Some(netns), None) => Ok(SandboxRef::Netns(netns)),
        (None, Some(pid)) => Ok(SandboxRef::Pid(pid)),
        (Some(_), Some(_)) | (None, None) => {
            let problem = "give either netns or pid, to say which sandbox is meant";
            Err(Error::Invalid(problem.to_owned()))
        }
    }
}

/// Addresses as `10.0.0.5` or `10.0.0.5/24`; the length is the network's to say, so it is only
/// checked for being one.
fn families(words: &[String]) -> Result<Families, Error> {
    let mut families = Families::default();
    for word in words {
        match word.as_str() {
            "ipv4" => families.v4 = true,
            "ipv6" => families.v6 = true,
            other => {
                let problem = format!("'{other}' is no address family; write ipv4 or ipv6");
                return Err(Error::Invalid(problem));
            }
        }
    }
    Ok(families)
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    let address = |text: &String| {
        let parsed = match text.contains('/') {
            true => text.parse::<IpNet>().map(|net| net.addr()).ok(),
            false => text.parse().ok(),
        };
        parsed.ok_or_else(|| Error::Invalid(format!("'{text}' is no IP address")))
    };
    texts.iter().map(address).collect()
}

pub async fn detach(State(engine): Shared, Path(name): Path<String>) -> Result<NoContent, Error> {
    engine.detach(&[name]).await?;
    Ok(NoContent)
}

pub async fn detach_all(
    State(engine): Shared,
    JsonBody(body): JsonBody<DetachBody>,
) -> Result<NoContent, Error> {
    engine.detach(&body.names).await?;
    Ok(NoContent)
}

/// `?netns=NAME|PATH` or `?pid=N`, and `&ifname=NAME`
#[derive(Deserialize, JsonSchema)]
pub struct OfSandbox {
    netns: Option<String>,
    pid: Option<u32>,
    ifname: Option<String>,
}

pub async fn detach_sandbox(
    State(engine): Shared,
    Query(query): Query<OfSandbox>,
) -> Result<NoContent, Error> {
    let sandbox = sandbox(query.netns, query.pid)?;
    let ifname = query.ifname.as_deref().unwrap_or(IFNAME_DEFAULT);
    engine.detach_sandbox(&sandbox, ifname).await?;
    Ok(NoContent)
}

/// `?endpoint=NAME`
#[derive(Deserialize, JsonSchema)]
pub struct OfEndpoint {
    endpoint: Option<String>,
}

pub async fn publications(
    State(engine): Shared,
    Query(query): Query<OfEndpoint>,
) -> Answer<Vec<PublicationView>> {
    Ok(Json(engine.publications(query.endpoint.as_deref()).await?))
}

pub async fn publish(
    State(engine): Shared,
    JsonBody(body): JsonBody<PublicationCreate>,
) -> Result<Created<PublicationView>, Error> {
    let request = PublishRequest {
        spec: body.spec.parse()?,
        from: parse::<IpNet>("prefix; write it as 192.0.2.0/24", body.from.as_ref())?,
        endpoint: body.endpoint.clone(),
        uplink: body.uplink.clone(),
        clash: if body.join {
            Clash::Join
        } else {
            Clash::Refuse
        },
        weight: body.weight,
        balance: body.balance.as_deref().map(balance).transpose()?,
    };
    let id = engine.publish(request).await?.id;
    Ok(Created(engine.publication(id).await?))
}

fn balance(text: &str) -> Result<Balance, Error> {
    match text {
        "round-robin" => Ok(Balance::RoundRobin),
        "source-hash" => Ok(Balance::SourceHash {
            key: fastrand::u64(..),
        }),
        _ => Err(Error::Invalid(format!(
            "'{text}' is no way to spread sessions; choose round-robin or source-hash"
        ))),
    }
}

pub async fn change_publication(
    State(engine): Shared,
    Path(id): Path<u32>,
    JsonBody(body): JsonBody<PublicationChange>,
) -> Answer<PublicationView> {
    if let Some(text) = body.balance {
        engine.set_balance(id, balance(&text)?).await?;
    }
    Ok(Json(engine.publication(id).await?))
}

pub async fn change_target(
    State(engine): Shared,
    Path((id, endpoint)): Path<(u32, String)>,
    JsonBody(body): JsonBody<TargetPatch>,
) -> Answer<PublicationView> {
    let duty = match body.state.as_deref() {
        None => None,
        Some("serving") => Some(Duty::Serving),
        Some("draining") => Some(Duty::Draining),
        Some(text) => {
            let problem = format!("'{text}' is no state of a target; set serving or draining");
            return Err(Error::Invalid(problem));
        }
    };
    let change = TargetChange {
        weight: body.weight,
        duty,
    };
    engine.set_target(id, &endpoint, change).await?;
    Ok(Json(engine.publication(id).await?))
}

pub async fn remove_target(
    State(engine): Shared,
    Path((id, endpoint)): Path<(u32, String)>,
) -> Result<NoContent, Error> {
    engine.remove_target(id, &endpoint).await?;
    Ok(NoContent)
}

pub async fn unpublish(State(engine): Shared, Path(id): Path<u32>) -> Result<NoContent, Error> {
    engine.unpublish(id).await?;
    Ok(NoContent)
}

pub async fn nat_sessions(State(engine): Shared) -> Json<Vec<SessionView>> {
    Json(engine.nat_sessions())
}

pub async fn nat_rules(State(engine): Shared) -> Json<Vec<RuleView>> {
    Json(engine.nat_rules().await)
}

/// Makes the counters zero, whose listing this is.
pub async fn zero_nat_rules(State(engine): Shared) -> NoContent {
    engine.zero_nat_rules();
    NoContent
}

/// `GET /v1/nat/usage`
pub async fn nat_usage(State(engine): Shared) -> Json<NatUsageView> {
    Json(engine.nat_usage().await)
}

pub async fn drops(State(engine): Shared) -> Json<Vec<DropView>> {
    Json(engine.drops())
}

/// What a trace is narrowed to; every part must match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct TraceFilter {
    /// Name of the port that the frame entered by.
    port: Option<String>,
    /// Text that must occur in what the frame is, or in a step.
    contains: Option<String>,
    /// Ends after this many frames.
    count: Option<usize>,
}

impl TraceFilter {
    fn admits(&self, view: &TraceView) -> bool {
        let port = self
            .port
            .as_ref()
            .is_none_or(|port| *port == view.port_name);
        let contains = self.contains.as_ref().is_none_or(|text| {
            view.summary.contains(text.as_str())
                || view
                    .steps
                    .iter()
                    .any(|step| step.text.contains(text.as_str()))
        });
        port && contains
    }
}

/// Streams traced frames, a JSON object per line, until the client goes or has enough.
pub async fn trace(State(engine): Shared, Query(filter): Query<TraceFilter>) -> Response {
    let (sender, receiver) = mpsc::channel::<Bytes>(TRACE_BACKLOG_MAX);
    let (ready, started) = tokio::sync::oneshot::channel();
    let run = move || trace_on_thread(&engine, &filter, &sender, ready);
    let thread = std::thread::Builder::new()
        .name("trace".to_owned())
        .spawn(run);
    if let Err(error) = thread {
        return Error::io("start a thread", error).into_response();
    }
    // Answered only when the workers trace, so that a client knows what it will not miss.
    match started.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Error::from(error).into_response(),
        Err(_) => return Error::Invalid("the trace ended early".to_owned()).into_response(),
    }
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

fn trace_on_thread(
    engine: &Engine,
    filter: &TraceFilter,
    sender: &mpsc::Sender<Bytes>,
    ready: tokio::sync::oneshot::Sender<Result<(), dataplane::Error>>,
) {
    let stream = match engine.dataplane().trace(SNAP_SIZE) {
        Ok(stream) => stream,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let mut left = filter.count.unwrap_or(usize::MAX);
    while left > 0 && !sender.is_closed() {
        let Ok(record) = stream.records().recv_timeout(TRACE_LOOK) else {
            continue;
        };
        let view = engine.trace_view(&record);
        if !filter.admits(&view) {
            continue;
        }
        let Ok(mut line) = serde_json::to_vec(&view) else {
            continue;
        };
        line.push(b'\n');
        left -= 1;
        // A full backlog loses frames; waiting would only lose them elsewhere.
        let _ = sender.try_send(line.into());
    }
}

pub async fn not_found(uri: Uri) -> Response {
    let body = super::types::ErrorBody {
        error: format!("there is no {}", uri.path()),
        hint: Some("`causeway --help` lists what the daemon can do".to_owned()),
    };
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

pub async fn not_allowed(method: Method, uri: Uri) -> Response {
    let body = super::types::ErrorBody {
        error: format!("{} cannot be asked to {method}", uri.path()),
        hint: Some("the Allow header of this answer names the methods that it knows".to_owned()),
    };
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}

/// Panics, to show that a daemon survives it.
pub async fn panic() -> StatusCode {
    panic!("asked to")
}
