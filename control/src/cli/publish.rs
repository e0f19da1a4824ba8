//! `publish`, `port NAME` and `nat rules`: what the host's ports lead to, and how much went that way.

use std::io::{self, Write};

use anyhow::{Context, bail};

use super::args::{PublishAddArgs, PublishCommand};
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::types::{
    PublicationChange, PublicationCreate, PublicationView, RuleView, TargetPatch, TargetView,
};
use crate::publish::range_text;
use crate::relay::PORTS_MAX;

pub(super) async fn publish(client: &Client, command: PublishCommand) -> anyhow::Result<()> {
    match command {
        PublishCommand::Add(args) => add(client, args).await,
        PublishCommand::Set {
            spec,
            endpoint,
            weight,
            balance,
        } => {
            let id = find(client, &spec).await?.id;
            if let Some(endpoint) = endpoint {
                let patch = TargetPatch {
                    weight,
                    ..TargetPatch::default()
                };
                change_target(client, id, &endpoint, &patch).await?;
            }
            if balance.is_some() {
                let path = format!("/v1/publications/{id}");
                let body = PublicationChange { balance };
                let _: PublicationView = client.patch(&path, &body).await?;
            }
            Ok(())
        }
        PublishCommand::Drain(args) => {
            let id = find(client, &args.spec).await?.id;
            change_target(client, id, &args.endpoint, &state("draining")).await
        }
        PublishCommand::Undrain(args) => {
            let id = find(client, &args.spec).await?.id;
            change_target(client, id, &args.endpoint, &state("serving")).await
        }
        PublishCommand::Rm { specs, target } => {
            for spec in &specs {
                let mut path = format!("/v1/publications/{}", find(client, spec).await?.id);
                if let Some(target) = &target {
                    path.push_str(&format!("/targets/{}", escape(target)));
                }
                client.delete(&path).await?;
            }
            Ok(())
        }
        PublishCommand::Ls(args) => {
            let listed: Vec<PublicationView> = client.get("/v1/publications").await?;
            if args.json {
                return print_json(&listed);
            }
            let rows: Vec<_> = listed.iter().flat_map(rows).collect();
            let heading = [
                "ID", "SPEC", "UPLINK", "ENDPOINT", "FROM", "BALANCE", "WEIGHT", "STATE",
                "SESSIONS",
            ];
            Ok(table::print(&heading, &rows)?)
        }
    }
}

async fn add(client: &Client, args: PublishAddArgs) -> anyhow::Result<()> {
    let endpoint = args.endpoint.clone();
    let body = PublicationCreate {
        endpoint: args.endpoint,
        spec: args.spec,
        from: args.from,
        uplink: args.uplink,
        join: args.join,
        weight: args.weight,
        balance: args.balance,
    };
    let made: PublicationView = client.post("/v1/publications", &body).await?;
    if args.json {
        return print_json(&made);
    }
    let own = made.targets.iter().find(|t| t.endpoint == endpoint);
    writeln!(io::stdout(), "{}", own.map_or(&made.spec, |t| &t.spec))?;
    Ok(())
}

fn state(label: &str) -> TargetPatch {
    TargetPatch {
        state: Some(label.to_owned()),
        ..TargetPatch::default()
    }
}

async fn change_target(
    client: &Client,
    id: u32,
    endpoint: &str,
    patch: &TargetPatch,
) -> anyhow::Result<()> {
    let path = format!("/v1/publications/{id}/targets/{}", escape(endpoint));
    let _: PublicationView = client.patch(&path, patch).await?;
    Ok(())
}

/// The publication of that id, or with a target that is listed so.
async fn find(client: &Client, spec: &str) -> anyhow::Result<PublicationView> {
    let listed: Vec<PublicationView> = client.get("/v1/publications").await?;
    let wanted = spec.parse::<crate::publish::PublishSpec>();
    let wanted = wanted.map_or_else(|_| spec.to_owned(), |spec| spec.to_string());
    let is_meant = |view: &PublicationView| {
        let mut targets = view.targets.iter();
        view.id.to_string() == spec || targets.any(|target| target.spec == wanted)
    };
    let mut found = listed.into_iter().filter(is_meant);
    let first = found.next().with_context(|| {
        format!("'{spec}' is not published; `causeway publish ls` lists what is")
    })?;
    let name = |view: &PublicationView| {
        let uplink = view.uplink.as_deref().unwrap_or("every uplink");
        format!("{} ({uplink})", view.id)
    };
    let others: Vec<String> = found.map(|view| name(&view)).collect();
    if !others.is_empty() {
        let (first, others) = (name(&first), others.join(", "));
        bail!("'{spec}' is published more than once; name one by its id: {first}, {others}");
    }
    Ok(first)
}

/// A line for each target.
fn rows(view: &PublicationView) -> Vec<Vec<String>> {
    let from = view.from.clone().unwrap_or_else(|| "anywhere".to_owned());
    let uplink = view.uplink.clone().unwrap_or_else(|| "any".to_owned());
    let row = |target: &TargetView| {
        vec![
            view.id.to_string(),
            target.spec.clone(),
            uplink.clone(),
            target.endpoint.clone(),
            from.clone(),
            view.balance.clone(),
            target.weight.to_string(),
            target.state.clone(),
            target.live_sessions.to_string(),
        ]
    };
    view.targets.iter().map(row).collect()
}

/// What is published for an endpoint.
pub(super) async fn of_endpoint(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/publications?endpoint={}", escape(name));
    let listed: Vec<PublicationView> = client.get(&path).await?;
    if json {
        return print_json(&listed);
    }
    for view in &listed {
        let own = view.targets.iter().find(|t| t.endpoint == name);
        if let Some(target) = own {
            write_ports(view, target)?;
        }
    }
    Ok(())
}

/// As `docker port` prints it: a line per port and address. An uplink is written as `ss` writes it. Where
/// others share the port, what `docker port` has no word for follows.
fn write_ports(view: &PublicationView, target: &TargetView) -> io::Result<()> {
    let hosts = match (&view.host_ip, &view.uplink) {
        (Some(ip), _) => vec![ip.clone()],
        (None, Some(uplink)) => vec![format!("0.0.0.0%{uplink}"), format!("[::]%{uplink}")],
        (None, None) => vec!["0.0.0.0".to_owned(), "[::]".to_owned()],
    };
    let mut out = io::stdout().lock();
    let transport = &view.transport;
    let (first, last) = (view.host_port_first, view.host_port_last);
    let shared = match view.targets.len() {
        0 | 1 => String::new(),
        count => format!(
            " ({}, 1 of {count}, weight {}, {}, {} sessions)",
            view.balance, target.weight, target.state, target.live_sessions
        ),
    };
    if usize::from(last - first) >= PORTS_MAX {
        for host in &hosts {
            let inside_last = target.inside_port_first.saturating_add(last - first);
            let inside = range_text(&(target.inside_port_first..=inside_last));
            writeln!(out, "{inside}/{transport} -> {host}:{first}-{last}{shared}")?;
        }
        return Ok(());
    }
    for (host_port, inside) in (first..=last).zip(target.inside_port_first..) {
        for host in &hosts {
            writeln!(out, "{inside}/{transport} -> {host}:{host_port}{shared}")?;
        }
    }
    Ok(())
}

/// Prints what rules have carried.
pub(super) async fn rules(client: &Client, json: bool) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = client.get("/v1/nat/rules").await?;
    if json {
        return print_json(&rules);
    }
    let row = |rule: &RuleView| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "any".to_owned());
        vec![
            rule.kind.clone(),
            text(&rule.spec),
            rule.network.clone(),
            text(&rule.endpoint),
            rule.new_sessions.to_string(),
            rule.live_sessions.to_string(),
            rule.packets_in.to_string(),
            rule.bytes_in.to_string(),
            rule.packets_out.to_string(),
            rule.bytes_out.to_string(),
        ]
    };
    let rows: Vec<_> = rules.iter().map(row).collect();
    let heading = [
        "RULE",
        "SPEC",
        "NETWORK",
        "ENDPOINT",
        "NEW",
        "LIVE",
        "PKTS-IN",
        "BYTES-IN",
        "PKTS-OUT",
        "BYTES-OUT",
    ];
    Ok(table::print(&heading, &rows)?)
}

/// Makes the counters zero.
pub(super) async fn zero(client: &Client) -> anyhow::Result<()> {
    Ok(client.delete("/v1/nat/rules/counters").await?)
}
