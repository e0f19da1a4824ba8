//! `events`: what has happened, and what happens.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use super::client::Client;
use super::table;
use crate::api::following::EventView;
use crate::events::EventKind;

/// `events`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway events                            what has happened since the daemon started
  causeway events --follow                   and what happens, until Ctrl-C
  causeway events -f --kind mac_flap --kind loop
  causeway events --json | jq -r .text

The daemon keeps the last 4096. Numbers grow by one: a gap means that older ones were forgotten.")]
pub struct EventsArgs {
    /// Go on with what happens, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
    /// Only events of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub kind: Vec<String>,
    /// Print JSON, an object per line
    #[arg(long)]
    pub json: bool,
}

fn kinds() -> clap::builder::PossibleValuesParser {
    EventKind::ALL.map(EventKind::label).into()
}

/// Prints events, one per line.
pub async fn events(client: &Client, args: EventsArgs) -> anyhow::Result<()> {
    let (after, follow) = (args.after, args.follow);
    let mut path = format!("/v1/events?after={after}&follow={follow}");
    if !args.kind.is_empty() {
        path += &format!("&kind={}", args.kind.join(","));
    }
    let mut out = io::stdout();
    if args.follow {
        let print = |line: &[u8]| {
            let text = match args.json {
                true => String::from_utf8_lossy(line).into_owned(),
                false => sentence(&serde_json::from_slice(line)?),
            };
            out.write_all(text.as_bytes())?;
            out.flush()
        };
        return Ok(client.lines(&path, print).await?);
    }
    let mut rows = Vec::new();
    let collect = |line: &[u8]| {
        if args.json {
            return out.write_all(line);
        }
        let event: EventView = serde_json::from_slice(line)?;
        let EventView { time, kind, .. } = &event;
        let of = [event.network.as_deref(), event.port.as_deref()];
        let of = of.into_iter().flatten().collect::<Vec<_>>().join("/");
        let number = event.number.to_string();
        rows.push(vec![number, time.clone(), kind.clone(), of, event.text]);
        Ok(())
    };
    client.lines(&path, collect).await?;
    if !args.json && (!rows.is_empty() || io::stdout().is_terminal()) {
        table::print(&["NUMBER", "TIME", "KIND", "OF", "TEXT"], &rows)?;
    }
    Ok(())
}

/// One event as a line of a stream, whose columns cannot wait for the widest.
fn sentence(event: &EventView) -> String {
    format!("{} {} {}\n", event.time, event.kind, event.text)
}
