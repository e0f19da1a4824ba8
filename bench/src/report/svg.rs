//! Axes of plots: scales, ticks and the frame that they are drawn in.

use maud::{Markup, html};

use crate::compare::shown;

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly.
    Linear,
    /// By their logarithm.
    Log,
    /// Shares by the logarithm of what is left to 1, so that 0.9, 0.99 and 0.999 are evenly apart.
    Nines,
}

/// From values to places along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    spacing: Spacing,
    from: f64,
    to: f64,
}

/// Ticks along an axis: more cannot be read.
const TICKS_MAX: usize = 10;
/// Space around a plot: left for labels of the vertical axis, below for those of the other one.
pub const LEFT: f64 = 72.0;
/// Space on the right, where the last label sticks out.
pub const RIGHT: f64 = 22.0;
/// Space above.
pub const TOP: f64 = 14.0;
/// Space below, for tick labels and the axis's name.
pub const BELOW: f64 = 44.0;

impl Scale {
    /// Lays `low..=high` out from pixel `from` to pixel `to`. An empty or unusable range becomes a
    /// small one around its values.
    pub fn new(low: f64, high: f64, spacing: Spacing, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (low.min(high), low.max(high));
        if !low.is_finite() || !high.is_finite() {
            (low, high) = (0.0, 1.0);
        }
        if spacing == Spacing::Log {
            low = low.max(f64::MIN_POSITIVE.sqrt());
            high = high.max(low);
            if high / low < 1.01 {
                (low, high) = (low / 2.0, high * 2.0);
            }
        } else if high - low < 1e-12 {
            high = low + 1.0;
        }
        Self {
            low,
            high,
            spacing,
            from,
            to,
        }
    }

    /// Where a value is; values outside are at the edge.
    pub fn at(&self, value: f64) -> f64 {
        let place = |value: f64| match self.spacing {
            Spacing::Linear => value,
            Spacing::Log => value.max(f64::MIN_POSITIVE).ln(),
            Spacing::Nines => -(1.0 - value).max(1e-9).ln(),
        };
        let (low, high) = (place(self.low), place(self.high));
        let share = ((place(value) - low) / (high - low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Round values within, from low to high.
    pub fn ticks(&self) -> Vec<f64> {
        let ticks: Vec<f64> = match self.spacing {
            Spacing::Linear => linear_ticks(self.low, self.high),
            Spacing::Log => log_ticks(self.low, self.high),
            Spacing::Nines => vec![0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999],
        };
        let inside = |tick: &f64| *tick >= self.low * (1.0 - 1e-9) && *tick <= self.high;
        ticks.into_iter().filter(inside).collect()
    }
}

fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * decade);
    let step = step.into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (0..TICKS_MAX as i64)
        .map(|n| (first + n) as f64 * step)
        .collect()
}

/// 1, 2 and 5 of each decade, or the decades alone when there are many.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within: &[f64] = if high / low > 300.0 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let decades = (first..=last).take(2 * TICKS_MAX);
    decades
        .flat_map(|decade| within.iter().map(move |m| m * 10_f64.powi(decade)))
        .collect()
}

/// The label of a tick.
pub fn tick_label(value: f64, spacing: Spacing) -> String {
    if spacing == Spacing::Nines {
        let percent = value * 100.0;
        return format!("{percent} %");
    }
    let text = shown(value);
    // 2.00 and 0.500 read worse than 2 and 0.5 where the values are round.
    let (digits, suffix) = match text.split_once(' ') {
        Some((digits, suffix)) => (digits, format!(" {suffix}")),
        None => (text.as_str(), String::new()),
    };
    match digits.contains('.') {
        true => format!(
            "{}{suffix}",
            digits.trim_end_matches('0').trim_end_matches('.')
        ),
        false => text,
    }
}

/// The axes of a plot with its grid.
#[derive(Clone, Debug)]
pub struct Axes<'a> {
    /// The horizontal one.
    pub x: Scale,
    /// Its ticks.
    pub x_ticks: Vec<f64>,
    /// Its name with the unit.
    pub x_name: &'a str,
    /// The vertical one; its pixels go from the bottom to the top.
    pub y: Scale,
    /// Its ticks.
    pub y_ticks: Vec<f64>,
    /// Its name with the unit.
    pub y_name: &'a str,
}

impl Axes<'_> {
    /// Draws grid, labels and names.
    pub fn draw(&self) -> Markup {
        let (left, right) = (self.x.from, self.x.to);
        let (bottom, top) = (self.y.from, self.y.to);
        let middle = f64::midpoint(bottom, top);
        html! {
            @for tick in &self.y_ticks {
                @let y = self.y.at(*tick);
                line.grid x1=(px(left)) x2=(px(right)) y1=(px(y)) y2=(px(y)) {}
                text.tick x=(px(left - 8.0)) y=(px(y + 4.0)) text-anchor="end" {
                    (tick_label(*tick, self.y.spacing))
                }
            }
            @for tick in &self.x_ticks {
                @let x = self.x.at(*tick);
                line.grid x1=(px(x)) x2=(px(x)) y1=(px(bottom)) y2=(px(top)) {}
                text.tick x=(px(x)) y=(px(bottom + 17.0)) text-anchor="middle" {
                    (tick_label(*tick, self.x.spacing))
                }
            }
            line.axis x1=(px(left)) x2=(px(right)) y1=(px(bottom)) y2=(px(bottom)) {}
            text.name x=(px(f64::midpoint(left, right))) y=(px(bottom + 36.0))
                text-anchor="middle" { (self.x_name) }
            text.name transform={ "translate(13," (px(middle)) ") rotate(-90)" }
                text-anchor="middle" { (self.y_name) }
        }
    }
}

/// A pixel, to a tenth.
pub fn px(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |low, high, spacing| Scale::new(low, high, spacing, 0.0, 1.0).ticks();
        assert_eq!(ticks(0.0, 17.0, Spacing::Linear), [0.0, 5.0, 10.0, 15.0]);
        assert_eq!(ticks(3.0, 30.0, Spacing::Log), [5.0, 10.0, 20.0]);
        assert_eq!(ticks(1.0, 1e4, Spacing::Log), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert_eq!(ticks(0.0, 0.99, Spacing::Nines), [0.0, 0.5, 0.9, 0.99]);
    }

    #[test]
    fn values_are_placed_and_never_leave_the_plot() {
        let scale = Scale::new(1.0, 100.0, Spacing::Log, 0.0, 200.0);
        assert!((scale.at(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(scale.at(1e9), 200.0);
        assert_eq!(scale.at(0.0), 0.0);
        let upwards = Scale::new(0.0, 10.0, Spacing::Linear, 300.0, 0.0);
        assert_eq!(upwards.at(5.0), 150.0);
    }

    #[test]
    fn ranges_that_are_none_still_make_an_axis() {
        for (low, high) in [
            (5.0, 5.0),
            (f64::NAN, 1.0),
            (0.0, 0.0),
            (1.0, f64::INFINITY),
        ] {
            for spacing in [Spacing::Linear, Spacing::Log] {
                let scale = Scale::new(low, high, spacing, 0.0, 100.0);
                assert!(scale.at(5.0).is_finite(), "{low} {high} {spacing:?}");
                assert!(scale.ticks().len() <= 60);
            }
        }
    }

    #[test]
    fn labels_have_no_needless_digits() {
        assert_eq!(tick_label(2.0, Spacing::Linear), "2");
        assert_eq!(tick_label(0.5, Spacing::Linear), "0.5");
        assert_eq!(tick_label(2e6, Spacing::Linear), "2 M");
        assert_eq!(tick_label(100.0, Spacing::Linear), "100");
        assert_eq!(tick_label(0.999, Spacing::Nines), "99.9 %");
    }
}
