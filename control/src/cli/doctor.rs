//! `doctor`: what of this host is in the way, and what to do about it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::client::Client;
use super::print_json;
use crate::api::types::{EndpointView, NetworkView, StatusView};
use crate::doctor::facts::{DaemonFacts, Facts};
use crate::doctor::{Finding, Severity, examine};

/// `doctor`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway doctor
  causeway doctor --all
  causeway doctor --json | jq '.[] | select(.severity == \"problem\")'

Looks at the network namespace that it is started in, and asks the daemon; without one, what the daemon
would know is left out. Changes nothing. Exit status: 1 when there is a problem.")]
pub struct DoctorArgs {
    /// Tell also what is as it should be
    #[arg(long)]
    pub all: bool,
    /// Print JSON, with everything
    #[arg(long)]
    pub json: bool,
}

/// `doctor`
pub(super) async fn doctor(client: &Client, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let daemon = ask(client).await.map_err(|error| error.to_string());
    let findings = examine(&Facts::read(daemon).await?);
    if args.json {
        print_json(&findings)?;
    } else {
        tell(&mut io::stdout().lock(), &findings, args.all)?;
    }
    let worst = findings.iter().map(|finding| finding.severity).max();
    Ok(match worst {
        Some(Severity::Problem) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

async fn ask(client: &Client) -> Result<DaemonFacts, super::client::Error> {
    let status: StatusView = client.get("/v1/status").await?;
    let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
    let endpoints: Vec<EndpointView> = client.get("/v1/endpoints").await?;
    let mut events = Vec::new();
    let read = |line: &[u8]| {
        events.push(serde_json::from_slice(line)?);
        Ok(())
    };
    client.lines("/v1/events", read).await?;
    Ok(DaemonFacts {
        status: Some(status),
        networks,
        endpoints,
        events,
    })
}

fn tell(out: &mut impl Write, findings: &[Finding], all: bool) -> io::Result<()> {
    let told = findings
        .iter()
        .filter(|finding| all || finding.severity > Severity::Ok);
    for finding in told {
        let word = match finding.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "WARNING",
            Severity::Problem => "PROBLEM",
        };
        writeln!(out, "{word:8}{}: {}", finding.check, finding.text)?;
        if let Some(fix) = &finding.fix {
            writeln!(out, "        {fix}")?;
        }
    }
    let count = |severity| {
        let of = findings.iter().filter(|it| it.severity == severity);
        of.count()
    };
    let [ok, notes, warnings, problems] = [
        Severity::Ok,
        Severity::Note,
        Severity::Warning,
        Severity::Problem,
    ]
    .map(count);
    writeln!(
        out,
        "{ok} as they should be, {notes} notes, {warnings} warnings, {problems} problems"
    )
}
