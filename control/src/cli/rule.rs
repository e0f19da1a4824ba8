//! `rule`, `allow`, `disallow` and `exposure`: who may open connections to whom.

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::rules::{ExposureView, RuleCreate, RuleSet, RuleView};
use crate::model::NAME_LEN_MAX;

/// `rule`
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Add a rule after all others, or where it is to stand
    #[command(after_help = "Examples:
  causeway rule add no-smtp drop --from web --to outside --proto tcp --ports 25
  causeway rule add no-ssh reject --from web --to host --proto tcp --ports 22
  causeway rule add db allow --from web --to db --proto tcp --ports 5432
  causeway rule add office allow --from 198.51.100.0/24 --to web1
  causeway rule add closed drop --from outside --to web1             all others: after 'office'
  causeway rule add first drop --from 10.88.0.9 --first

The first rule that fits counts. A rule is about who opens a connection: answers pass with what they answer,
and what a rule let through ends with the rule. Where no rule fits, networks are isolated from each other, and
all else passes (endpoints of a network with --icc off do not reach each other). A side is the name of a
network or an endpoint, an address or subnet, 'outside' (beyond an uplink), 'host' or 'any'.")]
    Add {
        /// Its name
        name: String,
        /// What becomes of connections that it fits
        action: RuleAction,
        #[command(flatten)]
        asks: RuleAsks,
        #[command(flatten)]
        place: RulePlaceArgs,
    },
    /// List rules in their order, with the packets that they decided on
    #[command(visible_alias = "list")]
    Ls(JsonArgs),
    /// Remove rules
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Change what a rule asks or does; its counters go on
    #[command(after_help = "Examples:
  causeway rule set db --ports 5432,6432
  causeway rule set db --action drop
  causeway rule set db --uplink ''                 over any uplink again")]
    Set {
        /// Which
        name: String,
        /// What becomes of connections that it fits
        #[arg(long)]
        action: Option<RuleAction>,
        #[command(flatten)]
        asks: RuleAsks,
    },
    /// Have a rule asked earlier or later
    #[command(after_help = "Examples:
  causeway rule move office --before closed
  causeway rule move office --first")]
    Move {
        /// Which
        name: String,
        #[command(flatten)]
        place: RulePlaceArgs,
    },
}

/// What a rule does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RuleAction {
    /// They pass
    Allow,
    /// They end
    Drop,
    /// They end, and who opens them is told: by a TCP reset, or by ICMP
    Reject,
}

impl RuleAction {
    fn word(self) -> String {
        match self {
            Self::Allow => "allow",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
        .to_owned()
    }
}

/// What a rule asks.
#[derive(Debug, Args)]
pub struct RuleAsks {
    /// Who opens the connection: a network, an endpoint, an address or subnet, outside, host, any
    #[arg(long, value_name = "SIDE")]
    pub from: Option<String>,
    /// Towards whom
    #[arg(long, value_name = "SIDE")]
    pub to: Option<String>,
    /// By which protocol: tcp, udp, icmp, a number, any
    #[arg(long, value_name = "PROTO")]
    pub proto: Option<String>,
    /// To which ports, as in 80,443,8000-8010
    #[arg(long, value_name = "PORTS")]
    pub ports: Option<String>,
    /// From which ports
    #[arg(long, value_name = "PORTS")]
    pub source_ports: Option<String>,
    /// Over which uplink alone
    #[arg(long, value_name = "IF")]
    pub uplink: Option<String>,
}

/// Where a rule stands.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct RulePlaceArgs {
    /// Before all others
    #[arg(long)]
    pub first: bool,
    /// After all others
    #[arg(long)]
    pub last: bool,
    /// Right before that one
    #[arg(long, value_name = "RULE")]
    pub before: Option<String>,
    /// Right after that one
    #[arg(long, value_name = "RULE")]
    pub after: Option<String>,
}

impl RulePlaceArgs {
    fn word(self) -> Option<String> {
        match (self.first, self.last) {
            (true, _) => return Some("first".to_owned()),
            (_, true) => return Some("last".to_owned()),
            (false, false) => {}
        }
        let before = self.before.map(|rule| format!("before:{rule}"));
        before.or(self.after.map(|rule| format!("after:{rule}")))
    }
}

/// `allow` and `disallow`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway allow web db                     endpoints of web may open connections to those of db
  causeway allow web db tcp 5432            by TCP to this port alone
  causeway allow web1 db1 udp 53,5353
  causeway disallow web db tcp 5432         what was allowed by these words; connections end

A is who may open connections; B answers, and may not open any to A. As 'rule add ... allow', after all
other rules: a rule before it that fits counts. `causeway rule ls` lists them.")]
pub struct AllowArgs {
    /// Who may open connections: a network, an endpoint, an address or subnet, outside, host
    pub from: String,
    /// Towards whom
    pub to: String,
    /// By which protocol alone: tcp, udp, icmp, a number
    pub proto: Option<String>,
    /// To which ports alone, as in 80,443,8000-8010
    pub ports: Option<String>,
}

/// `rule`
pub(super) async fn rule(client: &Client, command: RuleCommand) -> anyhow::Result<()> {
    match command {
        RuleCommand::Add {
            name,
            action,
            asks,
            place,
        } => {
            let body = RuleCreate {
                name,
                action: action.word(),
                from: asks.from,
                to: asks.to,
                protocol: asks.proto,
                source_ports: asks.source_ports,
                ports: asks.ports,
                uplink: asks.uplink,
                place: place.word(),
            };
            client.create("/v1/rules", &body).await?;
        }
        RuleCommand::Ls(args) => list(client, args.json).await?,
        RuleCommand::Rm { names } => {
            for name in &names {
                client.delete(&path(name)).await?;
            }
        }
        RuleCommand::Set { name, action, asks } => {
            let body = RuleSet {
                action: action.map(RuleAction::word),
                from: asks.from,
                to: asks.to,
                protocol: asks.proto,
                source_ports: asks.source_ports,
                ports: asks.ports,
                uplink: asks.uplink,
                place: None,
            };
            let _: RuleView = client.patch(&path(&name), &body).await?;
        }
        RuleCommand::Move { name, place } => {
            let Some(place) = place.word() else {
                bail!("say where to: --first, --last, --before RULE or --after RULE");
            };
            let body = RuleSet {
                place: Some(place),
                ..RuleSet::default()
            };
            let _: RuleView = client.patch(&path(&name), &body).await?;
        }
    }
    Ok(())
}

fn path(name: &str) -> String {
    format!("/v1/rules/{}", escape(name))
}

/// `allow`: a rule whose name says what it does. Allowed twice is allowed.
pub(super) async fn allow(client: &Client, args: AllowArgs) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = client.get("/v1/rules").await?;
    if rules.iter().any(|rule| allows(rule, &args)) {
        return Ok(());
    }
    let body = RuleCreate {
        name: name(&args, &rules),
        action: RuleAction::Allow.word(),
        from: Some(args.from),
        to: Some(args.to),
        protocol: args.proto,
        ports: args.ports,
        ..RuleCreate::default()
    };
    client.create("/v1/rules", &body).await?;
    Ok(())
}

/// `disallow`
pub(super) async fn disallow(client: &Client, args: AllowArgs) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = client.get("/v1/rules").await?;
    let found: Vec<_> = rules.iter().filter(|rule| allows(rule, &args)).collect();
    if found.is_empty() {
        bail!("no rule allows just that; `causeway rule ls` lists what rules allow");
    }
    for rule in found {
        client.delete(&path(&rule.name)).await?;
    }
    Ok(())
}

/// Whether a rule allows just what the words say.
fn allows(rule: &RuleView, args: &AllowArgs) -> bool {
    let side = |side: &str, word: &str| {
        let name = side.split_once(':').filter(|_| !side.contains('/'));
        let single = side.strip_suffix("/32").or(side.strip_suffix("/128"));
        side == word || name.is_some_and(|(_, name)| name == word) || single == Some(word)
    };
    rule.action == "allow"
        && side(&rule.from, &args.from)
        && side(&rule.to, &args.to)
        && rule.protocol == args.proto.as_deref().unwrap_or("any")
        && rule.ports == args.ports.as_deref().unwrap_or_default()
        && rule.source_ports.is_empty()
        && rule.uplink.is_none()
}

/// A name that no rule has, made of the words.
fn name(args: &AllowArgs, rules: &[RuleView]) -> String {
    let words = [
        Some(&args.from),
        Some(&args.to),
        args.proto.as_ref(),
        args.ports.as_ref(),
    ];
    let words: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
        _ => '_',
    };
    let whole: String = format!("allow-{}", words.join("-"))
        .chars()
        .map(plain)
        .collect();
    // Room for a number that makes it the only one.
    let base = &whole[..whole.len().min(NAME_LEN_MAX - 5)];
    let taken = |name: &str| rules.iter().any(|rule| rule.name == name);
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.to_owned()).chain(numbered);
    names.find(|name| !taken(name)).unwrap_or_default()
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = client.get("/v1/rules").await?;
    if json {
        return print_json(&rules);
    }
    let or_any = |text: &str| match text {
        "" => "any".to_owned(),
        text => text.to_owned(),
    };
    let row = |rule: &RuleView| {
        let source = match rule.source_ports.as_str() {
            "" => String::new(),
            ports => format!("source ports {ports}"),
        };
        let uplink = rule.uplink.iter().map(|name| format!("uplink {name}"));
        let absent = rule
            .absent
            .iter()
            .map(|what| format!("{what} is not there"));
        let notes = std::iter::once(source).filter(|note| !note.is_empty());
        let notes: Vec<String> = notes.chain(uplink).chain(absent).collect();
        vec![
            rule.position.to_string(),
            rule.name.clone(),
            rule.action.clone(),
            rule.from.clone(),
            rule.to.clone(),
            rule.protocol.clone(),
            or_any(&rule.ports),
            rule.packets.to_string(),
            rule.bytes.to_string(),
            notes.join(", "),
        ]
    };
    let rows: Vec<_> = rules.iter().map(row).collect();
    let heading = [
        "#", "NAME", "ACTION", "FROM", "TO", "PROTO", "PORTS", "PACKETS", "BYTES", "NOTES",
    ];
    Ok(table::print(&heading, &rows)?)
}

/// `exposure`
pub(super) async fn exposure(client: &Client, json: bool) -> anyhow::Result<()> {
    let exposed: Vec<ExposureView> = client.get("/v1/exposure").await?;
    if json {
        return print_json(&exposed);
    }
    let row = |one: &ExposureView| {
        vec![
            one.kind.label().to_owned(),
            one.address.clone(),
            one.protocol.clone(),
            one.ports.clone(),
            one.uplinks.join(","),
            one.from.clone(),
            one.network.clone(),
            one.endpoint.clone().unwrap_or_else(|| "all".to_owned()),
            one.rules.join(","),
        ]
    };
    let rows: Vec<_> = exposed.iter().map(row).collect();
    let heading = [
        "BY", "ADDRESS", "PROTO", "PORTS", "UPLINKS", "FROM", "NETWORK", "ENDPOINT", "RULES",
    ];
    Ok(table::print(&heading, &rows)?)
}
