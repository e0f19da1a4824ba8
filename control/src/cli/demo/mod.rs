//! `causeway demo`: the tour. Every sentence is rendered from a recorded trace, a counter or what
//! a socket saw; an outcome that differs ends it with 1.

mod narrator;
mod stage;
mod wire;

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::lab::Props;
use crate::api::bridging::FdbView;
use crate::api::types::{DropView, PortView, SessionView, StepView, TraceView};
use narrator::Narrator;
use stage::{Container, HOST, OUTSIDE, Stage, Watch};

/// `demo`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway demo
  causeway demo --json | jq -r 'select(.kind == \"outcome\") | .text'

Everything happens in network namespaces that the demo makes and that vanish with it. An ordinary
user gets a user namespace for it. Exit status: 0 when every outcome was as it should be.")]
pub struct DemoArgs {
    /// Print a JSON object per line
    #[arg(long)]
    pub json: bool,
    /// How containers are connected: tap, packet [default: tap where /dev/net/tun can be opened]
    #[arg(long)]
    pub backend: Option<String>,
}

/// How long a ping that must not be answered is waited for.
const SILENCE: Duration = Duration::from_millis(300);
/// Bytes of the transfer whose rate is told.
const TRANSFER_SIZE: u64 = 400_000_000;
/// Bytes of the transfers that show addresses.
const GREETING_SIZE: u64 = 100_000;

/// Plays the demo, and takes everything away again however it ends.
pub async fn play(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let props = Props::new("demo");
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let signals = signal(kind).context("cannot handle signals")?;
        tokio::spawn(end_early(kind, signals, props.clone()));
    }
    let played = tell(args, &props).await;
    if props.is_struck_early() {
        // The signal's task ends the program; what the demo stumbled over is a consequence.
        return std::future::pending().await;
    }
    let played = match played {
        Err(error) => Err(match props.daemon_end().await {
            Some(end) => error.context(end),
            None => error,
        }),
        Ok(code) => Ok(code),
    };
    props.strike().and(played)
}

/// Ends the program on a signal. The demo's sockets block for seconds at worst, and whoever
/// presses Ctrl-C should not wait for them, so the process ends under them.
async fn end_early(kind: SignalKind, mut signals: Signal, props: Props) {
    if signals.recv().await.is_none() {
        return;
    }
    if let Err(error) = props.strike_early() {
        eprintln!("causeway: {error:#}");
    }
    // As a shell reports a program that a signal has ended.
    std::process::exit(128 + kind.as_raw_value());
}

async fn tell(args: DemoArgs, props: &Props) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut say = Narrator::new(args.json);
    say.note(
        "A host, the outside, and three containers on two networks, without a kernel bridge.",
    )?;
    say.note("All of it in namespaces of the demo's own: nothing touches this machine's network.")?;
    let backend = match args.backend {
        Some(backend) => backend,
        None => choose_backend(&say)?,
    };
    let stage = stage::set(&backend, props).await?;
    for container in [&stage.web, &stage.app, &stage.spy] {
        say.note(&format!(
            "{} is {} by {backend}",
            container.name, container.address
        ))?;
    }
    first_ping(&mut say, &stage).await?;
    transfer_rate(&mut say, &stage).await?;
    host(&mut say, &stage).await?;
    isolation(&mut say, &stage).await?;
    way_out(&mut say, &stage).await?;
    way_in(&mut say, &stage).await?;
    tables(&mut say, &stage).await?;
    drop(stage);
    props.strike()?;
    let differing = say.end(start.elapsed().as_secs_f64())?;
    Ok(if differing == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn choose_backend(say: &Narrator) -> std::io::Result<String> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    Ok(match tun {
        Ok(_) => "tap".to_owned(),
        Err(error) => {
            say.note(&format!(
                "/dev/net/tun cannot be opened ({error}): containers get a veth that the switch \
                 holds by AF_PACKET"
            ))?;
            "packet".to_owned()
        }
    })
}

async fn first_ping(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("The first ping: ask everybody, learn, then know")?;
    let (web, app) = (&stage.web, &stage.app);
    let watch = Watch::start(&stage.client).await?;
    show(
        say,
        &stage.beginning,
        "the first frame of all teaches the switch where its sender is",
        |frame| frame.port_name == web.name && learns(frame),
    )
    .await?;
    let first = wire::ping(&web.ns, app.address, (1, 1), wire::PATIENCE);
    let question = format!("ARP who has {}? tell {}", app.address, web.address);
    show(say, &watch, "the question went to everybody", |frame| {
        frame.summary == question && frame.outcome == "flooded"
    })
    .await?;
    let answer = format!("ARP {} is at ", app.address);
    show(
        say,
        &watch,
        "the answer went to the asker alone: his MAC had been learned",
        |frame| frame.summary.starts_with(&answer) && frame.egress == [web.name],
    )
    .await?;
    show(say, &watch, "the ping itself is a CAM hit", |frame| {
        is_echo(frame, "request", web, app) && frame.outcome == "bridged"
    })
    .await?;
    let second = wire::ping(&web.ns, app.address, (1, 2), wire::PATIENCE);
    for (which, result) in [("first", first), ("second", second)] {
        match result {
            Ok(time) => {
                let micros = time.as_micros();
                say.outcome(true, &format!("the {which} reply came after {micros} µs"))?;
            }
            Err(error) => say.outcome(false, &format!("no {which} reply: {error}"))?,
        }
    }
    Ok(())
}

async fn transfer_rate(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("A TCP transfer: frames larger than the MTU cross whole")?;
    let (web, app) = (&stage.web, &stage.app);
    let before = port(stage, app.name).await?;
    let to = SocketAddr::new(app.address.into(), 7000);
    let served = wire::transfer((&web.ns, to), (&app.ns, to), TRANSFER_SIZE);
    let after = port(stage, app.name).await?;
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(say.outcome(false, &format!("no port is called {}", app.name))?);
    };
    match served {
        Ok(served) => {
            let gbits = served.bytes as f64 * 8e-9 / served.elapsed.as_secs_f64();
            let text = format!(
                "{} MB from {} to {} at {gbits:.1} Gbit/s",
                served.bytes / 1_000_000,
                web.name,
                app.name
            );
            say.outcome(served.bytes == TRANSFER_SIZE, &text)?;
        }
        Err(error) => say.outcome(false, &format!("the transfer failed: {error}"))?,
    }
    let frames = after.tx_frames.saturating_sub(before.tx_frames);
    let bytes = after.tx_bytes.saturating_sub(before.tx_bytes);
    let mean = bytes / frames.max(1);
    let text = format!(
        "{frames} frames of {mean} bytes on average left for {}",
        app.name
    );
    Ok(say.outcome(mean > 1514, &text)?)
}

async fn host(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("The host and its containers: by a link of their own")?;
    let web = &stage.web;
    let watch = Watch::start(&stage.client).await?;
    let answered = wire::ping(&stage.host, web.address, (3, 1), wire::PATIENCE);
    show(
        say,
        &watch,
        "the answer goes back over the host link",
        |frame| {
            frame.summary.starts_with("ICMP echo reply")
                && frame.port_name == web.name
                && frame.outcome == "delivered"
        },
    )
    .await?;
    match answered {
        Ok(time) => {
            let micros = time.as_micros();
            Ok(say.outcome(
                true,
                &format!("{} answered the host after {micros} µs", web.name),
            )?)
        }
        Err(error) => Ok(say.outcome(false, &format!("the host got no reply: {error}"))?),
    }
}

async fn isolation(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("Another network: no way through")?;
    let (spy, web) = (&stage.spy, &stage.web);
    let watch = Watch::start(&stage.client).await?;
    let answered = wire::ping(&spy.ns, web.address, (2, 1), SILENCE);
    show(say, &watch, "the switch says why", |frame| {
        is_echo(frame, "request", spy, web) && frame.outcome == "network_isolated"
    })
    .await?;
    Ok(say.outcome(answered.is_err(), "no reply came")?)
}

async fn way_out(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("The way out: the outside sees the host's address")?;
    let app = &stage.app;
    // The next hop's MAC is asked for by the first packet; the one shown finds it known.
    let asked = wire::ping(&app.ns, OUTSIDE, (4, 1), wire::PATIENCE);
    say.outcome(asked.is_ok(), &format!("{} pings the outside", app.name))?;
    let watch = Watch::start(&stage.client).await?;
    let to = SocketAddr::new(OUTSIDE.into(), 443);
    let served = wire::transfer((&app.ns, to), (&stage.outside, to), GREETING_SIZE);
    show(say, &watch, "one packet's whole path out", |frame| {
        let syn = frame.summary.starts_with(&format!("TCP {}:", app.address));
        syn && frame.summary.ends_with("[SYN]") && frame.outcome == "routed"
    })
    .await?;
    show(say, &watch, "and the answer's way back in", |frame| {
        frame.summary.starts_with(&format!("TCP {to} > {HOST}:"))
            && frame.summary.ends_with("[SYN ACK]")
            && frame.egress == [app.name]
    })
    .await?;
    told_client(say, served, HOST.into(), "the server outside")
}

async fn way_in(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("The way in: a published port keeps the client's address")?;
    let web = &stage.web;
    let watch = Watch::start(&stage.client).await?;
    let connect = SocketAddr::new(HOST.into(), 8080);
    let listen = SocketAddr::new(web.address.into(), 80);
    let served = wire::transfer((&stage.outside, connect), (&web.ns, listen), GREETING_SIZE);
    show(
        say,
        &watch,
        &format!("8080 on the host leads to 80 on {}", web.name),
        |frame| {
            frame.summary.starts_with(&format!("TCP {OUTSIDE}:"))
                && frame.summary.ends_with("[SYN]")
                && frame.egress == [web.name]
        },
    )
    .await?;
    told_client(say, served, OUTSIDE.into(), web.name)
}

async fn tables(say: &mut Narrator, stage: &Stage) -> anyhow::Result<()> {
    say.scene("What the switch knows now")?;
    let fdb: Vec<FdbView> = stage.client.get("/v1/networks/shop/fdb").await?;
    for entry in &fdb {
        let text = format!(
            "FDB      {} is on {}, heard {} s ago",
            entry.mac, entry.port_name, entry.age_seconds
        );
        say.note(&text)?;
    }
    say.outcome(
        fdb.len() == 2,
        &format!("{} stations learned on shop", fdb.len()),
    )?;
    let sessions: Vec<SessionView> = stage.client.get("/v1/nat/sessions").await?;
    for session in &sessions {
        let text = format!(
            "session  {} {} as {} with {}: {}",
            session.protocol, session.inside, session.external, session.remote, session.state
        );
        say.note(&text)?;
    }
    let count = |kind: &str| sessions.iter().filter(|s| s.protocol == kind).count();
    let text = format!(
        "{} TCP sessions, one each way, and {} ping",
        count("tcp"),
        count("icmp")
    );
    say.outcome((count("tcp"), count("icmp")) == (2, 1), &text)?;
    let drops: Vec<DropView> = stage.client.get("/v1/drops").await?;
    for drop in &drops {
        say.note(&format!(
            "drops    {} x {}: {}",
            drop.count, drop.reason, drop.meaning
        ))?;
    }
    let isolated = drops
        .iter()
        .any(|drop| drop.reason == "network_isolated" && drop.count > 0);
    Ok(say.outcome(isolated, "the spy's pings are among the drops")?)
}

/// Shows the first frame that fits; none is an outcome that differs.
async fn show(
    say: &mut Narrator,
    watch: &Watch,
    text: &str,
    fits: impl Fn(&TraceView) -> bool,
) -> anyhow::Result<()> {
    match watch.find(fits).await {
        Some(frame) => {
            say.frame(&frame)?;
            say.outcome(true, text)?;
        }
        None => say.outcome(false, &format!("no such frame was seen: {text}"))?,
    }
    Ok(())
}

fn told_client(
    say: &mut Narrator,
    served: std::io::Result<wire::Served>,
    expected: std::net::IpAddr,
    who: &str,
) -> anyhow::Result<()> {
    match served {
        Ok(served) => {
            let text = format!("{who} got {} bytes from {}", served.bytes, served.client);
            let shown = served.client == expected && served.bytes == GREETING_SIZE;
            Ok(say.outcome(shown, &text)?)
        }
        Err(error) => Ok(say.outcome(false, &format!("the connection failed: {error}"))?),
    }
}

async fn port(stage: &Stage, name: &str) -> anyhow::Result<Option<PortView>> {
    let ports: Vec<PortView> = stage.client.get("/v1/ports").await?;
    Ok(ports.into_iter().find(|port| port.name == name))
}

/// Whether the frame taught the switch where its sender is.
fn learns(frame: &TraceView) -> bool {
    let new = |step: &StepView| step.stage == "learn" && step.text.contains("is new");
    frame.steps.iter().any(new)
}

fn is_echo(frame: &TraceView, what: &str, from: &Container, to: &Container) -> bool {
    frame.summary.starts_with(&format!("ICMP echo {what}"))
        && frame
            .summary
            .ends_with(&format!(" {} > {}", from.address, to.address))
}
