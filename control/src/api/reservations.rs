//! Reserved addresses of networks: wire format and handlers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::NoContent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{JsonBody, Path};
use crate::engine::Engine;
use crate::error::Error;
use crate::model::Holder;

/// `POST /v1/networks/{name}/reservations`, and how one is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReservationBody {
    /// The address.
    pub ip: String,
    /// The name or the MAC of the endpoint that alone may have it; absent when none may.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

type Shared = State<Arc<Engine>>;

/// Keeps an address for somebody.
pub async fn reserve(
    State(engine): Shared,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<ReservationBody>,
) -> Result<NoContent, Error> {
    let holder: Holder = match &body.holder {
        Some(text) => text.parse()?,
        None => Holder::Nobody,
    };
    engine.reserve(&name, address(&body.ip)?, holder).await?;
    Ok(NoContent)
}

/// Gives an address back.
pub async fn release(
    State(engine): Shared,
    Path((name, ip)): Path<(String, String)>,
) -> Result<NoContent, Error> {
    engine.release(&name, address(&ip)?).await?;
    Ok(NoContent)
}

fn address(text: &str) -> Result<IpAddr, Error> {
    let parsed = text.parse();
    parsed.map_err(|_| Error::Invalid(format!("'{text}' is no IP address; write 10.88.0.9")))
}
