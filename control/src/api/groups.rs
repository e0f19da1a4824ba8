//! Groups of the bridge domains, the MDB: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{JsonBody, Path, Query};
use crate::engine::{Engine, ListenerRequest};
use crate::error::Error;
use crate::{model, vlans};

/// `GET /v1/networks/{name}/mdb`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MdbView {
    /// The network.
    pub network: String,
    /// `off`, `on`, or `querier`.
    pub snooping: String,
    /// Who asks for listeners.
    pub queriers: Vec<QuerierView>,
    /// Ports that lead to multicast routers.
    pub routers: Vec<RouterView>,
    /// Ports that listen to groups.
    pub groups: Vec<GroupView>,
}

/// Who asks for listeners.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QuerierView {
    /// The VLAN that it asks in, 0 when untagged.
    pub vlan: u16,
    /// `igmp` or `mld`.
    pub protocol: String,
    /// Its address.
    pub address: String,
    /// The port that it is behind; nothing when it is the switch.
    pub port: Option<String>,
    /// Seconds until it counts for gone, if it falls silent.
    pub left_seconds: Option<u64>,
    /// Whether frames go by the MDB: listeners have had the time to answer.
    pub trusted: bool,
}

/// A port that leads to a multicast router.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RouterView {
    /// The VLAN that it was heard in, 0 when untagged.
    pub vlan: u16,
    /// `igmp` or `mld`.
    pub protocol: String,
    /// The port's name.
    pub port: String,
    /// `temp` when it was heard, `permanent` when it was set.
    pub state: String,
    /// Seconds that are left of one that was heard.
    pub left_seconds: Option<u64>,
}

/// A port that listens to a group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GroupView {
    /// The group.
    pub group: String,
    /// The VLAN, 0 when untagged.
    pub vlan: u16,
    /// The port.
    pub port: u16,
    /// The port's name.
    pub port_name: String,
    /// `temp` when it was heard, `permanent` when it was set.
    pub state: String,
    /// Seconds that are left of one that was heard.
    pub left_seconds: Option<u64>,
}

/// `POST /v1/networks/{name}/mdb`, and what `DELETE` asks for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerBody {
    /// The group.
    pub group: String,
    /// Name or id of the port.
    pub port: String,
    /// The VLAN, where VLANs count; the port's PVID when left out.
    pub vlan: Option<i64>,
}

impl ListenerBody {
    fn request(self) -> Result<ListenerRequest, Error> {
        Ok(ListenerRequest {
            group: model::group(&self.group)?,
            vlan: self.vlan.map(vlans::vlan).transpose()?,
            port: self.port,
        })
    }
}

/// `POST /v1/networks/{name}/mdb`
pub async fn add_listener(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<ListenerBody>,
) -> Result<NoContent, Error> {
    engine.add_listener(&name, body.request()?).await?;
    Ok(NoContent)
}

/// `DELETE /v1/networks/{name}/mdb?group=GROUP&port=PORT&vlan=VID`
pub async fn remove_listener(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    Query(body): Query<ListenerBody>,
) -> Result<NoContent, Error> {
    engine.remove_listener(&name, body.request()?).await?;
    Ok(NoContent)
}

/// `GET /v1/networks/{name}/mdb`
pub async fn mdb(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
) -> Result<Json<MdbView>, Error> {
    Ok(Json(engine.mdb(&name)?))
}
