//! Mirrors: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::handlers::JsonBody;
use crate::engine::{Engine, MirrorFrom, MirrorRequest};
use crate::error::Error;
use crate::model::{MirrorIngress, mirror_direction};

/// `POST /v1/mirrors`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorCreate {
    /// Its name.
    pub name: String,
    /// Name or id of the port that is watched.
    pub port: Option<String>,
    /// Or the network that is.
    pub network: Option<String>,
    /// `in`, `out` or `both`; both of a port, in of a network when left out.
    pub direction: Option<String>,
    /// Name or id of the port that shows the copies.
    pub to: String,
    /// That port is an ordinary one of its network as well.
    pub ingress: bool,
}

/// A mirror.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MirrorView {
    /// Its name.
    pub name: String,
    /// The port that is watched.
    pub port: Option<String>,
    /// Or the network that is.
    pub network: Option<String>,
    /// `in`, `out` or `both`, seen from the switch.
    pub direction: String,
    /// The port that shows the copies.
    pub to: String,
    /// That port is an ordinary one of its network as well.
    pub ingress: bool,
    /// Copies that the port was to show, of every mirror that it shows.
    pub copies: u64,
    /// Frames that the port was to send and did not.
    pub dropped: u64,
}

type Shared = State<Arc<Engine>>;

/// `GET /v1/mirrors`
pub async fn list(State(engine): Shared) -> Json<Vec<MirrorView>> {
    Json(engine.mirrors().await)
}

/// `POST /v1/mirrors`
pub async fn add(
    State(engine): Shared,
    JsonBody(body): JsonBody<MirrorCreate>,
) -> Result<(StatusCode, Json<MirrorView>), Error> {
    let from = match (body.port, body.network) {
        (Some(port), None) => MirrorFrom::Port(port),
        (None, Some(network)) => MirrorFrom::Network(network),
        (Some(_), Some(_)) | (None, None) => {
            let problem = "a mirror watches a port or a network; give one of the two";
            return Err(Error::Invalid(problem.to_owned()));
        }
    };
    let request = MirrorRequest {
        name: body.name,
        from,
        direction: body
            .direction
            .as_deref()
            .map(mirror_direction)
            .transpose()?,
        to: body.to,
        ingress: match body.ingress {
            true => MirrorIngress::Open,
            false => MirrorIngress::Closed,
        },
    };
    Ok((StatusCode::CREATED, Json(engine.add_mirror(request).await?)))
}

/// `DELETE /v1/mirrors/{name}`
pub async fn remove(State(engine): Shared, Path(name): Path<String>) -> Result<StatusCode, Error> {
    engine.remove_mirror(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
