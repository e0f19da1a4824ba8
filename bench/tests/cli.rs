//! The program as a user meets it: bad input, interruption, crashes, pages.
//!
//! Runs are of invented figures where the figures do not matter, so that neither rights nor quiet
//! are needed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::lab::{DEADLINE, wait_for};

/// Two systems, enough rounds that nobody sees the end.
const ENDLESS: &str = "name = \"endless\"\ntopology = \"pair\"\nmeasure = \"tcp-bulk\"\n\
                       systems = [\"bridge\", \"causeway\"]\nrepeats = 99\n\
                       [load]\nduration-ms = 300\nwarm-up-ms = 50\n\
                       [axes]\nflows = [1, 2, 3, 4]\n";

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    bench(arguments).output().expect("bench starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("bench writes UTF-8")
}

/// Runs to the end, which must be good, and gives what it prints.
fn printed(arguments: &[&str]) -> String {
    let output = output(arguments);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    text(&output.stdout)
}

/// A path as an argument.
fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The only file in a directory that ends so.
fn only(dir: &Path, end: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|found| found == end))
        .collect();
    assert!(found.len() <= 1, "{found:?}");
    found.pop()
}

fn invented(dir: &TempDir, more: &[&str]) -> PathBuf {
    let out = utf8(dir.path());
    let all = ["run", "smoke", "--invented", "0.02", "--out", out];
    printed(&[&all, more].concat());
    only(dir.path(), "json").expect("a result")
}

#[test]
fn bad_scenarios_are_refused_with_their_line_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    fs::write(&path, "name = \"x\"\nworkes = 1\n").unwrap();
    let out = dir.path().join("out");
    let output = output(&["run", utf8(&path), "--out", utf8(&out)]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("line 2: unknown key `workes`"), "{said}");
    assert!(!out.exists());
}

#[test]
fn a_scenario_that_is_not_there_is_answered_with_the_nearest() {
    let output = output(&["check", "smok"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("the nearest is smoke"), "{said}");
}

#[test]
fn every_scenario_of_the_list_can_be_checked() {
    let listed = printed(&["list"]);
    for (name, _) in bench::library::ALL {
        assert!(listed.contains(name), "{listed}");
        let said = printed(&["check", name]);
        assert!(said.contains("measurements, about"), "{said}");
    }
}

#[test]
fn a_run_prints_a_table_json_or_lines() {
    let dir = tempfile::tempdir().unwrap();
    let out = utf8(dir.path());
    let run = |more: &[&str]| {
        let all = ["run", "smoke", "--invented", "0.02", "--repeats", "5"];
        printed(&[&all, more, &["--out", out]].concat())
    };
    let table = run(&[]);
    assert!(table.contains("baseline again"), "{table}");
    assert!(table.contains("Noise floor"), "{table}");
    let json: bench::result::Results = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(json.points.len(), 1);
    assert_eq!(json.points[0].systems.len(), 4);
    let lines = run(&["--csv", "--only-system", "causeway"]);
    // Two systems and the baseline again, five rounds, two metrics, and the header.
    assert_eq!(lines.lines().count(), 3 * 5 * 2 + 1, "{lines}");
}

#[test]
fn a_result_can_be_run_again_with_the_same_plan_and_compared() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = invented(&first, &["--repeats", "7"]);
    let out = second.path().to_str().unwrap();
    printed(&["rerun", utf8(&before), "--invented", "0.02", "--out", out]);
    let after = only(second.path(), "json").expect("a result");
    let read = |path: &Path| bench::record::read(path).unwrap();
    assert_eq!(read(&before).scenario, read(&after).scenario);
    let plans = [&before, &after].map(|path| bench::plan::plan(read(path).scenario).unwrap());
    assert_eq!(plans[0], plans[1]);
    // The same seed invents the same figures.
    let same = output(&["diff", utf8(&before), utf8(&after)]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stdout));
}

#[test]
fn diff_exits_with_one_and_names_what_became_slower() {
    let dir = tempfile::tempdir().unwrap();
    let before = invented(&dir, &["--repeats", "9"]);
    let mut worse = bench::record::read(&before).unwrap();
    let taken = worse.points[0]
        .systems
        .iter_mut()
        .flat_map(|s| &mut s.samples);
    for metric in taken.flat_map(|taken| &mut taken.sample.metrics) {
        metric.value *= if metric.name == "throughput" {
            0.7
        } else {
            1.0
        };
    }
    let after = dir.path().join("worse.json");
    bench::record::write(&after, &worse).unwrap();
    let output = output(&["diff", utf8(&before), utf8(&after)]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("REGRESSION: causeway"), "{said}");
}

/// A run that goes on until somebody ends it, once its first measurement is on disk.
fn endless(dir: &TempDir, text: &str, more: &[&str]) -> Child {
    let scenario = dir.path().join("endless.toml");
    fs::write(&scenario, text).expect("a file can be written");
    let (scenario, out) = (utf8(&scenario), utf8(dir.path()));
    let mut command = bench(&[&["run", scenario, "--out", out], more].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("bench starts");
    wait_for(DEADLINE * 3, "a measurement on disk", || {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            let mut said = String::new();
            let errors = child.stderr.take().map(|mut e| e.read_to_string(&mut said));
            panic!("the run ended by itself: {status} {said} {errors:?}");
        }
        let journal = fs::read_to_string(only(dir.path(), "jsonl")?).ok()?;
        journal.contains("{\"sample\":").then_some(())
    });
    child
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("a child can be signalled");
}

#[test]
fn an_interrupted_run_leaves_a_partial_result() {
    let searching = ENDLESS.replace("tcp-bulk", "rfc2544-throughput");
    for (scenario, signal, status) in [
        (ENDLESS, Signal::SIGINT, 130),
        (ENDLESS, Signal::SIGTERM, 143),
        (searching.as_str(), Signal::SIGINT, 130),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = endless(&dir, scenario, &["--invented", "0.02"]);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
        let result = only(dir.path(), "json").expect("a result");
        assert_eq!(only(dir.path(), "jsonl"), None, "the journal is gone");
        let results = bench::record::read(&result).unwrap();
        let reason = results.partial.expect("it is marked");
        assert!(reason.contains("interrupted by SIG"), "{reason}");
        let said = printed(&["report", utf8(&result)]);
        assert!(said.contains("PARTIAL: interrupted"), "{said}");
    }
}

#[test]
fn a_killed_run_leaves_a_journal_that_is_read_as_a_partial_result() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = endless(&dir, ENDLESS, &["--invented", "0.02"]);
    send(&child, Signal::SIGKILL);
    child.wait().unwrap();
    let journal = only(dir.path(), "jsonl").expect("the journal");
    assert_eq!(only(dir.path(), "json"), None);
    let said = printed(&["report", utf8(&journal)]);
    assert!(said.contains("PARTIAL: the run was killed"), "{said}");
    let results = bench::record::read(&journal).unwrap();
    assert!(!results.points[0].systems[0].samples.is_empty());
}

/// The network namespaces that a process is in or holds, other than our own.
fn namespaces(pid: u32) -> BTreeSet<u64> {
    let own = fs::metadata("/proc/self/ns/net")
        .expect("a namespace")
        .ino();
    let spaces = held_by(Path::new(&format!("/proc/{pid}")));
    spaces.into_iter().filter(|space| *space != own).collect()
}

fn held_by(process: &Path) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
    for task in tasks.flatten() {
        let space = fs::metadata(task.path().join("ns/net"));
        found.extend(space.map(|space| space.ino()).ok());
    }
    for fd in fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let is = fs::read_link(fd.path()).unwrap_or_default();
        if is.to_string_lossy().starts_with("net:[") {
            found.extend(fs::metadata(fd.path()).map(|space| space.ino()).ok());
        }
    }
    found
}

/// Those of `spaces` that any process still is in or holds.
fn still_there(spaces: &BTreeSet<u64>) -> BTreeSet<u64> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let held = processes.flat_map(|process| held_by(&process.path()));
    held.filter(|space| spaces.contains(space)).collect()
}

#[test]
fn an_interrupted_run_of_real_systems_leaves_no_namespace() {
    if !tests::lab::require_root("an_interrupted_run_of_real_systems_leaves_no_namespace") {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = endless(&dir, ENDLESS, &[]);
        let spaces = wait_for(DEADLINE, "namespaces", || {
            Some(namespaces(child.id())).filter(|spaces| spaces.len() >= 2)
        });
        send(&child, signal);
        child.wait().unwrap();
        wait_for(DEADLINE, "the namespaces to vanish", || {
            still_there(&spaces).is_empty().then_some(())
        });
        let partial = only(dir.path(), "json").or_else(|| only(dir.path(), "jsonl"));
        let results = bench::record::read(&partial.expect("a partial result")).unwrap();
        assert!(results.partial.is_some());
        let left = bench::leftover::of_dead_runs();
        let own = format!("-{}-", child.id());
        if signal == Signal::SIGKILL {
            printed(&["clean"]);
        }
        let left_after = bench::leftover::of_dead_runs();
        let ours = |path: &&PathBuf| path.to_string_lossy().contains(&own);
        assert_eq!(left_after.dirs.iter().find(ours), None, "before: {left}");
    }
}

/// The id of a child by its name.
fn child_of(parent: u32, name: &str) -> Option<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let own = format!("({name}) ");
    let is = |stat: &String| {
        let rest = stat.split_once(&own).map(|(_, rest)| rest);
        // Its state, then its parent.
        rest.and_then(|rest| rest.split(' ').nth(1)) == Some(&parent.to_string())
    };
    let stats =
        processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    let stat = stats.filter(is).last()?;
    stat.split(' ').next()?.parse().ok()
}

/// Stops a process, so that it cannot take a SIGTERM; `false` when it has ended before.
fn freeze(process: i32) -> bool {
    if kill(Pid::from_raw(process), Signal::SIGSTOP).is_err() {
        return false;
    }
    let stat = || fs::read_to_string(format!("/proc/{process}/stat")).ok();
    wait_for(DEADLINE, "the process to stand still or be gone", || {
        let stat = stat().unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        match state {
            Some('T') => Some(true),
            Some('R' | 'S' | 'D') => None,
            _ => Some(false),
        }
    })
}

#[test]
fn a_system_that_does_not_end_is_killed_after_the_grace_and_the_run_says_so() {
    let test = "a_system_that_does_not_end_is_killed_after_the_grace_and_the_run_says_so";
    if !tests::lab::require_root(test) {
        return;
    }
    if let Err(absent) = bench::system::availability(bench::system::SystemName::Vde) {
        eprintln!("not tested: {absent}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vde = ENDLESS.replace("\"bridge\", \"causeway\"", "\"vde\"");
    let mut child = endless(&dir, &vde, &[]);
    let frozen = wait_for(DEADLINE, "a switch to freeze", || {
        let switch = child_of(child.id(), "vde_switch")?;
        freeze(switch).then_some(switch)
    });
    let spaces = namespaces(child.id());
    assert!(!spaces.is_empty(), "the switch's own at least");
    send(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(child_of(child.id(), "vde_switch").is_none());
    // Killed, and reaped by whoever inherits it: this may be a moment after its parent's end.
    wait_for(DEADLINE, "the switch to be gone", || {
        (!Path::new(&format!("/proc/{frozen}")).exists()).then_some(())
    });
    wait_for(DEADLINE, "the namespaces to vanish", || {
        still_there(&spaces).is_empty().then_some(())
    });
    let mut said = String::new();
    let errors = child.stderr.as_mut().expect("a pipe");
    errors.read_to_string(&mut said).expect("words");
    let words = format!("vde_switch ({frozen})");
    assert!(said.contains("had not ended after 2 s"), "{said}");
    assert!(said.contains(&words), "{said}");
    let results = bench::record::read(&only(dir.path(), "json").expect("a result")).unwrap();
    let partial = results.partial.expect("it is marked");
    assert!(
        partial.starts_with("interrupted by SIGINT; it had not ended"),
        "{partial}"
    );
    assert!(partial.contains(&words), "{partial}");
    let own = format!("-{}-", child.id());
    let left = bench::leftover::of_dead_runs();
    let ours = |path: &&PathBuf| path.to_string_lossy().contains(&own);
    assert_eq!(left.dirs.iter().find(ours), None);
}

#[test]
fn a_leftover_of_a_crash_is_said_and_cleaned() {
    // A switch that outlives its run: no process has an id this high. At the latest it ends with
    // this test.
    let own = format!("--pid={}", std::process::id());
    let mut command = Command::new("tail");
    command
        .args(["-f", "/dev/null", &own])
        .env("CAUSEWAY_BENCH_RUN", "999999998:1");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut orphan = command.spawn().expect("tail starts");
    wait_for(DEADLINE, "the leftover to be found", || {
        let left = bench::leftover::of_dead_runs().processes;
        left.iter()
            .any(|p| p.pid == orphan.id() as i32)
            .then_some(())
    });
    let dir = tempfile::tempdir().unwrap();
    let out = utf8(dir.path());
    let run = output(&["run", "smoke", "--invented", "0.02", "--out", out]);
    assert!(run.status.success());
    let said = text(&run.stderr);
    // Whichever test's run comes first cleans it; it is gone in any case.
    let name = format!("tail ({})", orphan.id());
    assert!(
        !orphan.wait().unwrap().success(),
        "{name} was killed: {said}"
    );
    printed(&["clean"]);
    assert!(
        !bench::leftover::of_dead_runs()
            .processes
            .iter()
            .any(|p| p.pid == orphan.id() as i32)
    );
}

/// The page that the reports' tests look at: several points, a numeric axis, latencies.
fn page(dir: &TempDir) -> PathBuf {
    let mut results = Vec::new();
    for scenario in [
        "pair-frames",
        "pair-latency",
        "workers",
        "imix",
        "scale-sessions",
    ] {
        let out = dir.path().join(scenario);
        let out = utf8(&out);
        printed(&[
            "run",
            scenario,
            "--invented",
            "0.02",
            "--repeats",
            "5",
            "--out",
            out,
        ]);
        results.push(only(Path::new(out), "json").expect("a result"));
    }
    let page = dir.path().join("page.html");
    let mut command = bench(&["report", "--html", utf8(&page)]);
    let status = command.args(results).status().expect("bench starts");
    assert!(status.success());
    page
}

#[test]
fn the_page_is_self_contained() {
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(page(&dir)).unwrap();
    for forbidden in ["<script", "http://", "https://", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.matches("<svg").count() >= 6);
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(!page.contains("NaN"), "every place is a number");
}

/// Where the label of a tick below a plot is.
fn tick_at(page: &str, label: &str) -> f64 {
    let end = format!("text-anchor=\"middle\">{label}</text>");
    let at = page.find(&end).unwrap_or_else(|| panic!("no {label}"));
    let (_, x) = page[..at].rsplit_once("x=\"").expect("its place");
    let x = x.split('"').next().expect("a number");
    x.parse().expect("a number")
}

#[test]
fn a_scale_is_drawn_over_a_logarithmic_axis_with_its_zero_at_the_left() {
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(page(&dir)).unwrap();
    let (_, scale) = page.split_once("Cost by sessions").expect("a plot");
    let (plot, _) = scale.split_once("</svg>").expect("its end");
    let ticks = ["0", "10", "100", "1000", "10 k", "100 k", "1 M"];
    let places = ticks.map(|label| tick_at(plot, label));
    let steps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(steps[0] > 30.0, "the zero is apart: {steps:?}");
    for step in &steps[2..] {
        assert!((step - steps[1]).abs() < 0.2, "decades are even: {steps:?}");
    }
    let (_, line) = plot.split_once("<polyline").expect("a line");
    let (line, _) = line.split_once('>').expect("its end");
    assert_eq!(
        line.matches(',').count(),
        ticks.len(),
        "a point each: {line}"
    );
}

#[test]
fn what_a_large_table_takes_is_counted() {
    // A million entries of at least a MAC, or of two addresses with ports, and of at most what the bar allows.
    let stations: u64 = printed(&["held", "stations"]).trim().parse().unwrap();
    assert!((16 << 20..300 << 20).contains(&stations), "{stations}");
    let sessions: Value = serde_json::from_str(&printed(&["held", "sessions"])).unwrap();
    let bytes = sessions["bytes"].as_u64().unwrap();
    assert!((24 << 20..300 << 20).contains(&bytes), "{sessions}");
    println!("covered: a million stations in {stations} bytes, of sessions in {bytes}");
}
