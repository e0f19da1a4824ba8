//! Two results side by side: what became faster, what became slower.
//!
//! The runs were not interleaved, so their values are not paired, and the machine may have changed
//! between them: a difference must exceed the noise floors of both.

use crate::compare::{MetricView, PointView, shown, view};
use crate::plan::AGAIN;
use crate::report::table::{Style, table};
use crate::result::{Better, Manifest, Results};
use crate::stats::{self, Estimate, Finding};

/// What differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// One for each point, system and metric that both have.
    pub lines: Vec<Line>,
    /// What only one of them has, in words.
    pub unmatched: Vec<String>,
    /// What the manifests disagree on: name, old, new.
    pub manifest: Vec<(String, String, String)>,
}

/// One metric of one system at one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The point, such as `frame-size 64`.
    pub point: String,
    /// The system.
    pub system: String,
    /// The metric.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// Median of the old result.
    pub old: f64,
    /// Median of the new result.
    pub new: f64,
    /// New to old.
    pub ratio: Estimate,
    /// What may be said of the new one.
    pub finding: Finding,
}

/// Compares two results.
pub fn diff(old: &Results, new: &Results) -> Diff {
    let (old_view, new_view) = (view(old), view(new));
    let mut lines = Vec::new();
    let mut unmatched = Vec::new();
    for point in &new_view.points {
        let before = old_view.points.iter().find(|p| p.axes == point.axes);
        match before {
            Some(before) => lines.extend(point_lines(before, point, new.manifest.seed)),
            None => unmatched.push(format!("only the new one has: {}", named(point))),
        }
    }
    for point in &old_view.points {
        if !new_view.points.iter().any(|p| p.axes == point.axes) {
            unmatched.push(format!("only the old one has: {}", named(point)));
        }
    }
    if old.scenario.name != new.scenario.name || old.scenario.measure != new.scenario.measure {
        let (old, new) = (&old.scenario.name, &new.scenario.name);
        unmatched.push(format!("they are of different scenarios: {old} and {new}"));
    }
    Diff {
        lines,
        unmatched,
        manifest: manifests(&old.manifest, &new.manifest),
    }
}

fn named(point: &PointView) -> String {
    match point.title() {
        title if title.is_empty() => "its only point".to_owned(),
        title => title,
    }
}

fn point_lines(old: &PointView, new: &PointView, seed: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    for metric in &new.metrics {
        let before = old.metrics.iter().find(|m| m.name == metric.name);
        if let Some(before) = before.filter(|before| before.unit == metric.unit) {
            lines.extend(metric_lines(&new.title(), before, metric, seed));
        }
    }
    lines
}

fn metric_lines(point: &str, old: &MetricView, new: &MetricView, seed: u64) -> Vec<Line> {
    let floor = [old, new].map(|metric| metric.noise_floor.unwrap_or(0.0).ln_1p());
    let floor = floor[0].max(floor[1]);
    let mut lines = Vec::new();
    for row in new.rows.iter().filter(|row| row.system != AGAIN) {
        let Some(before) = old.rows.iter().find(|r| r.system == row.system) else {
            continue;
        };
        let ratio = stats::unpaired_ratio(&row.values, &before.values, seed);
        let rounds = row.values.len().min(before.values.len());
        lines.push(Line {
            point: point.to_owned(),
            system: row.system.clone(),
            metric: new.name.clone(),
            unit: new.unit.clone(),
            old: before.estimate.median,
            new: row.estimate.median,
            ratio,
            finding: stats::judge(ratio, floor, new.better == Better::More, rounds),
        });
    }
    lines
}

fn manifests(old: &Manifest, new: &Manifest) -> Vec<(String, String, String)> {
    let flat = |manifest: &Manifest| {
        let mut all = manifest.facts.clone();
        // It differs between any two runs, and says little.
        all.remove("load-average");
        all.insert("kernel".to_owned(), manifest.kernel.clone());
        all.insert("cpu".to_owned(), manifest.cpu.clone());
        all.insert("cpus".to_owned(), manifest.cpus.to_string());
        all.insert("commit".to_owned(), manifest.commit.clone());
        for (system, facts) in &manifest.systems {
            let named = facts
                .iter()
                .map(|(n, v)| (format!("{system}.{n}"), v.clone()));
            all.extend(named);
        }
        all
    };
    let (old, new) = (flat(old), flat(new));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let differing = names.into_iter().filter_map(|name| {
        let of = |all: &std::collections::BTreeMap<String, String>| {
            all.get(name).cloned().unwrap_or_else(|| "-".to_owned())
        };
        let (old, new) = (of(&old), of(&new));
        (old != new).then(|| (name.clone(), old, new))
    });
    differing.collect()
}

impl Diff {
    /// What became slower.
    pub fn regressions(&self) -> impl Iterator<Item = &Line> {
        let slower = |line: &&Line| line.finding == Finding::Slower;
        self.lines.iter().filter(slower)
    }

    /// As a table with what else differs.
    pub fn render(&self) -> String {
        let mut found = table(Style::Terminal);
        let header = [
            "point",
            "system",
            "metric",
            "old",
            "new",
            "new / old",
            "finding",
        ];
        found.set_header(header);
        for line in &self.lines {
            let r = line.ratio;
            found.add_row([
                line.point.clone(),
                line.system.clone(),
                format!("{}, {}", line.metric, line.unit),
                shown(line.old),
                shown(line.new),
                format!("{:.3} [{:.3}, {:.3}]", r.median, r.low, r.high),
                line.finding.word().to_owned(),
            ]);
        }
        let mut text = format!("{found}\n");
        for line in self.regressions() {
            let r = line.ratio;
            text += &format!(
                "\nREGRESSION: {} {} in {}: {:.2} of what it was [{:.2}, {:.2}]",
                line.system, line.point, line.metric, r.median, r.low, r.high
            );
        }
        for note in &self.unmatched {
            text += &format!("\n{note}");
        }
        for (name, old, new) in &self.manifest {
            text += &format!("\nnot the same: {name}: {old} -> {new}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::result::{Metric, Sample, SystemSamples, Taken};

    fn results(throughputs: [f64; 5]) -> Results {
        let plan = plan::read(
            "name = \"t\"\ntopology = \"pair\"\nmeasure = \"tcp-bulk\"\n\
             systems = [\"bridge\", \"causeway\"]\n",
        )
        .unwrap();
        let mut results = Results::empty(&plan, Manifest::default());
        let taken = |(round, value)| Taken {
            round,
            sample: Sample {
                metrics: vec![Metric::more("throughput", "Gbit/s", value)],
                ..Sample::default()
            },
        };
        let systems = ["bridge", "causeway"].map(|system| SystemSamples {
            system: system.to_owned(),
            samples: (0..).zip(throughputs).map(taken).collect(),
            failure: None,
        });
        results.points[0].systems = systems.into();
        results
    }

    #[test]
    fn a_regression_is_named_and_chance_is_not() {
        let old = results([10.0, 10.1, 9.9, 10.05, 9.95]);
        let worse = diff(&old, &results([9.0, 9.1, 8.9, 9.05, 8.95]));
        let systems: Vec<&str> = worse.regressions().map(|l| l.system.as_str()).collect();
        assert_eq!(systems, ["bridge", "causeway"]);
        let said = worse.render();
        assert!(
            said.contains("REGRESSION: causeway  in throughput: 0.90"),
            "{said}"
        );
        let same = diff(&old, &results([9.9, 10.2, 10.0, 9.85, 10.1]));
        assert_eq!(same.regressions().count(), 0);
        let better = diff(&old, &results([11.0, 11.1, 10.9, 11.05, 10.95]));
        assert_eq!(better.regressions().count(), 0);
        assert_eq!(better.lines[0].finding, Finding::Faster);
    }

    #[test]
    fn what_the_manifests_disagree_on_is_said() {
        let old = results([1.0; 5]);
        let mut new = old.clone();
        new.manifest.kernel = "7.0".to_owned();
        new.manifest.facts.insert("load-average".into(), "3".into());
        let found = diff(&old, &new);
        assert_eq!(
            found.manifest,
            [("kernel".to_owned(), String::new(), "7.0".to_owned())]
        );
    }
}
