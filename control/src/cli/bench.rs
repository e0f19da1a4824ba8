//! `bench`: what the data path costs on this machine.

use clap::Subcommand;
use serde::Serialize;

use super::args::JsonArgs;
use super::{print_json, table};
use crate::stages::{self, Stage};

/// `bench`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Nanoseconds a packet of bridging, source NAT and published ports
    #[command(after_help = "Examples:
  causeway bench stages
  causeway bench stages --json | jq '.[] | select(.stage == \"snat-out\")'

The core runs in memory for about a second: the smallest datagrams of 256 known flows, one thread, no device
and no daemon. Medians of 9 rounds. What a whole host does is another matter: docs/performance.md.")]
    Stages(JsonArgs),
}

/// A stage and its cost.
#[derive(Debug, Serialize)]
struct Cost {
    stage: &'static str,
    what: &'static str,
    nanos_per_packet: f64,
    /// More than bridging the packet takes.
    nanos_over_l2: f64,
}

/// `bench`
pub(super) fn bench(command: &BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Stages(args) = command;
    let figures = tokio::task::block_in_place(stages::measure)?;
    let l2 = figures.iter().find(|(stage, _)| *stage == Stage::L2);
    let l2 = l2.map_or(0.0, |(_, nanos)| *nanos);
    let cost = |(stage, nanos): &(Stage, f64)| Cost {
        stage: stage.label(),
        what: stage.sentence(),
        nanos_per_packet: *nanos,
        nanos_over_l2: nanos - l2,
    };
    let costs: Vec<Cost> = figures.iter().map(cost).collect();
    if args.json {
        return print_json(&costs);
    }
    let row = |cost: &Cost| {
        vec![
            cost.stage.to_owned(),
            format!("{:.1}", cost.nanos_per_packet),
            format!("{:+.1}", cost.nanos_over_l2),
            cost.what.to_owned(),
        ]
    };
    let rows: Vec<_> = costs.iter().map(row).collect();
    Ok(table::print(
        &["STAGE", "NS/PACKET", "OVER L2", "WHAT"],
        &rows,
    )?)
}
