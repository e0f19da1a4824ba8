//! VLANs of ports: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use dataplane_core::l2::{Form, PortVlans};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{Created, JsonBody, Path, Query};
use crate::engine::Engine;
use crate::error::Error;
use crate::vlans::{self, Membership, Pvid};

/// A port's VLANs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortVlansView {
    /// The port.
    pub port: u16,
    /// Its endpoint's name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Whether VLANs count there.
    pub filtering: bool,
    /// Which VLANs it is in.
    pub vlans: Vec<VlanView>,
}

/// A VLAN, or several next to each other, as `bridge -j vlan show` has them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VlanView {
    /// The VLAN, or the first of several.
    pub vlan: u16,
    /// The last of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_end: Option<u16>,
    /// `PVID`: frames without a tag are in it. `Egress Untagged`: frames leave without one.
    pub flags: Vec<String>,
}

/// `POST /v1/ports/{port}/vlans`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VlanAdd {
    /// A VLAN or an interval of them: `10`, `10-20`.
    pub vlans: String,
    /// Frames without a tag are in it.
    pub pvid: bool,
    /// Frames leave without a tag.
    pub untagged: bool,
}

/// `GET /v1/vlans?port=PORT`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct VlanQuery {
    port: Option<String>,
}

type Shared = State<Arc<Engine>>;

/// VLANs in the form of the API.
pub fn views(vlans: &PortVlans) -> Vec<VlanView> {
    let spans = vlans.spans().into_iter();
    let view = |span| {
        let pvid = vlans::is_pvid(vlans, &span).then_some("PVID");
        let untagged = (span.form == Form::Untagged).then_some("Egress Untagged");
        let (first, last) = (*span.vlans.start(), *span.vlans.end());
        VlanView {
            vlan: first,
            vlan_end: (last != first).then_some(last),
            flags: pvid
                .into_iter()
                .chain(untagged)
                .map(str::to_owned)
                .collect(),
        }
    };
    spans.map(view).collect()
}

/// `GET /v1/vlans`
pub async fn list(
    State(engine): Shared,
    Query(query): Query<VlanQuery>,
) -> Result<Json<Vec<PortVlansView>>, Error> {
    Ok(Json(engine.vlans(query.port.as_deref()).await?))
}

/// `POST /v1/ports/{port}/vlans`
pub async fn add(
    State(engine): Shared,
    Path(port): Path<String>,
    JsonBody(body): JsonBody<VlanAdd>,
) -> Result<Created<PortVlansView>, Error> {
    let membership = Membership {
        form: match body.untagged {
            true => Form::Untagged,
            false => Form::Tagged,
        },
        pvid: match body.pvid {
            true => Pvid::This,
            false => Pvid::Other,
        },
    };
    let interval = vlans::interval(&body.vlans)?;
    let view = engine.add_vlans(&port, interval, membership).await?;
    Ok(Created(view))
}

/// `DELETE /v1/ports/{port}/vlans/{vlans}`
pub async fn remove(
    State(engine): Shared,
    Path((port, vlans)): Path<(String, String)>,
) -> Result<NoContent, Error> {
    engine.remove_vlans(&port, vlans::interval(&vlans)?).await?;
    Ok(NoContent)
}
