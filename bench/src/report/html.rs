//! Results as one self-contained page: no script, nothing from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{plot, table};
use crate::compare::{MetricView, PointView, Row, View, shown, summary, view};
use crate::plan::{AGAIN, word};
use crate::result::{Manifest, Results};
use crate::stats::Finding;

const STYLE: &str = include_str!("page.css");
/// Latency plots of one result that are shown; the tables have the others' figures.
const LATENCY_PLOTS_MAX: usize = 12;
/// Comparisons without a difference that are not folded away beside those with one.
const FOLDED_FROM: usize = 4;

/// The page.
pub fn render(results: &[Results]) -> String {
    let title = match results {
        [one] => format!("{}: Causeway bench", one.scenario.name),
        _ => "Causeway bench".to_owned(),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Browsers ask for one otherwise, which is a request for something from elsewhere.
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @if results.len() > 1 {
                    nav {
                        @for results in results {
                            a href={ "#" (results.scenario.name) } { (results.scenario.name) }
                        }
                    }
                }
                main { @for results in results { (section(results)) } }
            }
        }
    };
    page.into_string()
}

fn section(results: &Results) -> Markup {
    let view = view(results);
    let (manifest, scenario) = (&results.manifest, &results.scenario);
    html! {
        article id=(scenario.name) {
            header {
                h1 { (scenario.name) }
                p.about { (scenario.about) }
                p.meta {
                    (word(&scenario.measure)) " on a " (word(&scenario.topology)) " · "
                    (scenario.repeats) " rounds · " (manifest.started) " · "
                    (manifest.cpus) " × " (manifest.cpu) " · Linux " (manifest.kernel)
                    " · commit " (manifest.commit)
                }
            }
            @if let Some(reason) = &results.partial {
                p.partial { strong { "Partial result: " } (reason) "." }
            }
            section { h2 { "What was found" } (findings(&view)) (notes(results, &view)) }
            @for metric in mains(&view) { (figures(&view, metric)) }
            (latencies(results))
            (cost(results, &view))
            section { h2 { "Every figure" } (figures_table(&view)) }
            section { h2 { "Manifest" } (facts(manifest)) }
        }
    }
}

/// Names of the main metrics: the first of each point.
fn mains(view: &View) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for metric in view.points.iter().filter_map(|point| point.metrics.first()) {
        if !names.contains(&metric.name.as_str()) {
            names.push(&metric.name);
        }
    }
    names
}

fn findings(view: &View) -> Markup {
    let mut found: Vec<(Finding, String)> = Vec::new();
    for point in &view.points {
        for (row, metric) in main_rows(point) {
            let said = summary(point, metric, row, &view.baseline);
            if let Some((said, comparison)) = said.zip(row.comparison) {
                found.push((comparison.finding, said));
            }
        }
    }
    let (none, shown): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|(finding, _)| *finding == Finding::NoDifference);
    html! {
        @if none.is_empty() && shown.is_empty() { p { "There is nothing to compare." } }
        (sentences(&shown))
        @if !none.is_empty() {
            details open[shown.is_empty() || none.len() <= FOLDED_FROM] {
                summary { (none.len()) " without a difference that could be shown" }
                (sentences(&none))
            }
        }
    }
}

fn sentences(found: &[(Finding, String)]) -> Markup {
    html! {
        ul.findings {
            @for (finding, said) in found {
                li {
                    span class={ "chip " (class(*finding)) } { (finding.word()) }
                    span { (said) }
                }
            }
        }
    }
}

fn main_rows(point: &PointView) -> impl Iterator<Item = (&Row, &MetricView)> {
    let metric = point.metrics.first().into_iter();
    metric.flat_map(|metric| {
        let rows = metric.rows.iter().filter(|row| row.system != AGAIN);
        rows.map(move |row| (row, metric))
    })
}

const fn class(finding: Finding) -> &'static str {
    match finding {
        Finding::Faster => "faster",
        Finding::Slower => "slower",
        Finding::NoDifference => "none",
    }
}

fn notes(results: &Results, view: &View) -> Markup {
    let mut flags = Vec::new();
    for row in view
        .points
        .iter()
        .flat_map(|point| &point.metrics)
        .flat_map(|metric| &metric.rows)
    {
        for flag in &row.flags {
            if !flags.contains(flag) {
                flags.push(flag.clone());
            }
        }
    }
    html! {
        ul.notes {
            @for note in table::notes(results, view, &flags) { li { (note) } }
        }
    }
}

fn figures(view: &View, metric: &str) -> Markup {
    html! {
        section {
            h2 { (capital(metric)) }
            @if let Some(plot) = plot::bars(view, metric) {
                figure {
                    (plot)
                    figcaption {
                        "Bars are medians, whiskers 95 % intervals, dots single measurements."
                    }
                }
            }
            @for axis in plot::numeric_axes(view) {
                @for (title, plot) in plot::against(view, metric, axis) {
                    figure {
                        h3 { (capital(metric)) " by " (axis.replace('-', " "))
                            @if !title.is_empty() { ", " (title) } }
                        (plot)
                    }
                }
            }
        }
    }
}

/// Figures of CPU time: what a frame or a gigabyte costs, and who pays.
fn cost(results: &Results, view: &View) -> Markup {
    let mains = mains(view);
    let mut metrics: Vec<&str> = Vec::new();
    for metric in view.points.iter().flat_map(|point| &point.metrics) {
        let name = metric.name.as_str();
        let new = !metrics.contains(&name) && !mains.contains(&name);
        if new && name.starts_with("cpu") {
            metrics.push(name);
        }
    }
    let who = plot::cpu(results);
    if metrics.is_empty() && who.is_none() {
        return html! {};
    }
    html! {
        @for metric in metrics { (figures(view, metric)) }
        @if let Some(plot) = who {
            section {
                h2 { "Who spends the CPU time" }
                figure {
                    (plot)
                    figcaption { "Medians of the rounds." }
                }
            }
        }
    }
}

fn latencies(results: &Results) -> Markup {
    let drawn: Vec<(String, Markup)> = results
        .points
        .iter()
        .filter_map(|point| {
            let axes = point.axes.iter().map(|(n, v)| format!("{n} {v}"));
            Some((axes.collect::<Vec<_>>().join(", "), plot::latencies(point)?))
        })
        .take(LATENCY_PLOTS_MAX)
        .collect();
    if drawn.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Latency distribution" }
            @for (title, plot) in &drawn {
                figure {
                    @if !title.is_empty() { h3 { (title) } }
                    (plot)
                }
            }
            p.caption {
                "Cumulative: a point at 99 % and 20 µs says that 99 of 100 took no longer than \
                 20 µs. Thick lines are medians of the rounds, thin ones single rounds."
            }
        }
    }
}

fn figures_table(view: &View) -> Markup {
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { "point" } th { "metric" } th { "system" }
                        th.number { "median" } th.number { "95 % interval" }
                        th.number { "of " (view.baseline) } th.number { "95 % interval" }
                        th { "finding" }
                    }
                }
                tbody {
                    @for point in &view.points {
                        @for metric in &point.metrics {
                            @for (index, row) in metric.rows.iter().enumerate() {
                                (table_row(point, metric, row, &view.baseline, index == 0))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn table_row(
    point: &PointView,
    metric: &MetricView,
    row: &Row,
    baseline: &str,
    first: bool,
) -> Markup {
    let e = row.estimate;
    html! {
        tr.first[first] {
            td { @if first { (point.title()) } }
            td { @if first { (metric.name) ", " (metric.unit) } }
            td { (row.system) }
            td.number { @if row.at_least { "at least " } (shown(e.median)) }
            td.number { (shown(e.low)) " … " (shown(e.high)) }
            @if let Some(comparison) = row.comparison {
                @let r = comparison.ratio;
                td.number { (format!("{:.3}", r.median)) }
                td.number { (format!("{:.3} … {:.3}", r.low, r.high)) }
                @if row.system == AGAIN {
                    td.quiet { "noise floor" }
                } @else {
                    td { span class={ "chip " (class(comparison.finding)) } {
                        (comparison.finding.word())
                    } }
                }
            } @else {
                td {} td {} td.quiet { @if row.system == baseline { "baseline" } }
            }
        }
    }
}

fn facts(manifest: &Manifest) -> Markup {
    html! {
        p { "Seed " (manifest.seed) ", " (format!("{:.0}", manifest.seconds)) " s." }
        details {
            summary { "Machine: " (manifest.facts.len()) " facts" }
            dl { @for (name, value) in &manifest.facts { dt { (name) } dd { (value) } } }
        }
        @for (system, facts) in &manifest.systems {
            details {
                summary { (system) }
                dl { @for (name, value) in facts { dt { (name) } dd { (value) } } }
            }
        }
    }
}

/// A metric's name as a heading.
fn capital(word: &str) -> String {
    match word {
        "cpu" => return "CPU time".to_owned(),
        "ndr" => return "Rate without loss (NDR)".to_owned(),
        "pdr" => return "Rate with bounded loss (PDR)".to_owned(),
        _ => {}
    }
    let spaced = word.replace('-', " ");
    let mut letters = spaced.chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    first.chain(letters).collect()
}
