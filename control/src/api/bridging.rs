//! Ports of the bridge domains and their FDBs: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use dataplane_core::addr::{MacAddr, MacAddrError, VlanId};
use dataplane_core::fdb::{FdbKind, Flush};
use dataplane_core::l2::{FloodClass, PortFlags};
use dataplane_core::link::{Direction, Impairment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::PortView;
use super::wire::{JsonBody, Path, Query};
use crate::engine::{Engine, FdbRequest};
use crate::error::Error;
use crate::impairment::ImpairmentBody;
use crate::model::{Asked, FdbKindError, fdb_kind};
use crate::port_settings::{AdminState, OneMac, PortChange};
use crate::vlans;

/// The flags of a port, as bridge(8) has them. What a change leaves out stays as it is; a listing
/// leaves nothing out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlagsBody {
    /// Stations that are heard on it are learned.
    pub learning: Option<bool>,
    /// Unicast to stations that nobody knows leaves by it.
    pub flood: Option<bool>,
    /// Multicast leaves by it.
    pub mcast_flood: Option<bool>,
    /// Broadcast leaves by it.
    pub bcast_flood: Option<bool>,
    /// It and other isolated ports do not reach each other.
    pub isolated: Option<bool>,
    /// A bridged frame may go back to it.
    pub hairpin: Option<bool>,
    /// Frames leave by it large, or with a checksum left to do.
    pub offload: Option<bool>,
    /// Only frames of its endpoint's own MAC and addresses enter by it.
    pub port_security: Option<bool>,
    /// Who leaves a group by it is not asked whether others listen.
    pub mcast_fast_leave: Option<bool>,
    /// It leads to a multicast router, whether one was heard or not.
    pub mcast_router: Option<bool>,
    /// It leads to a multicast router while one is heard on it.
    pub mcast_router_learning: Option<bool>,
}

impl FlagsBody {
    /// What a flag is to be, by the flag.
    pub fn entry(&mut self, flag: PortFlags) -> Option<&mut Option<bool>> {
        Some(match flag {
            PortFlags::LEARNING => &mut self.learning,
            PortFlags::FLOOD => &mut self.flood,
            PortFlags::MCAST_FLOOD => &mut self.mcast_flood,
            PortFlags::BCAST_FLOOD => &mut self.bcast_flood,
            PortFlags::ISOLATED => &mut self.isolated,
            PortFlags::HAIRPIN => &mut self.hairpin,
            PortFlags::OFFLOAD => &mut self.offload,
            PortFlags::SECURED => &mut self.port_security,
            PortFlags::FAST_LEAVE => &mut self.mcast_fast_leave,
            PortFlags::MCAST_ROUTER => &mut self.mcast_router,
            PortFlags::MCAST_ROUTER_LEARNING => &mut self.mcast_router_learning,
            _ => return None,
        })
    }
}

impl From<PortFlags> for FlagsBody {
    fn from(flags: PortFlags) -> Self {
        let mut body = Self::default();
        for (flag, _) in PortFlags::ALL {
            if let Some(entry) = body.entry(flag) {
                *entry = Some(flags.has(flag));
            }
        }
        body
    }
}

/// `PATCH /v1/ports/{port}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PortSet {
    /// Flags to be on or off.
    pub flags: FlagsBody,
    /// How many stations may be learned on it: a number, or `none`.
    pub mac_limit: Option<LimitBody>,
    /// Whether frames are to flow.
    pub up: Option<bool>,
    /// Broadcasts that may enter by it: `1000` frames per second, `1000 burst 50`, or `none`.
    pub storm_broadcast: Option<String>,
    /// The same of multicast.
    pub storm_multicast: Option<String>,
    /// The same of unicast to stations that nobody knows.
    pub storm_unknown_unicast: Option<String>,
    /// The rate of frames that enter by it: `10mbit`, `10mbit burst 32k`, or `none`.
    pub rate_in: Option<String>,
    /// The same of those that leave.
    pub rate_out: Option<String>,
    /// All that leaves by it carries one MAC: `on` for the device's, `off`, or which.
    pub mac_nat: Option<String>,
    /// What is wrong with its link into the switch, or `none`.
    pub impair_in: Option<ImpairmentSet>,
    /// The same of the link out of it.
    pub impair_out: Option<ImpairmentSet>,
}

/// An impairment, or a word for there being none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ImpairmentSet {
    /// `none`.
    Word(String),
    /// This.
    Set(Box<ImpairmentBody>),
}

impl ImpairmentSet {
    fn asked(&self) -> Result<Asked<Impairment>, Error> {
        match self {
            Self::Set(body) => {
                let impairment = body.impairment();
                let impairment = impairment.map_err(|error| Error::Invalid(error.to_string()))?;
                Ok(Asked::Value(impairment))
            }
            Self::Word(word) if word == "none" => Ok(Asked::Default),
            Self::Word(word) => Err(Error::Invalid(format!(
                "'{word}' is no impairment; give one, or none"
            ))),
        }
    }
}

/// A link of a port, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkView {
    /// `in` or `out`.
    pub direction: String,
    /// `10mbit burst 3028`; absent where there is no limit.
    pub rate: Option<String>,
    /// What is wrong with it, if anything.
    pub impairment: Option<ImpairmentBody>,
    /// Frames on their way over it.
    pub held: u64,
    /// Frames that came.
    pub entered: u64,
    /// Those that it has let go.
    pub passed: u64,
    /// By how many nanoseconds those went later than they were due, in all.
    pub late_nanos: u64,
    /// Lost, as the impairment says.
    pub lost: u64,
    /// Dropped for exceeding the rate.
    pub rate_limited: u64,
    /// Dropped for want of room.
    pub overflowed: u64,
    /// Doubled.
    pub duplicated: u64,
    /// Let overtake.
    pub reordered: u64,
    /// Changed by one bit.
    pub corrupted: u64,
}

/// Storm control of one class of flooded frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StormView {
    /// `broadcast`, `multicast` or `unknown-unicast`.
    pub class: String,
    /// `1000 burst 100`, in frames per second and frames; absent where there is no limit.
    pub limit: Option<String>,
    /// Frames that were too many.
    pub dropped: u64,
}

/// A number, or a word for there being none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LimitBody {
    /// So many.
    Count(i64),
    /// `none`.
    Word(String),
}

impl LimitBody {
    /// Whether it is in range is for the engine to say, which knows the range.
    fn asked(&self) -> Result<Asked<u32>, Error> {
        match self {
            Self::Count(count) => Ok(Asked::Value(u32::try_from(*count).unwrap_or(0))),
            Self::Word(word) if word == "none" => Ok(Asked::Default),
            Self::Word(word) => Err(Error::Invalid(format!(
                "'{word}' is no number of stations; give one, or none"
            ))),
        }
    }
}

/// A setting in words, of which `none` takes the setting away.
fn asked<T>(text: &str) -> Result<Asked<T>, Error>
where
    T: std::str::FromStr<Err: std::error::Error>,
{
    if text == "none" {
        return Ok(Asked::Default);
    }
    let value = text.parse().map(Asked::Value);
    value.map_err(|error: T::Err| Error::Invalid(error.to_string()))
}

impl PortSet {
    /// What storm control of a class is to be, to be set.
    pub const fn storm(&mut self, class: FloodClass) -> &mut Option<String> {
        match class {
            FloodClass::Broadcast => &mut self.storm_broadcast,
            FloodClass::Multicast => &mut self.storm_multicast,
            FloodClass::UnknownUnicast => &mut self.storm_unknown_unicast,
        }
    }

    fn change(mut self) -> Result<PortChange, Error> {
        let mut change = PortChange {
            state: self.up.map(|up| match up {
                true => AdminState::Up,
                false => AdminState::Down,
            }),
            ..PortChange::default()
        };
        if let Some(limit) = &self.mac_limit {
            change.mac_limit = limit.asked()?;
        }
        let rates = [&self.rate_in, &self.rate_out];
        let impairments = [&self.impair_in, &self.impair_out];
        for direction in Direction::ALL {
            let index = direction as usize;
            if let Some(text) = rates[index] {
                change.rates[index] = asked(text)?;
            }
            if let Some(set) = impairments[index] {
                change.impairments[index] = set.asked()?;
            }
        }
        if let Some(text) = &self.mac_nat {
            change.mac_nat = match text.as_str() {
                "on" => Asked::Value(OneMac::Device),
                "off" | "none" => Asked::Default,
                text => Asked::Value(OneMac::Given(station(text)?)),
            };
        }
        for class in FloodClass::ALL {
            if let Some(text) = self.storm(class) {
                change.storm[class as usize] = asked(text)?;
            }
        }
        for (flag, _) in PortFlags::ALL {
            match self.flags.entry(flag).and_then(|entry| *entry) {
                Some(true) => change.on = change.on.with(flag),
                Some(false) => change.off = change.off.with(flag),
                None => {}
            }
        }
        Ok(change)
    }
}

/// An FDB entry.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FdbView {
    /// The station.
    pub mac: String,
    /// The VLAN, 0 when untagged.
    pub vlan: u16,
    /// The port.
    pub port: u16,
    /// The port's name.
    pub port_name: String,
    /// Seconds since it was heard, or set.
    pub age_seconds: u64,
    /// `dynamic`, `sticky`, `static` or `local`.
    #[serde(default)]
    pub state: String,
    /// How often the station has moved from port to port.
    #[serde(default)]
    pub moves: u32,
}

/// `POST /v1/networks/{name}/fdb`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FdbSet {
    /// The station.
    pub mac: String,
    /// Name or id of its port.
    pub port: String,
    /// Its VLAN, where VLANs count; the port's PVID when left out.
    pub vlan: Option<i64>,
    /// `static`, `sticky` or `local`; `static` when left out.
    pub state: Option<String>,
}

/// `DELETE /v1/networks/{name}/fdb/{mac}?vlan=VID`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct FdbRemoval {
    vlan: Option<i64>,
}

/// `DELETE /v1/networks/{name}/fdb?port=PORT&vlan=VID&all=true`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct FdbFlush {
    port: Option<String>,
    vlan: Option<i64>,
    /// What commands have set as well.
    #[serde(default)]
    all: bool,
}

type Shared = State<Arc<Engine>>;

/// `GET /v1/ports`
pub async fn ports(State(engine): Shared) -> Json<Vec<PortView>> {
    Json(engine.ports())
}

/// `GET /v1/ports/{port}`
pub async fn port(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<Json<PortView>, Error> {
    let mut view = engine.port(&name)?;
    view.connection = engine.backend_of(&view.name).await;
    Ok(Json(view))
}

/// `PATCH /v1/ports/{port}`
pub async fn set_port(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<PortSet>,
) -> Result<Json<PortView>, Error> {
    engine.set_port(&name, body.change()?).await?;
    Ok(Json(engine.port(&name)?))
}

/// `GET /v1/networks/{name}/fdb`
pub async fn fdb(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<Json<Vec<FdbView>>, Error> {
    Ok(Json(engine.fdb(&name).await?))
}

/// `POST /v1/networks/{name}/fdb`
pub async fn set_fdb_entry(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<FdbSet>,
) -> Result<NoContent, Error> {
    let kind = body.state.as_deref().unwrap_or(FdbKind::Static.label());
    let kind = match fdb_kind(kind)? {
        FdbKind::Dynamic => return Err(FdbKindError(kind.to_owned()).into()),
        kind @ (FdbKind::Sticky | FdbKind::Static | FdbKind::Local) => kind,
    };
    let entry = FdbRequest {
        mac: station(&body.mac)?,
        vlan: vlan(body.vlan)?,
        port: body.port,
        kind,
    };
    engine.set_fdb_entry(&name, entry).await?;
    Ok(NoContent)
}

/// `DELETE /v1/networks/{name}/fdb/{mac}`
pub async fn remove_fdb_entry(
    State(engine): Shared,
    Path((name, mac)): Path<(String, String)>,
    Query(query): Query<FdbRemoval>,
) -> Result<NoContent, Error> {
    let vlan = vlan(query.vlan)?;
    engine.remove_fdb_entry(&name, station(&mac)?, vlan).await?;
    Ok(NoContent)
}

/// `DELETE /v1/networks/{name}/fdb`
pub async fn flush_fdb(
    State(engine): Shared,
    Path(name): Path<String>,
    Query(query): Query<FdbFlush>,
) -> Result<NoContent, Error> {
    let flush = if query.all {
        Flush::All
    } else {
        Flush::Learned
    };
    engine
        .flush_fdb(&name, query.port.as_deref(), vlan(query.vlan)?, flush)
        .await?;
    Ok(NoContent)
}

fn vlan(number: Option<i64>) -> Result<Option<VlanId>, Error> {
    Ok(number.map(vlans::vlan).transpose()?)
}

fn station(text: &str) -> Result<MacAddr, Error> {
    let mac: Result<MacAddr, MacAddrError> = text.parse();
    mac.map_err(|error| Error::Invalid(error.to_string()))
}
