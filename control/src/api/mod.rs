//! The daemon's API: JSON over HTTP on a unix socket.
//!
//! Who may open the socket may do everything, so it is made for its owner, and for a group where one is named. A handler that
//! panics answers 500 and is counted; the dataplane does not notice.

pub mod backends;
pub mod bridging;
pub mod debugging;
mod document;
pub mod following;
pub mod frames;
pub mod groups;
mod handlers;
pub mod loads;
pub mod mac_nat;
pub mod metrics;
pub mod mirrors;
pub mod names;
pub mod nat_views;
pub mod reservations;
pub mod rules;
pub mod types;
pub mod vlans;
pub mod wire;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, patch_with, post_with};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, middleware};
use futures::FutureExt;
use tokio::net::UnixListener;

use crate::engine::Engine;
use crate::error::{Class, Error, split_hint};
use document::{lines, pcapng, says};
use following::EventView;
use types::{ErrorBody, TraceView};

/// Whether the API has routes that only tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugRoutes {
    /// It does.
    Present,
    /// It does not.
    Absent,
}

/// Takes the socket, for its owner and the members of a group.
///
/// # Errors
/// [`Error::InUse`] when a daemon answers on it already, [`Error::Invalid`] for an unknown group.
pub fn listen(socket: &Path, group: Option<&str>) -> Result<UnixListener, Error> {
    let group = group.map(group_id).transpose()?;
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
    // Nobody else may open it between the two: what is narrower comes first.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    if let Some(group) = group {
        chown(socket, None, Some(group)).map_err(failed)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    }
    Ok(listener)
}

fn group_id(name: &str) -> Result<u32, Error> {
    let found = nix::unistd::Group::from_name(name)
        .map_err(|error| Error::io(format!("look up the group '{name}'"), error.into()))?;
    let group = found.ok_or_else(|| {
        Error::Invalid(format!(
            "there is no group '{name}' for the socket; `groupadd {name}` makes one"
        ))
    })?;
    Ok(group.gid.as_raw())
}

/// Every route.
pub fn router(engine: Arc<Engine>, debug: DebugRoutes) -> Router {
    let mut document = document::empty();
    let router = routes().finish_api(&mut document);
    document::complete(&mut document);
    let document = Arc::new(document);
    let mut router = router.route(
        "/v1/openapi.json",
        get(|| async move { Json(&*document).into_response() }),
    );
    if debug == DebugRoutes::Present {
        router = router.route("/v1/debug/panic", axum::routing::post(handlers::panic));
    }
    router
        .fallback(handlers::not_found)
        .method_not_allowed_fallback(handlers::not_allowed)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&engine),
            catch_panic,
        ))
        .with_state(engine)
}

/// Every route that is documented, with what its operations do.
fn routes() -> ApiRouter<Arc<Engine>> {
    networks()
        .merge(endpoints())
        .merge(bridging())
        .merge(nat())
        .merge(filtering())
        .merge(watching())
}

/// Networks and their names.
fn networks() -> ApiRouter<Arc<Engine>> {
    use handlers as h;
    ApiRouter::new()
        .api_route(
            "/v1/networks",
            get_with(h::networks, says("List networks"))
                .post_with(h::create_network, says("Create a network")),
        )
        .api_route(
            "/v1/networks/{name}",
            get_with(h::network, says("Show a network"))
                .patch_with(h::change_network, says("Change a network in use"))
                .delete_with(h::remove_network, says("Remove a network")),
        )
        .api_route(
            "/v1/networks/{name}/confirm",
            post_with(
                h::confirm_nic,
                says("Keep the host's addresses moved to a network's port"),
            ),
        )
        .api_route(
            "/v1/networks/{name}/reservations",
            post_with(
                reservations::reserve,
                says("Keep an address for an endpoint, or from all"),
            ),
        )
        .api_route(
            "/v1/networks/{name}/reservations/{ip}",
            delete_with(reservations::release, says("Give a reserved address back")),
        )
        .api_route(
            "/v1/prune/networks",
            post_with(
                h::prune_networks,
                says("Remove the networks that no endpoint is on"),
            ),
        )
        .api_route(
            "/v1/networks/{name}/dns",
            get_with(names::records, says("List the names of a network")),
        )
        .api_route(
            "/v1/dns/why",
            get_with(
                names::why,
                says("What a question for a name comes to, and why"),
            ),
        )
        .api_route(
            "/v1/dns/stats",
            get_with(names::stats, says("Count questions and answers")),
        )
        .api_route(
            "/v1/dns/flush",
            post_with(names::flush, says("Forget the answers of other servers")),
        )
}

/// Endpoints and what is published for them.
fn endpoints() -> ApiRouter<Arc<Engine>> {
    use handlers as h;
    ApiRouter::new()
        .api_route(
            "/v1/endpoints",
            get_with(h::endpoints, says("List endpoints"))
                .post_with(h::attach, says("Give a sandbox an interface on a network"))
                .delete_with(h::detach_sandbox, says("Take a sandbox's interface away")),
        )
        .api_route(
            "/v1/endpoints/{name}",
            get_with(h::endpoint, says("Show an endpoint"))
                .delete_with(h::detach, says("Take an endpoint away")),
        )
        .api_route(
            "/v1/detach",
            post_with(h::detach_all, says("Take many endpoints away at once")),
        )
        .api_route(
            "/v1/publications",
            get_with(h::publications, says("List published ports"))
                .post_with(h::publish, says("Publish a port of an endpoint")),
        )
        .api_route(
            "/v1/publications/{id}",
            patch_with(
                h::change_publication,
                says("Change how sessions are spread over targets"),
            )
            .delete_with(h::unpublish, says("Withdraw a published port")),
        )
        .api_route(
            "/v1/publications/{id}/targets/{endpoint}",
            patch_with(
                h::change_target,
                says("Change a target of a published port"),
            )
            .delete_with(h::remove_target, says("Take a target off a published port")),
        )
}

/// What a managed switch has.
fn bridging() -> ApiRouter<Arc<Engine>> {
    ApiRouter::new()
        .api_route(
            "/v1/networks/{name}/mdb",
            get_with(groups::mdb, says("Who listens to which groups"))
                .post_with(groups::add_listener, says("Have a port listen to a group"))
                .delete_with(groups::remove_listener, says("Take such a listener away")),
        )
        .api_route(
            "/v1/networks/{name}/fdb",
            get_with(bridging::fdb, says("List stations"))
                .post_with(bridging::set_fdb_entry, says("Set where a station is"))
                .delete_with(bridging::flush_fdb, says("Forget stations")),
        )
        .api_route(
            "/v1/networks/{name}/fdb/{mac}",
            delete_with(bridging::remove_fdb_entry, says("Forget a station")),
        )
        .api_route(
            "/v1/ports",
            get_with(bridging::ports, says("List switch ports with counters")),
        )
        .api_route(
            "/v1/ports/{port}",
            get_with(bridging::port, says("Show a switch port")).patch_with(
                bridging::set_port,
                says("Change flags, limits and links of a switch port"),
            ),
        )
        .api_route(
            "/v1/vlans",
            get_with(vlans::list, says("List the VLANs of ports")),
        )
        .api_route(
            "/v1/ports/{port}/vlans",
            post_with(vlans::add, says("Put a port in VLANs")),
        )
        .api_route(
            "/v1/ports/{port}/vlans/{vlans}",
            delete_with(vlans::remove, says("Take a port out of VLANs")),
        )
        .api_route(
            "/v1/mac-nat",
            get_with(
                mac_nat::list,
                says("List who is behind ports by which one MAC leaves"),
            ),
        )
        .api_route(
            "/v1/mac-nat/{port}",
            get_with(mac_nat::of_port, says("The same of one port")),
        )
        .api_route(
            "/v1/mirrors",
            get_with(mirrors::list, says("List mirrors")).post_with(
                mirrors::add,
                says("Show what a port or a network carries elsewhere"),
            ),
        )
        .api_route(
            "/v1/mirrors/{name}",
            delete_with(mirrors::remove, says("Take a mirror away")),
        )
}

/// Rules, and what they leave to the outside.
fn filtering() -> ApiRouter<Arc<Engine>> {
    ApiRouter::new()
        .api_route(
            "/v1/rules",
            get_with(rules::list, says("List rules in their order"))
                .post_with(rules::add, says("Add a rule")),
        )
        .api_route(
            "/v1/rules/{name}",
            patch_with(rules::set, says("Change or move a rule"))
                .delete_with(rules::remove, says("Remove a rule")),
        )
        .api_route(
            "/v1/exposure",
            get_with(rules::exposure, says("List what the outside can reach")),
        )
}

/// Network address translation.
fn nat() -> ApiRouter<Arc<Engine>> {
    use handlers as h;
    ApiRouter::new()
        .api_route(
            "/v1/nat/sessions",
            get_with(h::nat_sessions, says("List NAT sessions")),
        )
        .api_route(
            "/v1/nat/rules",
            get_with(
                h::nat_rules,
                says("Count by published target and by network"),
            ),
        )
        .api_route(
            "/v1/nat/rules/counters",
            delete_with(h::zero_nat_rules, says("Make those counters zero")),
        )
        .api_route(
            "/v1/nat/usage",
            get_with(h::nat_usage, says("How much of the NAT's limits is used")),
        )
}

/// What is going on.
fn watching() -> ApiRouter<Arc<Engine>> {
    use handlers as h;
    ApiRouter::new()
        .api_route(
            "/v1/status",
            get_with(h::status, says("The daemon at a glance")),
        )
        .api_route(
            "/v1/stats",
            get_with(frames::stats, says("What frames came to, counted apart")),
        )
        .api_route(
            "/metrics",
            get_with(metrics::metrics, says("Counters, for Prometheus")),
        )
        .api_route(
            "/v1/drops",
            get_with(h::drops, says("Why frames were dropped")),
        )
        .api_route(
            "/v1/why",
            get_with(
                debugging::why,
                says("What would happen to a packet, stage by stage"),
            ),
        )
        .api_route(
            "/v1/events",
            get_with(
                following::events,
                lines::<EventView>("What has happened, an event a line"),
            ),
        )
        .api_route(
            "/v1/trace",
            get_with(
                h::trace,
                lines::<TraceView>("What the data path does with frames, a frame a line"),
            ),
        )
        .api_route(
            "/v1/capture",
            get_with(
                debugging::capture,
                pcapng("Frames as the ports see them, in pcapng"),
            ),
        )
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
            Class::Full => StatusCode::INSUFFICIENT_STORAGE,
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
