//! `dns`: what names come to, and why.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::names::{FlushedView, NameStatsView, NameWhyView, RecordView};

/// `dns`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  causeway dns ls web
  causeway dns why db --from web1
  causeway dns why example.com --network web --type AAAA
  causeway dns stats

Endpoints ask their gateway. Each is known on its network by its name, its aliases (`attach --alias`), and
either with the network's name behind: web1, web1.web. Other names are asked of the servers of the
endpoint, the network or the daemon (--dns), or of those in /etc/resolv.conf.")]
pub enum DnsCommand {
    /// What a name comes to, which is asked for in earnest, and who knew
    Why(DnsWhyArgs),
    /// Questions and answers by kind, and servers with their times
    Stats(JsonArgs),
    /// Forget what servers have said
    Flush,
    /// The names of a network
    Ls {
        /// The network
        network: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `dns why`
#[derive(Debug, Args)]
pub struct DnsWhyArgs {
    /// The name; or an address, for its name
    pub name: String,
    /// The endpoint that asks
    #[arg(long, value_name = "ENDPOINT", conflicts_with = "network")]
    pub from: Option<String>,
    /// The network on which it is asked [default: the only one]
    #[arg(long, value_name = "NET")]
    pub network: Option<String>,
    /// The record type [default: A, or PTR for an address]
    #[arg(long = "type", value_name = "TYPE")]
    pub rtype: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `dns`
pub(super) async fn dns(client: &Client, command: DnsCommand) -> anyhow::Result<()> {
    match command {
        DnsCommand::Why(args) => why(client, args).await?,
        DnsCommand::Stats(args) => stats(client, args.json).await?,
        DnsCommand::Flush => {
            let flushed: FlushedView = client.post("/v1/dns/flush", &()).await?;
            writeln!(io::stdout(), "{} answers forgotten", flushed.forgotten)?;
        }
        DnsCommand::Ls { network, json } => list(client, &network, json).await?,
    }
    Ok(())
}

async fn why(client: &Client, args: DnsWhyArgs) -> anyhow::Result<()> {
    let mut path = format!("/v1/dns/why?name={}", escape(&args.name));
    for (key, value) in [
        ("from", args.from),
        ("network", args.network),
        ("type", args.rtype),
    ] {
        if let Some(value) = value {
            path += &format!("&{key}={}", escape(&value));
        }
    }
    let view: NameWhyView = client.get(&path).await?;
    if args.json {
        return print_json(&view);
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} {} on network {}: {}",
        view.name, view.rtype, view.network, view.code
    )?;
    writeln!(out, "  {}: {}", view.source, view.reason)?;
    for record in &view.records {
        writeln!(out, "  {record}")?;
    }
    Ok(())
}

async fn stats(client: &Client, json: bool) -> anyhow::Result<()> {
    let stats: NameStatsView = client.get("/v1/dns/stats").await?;
    if json {
        return print_json(&stats);
    }
    let rows: Vec<_> = stats
        .counts
        .iter()
        .map(|count| vec![count.label.clone(), count.count.to_string()])
        .collect();
    table::print(&["WHAT", "COUNT"], &rows)?;
    if stats.upstreams.is_empty() {
        return Ok(());
    }
    writeln!(io::stdout())?;
    let rows: Vec<_> = stats
        .upstreams
        .iter()
        .map(|server| {
            vec![
                server.server.clone(),
                server.asked.to_string(),
                server.answered.to_string(),
                server.timeouts.to_string(),
                server.failures.to_string(),
                format!("{:.1}", server.last_milliseconds),
                format!("{:.1}", server.average_milliseconds),
            ]
        })
        .collect();
    let heading = [
        "SERVER",
        "ASKED",
        "ANSWERED",
        "TIMEOUTS",
        "FAILURES",
        "LAST MS",
        "AVERAGE MS",
    ];
    Ok(table::print(&heading, &rows)?)
}

async fn list(client: &Client, network: &str, json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/networks/{}/dns", escape(network));
    let records: Vec<RecordView> = client.get(&path).await?;
    if json {
        return print_json(&records);
    }
    let row = |record: &RecordView| vec![record.name.clone(), record.addresses.join(" ")];
    let rows: Vec<_> = records.iter().map(row).collect();
    Ok(table::print(&["NAME", "ADDRESSES"], &rows)?)
}
