//! Which backend when: what results say of those that took part in the same rounds.
//!
//! A backend stands alone where every other one is worse beyond the interval of their ratio and beyond the noise
//! floor. Those that are not told apart from the best stand together, and so does whoever was as fast as the
//! load generator: nothing here ranks what the figures do not.

use std::fmt::Write as _;

use super::table::{Style, table};
use crate::compare::{self, Comparison, MetricView, PointView, Row, shown, view};
use crate::plan::word;
use crate::result::{Better, Point, Results};
use crate::scenario::{MeasureName, Scenario};
use crate::stats::Finding;
use crate::system::{BackendName, SystemName};

/// The section, empty where no result has several backends side by side.
pub fn section(results: &[Results]) -> String {
    let of_backends: Vec<&Results> = results.iter().filter(|it| has_several(it)).collect();
    let rows: Vec<[String; 5]> = of_backends.iter().flat_map(|it| rows(it)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut found = table(Style::Markdown);
    found.set_header([
        "workload",
        "backend",
        "figure",
        "of the baseline",
        "the others, of the first",
    ]);
    found.add_rows(rows);
    let mut text = format!(
        "## Which backend when\n\n{found}\n\nAll of a line were measured in the same rounds. A backend is \
         named alone where every other one is worse beyond the 95 % interval of their ratio and beyond the \
         noise floor; those that are named together are not told apart by these figures, and the first \
         of them only has the best median. *At least*: the load generator was at its end, so that the \
         backend may do better than shown, and others that were at its end too are not told apart from \
         it.\n\nTo repeat it, as root on a machine \
         that does nothing else (`bench systems --install` brings Open vSwitch):\n\n```sh\n"
    );
    for results in &of_backends {
        let name = &results.scenario.name;
        let _ = writeln!(
            text,
            "cargo run --release -p bench -- run {name} --out target/{name}"
        );
        let _ = writeln!(text, "mv target/{name}/*.json bench/results/{name}.json");
    }
    text += "cargo run --release -p bench -- report bench/results/*.json \\\n  --markdown docs/performance.md\n```\n\n";
    text
}

/// The systems of a scenario that are backends.
fn backends(scenario: &Scenario) -> impl Iterator<Item = SystemName> {
    let systems = scenario.systems.iter().copied();
    systems.filter(|system| system.is_causeway())
}

fn has_several(results: &Results) -> bool {
    backends(&results.scenario).count() > 1
}

/// A line for each point, by its main metric.
fn rows(results: &Results) -> Vec<[String; 5]> {
    let view = view(results);
    let rows = view.points.iter().filter_map(|point| {
        let measured = results.points.iter().find(|it| it.axes == point.axes)?;
        let metric = point.metrics.first()?;
        line(results, point, measured, metric)
    });
    rows.collect()
}

fn line(
    results: &Results,
    point: &PointView,
    measured: &Point,
    metric: &MetricView,
) -> Option<[String; 5]> {
    let seed = results.manifest.seed;
    let of = |system: SystemName| {
        let name = word(&system);
        let row = metric.rows.iter().find(|row| row.system == name)?;
        Some((backend(system), row))
    };
    let mut rows: Vec<(String, &Row)> = backends(&results.scenario).filter_map(of).collect();
    rows.sort_by(|(_, a), (_, b)| {
        let order = a.estimate.median.total_cmp(&b.estimate.median);
        match metric.better {
            Better::More => order.reverse(),
            Better::Less => order,
        }
    });
    let (first, rest) = rows.split_first()?;
    let mut together = vec![first.0.clone()];
    let mut others = Vec::new();
    for (name, row) in rest {
        let pair = [row.system.as_str(), first.1.system.as_str()];
        let beside = compare::beside(measured, metric, pair, seed)?;
        if beside.finding != Finding::Slower {
            together.push(name.clone());
        }
        others.push(format!("{name} {}", ratio(&beside)));
    }
    if others.is_empty() {
        return None;
    }
    let bound = if first.1.at_least { "at least " } else { "" };
    let figure = format!("{bound}{} {}", shown(first.1.estimate.median), metric.unit);
    let of_baseline = first.1.comparison.as_ref().map(|comparison| {
        let baseline = word(&results.scenario.baseline());
        format!("{} of {baseline}", ratio(comparison))
    });
    Some([
        workload(&results.scenario, point),
        together.join(" or "),
        figure,
        of_baseline.unwrap_or_default(),
        others.join(", "),
    ])
}

fn ratio(comparison: &Comparison) -> String {
    let r = comparison.ratio;
    format!("{:.2} [{:.2}, {:.2}]", r.median, r.low, r.high)
}

/// A backend as `--backend` names it.
fn backend(system: SystemName) -> String {
    match system.backend().unwrap_or_default() {
        BackendName::PacketCalls => "packet without rings".to_owned(),
        other => word(&other),
    }
}

/// What was to be carried, in words.
fn workload(scenario: &Scenario, point: &PointView) -> String {
    let size = point.axes.get("frame-size").map_or("64", String::as_str);
    let percent = |share: f64| shown(share * 100.0);
    match scenario.measure {
        MeasureName::FramesAtLoss => {
            let loss = percent(scenario.load.loss_max);
            format!("{size}-byte datagrams to a socket, at most {loss} % lost")
        }
        MeasureName::TcpBulk => match point.axes.get("mtu") {
            Some(mtu) => format!("one TCP stream, MTU {mtu}"),
            None => "one TCP stream".to_owned(),
        },
        MeasureName::RoundTrip => "one byte there and back by TCP".to_owned(),
        MeasureName::Rfc2544Throughput => format!("{size}-byte frames, none lost (RFC 2544)"),
        MeasureName::Frames
        | MeasureName::Rfc2544Latency
        | MeasureName::Rfc2544BackToBack
        | MeasureName::Rfc2889Capacity
        | MeasureName::Rfc2889LearningRate
        | MeasureName::Rfc2889Broadcast
        | MeasureName::CoreFrames
        | MeasureName::Connections
        | MeasureName::Idle => format!("{} {}", scenario.name, point.title()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::result::{Flag, Manifest, Metric, Sample, SystemSamples, Taken};

    const SCENARIO: &str = "name = \"x\"\ntopology = \"pair\"\nmeasure = \"frames-at-loss\"\n\
        systems = [\"bridge\", \"causeway\", \"causeway-packet\", \"causeway-xdp\"]\n\
        [axes]\nframe-size = [64]\n";

    /// A result in which each system has a figure in each of seven rounds, within some percent.
    fn results(figures: &[(&str, f64, f64, &[Flag])]) -> Results {
        let plan = plan::read(SCENARIO).expect("a scenario");
        let mut results = Results::empty(&plan, Manifest::default());
        for (system, figure, spread, flags) in figures {
            let taken = |round: u32| {
                let share = f64::from(round) / 3.0 - 1.0;
                Taken {
                    round,
                    sample: Sample {
                        metrics: vec![Metric::more(
                            "throughput",
                            "Mframes/s",
                            figure * (1.0 + spread * share),
                        )],
                        flags: flags.to_vec(),
                        ..Sample::default()
                    },
                }
            };
            results.points[0].systems.push(SystemSamples {
                system: (*system).to_owned(),
                samples: (0..7).map(taken).collect(),
                failure: None,
            });
        }
        results
    }

    fn only_line(results: &Results) -> [String; 5] {
        rows(results)
            .try_into()
            .map(|[line]: [_; 1]| line)
            .expect("one line")
    }

    #[test]
    fn the_best_stands_alone_where_all_others_are_worse() {
        let results = results(&[
            ("bridge", 1.0, 0.0, &[]),
            ("causeway", 1.1, 0.01, &[]),
            ("causeway-packet", 1.5, 0.01, &[]),
            ("causeway-xdp", 2.0, 0.01, &[]),
        ]);
        let [what, who, figure, of_baseline, others] = only_line(&results);
        assert_eq!(what, "64-byte datagrams to a socket, at most 1.00 % lost");
        assert_eq!((who.as_str(), figure.as_str()), ("xdp", "2.00 Mframes/s"));
        assert!(of_baseline.starts_with("2.00 [1.9"), "{of_baseline}");
        assert!(others.starts_with("packet 0.75 ["), "{others}");
        assert!(others.contains(", tap 0.55 ["), "{others}");
        let text = section(&[results]);
        assert!(text.contains("bench -- run x --out target/x"), "{text}");
    }

    #[test]
    fn those_whose_intervals_overlap_stand_together() {
        let results = results(&[
            ("bridge", 1.0, 0.0, &[]),
            ("causeway", 1.0, 0.01, &[]),
            ("causeway-packet", 1.95, -0.2, &[]),
            ("causeway-xdp", 2.0, 0.2, &[]),
        ]);
        assert_eq!(only_line(&results)[1], "xdp or packet");
    }

    #[test]
    fn nobody_is_slower_than_the_tester_could_tell() {
        let limited = &[Flag::GeneratorLimited];
        let results = results(&[
            ("bridge", 1.0, 0.0, &[]),
            ("causeway", 1.0, 0.01, &[]),
            ("causeway-packet", 1.5, 0.01, limited),
            ("causeway-xdp", 2.0, 0.01, limited),
        ]);
        let [_, who, figure, ..] = only_line(&results);
        assert_eq!(
            (who.as_str(), figure.as_str()),
            ("xdp or packet", "at least 2.00 Mframes/s")
        );
    }

    #[test]
    fn a_result_of_one_backend_says_nothing_of_which() {
        let mut alone = results(&[("bridge", 1.0, 0.0, &[]), ("causeway", 1.0, 0.0, &[])]);
        assert!(rows(&alone).is_empty());
        alone.scenario.systems.truncate(2);
        assert_eq!(section(&[alone]), "");
    }
}
