//! The plots of a report, as SVG.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::svg::{Axes, BELOW, LEFT, RIGHT, Scale, Spacing, TOP, px};
use crate::compare::{MetricView, PointView, Row, View, shown};
use crate::plan::{AGAIN, word};
use crate::result::{Point, Results};
use crate::system::SystemName;

/// Width of every plot; the page scales it.
const WIDTH: f64 = 720.0;
/// Height of plots with a vertical axis.
const HEIGHT: f64 = 330.0;
/// Height of a bar with its space.
const ROW: f64 = 26.0;
/// Space for the systems' names beside bars.
const LABELS: f64 = 128.0;
/// Height of a group's title above its bars.
const GROUP: f64 = 24.0;
/// Ratio of a numeric axis's ends beyond which it is logarithmic.
const LOG_FROM: f64 = 8.0;
/// Axes that are numbers.
const NUMERIC: [&str; 8] = [
    "workers",
    "flows",
    "ports",
    "stations",
    "sessions",
    "frame-size",
    "mtu",
    "batch",
];
/// How far left of the least positive value a logarithmic axis has its 0, as a ratio.
const ZERO_BELOW: f64 = 4.0;

/// The colour class of a system; the same in every plot.
pub fn colour(system: &str) -> String {
    let index = SystemName::ALL.iter().position(|name| word(name) == system);
    index.map_or_else(|| "s-again".to_owned(), |index| format!("s{index}"))
}

fn whole(width: f64, height: f64, name: &str, body: &Markup) -> Markup {
    html! {
        svg viewBox={ "0 0 " (px(width)) " " (px(height)) } role="img" aria-label=(name) {
            (body)
        }
    }
}

/// A metric of every system at every point: bars from zero, intervals, raw values as dots.
pub fn bars(view: &View, metric: &str) -> Option<Markup> {
    let groups: Vec<(String, &MetricView)> = view
        .points
        .iter()
        .filter_map(|point| Some((point.title(), find(point, metric)?)))
        .collect();
    let (_, first) = groups.first()?;
    let rows: usize = groups.iter().map(|(_, metric)| metric.rows.len()).sum();
    let titles = groups.iter().filter(|(title, _)| !title.is_empty()).count();
    let body = rows as f64 * ROW + titles as f64 * GROUP;
    let height = TOP + body + BELOW;
    let every = groups.iter().flat_map(|(_, metric)| &metric.rows);
    let x = Scale::new(
        0.0,
        1.03 * greatest(every),
        Spacing::Linear,
        LABELS,
        WIDTH - RIGHT,
    );
    let name = format!("{metric}, {}", first.unit);
    let axes = Axes {
        x,
        x_ticks: x.ticks(),
        x_name: &name,
        y: Scale::new(0.0, 1.0, Spacing::Linear, TOP + body, TOP),
        y_ticks: Vec::new(),
        y_name: "",
    };
    let mut top = TOP;
    let mut drawn = Vec::new();
    for (title, metric) in &groups {
        if !title.is_empty() {
            drawn.push(html! {
                text.group x="0" y=(px(top + GROUP - 8.0)) { (title) }
            });
            top += GROUP;
        }
        for row in &metric.rows {
            drawn.push(bar(row, &metric.unit, x, top));
            top += ROW;
        }
    }
    let body = html! { (axes.draw()) @for part in &drawn { (part) } };
    Some(whole(WIDTH, height, &name, &body))
}

fn bar(row: &Row, unit: &str, x: Scale, top: f64) -> Markup {
    let estimate = row.estimate;
    let (zero, end) = (x.at(0.0), x.at(estimate.median));
    let middle = top + ROW / 2.0;
    html! {
        g class=(colour(&row.system)) {
            title { (tooltip(row, unit)) }
            text.label x=(px(LABELS - 10.0)) y=(px(middle + 4.0)) text-anchor="end" {
                (row.system)
            }
            rect.bar x=(px(zero)) y=(px(top + 4.0)) width=(px((end - zero).max(0.5)))
                height=(px(ROW - 8.0)) rx="2" {}
            @for (index, value) in row.values.iter().enumerate() {
                circle.dot cx=(px(x.at(*value))) cy=(px(middle + jitter(index))) r="2" {}
            }
            (whisker(x.at(estimate.low), x.at(estimate.high), middle))
        }
    }
}

/// An interval along a horizontal axis.
fn whisker(low: f64, high: f64, y: f64) -> Markup {
    html! {
        line.whisker x1=(px(low)) x2=(px(high)) y1=(px(y)) y2=(px(y)) {}
        line.whisker x1=(px(low)) x2=(px(low)) y1=(px(y - 4.0)) y2=(px(y + 4.0)) {}
        line.whisker x1=(px(high)) x2=(px(high)) y1=(px(y - 4.0)) y2=(px(y + 4.0)) {}
    }
}

/// Keeps equal values apart: dots alternate around the middle.
fn jitter(index: usize) -> f64 {
    [-5.0, 5.0, -2.5, 2.5, 0.0][index % 5]
}

fn tooltip(row: &Row, unit: &str) -> String {
    let bound = if row.at_least { "at least " } else { "" };
    let e = row.estimate;
    let values: Vec<String> = row.values.iter().map(|value| shown(*value)).collect();
    format!(
        "{}: {bound}{} {unit}, 95 % interval {} to {}; measured: {}",
        row.system,
        shown(e.median),
        shown(e.low),
        shown(e.high),
        values.join(", ")
    )
}

fn find<'a>(point: &'a PointView, metric: &str) -> Option<&'a MetricView> {
    point.metrics.iter().find(|m| m.name == metric)
}

fn greatest<'a>(rows: impl Iterator<Item = &'a Row>) -> f64 {
    let values = rows.flat_map(|row| row.values.iter().copied().chain([row.estimate.high]));
    values.filter(|value| value.is_finite()).fold(0.0, f64::max)
}

/// The numeric axes of a result that have at least two values.
pub fn numeric_axes(view: &View) -> Vec<&'static str> {
    let values = |axis: &str| {
        let mut values: Vec<&String> = view
            .points
            .iter()
            .filter_map(|p| p.axes.get(axis))
            .collect();
        values.sort();
        values.dedup();
        values.len()
    };
    NUMERIC
        .into_iter()
        .filter(|axis| values(axis) > 1)
        .collect()
}

/// Title and points of one plot.
type Panel<'a> = (String, Vec<(f64, &'a MetricView)>);

/// A metric against a numeric axis: one plot for each combination of the other axes.
pub fn against(view: &View, metric: &str, axis: &str) -> Vec<(String, Markup)> {
    // In the order of the scenario.
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for point in &view.points {
        let value = point.axes.get(axis).and_then(|value| value.parse().ok());
        let Some((value, metric)) = value.zip(find(point, metric)) else {
            continue;
        };
        let others = point.axes.iter().filter(|(name, _)| *name != axis);
        let others: Vec<String> = others.map(|(n, v)| format!("{n} {v}")).collect();
        let title = others.join(", ");
        match panels.iter_mut().find(|(known, _)| *known == title) {
            Some((_, points)) => points.push((value, metric)),
            None => panels.push((title, vec![(value, metric)])),
        }
    }
    let enough = panels.into_iter().filter(|(_, points)| points.len() > 1);
    let drawn = enough.map(|(title, mut points)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (title, lines(&points, axis))
    });
    drawn.collect()
}

fn lines(points: &[(f64, &MetricView)], axis: &str) -> Markup {
    let values: Vec<f64> = points.iter().map(|(value, _)| *value).collect();
    let (low, high, spacing) = horizontal(&values);
    let inset = 26.0;
    let x = Scale::new(low, high, spacing, LEFT + inset, WIDTH - RIGHT - inset);
    let every = points.iter().flat_map(|(_, metric)| &metric.rows);
    let top = 1.05 * greatest(every);
    let y = Scale::new(0.0, top, Spacing::Linear, HEIGHT - BELOW, TOP);
    let metric = points[0].1;
    let name = format!("{}, {}", metric.name, metric.unit);
    let axes = Axes {
        x,
        x_ticks: values,
        x_name: axis,
        y,
        y_ticks: y.ticks(),
        y_name: &name,
    };
    let mut systems: Vec<&str> = Vec::new();
    for row in points.iter().flat_map(|(_, metric)| &metric.rows) {
        if row.system != AGAIN && !systems.contains(&row.system.as_str()) {
            systems.push(&row.system);
        }
    }
    let body = html! {
        (axes.draw())
        @for (index, system) in systems.iter().enumerate() {
            (line(points, system, aside(index, systems.len()), x, y))
        }
    };
    html! { (whole(WIDTH, HEIGHT, &name, &body)) (legend(&systems)) }
}

/// Ends and spacing of a numeric axis, of values in order. A logarithm has no 0: it is at the left
/// end, apart from the others.
fn horizontal(values: &[f64]) -> (f64, f64, Spacing) {
    let (Some(first), Some(high)) = (values.first(), values.last()) else {
        return (0.0, 1.0, Spacing::Linear);
    };
    let least = values.iter().find(|value| **value > 0.0).unwrap_or(high);
    if high / least <= LOG_FROM {
        return (*first, *high, Spacing::Linear);
    }
    let low = match *first > 0.0 {
        true => *first,
        false => least / ZERO_BELOW,
    };
    (low, *high, Spacing::Log)
}

/// Keeps the systems at one value apart.
fn aside(index: usize, count: usize) -> f64 {
    8.0 * (index as f64 - (count as f64 - 1.0) / 2.0)
}

fn line(points: &[(f64, &MetricView)], system: &str, aside: f64, x: Scale, y: Scale) -> Markup {
    let rows: Vec<(f64, &Row, &str)> = points
        .iter()
        .filter_map(|(value, metric)| {
            let row = metric.rows.iter().find(|row| row.system == system)?;
            Some((x.at(*value) + aside, row, metric.unit.as_str()))
        })
        .collect();
    let path: Vec<String> = rows
        .iter()
        .map(|(x, row, _)| format!("{},{}", px(*x), px(y.at(row.estimate.median))))
        .collect();
    html! {
        g class=(colour(system)) {
            polyline.line points=(path.join(" ")) {}
            @for (x, row, unit) in &rows {
                g {
                    title { (tooltip(row, unit)) }
                    @for (index, value) in row.values.iter().enumerate() {
                        circle.dot cx=(px(x + jitter(index) / 2.5)) cy=(px(y.at(*value))) r="2" {}
                    }
                    line.whisker x1=(px(*x)) x2=(px(*x)) y1=(px(y.at(row.estimate.low)))
                        y2=(px(y.at(row.estimate.high))) {}
                    circle.mark cx=(px(*x)) cy=(px(y.at(row.estimate.median))) r="4" {}
                }
            }
        }
    }
}

fn legend(systems: &[&str]) -> Markup {
    html! {
        ul.legend {
            @for system in systems {
                li { span class={ "key " (colour(system)) } {} (system) }
            }
        }
    }
}

/// Latency distributions of a point: each round thin, the median of the rounds thick.
pub fn latencies(point: &Point) -> Option<Markup> {
    let systems: Vec<_> = point
        .systems
        .iter()
        .filter(|system| system.system != AGAIN)
        .filter(|system| system.samples.iter().any(|s| !s.sample.latency.is_empty()))
        .collect();
    let every: Vec<(f64, f64)> = systems
        .iter()
        .flat_map(|system| &system.samples)
        .flat_map(|taken| taken.sample.latency.iter().copied())
        .filter(|(q, micros)| (0.0..1.0).contains(q) && micros.is_finite() && *micros > 0.0)
        .collect();
    let low = every.iter().map(|(_, micros)| *micros).reduce(f64::min)?;
    let high = every.iter().map(|(_, micros)| *micros).reduce(f64::max)?;
    let most = every.iter().map(|(q, _)| *q).reduce(f64::max)?;
    let x = Scale::new(low / 1.1, high * 1.1, Spacing::Log, LEFT, WIDTH - RIGHT);
    let y = Scale::new(0.0, most, Spacing::Nines, HEIGHT - BELOW, TOP);
    let axes = Axes {
        x,
        x_ticks: x.ticks(),
        x_name: "latency, µs",
        y,
        y_ticks: y.ticks(),
        y_name: "share of round trips or frames",
    };
    let curve = |points: &[(f64, f64)]| {
        let drawable = points
            .iter()
            .filter(|(q, v)| (0.0..1.0).contains(q) && *v > 0.0);
        let places = drawable.map(|(q, v)| format!("{},{}", px(x.at(*v)), px(y.at(*q))));
        places.collect::<Vec<_>>().join(" ")
    };
    let body = html! {
        (axes.draw())
        @for system in &systems {
            @let middle = median_curve(system.samples.iter().map(|s| &s.sample.latency[..]));
            g class=(colour(&system.system)) {
                title { (system.system) }
                @for taken in &system.samples {
                    polyline.round points=(curve(&taken.sample.latency)) {}
                }
                polyline.line points=(curve(&middle)) {}
            }
        }
    };
    let names: Vec<&str> = systems
        .iter()
        .map(|system| system.system.as_str())
        .collect();
    Some(html! { (whole(WIDTH, HEIGHT, "latency distribution", &body)) (legend(&names)) })
}

/// The median of several curves at each quantile that they share.
fn median_curve<'a>(curves: impl Iterator<Item = &'a [(f64, f64)]>) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (quantile, micros) in curves.flatten() {
        // Not negative, so the order of the bits is the order of the values.
        at.entry(quantile.to_bits()).or_default().push(*micros);
    }
    let medians = at
        .into_iter()
        .map(|(bits, values)| (f64::from_bits(bits), crate::stats::median(&values)));
    medians.collect()
}

/// Who spends the CPU time of one measurement, as a share: stacked bars.
pub fn cpu(results: &Results) -> Option<Markup> {
    let mut rows: Vec<Stack<'_>> = Vec::new();
    let mut who: Vec<String> = Vec::new();
    for point in &results.points {
        let axes: Vec<String> = point.axes.iter().map(|(n, v)| format!("{n} {v}")).collect();
        for system in point.systems.iter().filter(|s| s.system != AGAIN) {
            let mut spent: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
            for (name, seconds) in system.samples.iter().flat_map(|s| &s.sample.cpu) {
                spent.entry(name).or_default().push(*seconds);
            }
            let spent = spent.into_iter();
            let spent: Vec<(String, f64)> = spent
                .map(|(name, seconds)| (name.clone(), crate::stats::median(&seconds)))
                .filter(|(_, seconds)| seconds.is_finite() && *seconds > 0.0)
                .collect();
            for (name, _) in &spent {
                if !who.contains(name) {
                    who.push(name.clone());
                }
            }
            if !spent.is_empty() {
                rows.push((axes.join(", "), &system.system, spent));
            }
        }
    }
    (!rows.is_empty()).then(|| stacked(&rows, &who))
}

type Stack<'a> = (String, &'a str, Vec<(String, f64)>);

fn stacked(rows: &[Stack<'_>], who: &[String]) -> Markup {
    let total = |row: &Stack<'_>| row.2.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let most = rows.iter().map(total).fold(0.0, f64::max);
    let x = Scale::new(0.0, 1.03 * most, Spacing::Linear, LABELS, WIDTH - RIGHT);
    let mut titles: Vec<&str> = Vec::new();
    let mut top = TOP;
    let mut drawn = Vec::new();
    for row in rows {
        if !row.0.is_empty() && titles.last() != Some(&row.0.as_str()) {
            titles.push(&row.0);
            drawn.push(html! { text.group x="0" y=(px(top + GROUP - 8.0)) { (row.0) } });
            top += GROUP;
        }
        drawn.push(stack(row, who, x, top));
        top += ROW;
    }
    let axes = Axes {
        x,
        x_ticks: x.ticks(),
        x_name: "CPU seconds of one measurement",
        y: Scale::new(0.0, 1.0, Spacing::Linear, top, TOP),
        y_ticks: Vec::new(),
        y_name: "",
    };
    let body = html! { (axes.draw()) @for part in &drawn { (part) } };
    html! {
        (whole(WIDTH, top + BELOW, "CPU time", &body))
        ul.legend {
            @for (index, name) in who.iter().enumerate() {
                li { span class={ "key w" (index % 6) } {} (name) }
            }
        }
    }
}

fn stack(row: &Stack<'_>, who: &[String], x: Scale, top: f64) -> Markup {
    let (_, system, spent) = row;
    let mut sum = 0.0;
    let mut parts = Vec::new();
    for (index, name) in who.iter().enumerate() {
        let seconds = spent
            .iter()
            .find(|(n, _)| n == name)
            .map_or(0.0, |(_, s)| *s);
        let (from, to) = (x.at(sum), x.at(sum + seconds));
        sum += seconds;
        parts.push(html! {
            rect class={ "bar w" (index % 6) } x=(px(from)) y=(px(top + 4.0))
                width=(px(to - from)) height=(px(ROW - 8.0)) {
                title { (system) ", " (name) ": " (shown(seconds)) " s" }
            }
        });
    }
    html! {
        text.label x=(px(LABELS - 10.0)) y=(px(top + ROW / 2.0 + 4.0)) text-anchor="end" {
            (system)
        }
        @for part in &parts { (part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_over_decades_is_logarithmic_with_its_zero_at_the_left_end() {
        let (low, high, spacing) = horizontal(&[0.0, 1e3, 1e6]);
        assert_eq!((low, high, spacing), (250.0, 1e6, Spacing::Log));
        let x = Scale::new(low, high, spacing, 100.0, 700.0);
        let places = [0.0, 1e3, 1e6].map(|value| x.at(value));
        assert!(
            places[0] == 100.0 && places[1] > 150.0 && places[2] == 700.0,
            "{places:?}"
        );
        assert_eq!(horizontal(&[2.0, 1e6]), (2.0, 1e6, Spacing::Log));
        assert_eq!(horizontal(&[1.0, 2.0, 4.0]), (1.0, 4.0, Spacing::Linear));
        assert_eq!(horizontal(&[0.0, 1.0]), (0.0, 1.0, Spacing::Linear));
        assert_eq!(horizontal(&[]), (0.0, 1.0, Spacing::Linear));
    }
}
