//! A result as a table, for terminals and for Markdown.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};

use crate::compare::{MetricView, PointView, Row, View, sentence, shown, view};
use crate::plan::AGAIN;
use crate::result::{Flag, Results};

/// Comparisons of one result from which on the reader is warned of chance.
const MANY: usize = 5;

/// Metrics that are shown beside the main one unless all of them are 0; the pages have every one.
const SHOWN: [&str; 14] = [
    "pdr-copies",
    "pdr",
    "pdr-bits",
    "bits",
    "mean-size",
    "burst-rate",
    "cpu",
    "loss",
    "p99",
    "p99-at-10",
    "p99-at-50",
    "p99-at-90",
    "connect-p99",
    "fairness",
];

/// Where a table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// On a terminal.
    Terminal,
    /// In a Markdown page.
    Markdown,
}

/// The table of a result, its footnotes, who is absent, and what is partial.
pub fn render(results: &Results, style: Style) -> String {
    let view = view(results);
    let mut flags = Vec::new();
    let mut text = comparisons(&view, style, &mut flags).to_string();
    text.push('\n');
    for line in notes(results, &view, &flags) {
        text.push('\n');
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// An empty table of that style.
pub fn table(style: Style) -> Table {
    let mut table = Table::new();
    match style {
        Style::Terminal => {
            table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
            // A line below each row tells nothing.
            table.remove_style(TableComponent::HorizontalLines);
            table.remove_style(TableComponent::MiddleIntersections)
        }
        Style::Markdown => table.load_preset(presets::ASCII_MARKDOWN),
    };
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn comparisons(view: &View, style: Style, flags: &mut Vec<Flag>) -> Table {
    let mut table = table(style);
    let metrics = metrics(view);
    let against = format!("of {}", view.baseline);
    let mut header = vec!["point".to_owned(), "system".to_owned()];
    header.extend(metrics.iter().map(|(name, unit)| format!("{name}, {unit}")));
    header.extend([against, "finding".to_owned()]);
    table.set_header(header);
    for point in &view.points {
        for (index, system) in systems(point).into_iter().enumerate() {
            // The point is named once, before its first system.
            let title = if index == 0 {
                point.title()
            } else {
                String::new()
            };
            let mut cells = vec![title, system.to_owned()];
            for (name, _) in &metrics {
                let row = find(point, name, system);
                cells.push(row.map_or_else(|| "-".to_owned(), |row| figure(row, flags)));
            }
            let main = metrics.first().and_then(|(n, _)| find(point, n, system));
            let (ratio, finding) =
                main.map_or_else(Default::default, |row| compared(row, &view.baseline));
            cells.extend([ratio, finding]);
            table.add_row(cells);
        }
    }
    let columns = metrics.len();
    for column in table.column_iter_mut().skip(2).take(columns + 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Name and unit of the metrics that are shown, the main one first.
fn metrics(view: &View) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    let every = || view.points.iter().flat_map(|point| &point.metrics);
    for metric in every() {
        let something = every()
            .filter(|other| other.name == metric.name)
            .flat_map(|other| &other.rows)
            .any(|row| row.values.iter().any(|value| *value != 0.0));
        let new = !all.iter().any(|(name, _)| *name == metric.name);
        if new && (all.is_empty() || something && SHOWN.contains(&metric.name.as_str())) {
            all.push((&metric.name, &metric.unit));
        }
    }
    all
}

fn systems(point: &PointView) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    for row in point.metrics.iter().flat_map(|metric| &metric.rows) {
        if !all.contains(&row.system.as_str()) {
            all.push(&row.system);
        }
    }
    all
}

fn find<'a>(point: &'a PointView, metric: &str, system: &str) -> Option<&'a Row> {
    let metric: &MetricView = point.metrics.iter().find(|m| m.name == metric)?;
    metric.rows.iter().find(|row| row.system == system)
}

/// A figure with its interval, its bound and its footnotes.
fn figure(row: &Row, flags: &mut Vec<Flag>) -> String {
    let bound = if row.at_least { "at least " } else { "" };
    let marks = row.flags.iter().map(|flag| {
        let known = flags.iter().position(|known| known == flag);
        let index = known.unwrap_or_else(|| {
            flags.push(flag.clone());
            flags.len() - 1
        });
        format!(" ({})", index + 1)
    });
    let marks: String = marks.collect();
    let e = row.estimate;
    format!(
        "{bound}{} [{}, {}]{marks}",
        shown(e.median),
        shown(e.low),
        shown(e.high)
    )
}

fn compared(row: &Row, baseline: &str) -> (String, String) {
    let Some(comparison) = row.comparison else {
        let word = if row.system == baseline {
            "baseline"
        } else {
            ""
        };
        return (String::new(), word.to_owned());
    };
    let r = comparison.ratio;
    let word = match row.system == AGAIN {
        true => "noise floor",
        false => comparison.finding.word(),
    };
    (
        format!("{:.3} [{:.3}, {:.3}]", r.median, r.low, r.high),
        word.to_owned(),
    )
}

/// What is to be read with the table.
pub fn notes(results: &Results, view: &View, flags: &[Flag]) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = &results.partial {
        notes.push(format!("PARTIAL: {reason}."));
    }
    notes.push(format!(
        "Medians of {} rounds with 95 % bootstrap intervals; ratios are medians of the ratios of \
         each round.",
        results.scenario.repeats
    ));
    let floors = view.points.iter().filter_map(|point| {
        let floor = point.metrics.first()?.noise_floor?;
        let title = match point.title() {
            title if title.is_empty() => String::new(),
            title => format!(" ({title})"),
        };
        Some(format!("{:.1} %{title}", floor * 100.0))
    });
    let floors: Vec<String> = floors.collect();
    if floors.is_empty() {
        notes.push("No noise floor was measured: small differences may be chance.".to_owned());
    } else {
        notes.push(format!(
            "Noise floor, by which {} differs from itself: {}.",
            view.baseline,
            floors.join(", ")
        ));
    }
    let main = view.points.iter().filter_map(|point| point.metrics.first());
    let compared = main
        .flat_map(|metric| &metric.rows)
        .filter(|row| row.system != AGAIN);
    let count = compared.filter(|row| row.comparison.is_some()).count();
    if count >= MANY {
        notes.push(format!(
            "{count} comparisons: even between equals, up to one in twenty shows a difference by \
             chance. Measure again what matters."
        ));
    }
    for (index, flag) in flags.iter().enumerate() {
        notes.push(format!("({}) {}.", index + 1, sentence(flag)));
    }
    for absent in &results.absent {
        notes.push(format!("Absent: {}: {}", absent.system, absent.reason));
    }
    notes.extend(missing(results, view));
    notes
}

/// Who is here and has no figure, with the points.
fn missing(results: &Results, view: &View) -> Vec<String> {
    let mut points: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for point in &view.points {
        for (system, reason) in &point.missing {
            if !results.absent.iter().any(|absent| absent.system == *system) {
                let at = points.entry((system, reason)).or_default();
                at.push(point.title());
            }
        }
    }
    let lines = points.into_iter().map(|((system, reason), points)| {
        let everywhere = points.len() == view.points.len();
        let at = match everywhere {
            true => String::new(),
            false => format!(" at {}", points.join("; ")),
        };
        format!("No figure: {system}{at}: {reason}.")
    });
    lines.collect()
}
