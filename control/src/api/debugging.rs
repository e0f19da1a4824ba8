//! The routes of people who debug packet paths: what would happen, and captures.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dataplane_core::addr::PortId;
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::types::StepView;
use super::wire::Query;
use crate::capture::{Capture, SNAP_SIZE_DEFAULT};
use crate::engine::Engine;
use crate::error::Error;
use crate::why::{self, Packet, Question};

/// How often an idle capture looks whether its client is still there.
const CAPTURE_LOOK: Duration = Duration::from_millis(200);
/// Written blocks that wait for a slow client; beyond, frames are left out and counted as lost.
const CAPTURE_BACKLOG_MAX: usize = 4_096;

/// `GET /v1/why?src=A&dst=B&protocol=tcp&port=80`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhyQuery {
    /// An endpoint's name or address, `host`, or an address outside.
    pub src: String,
    /// An endpoint's name, or any address.
    pub dst: String,
    /// `icmp` (the default), `tcp` or `udp`.
    pub protocol: Option<String>,
    /// The destination port, for TCP and UDP.
    pub port: Option<u16>,
}

/// What would become of one frame.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JourneyView {
    /// The frame in a line.
    pub frame: String,
    /// The port that it would enter by.
    pub ingress: String,
    /// What each stage would do.
    pub steps: Vec<StepView>,
    /// `bridged`, `flooded`, ... or the label of a drop reason.
    pub outcome: String,
    /// Whether it would be dropped.
    pub dropped: bool,
    /// The ports that it would leave by.
    pub egress: Vec<String>,
    /// The frame as it would leave, where that differs.
    pub rewritten: Option<String>,
    /// What would change the answer.
    pub advice: Option<String>,
}

impl WhyQuery {
    fn question(self) -> Result<Question, Error> {
        let packet = match (self.protocol.as_deref().unwrap_or("icmp"), self.port) {
            ("icmp", None) => Packet::Echo,
            ("icmp", Some(_)) => {
                return Err(Error::Invalid(
                    "ICMP has no ports; leave the port out".to_owned(),
                ));
            }
            ("tcp", Some(port)) => Packet::Tcp(port),
            ("udp", Some(port)) => Packet::Udp(port),
            ("tcp" | "udp", None) => {
                return Err(Error::Invalid(
                    "name the destination port as well".to_owned(),
                ));
            }
            (other, _) => {
                let problem = format!("'{other}' is no protocol; ask about icmp, tcp or udp");
                return Err(Error::Invalid(problem));
            }
        };
        Ok(Question {
            src: self.src,
            dst: self.dst,
            packet,
        })
    }
}

/// Answers what would happen to a packet. Nothing changes.
pub async fn why(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<WhyQuery>,
) -> Result<Json<Vec<JourneyView>>, Error> {
    let question = query.question()?;
    let journeys = why::ask(engine.dataplane(), &question)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let view = |journey: why::Journey| {
        let kind = journey.verdict.kind();
        let step = |line: crate::explain::Line| StepView {
            stage: line.stage.to_owned(),
            text: line.text,
        };
        JourneyView {
            frame: journey.frame,
            ingress: journey.ingress,
            steps: journey.lines.into_iter().map(step).collect(),
            outcome: kind
                .map_or_else(|reason| reason.label(), |kind| kind.label())
                .to_owned(),
            dropped: kind.is_err(),
            egress: journey.egress,
            rewritten: journey.rewritten,
            advice: journey.advice.map(str::to_owned),
        }
    };
    Ok(Json(journeys.into_iter().map(view).collect()))
}

/// `GET /v1/capture?port=NAME&snap=N&count=N`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureQuery {
    port: Option<String>,
    snap: Option<usize>,
    count: Option<u64>,
}

/// Streams pcapng until the client goes or has enough.
pub async fn capture(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<CaptureQuery>,
) -> Result<Response, Error> {
    let only = match &query.port {
        Some(name) => Some(port_named(&engine, name)?),
        None => None,
    };
    let (sender, receiver) = mpsc::channel::<Bytes>(CAPTURE_BACKLOG_MAX);
    let (ready, started) = oneshot::channel();
    let run = move || capture_on_thread(&engine, &query, only, &sender, ready);
    std::thread::Builder::new()
        .name("capture".to_owned())
        .spawn(run)
        .map_err(|error| Error::io("start a thread", error))?;
    // Answered only when the workers trace, so that a client knows what it will not miss.
    match started.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Error::from(error)),
        Err(_) => return Err(Error::Invalid("the capture ended early".to_owned())),
    }
    let blocks = stream::unfold(receiver, |mut receiver| async move {
        let block = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(block), receiver))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-pcapng")];
    Ok((kind, Body::from_stream(blocks)).into_response())
}

fn port_named(engine: &Engine, name: &str) -> Result<PortId, Error> {
    let topology = engine.dataplane().topology();
    let found = topology
        .ports
        .iter()
        .flatten()
        .find(|port| &*port.name == name);
    found.map(|port| port.id).ok_or_else(|| {
        Error::Invalid(format!(
            "there is no port '{name}'; `causeway port ls` lists them"
        ))
    })
}

fn capture_on_thread(
    engine: &Engine,
    query: &CaptureQuery,
    only: Option<PortId>,
    sender: &mpsc::Sender<Bytes>,
    ready: oneshot::Sender<Result<(), dataplane::Error>>,
) {
    let snap_size = query
        .snap
        .unwrap_or(SNAP_SIZE_DEFAULT)
        .clamp(1, SNAP_SIZE_DEFAULT);
    let stream = match engine.dataplane().trace(snap_size) {
        Ok(stream) => stream,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let origin = since_epoch.saturating_sub(Duration::from_nanos(engine.dataplane().now().nanos()));
    let Ok(mut capture) = Capture::new(Vec::new(), only, origin, snap_size) else {
        return;
    };
    let mut left = query.count.unwrap_or(u64::MAX);
    loop {
        // A full backlog loses frames; waiting would only lose them elsewhere.
        let block = std::mem::take(capture.get_mut());
        if !block.is_empty() && left > 0 {
            let _ = sender.try_send(block.into());
        }
        if left == 0 || sender.is_closed() {
            return;
        }
        let Ok(record) = stream.records().recv_timeout(CAPTURE_LOOK) else {
            continue;
        };
        let topology = engine.dataplane().topology();
        let written: io::Result<()> = capture.write(&record, &topology);
        if written.is_err() {
            return;
        }
        if !capture.get_mut().is_empty() {
            left -= 1;
            if left == 0 {
                let block = std::mem::take(capture.get_mut());
                let _ = sender.try_send(block.into());
            }
        }
    }
}
