//! Results as a Markdown page.

use std::fmt::Write as _;

use crate::compare::{summary, view};
use crate::plan::AGAIN;
use crate::report::table::{self, Style};
use crate::result::{Manifest, Results};

/// A page: each result with its sentences, its table and its manifest.
pub fn render(results: &[Results]) -> String {
    let mut page = String::new();
    for results in results {
        page += &section(results);
    }
    page
}

/// One result under a heading of the second level.
pub fn section(results: &Results) -> String {
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
pub fn sentences(results: &Results) -> Vec<String> {
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
