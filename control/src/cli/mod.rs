//! The command line: reads words, asks the daemon, prints what it says.

mod apply;
mod args;
mod bench;
pub mod client;
mod conform;
mod daemon;
mod debugging;
mod demo;
mod dns;
mod doctor;
mod events;
mod fdb;
mod guest;
mod impair;
mod lab;
mod lease;
mod mac_nat;
mod mdb;
mod mirror;
mod nat;
mod network;
mod nic;
mod ns;
mod plug;
mod port;
mod publish;
mod rule;
mod run;
mod show;
mod table;
mod vlan;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::api::types::{
    DetachBody, DropView, EndpointCreate, EndpointView, NetworkCreate, NetworkSet, NetworkView,
    PortLoadView, StatusView, TraceView,
};
use crate::config::SOCKET_DEFAULT;
use crate::engine::{self, DETACHED_MAX};
use crate::error::split_hint;
use crate::model::Backend;
use crate::netns::{self, Privilege};
use args::{
    AttachArgs, Cli, Command, DetachArgs, NatCommand, NetworkCommand, NetworkCreateArgs, TraceArgs,
};
use client::{Client, escape};

/// Busiest ports that `status` lists for people; `--json` has them all.
const STATUS_PORTS_MAX: usize = 10;

/// Runs the program. Wrong usage ends it with 2 before anything is done.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before any thread: the kernel lets no others into a new user namespace.
    let entered = match &cli.command {
        Command::Demo(_) => netns::enter_user_namespace(),
        Command::Nat(NatCommand::Conform(args)) if conform::makes_lab(args) => {
            netns::enter_user_namespace()
        }
        Command::Run(args) => run::enter_user_namespace(args),
        _ => Ok(Privilege::Own),
    };
    let failed = match &cli.command {
        Command::Run(_) => ExitCode::from(run::NOT_RUN),
        _ => ExitCode::FAILURE,
    };
    let fail = |error: &anyhow::Error| fail(error, failed);
    if let Err(error) = entered {
        return fail(&anyhow::Error::from(error));
    }
    // Before any thread as well: each has its own.
    if matches!(cli.command, Command::Daemon(_))
        && let Err(error) = crate::rights::drop_all_others()
    {
        return fail(&anyhow::Error::from(error));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error).context("cannot start")),
    };
    let done = runtime.block_on(dispatch(cli));
    // Threads that wait for nobody any more must not hold the exit up.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// Prints an error with its hint, and gives the exit code: `failed`, if it is one.
fn fail(error: &anyhow::Error, failed: ExitCode) -> ExitCode {
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        // The reader has what it wanted, as with `causeway port ls | head -1`.
        return ExitCode::SUCCESS;
    }
    let message = message_of(error);
    let (what, hint) = split_hint(&message);
    eprintln!("causeway: {what}");
    if let Some(hint) = hint {
        eprintln!("  hint: {hint}");
    }
    failed
}

/// The chain of causes in one line; a cause that the message above it quotes is not said twice.
fn message_of(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let default = || PathBuf::from(SOCKET_DEFAULT);
    let client = Client::new(&cli.socket.clone().unwrap_or_else(default));
    match cli.command {
        Command::Daemon(args) => daemon::serve(cli.socket, args).await?,
        Command::Run(args) => return run::run(&client, args).await,
        Command::Demo(args) => return demo::play(args).await,
        Command::Apply(args) => apply::apply(&client, &args).await?,
        Command::Down(args) => apply::down(&client, &args).await?,
        Command::Export(args) => apply::export(&client, &args).await?,
        Command::Network(command) => network(&client, command).await?,
        Command::Attach(args) => attach(&client, args).await?,
        Command::Plug(args) => plug::plug(&client, args).await?,
        Command::Detach(args) => detach(&client, args).await?,
        Command::Ns(command) => ns::ns(&client, command).await?,
        Command::Publish(command) => publish::publish(&client, command).await?,
        Command::Port(args) => port::port(&client, args).await?,
        Command::Impair(command) => impair::impair(&client, command).await?,
        Command::MacNat(command) => mac_nat::mac_nat(&client, command).await?,
        Command::Mirror(command) => mirror::mirror(&client, command).await?,
        Command::Rule(command) => rule::rule(&client, command).await?,
        Command::Allow(args) => rule::allow(&client, args).await?,
        Command::Disallow(args) => rule::disallow(&client, args).await?,
        Command::Exposure(args) => rule::exposure(&client, args.json).await?,
        Command::Vlan(command) => vlan::vlan(&client, command).await?,
        Command::Fdb(command) => fdb::fdb(&client, command).await?,
        Command::Dns(command) => dns::dns(&client, command).await?,
        Command::Mdb(command) => mdb::mdb(&client, command).await?,
        Command::Nat(NatCommand::Conform(args)) => return conform::conform(args).await,
        Command::Nat(NatCommand::Sessions(args)) => nat::sessions(&client, args.json).await?,
        Command::Nat(NatCommand::Rules { zero, json }) => {
            publish::rules(&client, json).await?;
            if zero {
                publish::zero(&client).await?;
            }
        }
        Command::Nat(NatCommand::Usage(args)) => nat::usage(&client, args.json).await?,
        Command::Drops(args) => drops(&client, args.json).await?,
        Command::Trace(args) => trace(&client, args).await?,
        Command::Why(args) => debugging::why(&client, args).await?,
        Command::Capture(args) => debugging::capture(&client, args).await?,
        Command::Events(args) => events::events(&client, args).await?,
        Command::Doctor(args) => return doctor::doctor(&client, args).await,
        Command::Bench(command) => bench::bench(&command)?,
        Command::Show(args) => show::show(&client, args).await?,
        Command::Stats(args) => show::stats(&client, &args).await?,
        Command::Status(args) => status(&client, args.json).await?,
        Command::Lifeline(args) => {
            daemon::log_to_stderr(args::LogForm::Text);
            crate::lifeline::hold(&args.state_dir, args.within).await?;
        }
        Command::Clean(args) => return clean(&args.state_dir).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "causeway", &mut io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

async fn network(client: &Client, command: NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => {
            let made: NetworkView = client.post("/v1/networks", &network_body(args)).await?;
            writeln!(io::stdout(), "{}", made.name)?;
            if let Some(reminder) = nic::to_confirm(&made) {
                eprintln!("{reminder}");
            }
        }
        NetworkCommand::Ls(args) => {
            let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
            if args.json {
                return print_json(&networks);
            }
            network::print(&networks)?;
        }
        NetworkCommand::Inspect { names } => {
            let mut networks = Vec::new();
            for name in &names {
                let path = format!("/v1/networks/{}", escape(name));
                networks.push(client.get::<NetworkView>(&path).await?);
            }
            print_json(&networks)?;
        }
        NetworkCommand::Set(args) => {
            let path = format!("/v1/networks/{}", escape(&args.name));
            let body = NetworkSet {
                ageing_seconds: args.ageing,
                stp_frames: args.stp_frames,
                loop_detect: args.loop_detect,
                vlan_filtering: args.vlans.filtering(),
                gateway_vlan: args.vlans.gateway_vlan,
                icc: args.icc,
                mcast_snooping: args.flood.mcast_snooping,
                mcast_querier: args.flood.mcast_querier,
                arp_suppression: args.flood.arp_suppression,
                nat_mapping: args.nat.nat_mapping,
                nat_filtering: args.nat.nat_filtering,
                nat4: args.nat.nat4,
                nat6: args.nat.nat6,
                dns: args.dns,
                nic: args.nic.body(),
            };
            let changed: NetworkView = client.patch(&path, &body).await?;
            if let Some(reminder) = nic::to_confirm(&changed) {
                eprintln!("{reminder}");
            }
        }
        NetworkCommand::Confirm { name } => {
            let path = format!("/v1/networks/{}/confirm", escape(&name));
            client.create(&path, &()).await?;
        }
        NetworkCommand::Rm { names } => {
            for name in &names {
                client
                    .delete(&format!("/v1/networks/{}", escape(name)))
                    .await?;
            }
        }
        NetworkCommand::Reserve(args) => network::reserve(client, args).await?,
        NetworkCommand::Release { name, ip } => network::release(client, &name, &ip).await?,
        NetworkCommand::Prune(args) => network::prune(client, &args).await?,
    }
    Ok(())
}

fn network_body(args: NetworkCreateArgs) -> NetworkCreate {
    NetworkCreate {
        name: args.name,
        subnet: args.subnet,
        gateway: args.gateway,
        subnet6: args.subnet6,
        gateway6: args.gateway6,
        ip_range: args.ip_range,
        internal: args.internal,
        no_host_link: args.no_host_link,
        mtu: args.mtu,
        ageing_seconds: args.ageing,
        stp_frames: args.stp_frames,
        loop_detect: args.loop_detect,
        vlan_filtering: args.vlans.filtering(),
        gateway_vlan: args.vlans.gateway_vlan,
        icc: args.icc,
        mcast_snooping: args.flood.mcast_snooping,
        mcast_querier: args.flood.mcast_querier,
        arp_suppression: args.flood.arp_suppression,
        nat_mapping: args.nat.nat_mapping,
        nat_filtering: args.nat.nat_filtering,
        nat4: args.nat.nat4,
        nat6: args.nat.nat6,
        dns: args.dns,
        lan_gateway: args.lan_gateway,
        nic: args.nic.body(),
    }
}

async fn attach(client: &Client, args: AttachArgs) -> anyhow::Result<()> {
    let asked = [(args.ip.as_ref(), "ipv4"), (args.ip6.as_ref(), "ipv6")];
    let (addresses, without) = addresses_asked(asked);
    let container = args.container.as_deref();
    let container = container.map(guest::process_of_container).transpose()?;
    let body = EndpointCreate {
        network: args.network,
        netns: args.netns.map(absolute).transpose()?,
        pid: args.pid.or(container),
        name: args.name,
        ifname: Some(args.ifname),
        addresses,
        without,
        mac: args.mac,
        backend: Some(args.backend),
        aliases: args.alias,
        dns: args.dns,
        links: Vec::new(),
        gw_priority: Some(args.gw_priority),
        routes: args.route,
        replace: args.replace,
    };
    let made: EndpointView = client.post("/v1/endpoints", &body).await?;
    if args.json {
        return print_json(&made);
    }
    let addresses = made.addresses.join(" ");
    writeln!(io::stdout(), "{} {} {addresses}", made.name, made.ifname)?;
    if let Some(why) = &made.backend_why {
        // Beside what scripts read.
        writeln!(io::stderr(), "backend {}: {why}", made.backend)?;
    }
    Ok(())
}

/// Addresses, and families that are to have none, by what was asked of each family.
fn addresses_asked(asked: [(Option<&String>, &str); 2]) -> (Vec<String>, Vec<String>) {
    let (mut addresses, mut without) = (Vec::new(), Vec::new());
    for (asked, family) in asked {
        match asked {
            Some(none) if none == "none" => without.push(family.to_owned()),
            asked => addresses.extend(asked.cloned()),
        }
    }
    (addresses, without)
}

async fn detach(client: &Client, args: DetachArgs) -> anyhow::Result<()> {
    let mut names = args.names;
    if let Some(network) = args.network {
        let _: NetworkView = client
            .get(&format!("/v1/networks/{}", escape(&network)))
            .await?;
        let endpoints: Vec<EndpointView> = client.get("/v1/endpoints").await?;
        // The network's card and the host's port beside it come and go with the network.
        let attachable = |backend: &str| Backend::ALL.iter().any(|known| known.label() == backend);
        let attached = endpoints
            .into_iter()
            .filter(|endpoint| endpoint.network == network && attachable(&endpoint.backend));
        names = attached.map(|endpoint| endpoint.name).collect();
    }
    for names in names.chunks(DETACHED_MAX) {
        let body = DetachBody {
            names: names.to_vec(),
        };
        client.create("/v1/detach", &body).await?;
    }
    let container = args.container.as_deref();
    let container = container.map(guest::process_of_container).transpose()?;
    let sandbox = match (args.netns, args.pid.or(container)) {
        (Some(netns), _) => format!("netns={}", escape(&absolute(netns)?)),
        (None, Some(pid)) => format!("pid={pid}"),
        (None, None) => return Ok(()),
    };
    let path = format!("/v1/endpoints?{sandbox}&ifname={}", escape(&args.ifname));
    Ok(client.delete(&path).await?)
}

/// The daemon has another working directory than we have.
fn absolute(netns: String) -> anyhow::Result<String> {
    if !netns.contains('/') {
        return Ok(netns);
    }
    let path = std::path::absolute(&netns).with_context(|| format!("cannot resolve '{netns}'"))?;
    Ok(path.display().to_string())
}

async fn drops(client: &Client, json: bool) -> anyhow::Result<()> {
    let drops: Vec<DropView> = client.get("/v1/drops").await?;
    if json {
        return print_json(&drops);
    }
    let row = |drop: &DropView| {
        vec![
            drop.count.to_string(),
            drop.stage.clone(),
            drop.reason.clone(),
            drop.port.clone().unwrap_or_default(),
            drop.meaning.clone(),
        ]
    };
    let rows: Vec<_> = drops.iter().map(row).collect();
    table::print(&["COUNT", "STAGE", "REASON", "PORT", "MEANING"], &rows)?;
    Ok(())
}

async fn trace(client: &Client, args: TraceArgs) -> anyhow::Result<()> {
    let mut query = Vec::new();
    if let Some(text) = args.filter.or(args.contains) {
        query.push(format!("contains={}", escape(&text)));
    }
    if let Some(port) = args.port {
        query.push(format!("port={}", escape(&port)));
    }
    if let Some(count) = args.count {
        query.push(format!("count={count}"));
    }
    let path = format!("/v1/trace?{}", query.join("&"));
    let print = |line: &[u8]| {
        let mut out = io::stdout().lock();
        if args.json {
            out.write_all(line)?;
        } else {
            let view: TraceView = serde_json::from_slice(line)?;
            let TraceView {
                sequence,
                port_name,
                size,
                summary,
                ..
            } = &view;
            writeln!(out, "#{sequence} {port_name}: {summary} ({size} bytes)")?;
            for step in &view.steps {
                writeln!(out, "    {:8} {}", step.stage, step.text)?;
            }
        }
        out.flush()
    };
    Ok(client.lines(&path, print).await?)
}

async fn status(client: &Client, json: bool) -> anyhow::Result<()> {
    let status: StatusView = client.get("/v1/status").await?;
    if json {
        return print_json(&status);
    }
    let mut out = io::stdout().lock();
    let StatusView {
        version,
        pid,
        uptime_seconds,
        workers,
        ..
    } = &status;
    writeln!(
        out,
        "causeway {version}, process {pid}, up {uptime_seconds} s, {workers} workers"
    )?;
    writeln!(
        out,
        "networks {}, endpoints {}, publications {}, NAT sessions {}",
        status.networks, status.endpoints, status.publications, status.nat_sessions
    )?;
    if let Some(usage) = &status.nat {
        nat::write_usage(&mut out, usage)?;
    }
    writeln!(
        out,
        "host link: {}",
        status.host_link.as_deref().unwrap_or("none")
    )?;
    if status.uplinks.is_empty() {
        writeln!(out, "uplinks: none")?;
    }
    for uplink in &status.uplinks {
        let state = if uplink.up { "up" } else { "down" };
        writeln!(
            out,
            "uplink {}: {state}, {}",
            uplink.name,
            uplink.addresses.join(" ")
        )?;
    }
    let verdicts: Vec<String> = status
        .verdicts
        .iter()
        .map(|verdict| format!("{} {}", verdict.label, verdict.count))
        .collect();
    let (rx, dropped) = (status.rx_frames, status.dropped);
    writeln!(
        out,
        "frames: {rx} received, {dropped} dropped; {}",
        verdicts.join(", ")
    )?;
    let learning = status.learning.iter().filter(|count| count.count > 0);
    let learning: Vec<String> = learning
        .map(|count| format!("{} {}", count.label, count.count))
        .collect();
    if !learning.is_empty() {
        writeln!(out, "stations: {}", learning.join(", "))?;
    }
    write_loads(&mut out, &status)?;
    if status.api_panics > 0 {
        writeln!(out, "API handlers that panicked: {}", status.api_panics)?;
    }
    for warning in &status.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

/// How busy every worker is, and the busiest ports.
fn write_loads(out: &mut impl Write, status: &StatusView) -> io::Result<()> {
    for load in &status.worker_loads {
        writeln!(
            out,
            "worker {}: {:.1} % busy, {:.1} % spinning, {:.0} frames/s, {:.1} frames a batch",
            load.worker,
            100.0 * load.busy,
            100.0 * load.spinning,
            load.rx_frames_per_second,
            load.batch_frames
        )?;
    }
    let busy = |load: &&PortLoadView| load.rx_frames_per_second + load.tx_frames_per_second > 0.0;
    for load in status.port_loads.iter().filter(busy).take(STATUS_PORTS_MAX) {
        let worker = load
            .worker
            .map_or_else(|| "all workers".to_owned(), |id| format!("worker {id}"));
        writeln!(
            out,
            "port {} ({worker}): {:.1} % of a core, in {:.0} frames/s {:.1} Mbit/s, out {:.0} \
             frames/s {:.1} Mbit/s",
            load.port,
            100.0 * load.busy,
            load.rx_frames_per_second,
            load.rx_bytes_per_second * 8e-6,
            load.tx_frames_per_second,
            load.tx_bytes_per_second * 8e-6
        )?;
    }
    Ok(())
}

async fn clean(state_dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    let (done, failed) = engine::clean(state_dir).await?;
    for what in &done {
        writeln!(io::stdout(), "removed {what}")?;
    }
    for error in &failed {
        eprintln!("causeway: {error}");
    }
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
