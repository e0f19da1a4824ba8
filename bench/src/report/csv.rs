//! One line for each sample and metric, for other programs.

use std::collections::BTreeSet;
use std::io::Write;

use crate::plan::word;
use crate::result::{Point, Results};

/// Writes the lines, with a header: scenario, one column for each axis, system, round, metric,
/// unit, value, flags.
///
/// # Errors
/// What the writer says.
pub fn write(results: &Results, to: impl Write) -> anyhow::Result<()> {
    let axes: BTreeSet<&String> = results.points.iter().flat_map(|p| p.axes.keys()).collect();
    let mut lines = ::csv::Writer::from_writer(to);
    lines.write_field("scenario")?;
    for axis in &axes {
        lines.write_field(axis)?;
    }
    lines.write_record(["system", "round", "metric", "unit", "value", "flags"])?;
    for point in &results.points {
        write_point(&mut lines, &results.scenario.name, &axes, point)?;
    }
    lines.flush()?;
    Ok(())
}

fn write_point(
    lines: &mut ::csv::Writer<impl Write>,
    scenario: &str,
    axes: &BTreeSet<&String>,
    point: &Point,
) -> anyhow::Result<()> {
    for system in &point.systems {
        for taken in &system.samples {
            let flags: Vec<String> = taken.sample.flags.iter().map(word).collect();
            for metric in &taken.sample.metrics {
                lines.write_field(scenario)?;
                for axis in axes {
                    lines.write_field(point.axes.get(*axis).map_or("", String::as_str))?;
                }
                lines.write_record([
                    system.system.as_str(),
                    &taken.round.to_string(),
                    &metric.name,
                    &metric.unit,
                    &metric.value.to_string(),
                    &flags.join(" "),
                ])?;
            }
        }
    }
    Ok(())
}
