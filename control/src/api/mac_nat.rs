//! Ports with one MAC for everybody behind them: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::Path;
use crate::engine::Engine;
use crate::error::Error;

/// `GET /v1/mac-nat`, an element of its list.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MacNatView {
    /// The port.
    pub port: u16,
    /// Its name.
    pub port_name: String,
    /// The MAC that all carries which leaves by it.
    pub mac: String,
    /// A station inside has that MAC itself, and gets what nobody else is known to have.
    pub owned: bool,
    /// Who is behind it.
    pub addresses: Vec<AddressView>,
    /// How many addresses are known at most.
    pub addresses_max: usize,
    /// Frames that were dropped, for they were from one more.
    pub refused: u64,
}

/// An address behind such a port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AddressView {
    /// The address.
    pub address: String,
    /// Its VLAN, 0 when untagged.
    pub vlan: u16,
    /// The MAC of the station that has it.
    pub mac: String,
    /// Seconds since something from it has left.
    pub age_seconds: u64,
}

type Shared = State<Arc<Engine>>;

/// `GET /v1/mac-nat`
pub async fn list(State(engine): Shared) -> Result<Json<Vec<MacNatView>>, Error> {
    Ok(Json(engine.mac_nat(None)?))
}

/// `GET /v1/mac-nat/{port}`, a list of one.
pub async fn of_port(
    State(engine): Shared,
    Path(name): Path<String>,
) -> Result<Json<Vec<MacNatView>>, Error> {
    Ok(Json(engine.mac_nat(Some(&name))?))
}
