//! `GET /metrics`: the counters of every listing in the text format of Prometheus (0.0.4).
//!
//! Counters start at zero with the daemon, as Prometheus expects of a program that was started again.
//! Labels are names as the command line knows them; a port that goes takes its series along.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{MediaType, Operation, Response as Described};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::names::NameStatsView;
use super::types::{DropView, ErrorBody, PortView, RuleView, StatusView};
use crate::engine::Engine;
use crate::error::Error;

/// Everything that is told, as it was at one moment.
#[derive(Debug)]
struct Scrape {
    status: StatusView,
    ports: Vec<PortView>,
    drops: Vec<DropView>,
    rules: Vec<RuleView>,
    names: NameStatsView,
}

/// The text of a scrape.
pub struct Text(String);

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], self.0).into_response()
    }
}

impl OperationOutput for Text {
    type Inner = String;

    fn inferred_responses(
        _ctx: &mut GenContext,
        _operation: &mut Operation,
    ) -> Vec<(Option<u16>, Described)> {
        let described = Described {
            description: "Samples in the text format of Prometheus".to_owned(),
            content: [("text/plain".to_owned(), MediaType::default())].into(),
            ..Described::default()
        };
        vec![(Some(200), described)]
    }
}

/// `GET /metrics`
pub async fn metrics(State(engine): State<Arc<Engine>>) -> Result<Text, Error> {
    let scrape = Scrape {
        status: engine.status().await,
        ports: engine.ports(),
        drops: engine.drops(),
        rules: engine.nat_rules().await,
        names: engine.name_stats(),
    };
    let mut registry = Registry::with_prefix("causeway");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| Error::io("write the metrics", std::io::Error::other(error)))?;
    Ok(Text(text))
}

/// Takes a port for scrapers that cannot open a unix socket.
///
/// # Errors
/// When it cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| {
        Error::io(
            format!("listen on {address} for scrapers of metrics"),
            error,
        )
    })
}

/// What scrapers may ask: the metrics and nothing else.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || {
            let body = ErrorBody {
                error: "there is nothing here but /metrics".to_owned(),
                hint: Some("the API is on the daemon's unix socket".to_owned()),
            };
            (StatusCode::NOT_FOUND, Json(body))
        })
        .with_state(engine)
}

/// A label with its value.
type Label<'a> = (&'static str, &'a str);

/// Writes families: a name, what it means, and samples.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'l>; N], f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family.encode_family(&NO_LABELS)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family.encode_family(&NO_LABELS)?)
    }
}

const NO_LABELS: [Label<'static>; 0] = [];

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.daemon(&mut families)?;
        self.workers(&mut families)?;
        self.frames(&mut families)?;
        self.of_ports(&mut families)?;
        self.nat(&mut families)?;
        self.of_names(&mut families)
    }
}

impl Scrape {
    fn daemon(&self, families: &mut Families<'_>) -> fmt::Result {
        let status = &self.status;
        let version = [("version", status.version.as_str())];
        families.gauges("build_info", "The program, always 1", [(version, 1.0)])?;
        let uptime = status.uptime_seconds as f64;
        families.gauge("uptime_seconds", "Time since the daemon's start", uptime)?;
        let objects = [
            ("network", status.networks),
            ("endpoint", status.endpoints),
            ("publication", status.publications),
        ];
        let objects = objects.map(|(kind, count)| ([("kind", kind)], count as f64));
        families.gauges("objects", "Objects that there are", objects)?;
        families.gauge(
            "warnings",
            "Things that disturb forwarding; `causeway status` names them",
            status.warnings.len() as f64,
        )?;
        families.gauge(
            "topology_generation",
            "Generation of the topology that every worker forwards by",
            status.generation as f64,
        )?;
        let panics = "Handlers of the API that panicked";
        families.counter("api_panics", panics, status.api_panics)?;
        let uplinks = status.uplinks.iter().map(|uplink| {
            let up = f64::from(u8::from(uplink.up));
            ([("uplink", uplink.name.as_str())], up)
        });
        families.gauges("uplink_up", "Whether an uplink is up", uplinks)
    }

    fn workers(&self, families: &mut Families<'_>) -> fmt::Result {
        let loads = &self.status.worker_loads;
        let numbers: Vec<String> = loads.iter().map(|load| load.worker.to_string()).collect();
        let of = |index: usize| [("worker", numbers[index].as_str())];
        let busy = loads.iter().enumerate().map(|(i, load)| (of(i), load.busy));
        let help = "Share of a worker's time that is spent on frames, 0 to 1";
        families.gauges("worker_busy_ratio", help, busy)?;
        let spinning = loads.iter().enumerate();
        let spinning = spinning.map(|(i, load)| (of(i), load.spinning));
        let help = "Share of a worker's time that is spent looking for frames in vain, 0 to 1";
        families.gauges("worker_spinning_ratio", help, spinning)
    }

    fn frames(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counter("frames_received", "Frames received", self.status.rx_frames)?;
        let verdicts = self.status.verdicts.iter();
        let verdicts = verdicts.map(|it| ([("verdict", it.label.as_str())], it.count));
        families.counters(
            "frames_forwarded",
            "Frames that were not dropped, by verdict",
            verdicts,
        )?;
        let drops = self.drops.iter().map(|it| {
            let labels = [
                ("reason", it.reason.as_str()),
                ("stage", it.stage.as_str()),
                ("port", it.port.as_deref().unwrap_or("")),
            ];
            (labels, it.count)
        });
        families.counters(
            "drops",
            "Frames dropped, by reason; with a port those that were to leave by it",
            drops,
        )?;
        let learning = self.status.learning.iter();
        let learning = learning.map(|it| ([("event", it.label.as_str())], it.count));
        families.counters("fdb_events", "What learning has come to", learning)
    }

    fn of_ports(&self, families: &mut Families<'_>) -> fmt::Result {
        let up = |port: &PortView| f64::from(u8::from(port.up));
        let states = self.ports.iter().map(|port| (port_labels(port), up(port)));
        families.gauges("port_up", "Whether frames flow by a port", states)?;
        let stations = self.ports.iter();
        let stations = stations.map(|port| (port_labels(port), f64::from(port.stations)));
        families.gauges("port_stations", "Stations learned on a port", stations)?;
        type Read = fn(&PortView) -> u64;
        let counters: [(&str, &str, Read); 8] = [
            ("port_receive_frames", "Frames received by a port", |port| {
                port.rx_frames
            }),
            ("port_receive_bytes", "Bytes received by a port", |port| {
                port.rx_bytes
            }),
            ("port_transmit_frames", "Frames sent by a port", |port| {
                port.tx_frames
            }),
            ("port_transmit_bytes", "Bytes sent by a port", |port| {
                port.tx_bytes
            }),
            (
                "port_transmit_drops",
                "Frames that a port was to send and did not",
                |port| port.tx_dropped,
            ),
            (
                "port_receive_missed",
                "Frames that the kernel dropped because a port was read too slowly",
                |port| port.rx_missed,
            ),
            (
                "port_receive_malformed",
                "Frames that a port skipped as cut off or too short",
                |port| port.rx_malformed,
            ),
            (
                "port_transmit_lost",
                "Frames among the sent of a port that the kernel has dropped later",
                |port| port.tx_lost,
            ),
        ];
        for (name, help, read) in counters {
            let samples = self
                .ports
                .iter()
                .map(|port| (port_labels(port), read(port)));
            families.counters(name, help, samples)?;
        }
        Ok(())
    }

    fn nat(&self, families: &mut Families<'_>) -> fmt::Result {
        let sessions = self.status.nat_sessions as f64;
        families.gauge("nat_sessions", "NAT sessions", sessions)?;
        if let Some(usage) = &self.status.nat {
            let help = "NAT sessions that there may be";
            families.gauge("nat_sessions_limit", help, usage.sessions_max as f64)?;
            let pools = || usage.pools.iter();
            let labels = |index: usize| -> [Label<'_>; 2] {
                let pool = &usage.pools[index];
                [
                    ("address", pool.address.as_str()),
                    ("protocol", pool.protocol.as_str()),
                ]
            };
            let held = pools().enumerate();
            let held = held.map(|(i, pool)| (labels(i), pool.ports as f64));
            families.gauges("nat_ports", "External ports that mappings hold", held)?;
            let limits = pools().enumerate();
            let limits = limits.map(|(i, pool)| (labels(i), pool.ports_max as f64));
            families.gauges("nat_ports_limit", "External ports of the range", limits)?;
            let refused = usage.refused.iter();
            let refused = refused.map(|it| ([("reason", it.label.as_str())], it.count));
            families.counters(
                "nat_refused",
                "Packets of new sessions that were refused, by reason",
                refused,
            )?;
        }
        type Read = fn(&RuleView) -> u64;
        let counters: [(&str, &str, Read); 5] = [
            (
                "nat_rule_sessions",
                "Sessions that a rule has opened",
                |rule| rule.new_sessions,
            ),
            (
                "nat_rule_packets_in",
                "Packets from outside by a rule",
                |rule| rule.packets_in,
            ),
            (
                "nat_rule_bytes_in",
                "Bytes from outside by a rule",
                |rule| rule.bytes_in,
            ),
            (
                "nat_rule_packets_out",
                "Packets from inside by a rule",
                |rule| rule.packets_out,
            ),
            (
                "nat_rule_bytes_out",
                "Bytes from inside by a rule",
                |rule| rule.bytes_out,
            ),
        ];
        for (name, help, read) in counters {
            let samples = self
                .rules
                .iter()
                .map(|rule| (rule_labels(rule), read(rule)));
            families.counters(name, help, samples)?;
        }
        Ok(())
    }

    fn of_names(&self, families: &mut Families<'_>) -> fmt::Result {
        let counts = self.names.counts.iter();
        let counts = counts.map(|it| ([("event", it.label.as_str())], it.count));
        families.counters("dns_events", "What the name service has done", counts)?;
        let upstreams = self.names.upstreams.iter();
        let asked = upstreams.map(|it| ([("server", it.server.as_str())], it.asked));
        families.counters(
            "dns_upstream_questions",
            "Questions sent to a server",
            asked,
        )?;
        let upstreams = self.names.upstreams.iter();
        let silent = upstreams.map(|it| ([("server", it.server.as_str())], it.timeouts));
        families.counters(
            "dns_upstream_timeouts",
            "Questions that a server left unanswered",
            silent,
        )
    }
}

fn port_labels(port: &PortView) -> [Label<'_>; 3] {
    [
        ("port", port.name.as_str()),
        ("role", port.role.as_str()),
        ("network", port.network.as_deref().unwrap_or("")),
    ]
}

fn rule_labels(rule: &RuleView) -> [Label<'_>; 4] {
    [
        ("kind", rule.kind.as_str()),
        ("network", rule.network.as_str()),
        ("publication", rule.spec.as_deref().unwrap_or("")),
        ("endpoint", rule.endpoint.as_deref().unwrap_or("")),
    ]
}
