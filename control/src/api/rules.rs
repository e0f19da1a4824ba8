//! Rules, and what the outside can reach: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{Created, JsonBody, Path};
use crate::engine::{Engine, RulePlace};
use crate::error::Error;
use crate::model::{RuleBody, rule_action, rule_protocol};

/// A rule, with what it has decided on since it was made, or the daemon was started.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// 1 for the one that is asked first.
    pub position: usize,
    /// Its name.
    pub name: String,
    /// `allow`, `drop` or `reject`.
    pub action: String,
    /// Who opens the connection: `any`, `host`, `outside`, a subnet, `network:NAME`, `endpoint:NAME`.
    pub from: String,
    /// Towards whom.
    pub to: String,
    /// `any`, `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// From which ports; any when empty.
    pub source_ports: String,
    /// To which ports; any when empty.
    pub ports: String,
    /// Over which uplink alone.
    pub uplink: Option<String>,
    /// Packets of connections that it decided on, both ways; a GSO frame counts as one.
    pub packets: u64,
    /// Their bytes of IP.
    pub bytes: u64,
    /// What it names that is not there; until it is, the rule fits nothing.
    pub absent: Vec<String>,
}

/// `POST /v1/rules`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleCreate {
    /// Its name.
    pub name: String,
    /// `allow`, `drop` or `reject`.
    pub action: String,
    /// Who opens the connection; `any` when left out.
    pub from: Option<String>,
    /// Towards whom; `any` when left out.
    pub to: Option<String>,
    /// `any` when left out.
    pub protocol: Option<String>,
    /// Any when left out.
    pub source_ports: Option<String>,
    /// Any when left out.
    pub ports: Option<String>,
    /// Over which uplink alone.
    pub uplink: Option<String>,
    /// Where it stands: `first`, `last` (when left out), `before:RULE`, `after:RULE`.
    pub place: Option<String>,
}

/// `PATCH /v1/rules/{name}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleSet {
    /// `allow`, `drop` or `reject`.
    pub action: Option<String>,
    /// Who opens the connection.
    pub from: Option<String>,
    /// Towards whom.
    pub to: Option<String>,
    /// The protocol.
    pub protocol: Option<String>,
    /// From which ports; any when empty.
    pub source_ports: Option<String>,
    /// To which ports; any when empty.
    pub ports: Option<String>,
    /// Over which uplink alone; any when empty.
    pub uplink: Option<String>,
    /// Where it stands: `first`, `last`, `before:RULE`, `after:RULE`.
    pub place: Option<String>,
}

/// How something is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Exposed {
    /// By a published port.
    Published,
    /// By its own address, on a routed network.
    Routed,
    /// By the LAN that a card of the host is on.
    Nic,
    /// By an external port that an endpoint has opened, and that lets others in.
    Mapping,
}

impl Exposed {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Routed => "routed",
            Self::Nic => "nic",
            Self::Mapping => "mapping",
        }
    }
}

/// Something that the outside can reach.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExposureView {
    /// How.
    pub kind: Exposed,
    /// At which address; `any` for all of the host's.
    pub address: String,
    /// By which protocol.
    pub protocol: String,
    /// At which ports; empty where ports are not the matter.
    pub ports: String,
    /// By which uplinks or cards.
    pub uplinks: Vec<String>,
    /// For whom.
    pub from: String,
    /// The network that it leads to.
    pub network: String,
    /// The endpoint; none for all of the network.
    pub endpoint: Option<String>,
    /// The rules that are asked on the way, in their order.
    pub rules: Vec<String>,
}

impl ExposureView {
    /// For everybody, without rules.
    pub fn new(kind: Exposed) -> Self {
        Self {
            kind,
            address: String::new(),
            protocol: String::new(),
            ports: String::new(),
            uplinks: Vec::new(),
            from: "any".to_owned(),
            network: String::new(),
            endpoint: None,
            rules: Vec::new(),
        }
    }
}

type Shared = State<Arc<Engine>>;

fn place(text: &str) -> Result<RulePlace, Error> {
    match text.split_once(':') {
        None if text == "first" => Ok(RulePlace::First),
        None if text == "last" => Ok(RulePlace::Last),
        Some(("before", rule)) => Ok(RulePlace::Before(rule.to_owned())),
        Some(("after", rule)) => Ok(RulePlace::After(rule.to_owned())),
        None | Some(_) => Err(Error::Invalid(format!(
            "'{text}' is no place; write first, last, before:RULE or after:RULE"
        ))),
    }
}

/// `GET /v1/rules`
pub async fn list(State(engine): Shared) -> Json<Vec<RuleView>> {
    Json(engine.rules().await)
}

/// `POST /v1/rules`
pub async fn add(
    State(engine): Shared,
    JsonBody(body): JsonBody<RuleCreate>,
) -> Result<Created<RuleView>, Error> {
    let text = |text: Option<String>| text.unwrap_or_default();
    let what = RuleBody {
        action: rule_action(&body.action)?,
        from: engine
            .rule_side(body.from.as_deref().unwrap_or("any"))
            .await?,
        to: engine
            .rule_side(body.to.as_deref().unwrap_or("any"))
            .await?,
        protocol: rule_protocol(body.protocol.as_deref().unwrap_or("any"))?,
        source_ports: text(body.source_ports).parse()?,
        ports: text(body.ports).parse()?,
        uplink: body.uplink,
    };
    let place = body.place.as_deref().map(place).transpose()?;
    let view = engine.add_rule(&body.name, what, place).await?;
    Ok(Created(view))
}

/// `PATCH /v1/rules/{name}`
pub async fn set(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<RuleSet>,
) -> Result<Json<RuleView>, Error> {
    let place = body.place.as_deref().map(place).transpose()?;
    let view = engine.change_rule(
        &name,
        |what, named| {
            if let Some(action) = &body.action {
                what.action = rule_action(action)?;
            }
            if let Some(from) = &body.from {
                what.from = named.side(from)?;
            }
            if let Some(to) = &body.to {
                what.to = named.side(to)?;
            }
            if let Some(protocol) = &body.protocol {
                what.protocol = rule_protocol(protocol)?;
            }
            if let Some(ports) = &body.source_ports {
                what.source_ports = ports.parse()?;
            }
            if let Some(ports) = &body.ports {
                what.ports = ports.parse()?;
            }
            if let Some(uplink) = body.uplink {
                what.uplink = (!uplink.is_empty()).then_some(uplink);
            }
            Ok(())
        },
        place,
    );
    Ok(Json(view.await?))
}

/// `DELETE /v1/rules/{name}`
pub async fn remove(State(engine): Shared, Path(name): Path<String>) -> Result<NoContent, Error> {
    engine.remove_rule(&name).await?;
    Ok(NoContent)
}

/// `GET /v1/exposure`
pub async fn exposure(State(engine): Shared) -> Json<Vec<ExposureView>> {
    Json(engine.exposure().await)
}
