//! `nat conform`: the conformance checker on a lab of its own, or on other NATs.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::lab::{self, Props};
use super::{print_json, table};
use crate::api::types::{NetworkCreate, NetworkView};
use crate::conform::{
    self, Borrowed, Family, Ground, Namespaces, Options, Report, TIMERS_SECONDS_MAX,
};
use crate::netns::Netns;

/// The lab's addresses (RFC 5737).
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)];
/// Below the inside's 1500, so that a packet can be too large for the outside.
const MTU: u32 = 1_400;
/// How a target is written.
const WANTED: &str =
    "write INSIDE,OUTSIDE or NAME=INSIDE,OUTSIDE, with ,SECOND for another host inside";
/// NATs of one run: more than fit side by side.
const TARGETS_MAX: usize = 8;

/// `nat conform`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway nat conform                                our NAT, in a lab that vanishes afterwards
  causeway nat conform --target blue,internet         any NAT between two namespaces
  causeway nat conform --target blue,internet,green   with another host behind it
  causeway nat conform --target nft=in1,out1 --target pasta=in2,out2 --markdown
  causeway nat conform --target blue,internet --timers 130    wait for timers up to 130 s

INSIDE and OUTSIDE are names (as in 'ip netns') or paths of network namespaces. The inside needs a
route through the NAT to the outside's address. When the outside has only one address, another of
its subnet is added while the checker runs. So is an address inside, to be another host that wants the
same ports, unless SECOND names a namespace with one: a NAT that knows its hosts serves no other.
Without --target an ordinary user gets a user namespace.

Every row is what was seen of real packets; what was not seen is 'not tested', and says why. See
docs/manual/nat-conform.md.

Exit status: 0 when the checks could run, whatever they found; 1 when they could not.")]
pub struct ConformArgs {
    /// The NAT between these namespaces; repeats [default: ours, in a lab of its own]
    #[arg(long, value_name = "[NAME=]INSIDE,OUTSIDE[,SECOND]")]
    pub target: Vec<Target>,
    /// An address of the outside to be a remote; twice at most [default: any]
    #[arg(long, value_name = "IP", requires = "target")]
    pub remote: Vec<IpAddr>,
    /// Wait for timers, up to this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=TIMERS_SECONDS_MAX))]
    pub timers: Option<u64>,
    /// How the lab's inside is connected: tap, packet, tap-plain
    #[arg(long, default_value = "tap", conflicts_with = "target")]
    pub backend: String,
    /// What random ports and numbers come from, to repeat a run [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print JSON
    #[arg(long, group = "form")]
    pub json: bool,
    /// Print comma-separated values
    #[arg(long, group = "form")]
    pub csv: bool,
    /// Print tables of Markdown
    #[arg(long, group = "form")]
    pub markdown: bool,
}

/// Two namespaces with a NAT between them, and perhaps another one behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    name: String,
    inside: String,
    outside: String,
    second: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, namespaces) = text.split_once('=').unwrap_or((text, text));
        let namespaces: Vec<&str> = namespaces.split(',').collect();
        let (inside, outside, second) = match namespaces[..] {
            [inside, outside] => (inside, outside, None),
            [inside, outside, second] => (inside, outside, Some(second)),
            _ => return Err(WANTED.to_owned()),
        };
        if name.is_empty() || namespaces.contains(&"") {
            return Err(WANTED.to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            inside: inside.to_owned(),
            outside: outside.to_owned(),
            second: second.map(str::to_owned),
        })
    }
}

impl Target {
    fn open(&self) -> anyhow::Result<Namespaces> {
        Ok(Namespaces {
            inside: open(&self.inside)?,
            outside: open(&self.outside)?,
            second: self.second.as_deref().map(open).transpose()?,
        })
    }
}

/// What would outlive the program.
#[derive(Clone, Debug)]
struct Traces {
    props: Props,
    borrowed: Borrowed,
}

impl Traces {
    async fn remove(&self) -> anyhow::Result<()> {
        let given_back = self.borrowed.give_back().await;
        self.props.strike()?;
        Ok(given_back?)
    }
}

/// Checks what it is told to, and takes everything away again however it ends.
pub async fn conform(args: ConformArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.target.len() <= TARGETS_MAX,
        "at most {TARGETS_MAX} targets at once; start it again for the others"
    );
    anyhow::ensure!(
        args.remote.len() <= 2,
        "two remotes are enough; leave out the others"
    );
    let traces = Traces {
        props: Props::new("lab"),
        borrowed: Borrowed::default(),
    };
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let signals = signal(kind).context("cannot handle signals")?;
        tokio::spawn(end_early(kind, signals, traces.clone()));
    }
    let checked = check_all(&args, &traces).await;
    if traces.props.is_struck_early() {
        // The signal's task ends the program; what the checks stumbled over is a consequence.
        return std::future::pending().await;
    }
    let removed = traces.remove().await;
    let reports = checked?;
    removed?;
    print(&args, &reports)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the program on a signal: whoever presses Ctrl-C should not wait for a probe.
async fn end_early(kind: SignalKind, mut signals: Signal, traces: Traces) {
    if signals.recv().await.is_none() {
        return;
    }
    let struck = traces.props.strike_early();
    if let Err(error) = traces.remove().await.and(struck) {
        eprintln!("causeway: {error:#}");
    }
    // As a shell reports a program that a signal has ended.
    std::process::exit(128 + kind.as_raw_value());
}

async fn check_all(args: &ConformArgs, traces: &Traces) -> anyhow::Result<Vec<Report>> {
    let mut reports = Vec::new();
    if args.target.is_empty() {
        // The namespaces live as long as their handles; the ground has the others.
        let (ground, _host) = make_lab(&args.backend, traces).await?;
        reports.push(check("causeway", ground, args).await?);
    }
    for target in &args.target {
        let ground = Ground::find(target.open()?, Family::V4, &args.remote, &traces.borrowed).await;
        let ground = ground.with_context(|| target.name.clone())?;
        let report = check(&target.name, ground, args).await;
        reports.push(report.with_context(|| target.name.clone())?);
    }
    Ok(reports)
}

fn open(namespace: &str) -> anyhow::Result<Netns> {
    Ok(if namespace.contains('/') {
        Netns::from_path(namespace)?
    } else {
        Netns::from_name(namespace)?
    })
}

async fn check(name: &str, ground: Ground, args: &ConformArgs) -> anyhow::Result<Report> {
    let options = Options {
        timers: args.timers.map(Duration::from_secs),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
    };
    let name = name.to_owned();
    let told = io::stderr().is_terminal();
    let run = move || {
        let done = conform::run(&name, &ground, options, &mut |what| {
            if told {
                // Over the line before.
                eprint!("\r\x1b[K{name}: {what}");
            }
        });
        if told {
            eprint!("\r\x1b[K");
        }
        done
    };
    Ok(tokio::task::spawn_blocking(run).await??)
}

/// A host with our NAT, an outside with two addresses, and two sandboxes inside.
async fn make_lab(backend: &str, traces: &Traces) -> anyhow::Result<(Ground, Netns)> {
    let (inside, second) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    let (host, outside) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    lab::connect_outside((&host, HOST), (&outside, &OUTSIDE), MTU).await?;
    let client = traces.props.start_daemon(&host).await?;
    let body = NetworkCreate {
        name: "conform".to_owned(),
        ..NetworkCreate::default()
    };
    let _: NetworkView = client.post("/v1/networks", &body).await?;
    for (sandbox, name) in [(&inside, "inside"), (&second, "second")] {
        lab::attach(&client, sandbox, name, "conform", backend).await?;
    }
    let namespaces = Namespaces {
        inside,
        outside,
        second: Some(second),
    };
    let ground = Ground::find(namespaces, Family::V4, &[], &traces.borrowed).await?;
    Ok((ground, host))
}

fn print(args: &ConformArgs, reports: &[Report]) -> anyhow::Result<()> {
    if args.json {
        return print_json(&reports);
    }
    let mut out = io::stdout().lock();
    if args.csv {
        write!(out, "{}", conform::csv(reports)?)?;
        return Ok(out.flush()?);
    }
    if args.markdown {
        write!(out, "{}", conform::markdown(reports))?;
        return Ok(out.flush()?);
    }
    drop(out);
    let (heading, rows) = match reports {
        [one] => conform::table(one),
        several => conform::side_by_side(several),
    };
    let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
    table::print(&heading, &rows)?;
    for report in reports {
        writeln!(io::stdout(), "{}", report.summary())?;
    }
    Ok(())
}

/// Whether an ordinary user needs a user namespace for it: other NATs are where they are.
pub fn makes_lab(args: &ConformArgs) -> bool {
    args.target.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_pair_of_namespaces_with_or_without_a_name() {
        let target: Target = "nft=/run/netns/a,b".parse().unwrap();
        assert_eq!(target.name, "nft");
        assert_eq!((&*target.inside, &*target.outside), ("/run/netns/a", "b"));
        let target: Target = "a,b".parse().unwrap();
        assert_eq!(target.name, "a,b");
        assert_eq!(target.second, None);
        let target: Target = "x=a,b,c".parse().unwrap();
        assert_eq!(target.second.as_deref(), Some("c"));
        for wrong in ["", "a", "a,", ",b", "=a,b", "x=a", "a,b,", "a,b,c,d"] {
            assert!(wrong.parse::<Target>().is_err(), "'{wrong}'");
        }
    }
}
