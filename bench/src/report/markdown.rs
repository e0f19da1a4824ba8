//! Results as a Markdown page, the estimate first.

use std::fmt::Write as _;

use crate::compare::{MetricView, PointView, shown, summary, view};
use crate::frame_size::FrameSize;
use crate::measure::FRAME_SIZE_MIN;
use crate::plan::{AGAIN, MTU_DEFAULT, word};
use crate::primitives::{LARGE, Primitives};
use crate::report::choice;
use crate::report::table::{self, Style, table};
use crate::result::{Manifest, Results};
use crate::scenario::MeasureName;
use crate::system::SystemName;

/// A page: what the machine's primitives let expect, where reality disagrees, then each result with
/// its sentences, its table and its manifest.
pub fn render(primitives: Option<&Primitives>, results: &[Results]) -> String {
    let mut page = String::from(
        "# Performance\n\nThis page is generated from results that the bench wrote: `cargo run \
         --release -p bench -- report bench/results/*.json --markdown docs/performance.md`. \
         Figures of different results were not measured side by side; ratios within one were.\n\n",
    );
    if let Some(primitives) = primitives {
        page += &envelope(primitives);
        page += &reality(primitives, results);
    }
    page += &choice::section(results);
    for results in results {
        page += &section(results);
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}

/// What can be expected without measuring a switch.
fn envelope(primitives: &Primitives) -> String {
    let mut text = format!(
        "## Back of the envelope\n\nWhat the smallest steps cost here, warm and alone:\n\n{}\n\n",
        primitives.render(Style::Markdown)
    );
    let small = primitives.frame_nanos(64.0);
    let large = primitives.frame_nanos(LARGE as f64);
    let _ = write!(
        text,
        "A frame from TAP to TAP costs a worker at least one read and one write, each of which \
         enters the kernel and copies the frame, and two lookups, of its source and its \
         destination, that miss the first cache. A pipe does the same for its bytes, so:\n\n\
         - a frame of 64 bytes: {} ns, at most {} M frames a second for one worker;\n\
         - a GSO frame of 64 KiB: {} µs, {} s of CPU for each GB, at most {} Gbit/s for one \
         worker.\n\n\
         What is left out: the network stacks of both ends, the wake-ups, and what else the \
         kernel's TAP does for a frame.\n\n",
        shown(small),
        shown(1e3 / small),
        shown(large / 1e3),
        shown(large / LARGE as f64),
        shown(8.0 * LARGE as f64 / large),
    );
    text
}

/// The estimate beside what was measured of Causeway.
fn reality(primitives: &Primitives, results: &[Results]) -> String {
    let mut rows = Vec::new();
    for results in results {
        for point in &view(results).points {
            rows.extend(compared(primitives, results, point));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut found = table(Style::Markdown);
    found.set_header([
        "result",
        "point",
        "figure",
        "estimate",
        "measured",
        "measured / estimate",
    ]);
    found.add_rows(rows);
    format!(
        "## Where reality disagrees\n\nThe estimate is of one worker's own work and of nothing \
         else. A rate below it, or a cost above it, is what the estimate left out; a rate above it \
         is the work of more than one worker. Costs are of the whole machine, both ends \
         included.\n\n{found}\n\n"
    )
}

/// Bytes of a frame at a point, as a mean; of the smallest frame where no axis says.
fn frame_size(point: &PointView) -> f64 {
    let word = |axis: &str| point.axes.get(axis).map(String::as_str);
    let mtu = word("mtu").and_then(|mtu| mtu.parse().ok());
    let size = word("frame-size").and_then(|word| word.parse::<FrameSize>().ok());
    size.map_or(f64::from(FRAME_SIZE_MIN), |size| {
        size.mean(mtu.unwrap_or(MTU_DEFAULT))
    })
}

fn compared(primitives: &Primitives, results: &Results, point: &PointView) -> Vec<[String; 6]> {
    let estimates = match results.scenario.measure {
        MeasureName::FramesAtLoss => {
            let size = frame_size(point);
            let nanos = primitives.frame_nanos(size);
            vec![("throughput", 1e3 / nanos), ("cpu", nanos)]
        }
        MeasureName::TcpBulk => {
            let nanos = primitives.frame_nanos(LARGE as f64);
            let bytes = LARGE as f64;
            vec![("throughput", 8.0 * bytes / nanos), ("cpu", nanos / bytes)]
        }
        MeasureName::Frames
        | MeasureName::Rfc2544Throughput
        | MeasureName::Rfc2544Latency
        | MeasureName::Rfc2544BackToBack
        | MeasureName::Rfc2889Capacity
        | MeasureName::Rfc2889LearningRate
        | MeasureName::Rfc2889Broadcast
        | MeasureName::CoreFrames
        | MeasureName::RoundTrip
        | MeasureName::Connections
        | MeasureName::Idle => Vec::new(),
    };
    let name = word(&SystemName::Causeway);
    let rows = estimates.into_iter().filter_map(|(metric, estimate)| {
        let metric: &MetricView = point.metrics.iter().find(|m| m.name == metric)?;
        let row = metric.rows.iter().find(|row| row.system == name)?;
        let measured = row.estimate.median;
        Some([
            results.scenario.name.clone(),
            point.title(),
            format!("{}, {}", metric.name, metric.unit),
            shown(estimate),
            shown(measured),
            shown(measured / estimate),
        ])
    });
    rows.collect()
}

/// One result under a heading of the second level.
fn section(results: &Results) -> String {
    let mut text = format!("## {}\n\n", results.scenario.name);
    if !results.scenario.about.is_empty() {
        let _ = writeln!(text, "{}\n", results.scenario.about);
    }
    for sentence in sentences(results) {
        let _ = writeln!(text, "- {sentence}");
    }
    let _ = write!(text, "\n{}\n", table::render(results, Style::Markdown));
    text + &manifest(&results.manifest)
}

/// What the main metric says of each system at each point.
fn sentences(results: &Results) -> Vec<String> {
    let view = view(results);
    let mut sentences = Vec::new();
    for point in &view.points {
        if let Some(metric) = point.metrics.first() {
            let rows = metric.rows.iter().filter(|row| row.system != AGAIN);
            sentences.extend(rows.filter_map(|row| summary(point, metric, row, &view.baseline)));
        }
    }
    sentences
}

fn manifest(manifest: &Manifest) -> String {
    let mut text = format!(
        "Measured {} in {:.0} s on {} × {}, Linux {}, commit {}, seed {}.\n\n\
         <details><summary>Manifest</summary>\n\n| fact | value |\n|---|---|\n",
        manifest.started,
        manifest.seconds,
        manifest.cpus,
        manifest.cpu,
        manifest.kernel,
        manifest.commit,
        manifest.seed
    );
    let systems = manifest.systems.iter().flat_map(|(system, facts)| {
        let named = facts.iter();
        named.map(move |(name, value)| (format!("{system}: {name}"), value))
    });
    let facts = manifest.facts.iter().map(|(n, v)| (n.clone(), v));
    for (name, value) in facts.chain(systems) {
        let value = value.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text + "\n</details>\n\n"
}
