//! Mirrors: wire format and handlers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::{Created, JsonBody, Path};
use crate::engine::{Engine, MirrorFrom, MirrorRequest, MirrorTo};
use crate::error::Error;
use crate::model::{
    FileTarget, MIRROR_FILE_SIZE_DEFAULT, MIRROR_FILES_KEPT_DEFAULT, MirrorIngress,
    mirror_direction,
};

/// `POST /v1/mirrors`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
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
    pub to: Option<String>,
    /// That port is an ordinary one of its network as well.
    pub ingress: bool,
    /// Or the file that they are written to: an absolute path.
    pub to_file: Option<String>,
    /// Bytes of the file after which another one is begun.
    pub limit_size: Option<u64>,
    /// Files kept.
    pub rotate: Option<u32>,
}

/// A mirror.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MirrorView {
    /// Its name.
    pub name: String,
    /// The port that is watched.
    pub port: Option<String>,
    /// Or the network that is.
    pub network: Option<String>,
    /// `in`, `out` or `both`, seen from the switch.
    pub direction: String,
    /// The port that shows the copies, or the path of the file.
    pub to: String,
    /// That port is an ordinary one of its network as well.
    pub ingress: bool,
    /// Copies that the port was to show, of every mirror that it shows.
    pub copies: u64,
    /// Frames that the port was to send and did not, or that the disk did not take.
    pub dropped: u64,
    /// How far the file has come, of a mirror to one.
    pub file: Option<MirrorFileView>,
}

/// The file of a mirror.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MirrorFileView {
    /// Bytes after which another one is begun.
    pub limit_size: u64,
    /// Files kept.
    pub rotate: u32,
    /// Frames that this daemon has written.
    pub written: u64,
    /// Why nothing is written, if so.
    pub failure: Option<String>,
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
) -> Result<Created<MirrorView>, Error> {
    let from = match (body.port, body.network) {
        (Some(port), None) => MirrorFrom::Port(port),
        (None, Some(network)) => MirrorFrom::Network(network),
        (Some(_), Some(_)) | (None, None) => {
            let problem = "a mirror watches a port or a network; give one of the two";
            return Err(Error::Invalid(problem.to_owned()));
        }
    };
    let to = match (body.to, body.to_file) {
        (Some(port), None) => {
            let ingress = match body.ingress {
                true => MirrorIngress::Open,
                false => MirrorIngress::Closed,
            };
            MirrorTo::Port(port, ingress)
        }
        (None, Some(path)) => MirrorTo::File(FileTarget {
            path: path.into(),
            size_max: body.limit_size.unwrap_or(MIRROR_FILE_SIZE_DEFAULT),
            files_max: body.rotate.unwrap_or(MIRROR_FILES_KEPT_DEFAULT),
        }),
        (Some(_), Some(_)) | (None, None) => {
            let problem = "copies go to a port or to a file; give one of the two";
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
        to,
    };
    Ok(Created(engine.add_mirror(request).await?))
}

/// `DELETE /v1/mirrors/{name}`
pub async fn remove(State(engine): Shared, Path(name): Path<String>) -> Result<NoContent, Error> {
    engine.remove_mirror(&name).await?;
    Ok(NoContent)
}
