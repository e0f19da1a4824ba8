//! What measurements say: figures with intervals, ratios to the baseline, findings.
//!
//! Tables, pages and plots are made from this view of a result, so all of them say the same.

use std::collections::BTreeMap;

use crate::plan::{AGAIN, word};
use crate::result::{Better, Flag, Metric, OFFERED, Point, Results, SystemSamples};
use crate::stats::{self, Estimate, Finding};

/// How much less one system may have been offered than another before what each lost, or how long
/// frames took, is no longer of the same load.
const SAME_LOAD_LEAST: f64 = 0.98;
/// How the names of single flows' figures begin.
const FLOW_PREFIX: &str = "flow-";

/// What a whole result says.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Name of the system that the others are compared with.
    pub baseline: String,
    /// One for each point that was visited.
    pub points: Vec<PointView>,
}

/// What one point says.
#[derive(Clone, Debug, PartialEq)]
pub struct PointView {
    /// Value of each axis by its name.
    pub axes: BTreeMap<String, String>,
    /// One for each metric, the main one first.
    pub metrics: Vec<MetricView>,
    /// Who has no figure here, and why.
    pub missing: Vec<(String, String)>,
}

/// One metric of all systems at a point.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricView {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Which direction is good.
    pub better: Better,
    /// Share by which the baseline differs from itself, such as 0.03; `None` when not measured.
    pub noise_floor: Option<f64>,
    /// In the order of their turns.
    pub rows: Vec<Row>,
}

/// One metric of one system at a point.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The system.
    pub system: String,
    /// What was measured, in the order of the rounds.
    pub values: Vec<f64>,
    /// Their median.
    pub estimate: Estimate,
    /// Whether the figure is a lower bound: the generator was the limit.
    pub at_least: bool,
    /// What makes it doubtful.
    pub flags: Vec<Flag>,
    /// How it compares; `None` for the baseline and where that has no figure.
    pub comparison: Option<Comparison>,
}

/// A system beside the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of the ratios of the rounds.
    pub ratio: Estimate,
    /// What may be said of it.
    pub finding: Finding,
}

/// Makes the view of a result.
pub fn view(results: &Results) -> View {
    let baseline = word(&results.scenario.baseline());
    let seed = results.manifest.seed;
    let visited = results.points.iter().filter(|p| !p.systems.is_empty());
    let points = visited.map(|point| point_view(point, &baseline, seed));
    View {
        points: points.collect(),
        baseline,
    }
}

impl PointView {
    /// The axes in a line, such as `frame-size 64, workers 2`; empty when nothing is varied.
    pub fn title(&self) -> String {
        let axes = self
            .axes
            .iter()
            .map(|(name, value)| format!("{name} {value}"));
        axes.collect::<Vec<_>>().join(", ")
    }
}

fn point_view(point: &Point, baseline: &str, seed: u64) -> PointView {
    let mut kinds: Vec<&Metric> = Vec::new();
    for sample in point.systems.iter().flat_map(|system| &system.samples) {
        for metric in &sample.sample.metrics {
            if !kinds.iter().any(|known| known.name == metric.name) {
                kinds.push(metric);
            }
        }
    }
    // What single flows came to is for other programs; people get their fairness.
    kinds.retain(|kind| !kind.name.starts_with(FLOW_PREFIX));
    let metrics = kinds
        .into_iter()
        .map(|kind| metric_view(point, kind, baseline, seed));
    let missing = point.systems.iter().filter(|s| s.samples.is_empty());
    PointView {
        axes: point.axes.clone(),
        metrics: metrics.collect(),
        missing: missing
            .map(|system| {
                let reason = system.failure.clone();
                (system.system.clone(), reason.unwrap_or_default())
            })
            .collect(),
    }
}

fn metric_view(point: &Point, kind: &Metric, baseline: &str, seed: u64) -> MetricView {
    let of = |name: &str| {
        let system = point.systems.iter().find(|system| system.system == name)?;
        Some(rounds(system, &kind.name)).filter(|rounds| !rounds.is_empty())
    };
    let base = of(baseline);
    let again = of(AGAIN).zip(base.as_ref());
    let floor = again.and_then(|(again, base)| {
        let (again, base) = paired(&again, base);
        let floor = stats::noise_floor(stats::paired_ratio(&again, &base, seed));
        floor.is_finite().then_some(floor)
    });
    let base_limited = point
        .systems
        .iter()
        .any(|system| system.system == baseline && at_least(system, kind.better));
    let mut rows = Vec::new();
    for system in &point.systems {
        let ours = rounds(system, &kind.name);
        if ours.is_empty() {
            continue;
        }
        let values: Vec<f64> = ours.values().copied().collect();
        let limited = at_least(system, kind.better);
        let other = base.as_ref().filter(|_| system.system != baseline);
        rows.push(Row {
            system: system.system.clone(),
            estimate: stats::estimate(&values, seed),
            values,
            at_least: limited,
            flags: flags(system),
            comparison: other.and_then(|base| {
                let (ours, base) = paired(&ours, base);
                let ratio = stats::paired_ratio(&ours, &base, seed);
                let more = kind.better == Better::More;
                let found = stats::judge(ratio, floor.unwrap_or(0.0), more, ours.len());
                let found = match more {
                    true => found,
                    false => under_load(found, load_ratio(point, system, baseline)),
                };
                // Nothing is a multiple of zero, such as the loss of a baseline without any.
                [ratio.low, ratio.median, ratio.high]
                    .iter()
                    .all(|end| end.is_finite())
                    .then_some(Comparison {
                        ratio,
                        finding: bounded(found, limited, base_limited),
                    })
            }),
        });
    }
    MetricView {
        name: kind.name.clone(),
        unit: kind.unit.clone(),
        better: kind.better,
        noise_floor: floor.map(f64::exp_m1),
        rows,
    }
}

/// One system beside another that need not be the baseline, by a metric of a point; `None` where either has
/// no figure.
pub fn beside(
    point: &Point,
    metric: &MetricView,
    [ours, theirs]: [&str; 2],
    seed: u64,
) -> Option<Comparison> {
    let of = |name: &str| point.systems.iter().find(|system| system.system == name);
    let (ours, theirs) = (of(ours)?, of(theirs)?);
    let (own, other) = paired(&rounds(ours, &metric.name), &rounds(theirs, &metric.name));
    let ratio = stats::paired_ratio(&own, &other, seed);
    let floor = metric.noise_floor.map_or(0.0, f64::ln_1p);
    let more = metric.better == Better::More;
    let found = stats::judge(ratio, floor, more, own.len());
    let limited = [ours, theirs].map(|system| at_least(system, metric.better));
    ratio.median.is_finite().then_some(Comparison {
        ratio,
        finding: bounded(found, limited[0], limited[1]),
    })
}

/// What is left of a finding when one of the figures is a lower bound: a system that may be better
/// than measured is not slower, and nobody is faster than it.
const fn bounded(finding: Finding, ours_limited: bool, base_limited: bool) -> Finding {
    match finding {
        Finding::Slower if ours_limited => Finding::NoDifference,
        Finding::Faster if base_limited => Finding::NoDifference,
        Finding::Faster | Finding::Slower | Finding::NoDifference => finding,
    }
}

/// What is left of a finding on a cost, such as loss or latency, when the two were really offered
/// different loads: who had less to carry is not better, who had more is not worse.
fn under_load(finding: Finding, load_ratio: Option<f64>) -> Finding {
    let ratio = load_ratio.unwrap_or(1.0);
    match finding {
        Finding::Faster if ratio < SAME_LOAD_LEAST => Finding::NoDifference,
        Finding::Slower if ratio > 1.0 / SAME_LOAD_LEAST => Finding::NoDifference,
        Finding::Faster | Finding::Slower | Finding::NoDifference => finding,
    }
}

/// How much a system was really offered, as a multiple of what the baseline was; `None` when the
/// load has no rate.
fn load_ratio(point: &Point, system: &SystemSamples, baseline: &str) -> Option<f64> {
    let base = point.systems.iter().find(|s| s.system == baseline)?;
    let (ours, base) = paired(&rounds(system, OFFERED), &rounds(base, OFFERED));
    let ratios = ours.iter().zip(&base).map(|(ours, base)| ours / base);
    let ratio = stats::median(&ratios.collect::<Vec<_>>());
    ratio.is_finite().then_some(ratio)
}

/// A metric by round; where a sample does not have it, or it is not a number, there is none.
fn rounds(system: &SystemSamples, metric: &str) -> BTreeMap<u32, f64> {
    let values = system.samples.iter().filter_map(|taken| {
        let found = taken.sample.metrics.iter().find(|m| m.name == metric)?;
        Some((taken.round, found.value))
    });
    values.filter(|(_, value)| value.is_finite()).collect()
}

/// The rounds that both have.
fn paired(ours: &BTreeMap<u32, f64>, theirs: &BTreeMap<u32, f64>) -> (Vec<f64>, Vec<f64>) {
    let both = ours.iter().filter_map(|(round, ours)| {
        let theirs = theirs.get(round)?;
        Some((*ours, *theirs))
    });
    both.unzip()
}

/// Whether the generator, or the end of the search, limited most of what was measured.
fn at_least(system: &SystemSamples, better: Better) -> bool {
    let limited = system.samples.iter().filter(|taken| {
        let flags = &taken.sample.flags;
        flags.contains(&Flag::GeneratorLimited) || flags.contains(&Flag::CeilingReached)
    });
    better == Better::More && 2 * limited.count() > system.samples.len()
}

fn flags(system: &SystemSamples) -> Vec<Flag> {
    let mut all: Vec<Flag> = Vec::new();
    for flag in system.samples.iter().flat_map(|taken| &taken.sample.flags) {
        if !all.contains(flag) {
            all.push(flag.clone());
        }
    }
    all
}

/// A flag in a sentence, for footnotes.
pub const fn sentence(flag: &Flag) -> &'static str {
    match flag {
        Flag::GeneratorLimited => {
            "the generator could not offer more: the system may do better than shown"
        }
        Flag::ReceiverLimited => "the receiver's own socket lost frames",
        Flag::Reordered => "frames came out of order",
        Flag::Duplicated => "frames came twice",
        Flag::CeilingReached => "the search ended at the highest value that it may try",
        Flag::FloorReached => "even the lowest value that the search may try failed",
    }
}

/// A figure for people: three significant digits.
pub fn shown(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let (scaled, suffix) = match value.abs() {
        v if !v.is_finite() => return "-".to_owned(),
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = 2 - (scaled.abs().log10().floor() as i32).clamp(-4, 2);
    format!("{scaled:.*}{suffix}", digits as usize)
}

/// The comparison of a row in a sentence.
pub fn summary(
    point: &PointView,
    metric: &MetricView,
    row: &Row,
    baseline: &str,
) -> Option<String> {
    let comparison = row.comparison?;
    let at = match point.title() {
        title if title.is_empty() => String::new(),
        title => format!(" at {title}"),
    };
    let bound = if row.at_least { "at least " } else { "" };
    let figure = format!("{bound}{} {}", shown(row.estimate.median), metric.unit);
    let ratio = format!(
        "{bound}{:.2} times {baseline} [{:.2}, {:.2}]",
        comparison.ratio.median, comparison.ratio.low, comparison.ratio.high
    );
    let subject = &row.system;
    Some(match comparison.finding {
        Finding::NoDifference => format!(
            "{subject} and {baseline}: no difference shown in {}{at} ({figure}, {ratio})",
            metric.name
        ),
        Finding::Faster | Finding::Slower => format!(
            "{subject} is {} than {baseline} in {}{at}: {figure}, {ratio}",
            comparison.finding.word(),
            metric.name
        ),
    })
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
