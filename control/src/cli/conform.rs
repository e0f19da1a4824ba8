//! `nat conform`: the conformance checker on a lab of its own, or on other NATs.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use dataplane_core::addr::Prefix;
use futures::future::join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::daemon::raise_descriptor_limit;
use super::lab::{self, Props};
use super::{print_json, table};
use crate::api::types::{NetworkCreate, NetworkView};
use crate::conform::{
    self, Borrowed, Family, Ground, Namespaces, Options, Report, TIMERS_SECONDS_MAX,
};
use crate::model::MTU_DEFAULT;
use crate::netns::Netns;

/// The lab's outside, of either family (RFC 5737, RFC 3849).
const OUTSIDE: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)),
        64,
    ),
];
/// The lab's network: not globally routable, so that it is masqueraded (RFC 1918, RFC 4193).
const SUBNET: &str = "10.0.0.0/24";
const SUBNET6: &str = "fd00:db8::/64";
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
  causeway nat conform --target nft=in1,out1 --target ours=in2,out2 --markdown
  causeway nat conform --target pasta=4711,internet   pasta, by the process id of its command
  causeway nat conform --timers                       wait for timers too, 310 s at most
  causeway nat conform --target blue,internet --timers 7500   for that of established TCP as well
  causeway nat conform --target blue,internet --family 6      IPv6 alone: NAT66, or routed

INSIDE, OUTSIDE and SECOND are names (as in 'ip netns') or paths of network namespaces, or ids of
processes in them: what pasta or a container engine has made has no name. The inside needs a
route through the NAT to the outside's address. When the outside has only one address, another of
its subnet is added while the checker runs. So is an address inside, to be another host that wants the
same ports, unless SECOND names a namespace with one: a NAT that knows its hosts serves no other.
Without --target an ordinary user gets a user namespace.

Every row is what was seen of real packets; what was not seen is 'not tested', and says why. Where the
outside sees the inside's own address, it says 'no translation: routed'. A timer is told by waiting: how
long that takes is said before it begins, and it ends early when all have run out. See
docs/manual/nat-conform.md.

Exit status: 0 when the checks could run, whatever they found; 1 when they could not.")]
pub struct ConformArgs {
    /// The NAT between these namespaces; repeats [default: ours, in a lab of its own]
    #[arg(long, value_name = "[NAME=]INSIDE,OUTSIDE[,SECOND]")]
    pub target: Vec<Target>,
    /// Which IP versions to look at: 4, 6 or both [default: those that the target has]
    #[arg(long, value_name = "4|6|both")]
    pub family: Option<Families>,
    /// An address of the outside to be a remote; two of a family at most [default: any]
    #[arg(long, value_name = "IP", requires = "target")]
    pub remote: Vec<IpAddr>,
    /// Wait for timers, up to this many seconds [default without a number: 310]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1,
        value_parser = clap::value_parser!(u64).range(1..=TIMERS_SECONDS_MAX))]
    pub timers: Option<Option<u64>>,
    /// How the lab's inside is connected: tap, packet, xdp, tap-plain
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

/// Which IP versions are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// This one.
    One(Family),
    /// Each of them, or it is an error.
    Both,
}

impl std::str::FromStr for Families {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "4" => Ok(Self::One(Family::V4)),
            "6" => Ok(Self::One(Family::V6)),
            "both" => Ok(Self::Both),
            _ => Err("write 4, 6 or both".to_owned()),
        }
    }
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
    for family in Family::ALL {
        anyhow::ensure!(
            remotes(&args, family).len() <= 2,
            "two {family} remotes are enough; leave out the others"
        );
    }
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
    // A socket keeps each port that is in use, of either family.
    raise_descriptor_limit();
    let checked = check_all(&args, &traces).await;
    if traces.props.is_struck_early() {
        // The signal's task ends the program; what the checks stumbled over is a consequence.
        return std::future::pending().await;
    }
    let removed = traces.remove().await;
    let reports = checked?;
    removed?;
    print(&args, reports)?;
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

/// The remotes of a family that are asked for.
fn remotes(args: &ConformArgs, family: Family) -> Vec<IpAddr> {
    let all = args.remote.iter().copied();
    all.filter(|remote| Family::of(*remote) == family).collect()
}

/// The families that must be looked at, and those that may be.
fn families(args: &ConformArgs) -> (Vec<Family>, Vec<Family>) {
    let (mut must, mut may) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        match args.family {
            Some(Families::Both) => must.push(family),
            Some(Families::One(one)) if one == family => must.push(family),
            Some(Families::One(_)) => {}
            // Who names remotes means theirs.
            None if !remotes(args, family).is_empty() => must.push(family),
            None if !args.remote.is_empty() => {}
            None if args.target.is_empty() => must.push(family),
            None => may.push(family),
        }
    }
    (must, may)
}

async fn check_all(args: &ConformArgs, traces: &Traces) -> anyhow::Result<Vec<Report>> {
    let options = Options {
        timers: args
            .timers
            .map(|seconds| Duration::from_secs(seconds.unwrap_or(conform::TIMERS_SECONDS_DEFAULT))),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
    };
    if let Some(timers) = options.timers {
        announce(args.target.len().max(1), timers, options.duration())?;
    }
    let mut reports = Vec::new();
    if args.target.is_empty() {
        // The namespaces live as long as their handles.
        let (namespaces, _host) = make_lab(&args.backend, traces).await?;
        reports.extend(check_target(("causeway", &namespaces), args, options, traces).await?);
    }
    for target in &args.target {
        let namespaces = target.open()?;
        let checked = check_target((&target.name, &namespaces), args, options, traces).await;
        reports.extend(checked.with_context(|| target.name.clone())?);
    }
    Ok(reports)
}

/// Says how long it will take.
fn announce(targets: usize, timers: Duration, each: Duration) -> io::Result<()> {
    let all = each * u32::try_from(targets).unwrap_or(u32::MAX);
    let (all, timers) = (all.as_secs(), timers.as_secs());
    let for_each = if targets > 1 { " for each target" } else { "" };
    writeln!(
        io::stderr(),
        "takes about {all} s at most: timers are waited for up to {timers} s{for_each}"
    )
}

/// Looks at a target in every family that must be, and in those that may be and can, at once. When none
/// can, the reason is that of the first that it has addresses of.
async fn check_target(
    (name, namespaces): (&str, &Namespaces),
    args: &ConformArgs,
    options: Options,
    traces: &Traces,
) -> anyhow::Result<Vec<Report>> {
    let (must, may) = families(args);
    let progress = Progress::new(name);
    let checks = must.iter().chain(&may).map(async |family| {
        let remotes = remotes(args, *family);
        let find = Ground::find(namespaces.clone(), *family, &remotes, &traces.borrowed);
        check(find.await?, *family, options, progress.clone()).await
    });
    let done = join_all(checks).await;
    let (mut reports, mut missed) = (Vec::new(), Vec::new());
    for (family, done) in must.iter().chain(&may).zip(done) {
        match done {
            Ok(report) => reports.push(report),
            Err(error) if must.contains(family) => return Err(error),
            Err(error) => missed.push((*family, error)),
        }
    }
    let lacks = |error: &anyhow::Error| {
        let cause = error.downcast_ref();
        matches!(cause, Some(conform::Error::NoRemote(_)))
    };
    if reports.is_empty() {
        let told = missed.iter().position(|(_, error)| !lacks(error));
        return Err(missed.swap_remove(told.unwrap_or(0)).1);
    }
    for (family, error) in missed.iter().filter(|(_, error)| !lacks(error)) {
        writeln!(io::stderr(), "{name}: {family} is not looked at: {error:#}")?;
    }
    Ok(reports)
}

fn open(namespace: &str) -> anyhow::Result<Netns> {
    Ok(if namespace.contains('/') {
        Netns::from_path(namespace)?
    } else if let Ok(pid) = namespace.parse() {
        Netns::from_pid(pid)?
    } else {
        Netns::from_name(namespace)?
    })
}

async fn check(
    ground: Ground,
    family: Family,
    options: Options,
    progress: Progress,
) -> anyhow::Result<Report> {
    let run = move || {
        let done = conform::run(&progress.name, &ground, options, &mut |what| {
            progress.tell(family, Some(what));
        });
        progress.tell(family, None);
        done
    };
    Ok(tokio::task::spawn_blocking(run).await??)
}

/// A line on a terminal that says what either family is at.
#[derive(Clone, Debug)]
struct Progress {
    name: String,
    at: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Progress {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            at: Arc::default(),
        }
    }

    fn tell(&self, family: Family, what: Option<&str>) {
        if !io::stderr().is_terminal() {
            return;
        }
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Some(what) => at.insert(family.label(), what.to_owned()),
            None => at.remove(family.label()),
        };
        let all: Vec<String> = at
            .iter()
            .map(|(family, what)| format!("{family}: {what}"))
            .collect();
        // Over the line before.
        eprint!("\r\x1b[K");
        if !all.is_empty() {
            eprint!("{}, {}", self.name, all.join("; "));
        }
    }
}

/// A host with our NAT, an outside with two addresses of either family, and two sandboxes inside.
async fn make_lab(backend: &str, traces: &Traces) -> anyhow::Result<(Namespaces, Netns)> {
    let (inside, second) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    let (host, outside) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    let [on_host, first_remote, second_remote] = [1, 2, 3].map(|number| {
        OUTSIDE.map(|(subnet, len)| match subnet {
            IpAddr::V4(v4) => Prefix::new(Ipv4Addr::from(v4.to_bits() + number).into(), len),
            IpAddr::V6(v6) => Prefix::new(
                Ipv6Addr::from(v6.to_bits() + u128::from(number)).into(),
                len,
            ),
        })
    });
    let remotes = [first_remote, second_remote].concat();
    lab::connect_outside((&host, &on_host), (&outside, &remotes), MTU).await?;
    let client = traces.props.start_daemon(&host).await?;
    let body = NetworkCreate {
        name: "conform".to_owned(),
        subnet: Some(SUBNET.to_owned()),
        subnet6: Some(SUBNET6.to_owned()),
        // Larger than the outside's, so that something is too big.
        mtu: Some(MTU_DEFAULT),
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
    Ok((namespaces, host))
}

fn print(args: &ConformArgs, reports: Vec<Report>) -> anyhow::Result<()> {
    if args.json {
        return print_json(&reports);
    }
    if args.csv {
        write!(io::stdout(), "{}", conform::csv(&reports)?)?;
        return Ok(());
    }
    for (index, reports) in conform::by_family(reports).iter().enumerate() {
        if index > 0 {
            writeln!(io::stdout())?;
        }
        if args.markdown {
            write!(io::stdout(), "{}", conform::markdown(reports))?;
            continue;
        }
        let (heading, rows) = conform::text(reports);
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        table::print(&heading, &rows)?;
        for report in reports {
            writeln!(io::stdout(), "{}", report.summary())?;
        }
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
