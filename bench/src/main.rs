//! The command line of the bench: `cargo run --release -p bench -- --help`.
//!
//! Everything runs in network namespaces that a run makes and that vanish with it.

mod command;

use std::path::PathBuf;
use std::process::ExitCode;

use bench::bar;
use bench::held::Table;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Compares Causeway with other switches on the same work, in turn, in one run.
#[derive(Debug, Parser)]
#[command(name = "bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a scenario: a TOML file, or the name of one that comes with the program.
    ///
    /// Needs root, for network namespaces. Ctrl-C keeps what has been measured, and a search that it
    /// ends says what it knew by then.
    ///
    /// A scenario's `measure` is one of tcp-bulk, frames, frames-at-loss, round-trip, connections,
    /// idle, and of RFC 2544 rfc2544-throughput (NDR and PDR), rfc2544-latency and
    /// rfc2544-back-to-back, of RFC 2889 rfc2889-capacity, rfc2889-learning-rate and rfc2889-broadcast;
    /// core-frames is of the core in memory. Sizes of frames are
    /// numbers, imix, or genomes of RFC 6985. docs/manual/experiments.md has every key.
    #[command(after_help = "Examples:\n  \
        bench run smoke\n  \
        bench run pair-bulk --repeats 9 --only-system causeway\n  \
        bench run rfc2544-throughput --only-system causeway\n  \
        bench run my.toml --install --out results\n  \
        bench run my.toml --invented 0.02      # what would the report look like?")]
    Run {
        /// The scenario: a file or a name.
        scenario: String,
        #[command(flatten)]
        options: RunOptions,
    },
    /// Lists the scenarios that come with the program.
    List,
    /// Reads a scenario and says what would be run, and how long that takes.
    #[command(after_help = "Examples:\n  bench check my.toml\n  bench check pair-frames")]
    Check {
        /// The scenario: a file or a name.
        scenario: String,
    },
    /// Runs the scenario of a result again.
    #[command(after_help = "Example:\n  bench rerun bench-results/smoke-2026-01-31T12-00-00Z.json")]
    Rerun {
        /// The result, or the journal of a run that was killed.
        result: PathBuf,
        #[command(flatten)]
        options: RunOptions,
    },
    /// Compares two results; exits with 1 when something became slower.
    #[command(after_help = "Example:\n  bench diff before.json after.json")]
    Diff {
        /// The old result.
        old: PathBuf,
        /// The new result.
        new: PathBuf,
    },
    /// Shows results: as tables, or as pages.
    #[command(after_help = "Examples:\n  \
        bench report result.json\n  \
        bench report result.json --html result.html\n  \
        bench report a.json b.json --markdown page.md")]
    Report {
        /// Results, journals of runs that were killed, and what `primitives --json` has printed.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// Writes one self-contained page with plots.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Writes a Markdown page.
        #[arg(long, value_name = "FILE")]
        markdown: Option<PathBuf>,
    },
    /// Measures what this machine's smallest steps cost: system calls, copies, cache misses.
    #[command(after_help = "Example:\n  bench primitives --json > bench/results/primitives.json")]
    Primitives {
        /// Prints JSON instead of the table, for `report`.
        #[arg(long)]
        json: bool,
    },
    /// Counts the instructions that the core executes for a frame, by Callgrind.
    ///
    /// A clock needs many rounds to see a few per cent; instructions do not vary. Needs valgrind.
    /// Takes about a minute.
    #[command(after_help = "Examples:\n  \
        bench instructions\n  \
        bench instructions unicast nat-out\n  \
        bench instructions --json > before.json\n  \
        bench instructions --against before.json --growth-max 2   # exits with 1 when one grew more")]
    Instructions {
        /// Which lines [default: all].
        lines: Vec<String>,
        /// Prints JSON instead of the table.
        #[arg(long, conflicts_with = "against")]
        json: bool,
        /// Counts to compare with, printed by `--json`.
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// Growth of a line over the counts compared with that is let pass, in per cent.
        #[arg(
            long,
            value_name = "PERCENT",
            requires = "against",
            default_value_t = 2.0
        )]
        growth_max: f64,
        /// Only runs this many frames, to be counted from outside.
        #[arg(long, hide = true, value_name = "FRAMES")]
        alone: Option<usize>,
    },
    /// Shows where the time of all CPUs goes while the systems of a scenario are measured, by perf.
    ///
    /// Each system is measured once at each point, after a warm-up. `swapper` is a CPU that goes idle and the
    /// interrupts that wake it; `[k]` marks the kernel's functions. Sampling takes time of its own: for figures
    /// there is `run`. Needs root and perf (the Debian package linux-perf). Exits with 1 when one has no profile.
    #[command(after_help = "Examples:\n  \
        bench profile pair-latency\n  \
        bench profile pair-bulk --only-system causeway --json")]
    Profile {
        /// The scenario: a file or a name.
        scenario: String,
        /// Only this system beside the baseline; may be given several times.
        #[arg(long, value_name = "SYSTEM")]
        only_system: Vec<String>,
        /// Prints JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Says which reference systems are here, and what would bring the absent ones.
    Systems {
        /// Brings the absent ones first; no daemon of theirs that changes the machine is started.
        #[arg(long)]
        install: bool,
    },
    /// Fills a large table and prints what it took, for the bar.
    #[command(hide = true)]
    Held {
        /// Which one.
        table: Table,
    },
    /// Ends processes and removes directories that a killed run has left behind.
    Clean,
    /// Prints a completion script.
    #[command(after_help = "Example:\n  bench completion bash > /etc/bash_completion.d/bench")]
    Completion {
        /// For which shell.
        shell: Shell,
    },
    /// Prints every line of the bar that is built: least, stretch, reached.
    ///
    /// Needs root, for network namespaces. Takes twenty minutes and more.
    #[command(after_help = "Examples:\n  cargo run --release -p bench -- bar\n  \
                            cargo run --release -p bench -- bar --only bulk --only nat\n  \
                            cargo run --release -p bench -- bar --repeats 9 --json > bar.json")]
    Bar {
        /// Measurements of each system in each line, taken in turn (A B A B ...).
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=99))]
        repeats: u32,
        /// Prints JSON instead of the table.
        #[arg(long)]
        json: bool,
        /// Only this group of lines; may be given several times.
        #[arg(long, value_name = "GROUP")]
        only: Vec<bar::Group>,
        /// Microseconds that workers look for frames before they sleep; 0 sleeps at once.
        #[arg(long, default_value_t = 50)]
        spin: u64,
        /// Worker threads.
        #[arg(long, default_value_t = dataplane::Config::default().workers)]
        workers: usize,
    },
}

/// How a scenario is run.
#[derive(Debug, Args)]
struct RunOptions {
    /// Measurements of each system at each point, instead of the scenario's; a finding needs 5.
    #[arg(long)]
    repeats: Option<u32>,
    /// Where the result goes; made when it is not there.
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    out: PathBuf,
    /// Only this system beside the baseline; may be given several times.
    #[arg(long, value_name = "SYSTEM")]
    only_system: Vec<String>,
    /// Installs the Debian packages of the scenario's reference systems first.
    #[arg(long)]
    install: bool,
    /// Prints the result as JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Prints one line for each sample and metric instead of the table.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Invents the figures, with this standard deviation as a share, instead of measuring.
    #[arg(long, value_name = "NOISE", conflicts_with = "install")]
    invented: Option<f64>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run { scenario, options } => command::run(&scenario, &options),
        Command::List => command::list(),
        Command::Check { scenario } => command::check(&scenario),
        Command::Rerun { result, options } => command::rerun(&result, &options),
        Command::Diff { old, new } => command::diff(&old, &new),
        Command::Report {
            results,
            html,
            markdown,
        } => command::report(&results, html.as_deref(), markdown.as_deref()),
        Command::Primitives { json } => command::primitives(json),
        Command::Instructions {
            lines,
            json,
            against,
            growth_max,
            alone,
        } => match alone {
            Some(frames) => command::run_alone(&lines, frames),
            None => command::instructions(&lines, json, against.as_deref(), growth_max),
        },
        Command::Profile {
            scenario,
            only_system,
            json,
        } => command::profile(&scenario, &only_system, json),
        Command::Systems { install } => command::systems(install),
        Command::Held { table } => command::held(table),
        Command::Clean => command::clean(),
        Command::Completion { shell } => command::completion::<Arguments>(shell),
        Command::Bar {
            repeats,
            json,
            only,
            spin,
            workers,
        } => command::bar(
            &bar::Options {
                repeats: repeats as usize,
                only,
                spin,
                workers,
            },
            json,
        ),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::from(2)
    })
}
