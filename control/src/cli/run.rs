//! `causeway run`: a program in a sandbox of its own.
//!
//! The namespace lives as long as this process and the program; the endpoints are detached when
//! the program ends. Should this process be killed, the daemon finds the sandbox gone and drops
//! the endpoints itself.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use super::args::RunArgs;
use super::client::{Client, escape};
use crate::api::types::{EndpointCreate, EndpointView, PublicationCreate, PublicationView};
use crate::config::RESOLV_CONF_DEFAULT;
use crate::names::ResolvConf;
use crate::netns::Netns;

/// The exit status of a program that cannot be found, as shells have it.
const NOT_FOUND: u8 = 127;
/// The exit status of a program that cannot be started, as shells have it.
const NOT_STARTED: u8 = 126;
/// Added to a signal's number for the exit status, as shells do it.
const SIGNALLED: i32 = 128;

/// Makes the sandbox, runs the program, takes the sandbox apart.
pub async fn run(client: &Client, args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.network.is_empty() && !args.publish.is_empty() {
        anyhow::bail!("nothing can be published without a network; add --network NAME");
    }
    // From here on no signal may end us with the sandbox up; one that comes early waits for the
    // program and ends that.
    let mut signals = Signals::catch()?;
    let ns = Netns::create_unnamed()?;
    let mut endpoints = Vec::new();
    let prepared = prepare(client, &args, &ns, &mut endpoints).await;
    let ended = match prepared {
        Ok(servers) => supervise(&args, &ns, &servers, &mut signals).await,
        Err(error) => Err(error),
    };
    // Everything is taken apart, whatever happened, and each failure is told.
    for endpoint in &endpoints {
        let path = format!("/v1/endpoints/{}", escape(endpoint));
        if let Err(error) = client.delete(&path).await {
            eprintln!("causeway: cannot detach '{endpoint}': {error}");
        }
    }
    ended
}

async fn prepare(
    client: &Client,
    args: &RunArgs,
    ns: &Netns,
    endpoints: &mut Vec<String>,
) -> anyhow::Result<Vec<IpAddr>> {
    let mut servers = Vec::new();
    // The link to our descriptor is how the daemon opens a namespace without a name.
    let netns = format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
    for (index, network) in args.network.iter().enumerate() {
        let base = args
            .name
            .clone()
            .unwrap_or_else(|| format!("run-{}", std::process::id()));
        let first = index == 0;
        let body = EndpointCreate {
            network: network.clone(),
            netns: Some(netns.clone()),
            pid: None,
            name: Some(if first {
                base
            } else {
                format!("{base}-eth{index}")
            }),
            ifname: Some(format!("eth{index}")),
            addresses: args.ip.iter().filter(|_| first).cloned().collect(),
            without: Vec::new(),
            mac: args.mac.clone().filter(|_| first),
            backend: Some(args.backend.clone()),
            aliases: args.alias.clone(),
            dns: args.dns.clone(),
            ..EndpointCreate::default()
        };
        let made: EndpointView = client.post("/v1/endpoints", &body).await?;
        endpoints.push(made.name);
        servers.extend(
            made.nameservers
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok()),
        );
    }
    for spec in &args.publish {
        let body = PublicationCreate {
            endpoint: endpoints[0].clone(),
            spec: spec.clone(),
            ..PublicationCreate::default()
        };
        let _: PublicationView = client.post("/v1/publications", &body).await?;
    }
    Ok(servers)
}

/// Starts the program inside and waits for it, passing signals on.
async fn supervise(
    args: &RunArgs,
    ns: &Netns,
    servers: &[IpAddr],
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no program was given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let started = ns.run(|| {
        // The thread ends with this, and its mount namespace is the program's alone.
        if let Err(error) = show_resolv_conf(servers) {
            eprintln!("causeway: {RESOLV_CONF_DEFAULT} is the host's own: {error}");
        }
        command.spawn()
    });
    let mut child = match started? {
        Ok(child) => child,
        Err(error) => {
            eprintln!("causeway: cannot start '{}': {error}", program.display());
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_STARTED,
            };
            return Ok(ExitCode::from(code));
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    let status = loop {
        let passed = tokio::select! {
            ended = &mut ended => break ended.context("the waiting thread ended")??,
            signal = signals.next() => signal,
        };
        // It may have ended in this instant.
        let _ = kill(pid, passed);
    };
    Ok(ExitCode::from(exit_code(status)))
}

/// Gives this thread a mount namespace in which `/etc/resolv.conf` names the gateways.
fn show_resolv_conf(servers: &[IpAddr]) -> anyhow::Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let host = std::fs::read_to_string(RESOLV_CONF_DEFAULT).unwrap_or_default();
    let conf = ResolvConf {
        servers: servers.to_vec(),
        search: ResolvConf::read(&host).search,
    };
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of its own")?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot keep its mounts to itself")?;
    // Without a name once it is mounted.
    let dir = std::env::temp_dir();
    let path = dir.join(format!("causeway-resolv-{}", std::process::id()));
    std::fs::write(&path, conf.to_text()).with_context(|| format!("cannot write {path:?}"))?;
    let bound = mount(
        Some(&path),
        RESOLV_CONF_DEFAULT,
        none,
        MsFlags::MS_BIND,
        none,
    );
    std::fs::remove_file(&path)?;
    bound.with_context(|| format!("cannot put a file over {RESOLV_CONF_DEFAULT}"))
}

/// The signals that are passed on.
struct Signals {
    interrupt: UnixSignal,
    terminate: UnixSignal,
    hangup: UnixSignal,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            // A terminal sends SIGINT to the program as well; a second one does no harm.
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = match status.signal() {
        Some(signal) => SIGNALLED + signal,
        None => status.code().unwrap_or(1),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
