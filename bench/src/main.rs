//! Side-by-side experiments: Causeway and the kernel bridge doing the same work in one run.
//!
//! `cargo run --release -p bench -- bar` prints the lines of the performance bar. Everything runs
//! in network namespaces that the run makes and that vanish with it.

use bench::bar;
use clap::{Parser, Subcommand};

/// Compares Causeway with the kernel bridge on the same work, in turn, in one run.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints every line of the bar that is built: least, stretch, reached.
    ///
    /// Needs root, for network namespaces. Takes about three minutes.
    #[command(after_help = "Examples:\n  cargo run --release -p bench -- bar\n  \
                            cargo run --release -p bench -- bar --repeats 9 --json > bar.json")]
    Bar {
        /// Measurements of each system in each line, taken in turn (A B A B ...).
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=99))]
        repeats: u32,
        /// Prints JSON instead of the table.
        #[arg(long)]
        json: bool,
        /// Only lines whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Microseconds that workers look for frames before they sleep; 0 sleeps at once.
        #[arg(long, default_value_t = 50)]
        spin: u64,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Bar {
        repeats,
        json,
        only,
        spin,
        workers,
    } = Arguments::parse().command;
    let options = bar::Options {
        repeats: repeats as usize,
        only,
        spin,
        workers,
    };
    let lines = bar::run(&options)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        bar::print(&lines);
    }
    Ok(())
}
