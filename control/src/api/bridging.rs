//! Ports of the bridge domains: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use dataplane_core::l2::PortFlags;
use serde::{Deserialize, Serialize};

use super::handlers::JsonBody;
use super::types::PortView;
use crate::engine::Engine;
use crate::error::Error;
use crate::port_settings::PortChange;

/// The flags of a port, as bridge(8) has them. What a change leaves out stays as it is; a listing
/// leaves nothing out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// `PATCH /v1/ports/{port}`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortSet {
    /// Flags to be on or off.
    pub flags: FlagsBody,
}

impl PortSet {
    fn change(mut self) -> PortChange {
        let mut change = PortChange::default();
        for (flag, _) in PortFlags::ALL {
            match self.flags.entry(flag).and_then(|entry| *entry) {
                Some(true) => change.on = change.on.with(flag),
                Some(false) => change.off = change.off.with(flag),
                None => {}
            }
        }
        change
    }
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
    Ok(Json(engine.port(&name)?))
}

/// `PATCH /v1/ports/{port}`
pub async fn set_port(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<PortSet>,
) -> Result<Json<PortView>, Error> {
    engine.set_port(&name, body.change()).await?;
    Ok(Json(engine.port(&name)?))
}
