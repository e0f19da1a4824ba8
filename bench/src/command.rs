//! What each command does.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bench::held::Table;
use bench::plan::{self, Plan, word};
use bench::real::Real;
use bench::record::{self, Document};
use bench::report::table::Style;
use bench::report::{csv, html, markdown, table};
use bench::run::Hall;
use bench::scenario::{MeasureName, Scenario};
use bench::session::{self, Session};
use bench::system::{self, SystemName};
use bench::{
    bar, diff as compare, held, instructions, invented, leftover, library, manifest, primitives,
    profile,
};
use clap::CommandFactory;
use clap_complete::Shell;
use control::netns::Netns;

use crate::RunOptions;

/// How long an invented measurement takes, so that a run can be watched.
const INVENTED_PAUSE: Duration = Duration::from_millis(20);
/// Most noise that figures are invented with.
const INVENTED_NOISE_MAX: f64 = 1.0;

/// Runs a scenario by its file or name.
pub fn run(scenario: &str, options: &RunOptions) -> anyhow::Result<ExitCode> {
    run_plan(library::open(scenario)?, options)
}

/// Runs the scenario of a result again.
pub fn rerun(path: &Path, options: &RunOptions) -> anyhow::Result<ExitCode> {
    let results = record::read(path)?;
    let plan = plan::plan(results.scenario)
        .map_err(|(key, message)| anyhow::anyhow!("{}: `{key}`: {message}", path.display()))?;
    run_plan(plan, options)
}

fn run_plan(plan: Plan, options: &RunOptions) -> anyhow::Result<ExitCode> {
    let plan = overridden(plan, options)?;
    // Everything that this run starts carries its mark, so that it can be found after a crash.
    leftover::mark_this_process().context("cannot mark this process")?;
    let left = leftover::of_dead_runs();
    if !left.is_empty() {
        eprintln!("cleaning what a killed run has left behind: {left}");
        clean_up(&left)?;
    }
    warn_of_debug_build();
    let hall: Box<dyn Hall> = match options.invented {
        Some(noise) => Box::new(invented(noise, &plan)?),
        None => {
            if options.install {
                system::install(&plan.scenario.systems).context("cannot install")?;
            }
            Box::new(real(&plan)?)
        }
    };
    let session = session::run(&plan, hall, &options.out)?;
    finish(&session, options)
}

/// The plan with what the command line changes.
fn overridden(plan: Plan, options: &RunOptions) -> anyhow::Result<Plan> {
    let mut scenario = plan.scenario;
    if let Some(repeats) = options.repeats {
        scenario.repeats = repeats;
    }
    restrict(&mut scenario, &options.only_system)?;
    plan::plan(scenario).map_err(|(key, message)| anyhow::anyhow!("`{key}`: {message}"))
}

/// Leaves a scenario the systems that are named, beside its baseline; all where none is.
fn restrict(scenario: &mut Scenario, only: &[String]) -> anyhow::Result<()> {
    let baseline = scenario.baseline();
    for name in only {
        if !scenario.systems.iter().any(|system| word(system) == *name) {
            let names: Vec<String> = scenario.systems.iter().map(word).collect();
            bail!(
                "{name} is not in this scenario; it has {}",
                names.join(", ")
            );
        }
    }
    if !only.is_empty() {
        scenario.baseline = Some(baseline);
        let wanted = |system: &SystemName| *system == baseline || only.contains(&word(system));
        scenario.systems.retain(wanted);
    }
    Ok(())
}

/// Shows where the time goes while the systems of a scenario are measured.
pub fn profile(scenario: &str, only: &[String], json: bool) -> anyhow::Result<ExitCode> {
    let mut scenario = library::open(scenario)?.scenario;
    restrict(&mut scenario, only)?;
    let plan =
        plan::plan(scenario).map_err(|(key, message)| anyhow::anyhow!("`{key}`: {message}"))?;
    leftover::mark_this_process().context("cannot mark this process")?;
    warn_of_debug_build();
    let mut hall = real(&plan)?;
    let taken = profile::of_plan(&plan, &mut hall, |what| eprintln!("{what}"))?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &taken)?;
        writeln!(out)?;
    } else {
        for one in &taken {
            write!(out, "{one}")?;
        }
    }
    let all = taken.iter().all(|one| one.profile.is_some());
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn invented(noise: f64, plan: &Plan) -> anyhow::Result<invented::Invented> {
    if !(0.0..=INVENTED_NOISE_MAX).contains(&noise) {
        bail!("--invented {noise}: give 0 to {INVENTED_NOISE_MAX}");
    }
    eprintln!("the figures are invented");
    let mut hall = invented::Invented::new(noise, plan.scenario.seed);
    hall.pause = INVENTED_PAUSE;
    Ok(hall)
}

fn real(plan: &Plan) -> anyhow::Result<Real> {
    if plan.scenario.measure != MeasureName::CoreFrames {
        Netns::create_unnamed().context(
            "network namespaces cannot be made here; run as root, or try --invented 0.02",
        )?;
    }
    Ok(Real {
        measure: plan.scenario.measure,
    })
}

/// Shows what was measured, and says where it is.
fn finish(session: &Session, options: &RunOptions) -> anyhow::Result<ExitCode> {
    let results = &session.results;
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, results)?;
        writeln!(out)?;
    } else if options.csv {
        csv::write(results, &mut out)?;
    } else {
        out.write_all(table::render(results, Style::Terminal).as_bytes())?;
    }
    eprintln!("{}", session.path.display());
    let Some(signal) = session.signal else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!(
        "partial: {}",
        results.partial.as_deref().unwrap_or_default()
    );
    out.flush()?;
    // Not a return: a measurement may still be going on, and its threads end with the process.
    std::process::exit(signal.exit_status())
}

/// Lists the scenarios that come with the program.
pub fn list() -> anyhow::Result<ExitCode> {
    let mut found = table::table(Style::Terminal);
    found.set_header(["name", "about", "measure", "points", "about how long"]);
    for (name, _) in library::ALL {
        let plan = library::open(name)?;
        found.add_row([
            name,
            &plan.scenario.about,
            &word(&plan.scenario.measure),
            &plan.points.len().to_string(),
            &time(plan.estimated()),
        ]);
    }
    println!("{found}");
    Ok(ExitCode::SUCCESS)
}

fn time(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Says what a scenario would run.
pub fn check(scenario: &str) -> anyhow::Result<ExitCode> {
    let plan = library::open(scenario)?;
    let who: Vec<String> = plan.contestants().into_iter().map(|c| c.label).collect();
    println!("{}: {}", plan.scenario.name, plan.scenario.about);
    println!("systems: {}", who.join(", "));
    for (index, point) in plan.points.iter().enumerate() {
        let axes = point.axes.iter().map(|(n, v)| format!("{n} {v}"));
        let axes: Vec<String> = axes.collect();
        println!("point {}: {}", index + 1, axes.join(", "));
    }
    println!(
        "{} measurements, about {}",
        plan.measurements(),
        time(plan.estimated())
    );
    Ok(ExitCode::SUCCESS)
}

/// Compares two results; fails when something became slower.
pub fn diff(old: &Path, new: &Path) -> anyhow::Result<ExitCode> {
    let found = compare::diff(&record::read(old)?, &record::read(new)?);
    print!("{}", found.render());
    Ok(match found.regressions().next() {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

/// Shows results: as tables, or as the pages that are asked for.
pub fn report(
    paths: &[impl AsRef<Path>],
    html_page: Option<&Path>,
    markdown_page: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let mut results = Vec::new();
    let mut primitives = None;
    for path in paths {
        match record::read_any(path.as_ref())? {
            Document::Results(read) => results.push(*read),
            Document::Primitives(read) => primitives = Some(read),
        }
    }
    let write = |path: &Path, page: String| {
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = html_page {
        write(path, html::render(&results))?;
    }
    if let Some(path) = markdown_page {
        write(path, markdown::render(primitives.as_ref(), &results))?;
    }
    if html_page.is_none() && markdown_page.is_none() {
        if let Some(primitives) = &primitives {
            println!("{}\n", primitives.render(Style::Terminal));
        }
        for results in &results {
            println!("{}", table::render(results, Style::Terminal));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures what the machine's smallest steps cost.
pub fn primitives(json: bool) -> anyhow::Result<ExitCode> {
    warn_of_debug_build();
    let found = primitives::measure(manifest::look(None)).context("cannot measure")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("{}", found.render(Style::Terminal));
    }
    Ok(ExitCode::SUCCESS)
}

fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean nothing; use cargo run --release");
    }
}

/// Says which systems are here, after bringing the absent ones if that is asked for.
pub fn systems(install: bool) -> anyhow::Result<ExitCode> {
    if install {
        system::install(&SystemName::ALL).context("cannot install")?;
    }
    let mut found = table::table(Style::Terminal);
    found.set_header(["system", "here", "version, or what would bring it"]);
    for name in SystemName::ALL {
        let (here, what) = match system::availability(name) {
            Ok(version) => ("yes", version),
            Err(absent) => ("no", absent.to_string()),
        };
        found.add_row([word(&name).as_str(), here, &what]);
    }
    println!("{found}");
    Ok(ExitCode::SUCCESS)
}

/// Cleans what killed runs have left behind.
pub fn clean() -> anyhow::Result<ExitCode> {
    let left = leftover::of_dead_runs();
    if left.is_empty() {
        println!("nothing is left over");
    } else {
        clean_up(&left)?;
        println!("cleaned: {left}");
    }
    Ok(ExitCode::SUCCESS)
}

fn clean_up(left: &leftover::Leftovers) -> anyhow::Result<()> {
    let failures = left.clean();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("cannot clean: {}", failures.join("; "))
}

/// Prints a completion script.
pub fn completion<C: CommandFactory>(shell: Shell) -> anyhow::Result<ExitCode> {
    clap_complete::generate(shell, &mut C::command(), "bench", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Prints the bar.
pub fn bar(options: &bar::Options, json: bool) -> anyhow::Result<ExitCode> {
    let lines = bar::run(options);
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        bar::print(&lines);
    }
    match lines.iter().any(bar::Line::has_failed) {
        true => Ok(ExitCode::FAILURE),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// Counts the core's instructions and shows them; fails when a line grew by more than it may.
pub fn instructions(
    lines: &[String],
    json: bool,
    against: Option<&Path>,
    growth_max: f64,
) -> anyhow::Result<ExitCode> {
    let older = against.map(instructions::read).transpose()?;
    warn_of_debug_build();
    let program = std::env::current_exe().context("cannot find this program")?;
    let counts = instructions::count(&program, lines)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&counts)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", instructions::render(&counts, older.as_ref()));
    let Some(older) = older else {
        return Ok(ExitCode::SUCCESS);
    };
    if older.compiler != counts.compiler {
        eprintln!(
            "counted before with {}, now with {}",
            older.compiler, counts.compiler
        );
    }
    let Some(growth) = instructions::growth(&counts, &older) else {
        bail!("no line of these is in the counts to compare with");
    };
    if growth > growth_max {
        eprintln!("grew by {growth:.2} %, more than {growth_max} %");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Fills a table, for the program that asks what it takes.
pub fn held(table: Table) -> anyhow::Result<ExitCode> {
    held::print(table)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs lines without counting, for the program that counts.
pub fn run_alone(lines: &[String], frames: usize) -> anyhow::Result<ExitCode> {
    for line in lines {
        instructions::run_alone(line, frames)?;
    }
    Ok(ExitCode::SUCCESS)
}
