//! `causeway daemon`: serves until it is told to stop.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::args::{DaemonArgs, LogForm};
use crate::api::{self, DebugRoutes};
use crate::config::{Config, DefaultNetwork, Overrides, Sessions};
use crate::engine::Engine;

/// Serves until SIGTERM or SIGINT. What is on the host stays there for the next start.
pub async fn serve(socket: Option<PathBuf>, args: DaemonArgs) -> anyhow::Result<()> {
    log_to_stderr(args.log);
    raise_descriptor_limit();
    let overrides = Overrides {
        state_dir: args.state_dir,
        socket,
        workers: args.workers,
        waiting: args.waiting,
        uplinks: args.uplink,
        sessions: match args.keep_sessions {
            true => Sessions::Kept,
            false => Sessions::Forgotten,
        },
        dns_servers: args.dns,
        metrics: args.metrics,
        socket_group: args.socket_group,
        default_network: args.no_default_network.then_some(DefaultNetwork::Absent),
        die_at: args.die_at,
    };
    let config = Config::load(args.config.as_deref(), overrides)?;
    let socket = config.socket.clone();
    let metrics = match config.metrics {
        Some(address) => Some(api::metrics::listen(address).await?),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let parent = args.until_stdin_closes.then(parent_pipe).transpose()?;
    let listener = api::listen(&socket, config.socket_group.as_deref())?;
    let engine = match Engine::start(config).await {
        Ok(engine) => engine,
        Err(error) => {
            remove_socket(&socket);
            return Err(error.into());
        }
    };
    engine.start_background()?;
    let debug = if args.debug_routes {
        DebugRoutes::Present
    } else {
        DebugRoutes::Absent
    };
    let router = api::router(std::sync::Arc::clone(&engine), debug);
    if let Some(listener) = metrics {
        let router = api::metrics::router(std::sync::Arc::clone(&engine));
        tokio::spawn(async move { axum::serve(listener, router.into_make_service()).await });
    }
    tracing::info!(socket = %socket.display(), "serving");
    notify_ready();
    tokio::select! {
        // Made ready once: a router by itself is made ready, and copied, for each connection.
        served = axum::serve(listener, router.into_make_service()) => served.context("the API ended")?,
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => tracing::info!("told to stop"),
        () = closed(parent) => tracing::info!("the parent has ended"),
    }
    remove_socket(&socket);
    engine.keep_sessions();
    engine.release_next_hops().await;
    engine.finish_mirror_files().await;
    Ok(())
}

/// Says on the standard error what happens, as much of it as `CAUSEWAY_LOG` asks for.
pub(super) fn log_to_stderr(form: LogForm) {
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match form {
        LogForm::Text => log.init(),
        LogForm::Json => log.json().flatten_event(true).init(),
    }
}

/// The standard input as a pipe whose other end the parent holds, however it ends.
fn parent_pipe() -> anyhow::Result<pipe::Receiver> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    stdin
        .and_then(pipe::Receiver::from_owned_fd)
        .context("the standard input is no pipe")
}

/// Returns when the pipe is closed; never without one.
async fn closed(pipe: Option<pipe::Receiver>) {
    let Some(pipe) = pipe else {
        return std::future::pending().await;
    };
    let mut ignored = [0; 64];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut ignored) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

fn remove_socket(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::warn!(socket = %socket.display(), %error, "cannot remove the socket");
    }
}

/// Every port costs a descriptor per worker; the soft limit is often only 1,024.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Tells systemd that requests are answered from now on (sd_notify(3)); nobody asks elsewhere.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
