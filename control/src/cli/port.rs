//! `port ls`, `show` and `set`: switch ports with their counters, and what is set of them.

use std::io::{self, Write};
use std::iter::Peekable;

use anyhow::bail;
use clap::{Args, Subcommand};
use dataplane_core::l2::{FloodClass, PortFlags};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, publish, table};
use crate::api::backends::BackendView;
use crate::api::bridging::{FlagsBody, LimitBody, LinkView, PortSet};
use crate::api::types::{FeatureView, PortView};
use crate::port_settings;

/// `port`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:
  causeway port web1                                   as `docker port`: what is published for it
  causeway port ls
  causeway port set web1 isolated on bcast-flood off"
)]
pub struct PortArgs {
    /// What to do with switch ports
    #[command(subcommand)]
    pub command: Option<PortCommand>,
    /// An endpoint, to list what is published for it
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `port`
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// List switch ports with counters, and what is not as usual of them
    Ls(JsonArgs),
    /// Show all that is set of a port, and its counters
    Show {
        /// An endpoint's name, or the port's name or number
        port: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what is set of an endpoint's port; it is kept over restarts
    #[command(after_help = PORT_SET_HELP)]
    Set {
        /// An endpoint's name, or the port's number
        port: String,
        /// Pairs of words, as listed below
        #[arg(
            required = true,
            value_name = "WHAT VALUE",
            allow_negative_numbers = true
        )]
        words: Vec<String>,
    },
}

/// What `port set` takes.
const PORT_SET_HELP: &str = "Flags, as bridge(8) has them:
  learning on|off       learn and refresh stations that are heard on it [on]
  flood on|off          unicast to unknown stations leaves by it [on]
  mcast-flood on|off    multicast leaves by it [on]
  bcast-flood on|off    broadcast leaves by it [on]
  isolated on|off       it and other isolated ports do not reach each other [off]
  hairpin on|off        a bridged frame may go back to it [off]
  offload on|off        frames leave large, or with a checksum left to do; off: complete [on]
  port-security on|off  only frames of the endpoint's own MAC and addresses enter by it [on]
  mac-limit N|none      no more stations are learned on it; frames pass all the same [none]
  storm-broadcast N [burst F]|none, storm-multicast ..., storm-unknown-unicast ...
                        no more frames a second that enter by it are flooded; F at once [none]
  rate-in R [burst B]|none, rate-out ...
                        bits per second that enter or leave by it, as 10mbit; B bytes at once [none]
  mac-nat on|off|MAC    all that leaves by it carries one MAC, on: its device's; for Wi-Fi and
                        switches that admit one MAC a port [off]
  up, down              frames flow or not, and the sandbox sees its cable or none [up]

Examples:
  causeway port set web1 isolated on
  causeway port set web1 learning off flood off
  causeway port set router1 port-security off mac-limit 100
  causeway port set web1 storm-broadcast 1000 storm-unknown-unicast 500 burst 100
  causeway port set web1 rate-in 100mbit rate-out 10mbit burst 32k
  causeway port set lan port-security off mac-nat on
  causeway port set web1 down";

/// `port`
pub(super) async fn port(client: &Client, args: PortArgs) -> anyhow::Result<()> {
    match (args.command, args.name) {
        (Some(PortCommand::Ls(args)), _) => list(client, args.json).await,
        (Some(PortCommand::Show { port, json }), _) => show(client, &port, json).await,
        (Some(PortCommand::Set { port, words }), _) => {
            let path = format!("/v1/ports/{}", escape(&port));
            let _: PortView = client.patch(&path, &port_set(&words)?).await?;
            Ok(())
        }
        (None, Some(name)) => publish::of_endpoint(client, &name, args.json).await,
        (None, None) => {
            bail!("name an endpoint, or say ls, show or set; see `causeway port --help`")
        }
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let ports: Vec<PortView> = client.get("/v1/ports").await?;
    if json {
        return print_json(&ports);
    }
    let row = |port: &PortView| {
        vec![
            port.port.to_string(),
            port.name.clone(),
            port.network.clone().unwrap_or_else(|| port.role.clone()),
            state(port).to_owned(),
            port.rx_frames.to_string(),
            port.tx_frames.to_string(),
            port.tx_dropped.to_string(),
            unusual(port),
        ]
    };
    let rows: Vec<_> = ports.iter().map(row).collect();
    let heading = [
        "PORT",
        "NAME",
        "NETWORK",
        "STATE",
        "RX",
        "TX",
        "TX-DROPPED",
        "FLAGS",
    ];
    Ok(table::print(&heading, &rows)?)
}

fn state(port: &PortView) -> &'static str {
    match (port.up, port.blocked_seconds) {
        (true, _) => "up",
        (false, Some(_)) => "blocked",
        (false, None) => "down",
    }
}

/// What is not as of a new port.
fn unusual(port: &PortView) -> String {
    let flags = port.flags.map(|body| port_settings::changed(flags(body)));
    let limit = port.mac_limit.map(|limit| format!("mac-limit {limit}"));
    let storm = port.storm.iter().filter_map(|storm| {
        let limit = storm.limit.as_ref()?;
        Some(format!("storm-{} {limit}", storm.class))
    });
    let links = port.links.iter().flat_map(|link| {
        let direction = &link.direction;
        let rate = link.rate.iter();
        let rate = rate.map(move |rate| format!("rate-{direction} {rate}"));
        let impaired = link.impairment.iter();
        rate.chain(impaired.map(move |_| format!("impaired-{direction}")))
    });
    let mac_nat = port.mac_nat.as_ref().map(|mac| format!("mac-nat {mac}"));
    let limits = limit.into_iter().chain(mac_nat);
    let words = flags.into_iter().chain(limits).chain(storm).chain(links);
    let words: Vec<String> = words.filter(|words| !words.is_empty()).collect();
    words.join(" ")
}

fn flags(mut body: FlagsBody) -> PortFlags {
    let on = |flag: &PortFlags| body.entry(*flag).is_some_and(|entry| *entry == Some(true));
    let flags = PortFlags::ALL.map(|(flag, _)| flag);
    let on: Vec<PortFlags> = flags.into_iter().filter(on).collect();
    on.into_iter().fold(PortFlags::NONE, PortFlags::with)
}

async fn show(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let port: PortView = client.get(&format!("/v1/ports/{}", escape(name))).await?;
    if json {
        return print_json(&port);
    }
    let mut out = io::stdout().lock();
    let place = port.network.as_ref().unwrap_or(&port.role);
    writeln!(
        out,
        "{}: {} on {place}, {}, MTU {}",
        port.port,
        port.name,
        state(&port),
        port.mtu
    )?;
    let (rx, tx) = (port.rx_frames, port.tx_frames);
    writeln!(
        out,
        "  received {rx} frames, {} bytes, missed {}, malformed {}",
        port.rx_bytes, port.rx_missed, port.rx_malformed
    )?;
    writeln!(
        out,
        "  sent {tx} frames, {} bytes, dropped {}, lost {}",
        port.tx_bytes, port.tx_dropped, port.tx_lost
    )?;
    if let Some(connection) = &port.connection {
        show_connection(&mut out, connection)?;
    }
    if let Some(body) = port.flags {
        for (flag, word) in PortFlags::ALL {
            let on = if flags(body).has(flag) { "on" } else { "off" };
            writeln!(out, "  {word} {on}")?;
        }
        let limit = port
            .mac_limit
            .map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        let mac_nat = port.mac_nat.as_deref().unwrap_or("off");
        let (stations, refused) = (port.stations, port.mac_limit_refused);
        writeln!(out, "  mac-limit {limit}")?;
        writeln!(
            out,
            "  stations learned {stations}, frames over the limit {refused}"
        )?;
        writeln!(out, "  mac-nat {mac_nat}")?;
        for storm in &port.storm {
            let limit = storm.limit.as_deref().unwrap_or("none");
            let (class, dropped) = (&storm.class, storm.dropped);
            writeln!(out, "  storm-{class} {limit}, dropped {dropped}")?;
        }
    }
    for link in &port.links {
        show_link(&mut out, link)?;
    }
    Ok(())
}

fn show_connection(out: &mut impl Write, connection: &BackendView) -> io::Result<()> {
    let BackendView {
        backend,
        asked,
        why,
        features,
    } = connection;
    match why {
        Some(why) => writeln!(out, "  backend {backend}, asked for {asked}: {why}")?,
        None => writeln!(out, "  backend {backend}")?,
    }
    for FeatureView {
        feature,
        wanted,
        used,
        replaced,
        ..
    } in features.iter().filter(|it| it.feature != "backend")
    {
        match replaced {
            true => writeln!(out, "    {feature} {used}, instead of {wanted}")?,
            false => writeln!(out, "    {feature} {used}")?,
        }
    }
    Ok(())
}

fn show_link(out: &mut impl Write, link: &LinkView) -> io::Result<()> {
    let direction = &link.direction;
    let rate = link.rate.as_deref().unwrap_or("none");
    writeln!(out, "  rate-{direction} {rate}")?;
    if let Some(impairment) = &link.impairment {
        writeln!(out, "  impaired-{direction} {}", impairment.words())?;
    }
    let (entered, passed, held) = (link.entered, link.passed, link.held);
    let late_micros = link.late_nanos as f64 / passed.max(1) as f64 * 1e-3;
    writeln!(
        out,
        "    entered {entered}, passed {passed} ({late_micros:.1} µs late on average), held {held}"
    )?;
    let counts = [
        ("lost", link.lost),
        ("rate-limited", link.rate_limited),
        ("overflowed", link.overflowed),
        ("duplicated", link.duplicated),
        ("reordered", link.reordered),
        ("corrupted", link.corrupted),
    ];
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = counts
        .map(|(word, count)| format!("{word} {count}"))
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    writeln!(out, "    {}", words.join(", "))
}

fn limit(value: &str) -> anyhow::Result<LimitBody> {
    match value.parse() {
        Ok(count) => Ok(LimitBody::Count(count)),
        Err(_) if value == "none" => Ok(LimitBody::Word(value.to_owned())),
        Err(_) => bail!(
            "'{value}' is no number of stations; write it as 'mac-limit 8' or 'mac-limit none'"
        ),
    }
}

fn value<'w>(word: &str, value: Option<&'w String>) -> anyhow::Result<&'w str> {
    match value {
        Some(value) => Ok(value),
        None => bail!("'{word}' lacks its value; `causeway port set --help` lists what it can be"),
    }
}

fn set_flag(set: &mut PortSet, word: &str, state: Option<&String>) -> anyhow::Result<()> {
    let flag = port_settings::flag(word)?;
    let on = match value(word, state)? {
        "on" => true,
        "off" => false,
        other => bail!("'{other}' is neither on nor off; write '{word} on' or '{word} off'"),
    };
    if let Some(entry) = set.flags.entry(flag) {
        *entry = Some(on);
    }
    Ok(())
}

/// The class of flooded frames that `storm-CLASS` is about.
fn storm_class(word: &str) -> Option<FloodClass> {
    FloodClass::named(word.strip_prefix("storm-")?)
}

/// Takes the words of a limit: `1000`, `1000 burst 50` or `none`.
fn limit_words<'w>(
    word: &str,
    words: &mut Peekable<impl Iterator<Item = &'w String>>,
) -> anyhow::Result<String> {
    let limit = value(word, words.next())?.to_owned();
    match words.next_if(|word| *word == "burst") {
        Some(_) => Ok(format!("{limit} burst {}", value("burst", words.next())?)),
        None => Ok(limit),
    }
}

/// Reads pairs of words: a flag with `on` or `off`, a limit with its value or `none`.
fn port_set(words: &[String]) -> anyhow::Result<PortSet> {
    let mut set = PortSet::default();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "up" | "down" => set.up = Some(word == "up"),
            "mac-limit" => set.mac_limit = Some(limit(value(word, words.next())?)?),
            "mac-nat" => set.mac_nat = Some(value(word, words.next())?.to_owned()),
            "rate-in" => set.rate_in = Some(limit_words(word, &mut words)?),
            "rate-out" => set.rate_out = Some(limit_words(word, &mut words)?),
            word => match storm_class(word) {
                Some(class) => *set.storm(class) = Some(limit_words(word, &mut words)?),
                None => set_flag(&mut set, word, words.next())?,
            },
        }
    }
    Ok(set)
}
