//! `causeway nat sessions` and `nat usage`: what the NAT holds, and how near it is to its limits.

use std::io::{self, Write};

use super::client::Client;
use super::{print_json, table};
use crate::api::types::{NatUsageView, SessionView};

/// `nat sessions`
pub async fn sessions(client: &Client, json: bool) -> anyhow::Result<()> {
    let sessions: Vec<SessionView> = client.get("/v1/nat/sessions").await?;
    if json {
        return print_json(&sessions);
    }
    let row = |session: &SessionView| {
        vec![
            session.protocol.clone(),
            session.inside.clone(),
            session.external.clone(),
            session.remote.clone(),
            session.state.clone(),
            format!("{} s", session.idle_seconds),
            session.packets_out.to_string(),
            session.packets_in.to_string(),
        ]
    };
    let rows: Vec<_> = sessions.iter().map(row).collect();
    let heading = [
        "PROTO", "INSIDE", "EXTERNAL", "REMOTE", "STATE", "IDLE", "OUT", "IN",
    ];
    table::print(&heading, &rows)?;
    Ok(())
}

/// `nat usage`
pub async fn usage(client: &Client, json: bool) -> anyhow::Result<()> {
    let usage: NatUsageView = client.get("/v1/nat/usage").await?;
    if json {
        return print_json(&usage);
    }
    table::print(&["WHAT", "USED", "LIMIT", "PERCENT"], &limits(&usage))?;
    for refused in usage.refused.iter().filter(|refused| refused.count > 0) {
        let mut out = io::stdout().lock();
        writeln!(out, "refused, {}: {}", refused.label, refused.count)?;
    }
    Ok(())
}

/// Every limit with what is used of it.
fn limits(usage: &NatUsageView) -> Vec<Vec<String>> {
    let row = |what: String, used: usize, limit: usize| {
        let percent = used as f64 * 100.0 / limit.max(1) as f64;
        let percent = format!("{percent:.1} %");
        vec![what, used.to_string(), limit.to_string(), percent]
    };
    let sessions = row("sessions".to_owned(), usage.sessions, usage.sessions_max);
    let pools = usage.pools.iter().map(|pool| {
        let what = format!("{} ports of {}", pool.protocol, pool.address);
        row(what, pool.ports, pool.ports_max)
    });
    let endpoints = usage.endpoints.iter().map(|endpoint| {
        let name = endpoint.endpoint.as_deref().unwrap_or("a former endpoint");
        let what = format!("sessions of {name} ({})", endpoint.address);
        row(what, endpoint.sessions, usage.sessions_per_endpoint_max)
    });
    [sessions]
        .into_iter()
        .chain(pools)
        .chain(endpoints)
        .collect()
}

/// The same in a line of `status`.
pub fn write_usage(out: &mut impl Write, usage: &NatUsageView) -> io::Result<()> {
    let pools = usage.pools.iter().map(|pool| {
        let (protocol, address) = (&pool.protocol, &pool.address);
        format!(
            ", {protocol} ports of {address} {} of {}",
            pool.ports, pool.ports_max
        )
    });
    let (sessions, most) = (usage.sessions, usage.sessions_max);
    let pools: String = pools.collect();
    writeln!(out, "NAT: sessions {sessions} of {most}{pools}")
}
