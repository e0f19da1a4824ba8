//! How a run goes, on standard error: a bar with the remaining time, or plain lines when nobody
//! looks at a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::plan::Plan;
use crate::run::Watch;

/// How often the bar is drawn anew while a measurement lasts.
const REDRAW: Duration = Duration::from_secs(1);

/// Shows how a run goes.
#[derive(Debug)]
pub struct Progress {
    /// `None` without a terminal.
    bar: Option<ProgressBar>,
    /// Title of each point.
    points: Vec<String>,
    /// The point that was announced last, from 1.
    announced: AtomicUsize,
}

impl Progress {
    /// For a run of this plan.
    pub fn new(plan: &Plan) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(plan.measurements() as u64);
            let style = "{wide_msg}\n{bar:40} {pos}/{len}, {elapsed} gone, about {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(REDRAW);
            bar
        });
        let title = |axes: &std::collections::BTreeMap<String, String>| {
            let axes = axes.iter().map(|(name, value)| format!("{name} {value}"));
            axes.collect::<Vec<_>>().join(", ")
        };
        Self {
            bar,
            points: plan.points.iter().map(|point| title(&point.axes)).collect(),
            announced: AtomicUsize::new(0),
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Progress {
    fn begins(&self, point: usize, label: &str, round: u32) {
        let count = self.points.len();
        let title = self.points.get(point).map_or("", String::as_str);
        let place = format!("point {} of {count} {title}", point + 1);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{place}: {label}, round {}", round + 1)),
            None if self.announced.swap(point + 1, Ordering::Relaxed) != point + 1 => {
                eprintln!("{}", place.trim_end());
            }
            None => {}
        }
    }

    fn ended(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}
