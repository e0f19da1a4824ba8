//! The daemon's API: JSON over HTTP on a unix socket.
//!
//! Who may open the socket may do everything, so it is made for its owner alone. A handler that
//! panics answers 500 and is counted; the dataplane does not notice.

pub mod bridging;
pub mod debugging;
pub mod following;
pub mod groups;
mod handlers;
pub mod loads;
pub mod mac_nat;
pub mod mirrors;
pub mod names;
pub mod types;
pub mod vlans;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, middleware};
use futures::FutureExt;
use tokio::net::UnixListener;

use crate::engine::Engine;
use crate::error::{Class, Error, split_hint};
use types::ErrorBody;

/// Whether the API has routes that only tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugRoutes {
    /// It does.
    Present,
    /// It does not.
    Absent,
}

/// Takes the socket, for its owner alone.
///
/// # Errors
/// [`Error::InUse`] when a daemon answers on it already.
pub fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |error| Error::io(format!("listen on {}", socket.display()), error);
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    match UnixStream::connect(socket) {
        Ok(_) => {
            let socket = socket.display();
            return Err(Error::InUse(format!(
                "a daemon is running on {socket}; stop it or choose another --socket"
            )));
        }
        // Left by a daemon that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(socket).map_err(failed)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Every route.
pub fn router(engine: Arc<Engine>, debug: DebugRoutes) -> Router {
    use handlers as h;
    let mut router = Router::new()
        .route("/v1/status", get(h::status))
        .route("/v1/networks", get(h::networks).post(h::create_network))
        .route(
            "/v1/networks/{name}",
            get(h::network)
                .patch(h::change_network)
                .delete(h::remove_network),
        )
        .route("/v1/networks/{name}/confirm", post(h::confirm_nic))
        .route(
            "/v1/networks/{name}/mdb",
            get(groups::mdb)
                .post(groups::add_listener)
                .delete(groups::remove_listener),
        )
        .route(
            "/v1/networks/{name}/fdb",
            get(bridging::fdb)
                .post(bridging::set_fdb_entry)
                .delete(bridging::flush_fdb),
        )
        .route(
            "/v1/networks/{name}/fdb/{mac}",
            delete(bridging::remove_fdb_entry),
        )
        .route(
            "/v1/endpoints",
            get(h::endpoints).post(h::attach).delete(h::detach_sandbox),
        )
        .route("/v1/endpoints/{name}", get(h::endpoint).delete(h::detach))
        .route("/v1/detach", post(h::detach_all))
        .route("/v1/publications", get(h::publications).post(h::publish))
        .route(
            "/v1/publications/{id}",
            delete(h::unpublish).patch(h::change_publication),
        )
        .route(
            "/v1/publications/{id}/targets/{endpoint}",
            delete(h::remove_target).patch(h::change_target),
        )
        .route("/v1/ports", get(bridging::ports))
        .route(
            "/v1/ports/{port}",
            get(bridging::port).patch(bridging::set_port),
        )
        .route("/v1/mac-nat", get(mac_nat::list))
        .route("/v1/mac-nat/{port}", get(mac_nat::of_port))
        .route("/v1/networks/{name}/dns", get(names::records))
        .route("/v1/dns/why", get(names::why))
        .route("/v1/dns/stats", get(names::stats))
        .route("/v1/dns/flush", post(names::flush))
        .route("/v1/mirrors", get(mirrors::list).post(mirrors::add))
        .route("/v1/mirrors/{name}", delete(mirrors::remove))
        .route("/v1/vlans", get(vlans::list))
        .route("/v1/ports/{port}/vlans", post(vlans::add))
        .route("/v1/ports/{port}/vlans/{vlans}", delete(vlans::remove))
        .route("/v1/nat/sessions", get(h::nat_sessions))
        .route("/v1/nat/rules", get(h::nat_rules))
        .route("/v1/nat/rules/counters", delete(h::zero_nat_rules))
        .route("/v1/nat/usage", get(h::nat_usage))
        .route("/v1/drops", get(h::drops))
        .route("/v1/events", get(following::events))
        .route("/v1/trace", get(h::trace))
        .route("/v1/why", get(debugging::why))
        .route("/v1/capture", get(debugging::capture));
    if debug == DebugRoutes::Present {
        router = router.route("/v1/debug/panic", post(h::panic));
    }
    router
        .fallback(h::not_found)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&engine),
            catch_panic,
        ))
        .with_state(engine)
}

async fn catch_panic(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            engine.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(request = what, "a handler panicked");
            let body = ErrorBody {
                error: format!("{what} failed inside the daemon"),
                hint: Some("the daemon goes on; its log says where".to_owned()),
            };
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self.class() {
            Class::Invalid => StatusCode::BAD_REQUEST,
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Conflict => StatusCode::CONFLICT,
            Class::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = self.to_string();
        let (error, hint) = split_hint(&message);
        let body = ErrorBody {
            error: error.to_owned(),
            hint: hint.map(str::to_owned),
        };
        (status, Json(body)).into_response()
    }
}
