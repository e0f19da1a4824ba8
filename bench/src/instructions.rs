//! Instructions that the core executes for a frame, counted by Callgrind.
//!
//! Nanoseconds differ from one machine to the next and from one minute to the next; instructions
//! of the same program on the same input do not. So a change of a few per mille on the way of a
//! frame shows here at once, where a clock needs many rounds to see a few per cent. What it does
//! not see are cache misses and stalls: a figure here explains one of `bench bar`, and never
//! replaces it.
//!
//! Each line is run twice by a program of its own, the second time with twice as many frames: the
//! difference is what these frames took, and nothing of the making of tables and frames' owners.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core_alone;
use crate::report::table::{Style, table};

/// Version of the document; another one is refused.
pub const FORMAT: u32 = 1;

/// What is counted: its name, what it is, and the frames of its shorter run.
const LINES: [(&str, &str, Run, usize); 6] = [
    (
        "unicast",
        "known unicast among 64 stations",
        core_alone::unicast_among_64,
        64 << 10,
    ),
    (
        "unicast-udp",
        "the same, of datagrams",
        core_alone::datagrams_among_64,
        64 << 10,
    ),
    (
        "secured",
        "the same from a port that is secured, as endpoints' are",
        core_alone::secured_among_64,
        64 << 10,
    ),
    (
        "nat-out",
        "out by source NAT, known sessions",
        core_alone::nat_hits,
        64 << 10,
    ),
    (
        "nat-in",
        "in by source NAT, known sessions",
        core_alone::nat_hits_inwards,
        64 << 10,
    ),
    (
        "nat-new",
        "out by source NAT, a new session each",
        core_alone::nat_new_sessions,
        16 << 10,
    ),
];

/// Runs this many frames of a line; nanoseconds a frame.
type Run = fn(usize) -> f64;

/// Why instructions cannot be counted.
#[derive(Debug, Error)]
pub enum CountError {
    /// Callgrind cannot be started.
    #[error("valgrind cannot be started ({0}); apt-get install valgrind brings it")]
    Absent(io::Error),
    /// It ended without a count.
    #[error("valgrind counted nothing of {line}: {said}")]
    Silent {
        /// What was counted.
        line: String,
        /// The last that it said.
        said: String,
    },
    /// There is no such line.
    #[error("no line is called {0}; there are {1}")]
    Unknown(String, String),
    /// A document that cannot be compared with.
    #[error("{0}: {1}")]
    Document(String, String),
}

/// Instructions a frame, by line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// [`FORMAT`].
    pub format: u32,
    /// The compiler that made the program.
    pub compiler: String,
    /// Instructions a frame.
    pub instructions: BTreeMap<String, f64>,
}

/// Names of all lines.
pub fn names() -> impl Iterator<Item = &'static str> {
    LINES.iter().map(|(name, ..)| *name)
}

/// Runs one line, to be counted from outside.
///
/// # Errors
/// [`CountError::Unknown`].
pub fn run_alone(line: &str, frames: usize) -> Result<(), CountError> {
    let (_, _, run, _) = find(line)?;
    let _ = std::hint::black_box(run(frames));
    Ok(())
}

/// Counts the instructions of `lines`, or of all when there are none, by running `program`, which
/// is this one, under Callgrind.
///
/// # Errors
/// See [`CountError`].
pub fn count(program: &Path, lines: &[String]) -> Result<Counts, CountError> {
    let mut wanted: Vec<&str> = lines.iter().map(String::as_str).collect();
    if wanted.is_empty() {
        wanted = names().collect();
    }
    let mut instructions = BTreeMap::new();
    for name in wanted {
        let (_, what, _, frames) = find(name)?;
        eprintln!("{name}: {what}");
        let once = collected(program, name, *frames)?;
        let twice = collected(program, name, 2 * frames)?;
        let a_frame = twice.saturating_sub(once) as f64 / *frames as f64;
        instructions.insert(name.to_owned(), (a_frame * 10.0).round() / 10.0);
    }
    Ok(Counts {
        format: FORMAT,
        compiler: env!("BENCH_RUSTC").to_owned(),
        instructions,
    })
}

/// Reads a document that was printed as JSON.
///
/// # Errors
/// [`CountError::Document`].
pub fn read(path: &Path) -> Result<Counts, CountError> {
    let wrong = |said: String| CountError::Document(path.display().to_string(), said);
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let counts: Counts = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if counts.format != FORMAT {
        return Err(wrong(format!(
            "format {} is not {FORMAT}, which this program reads",
            counts.format
        )));
    }
    Ok(counts)
}

/// The counts as a table, beside older ones where they have the same line.
pub fn render(counts: &Counts, older: Option<&Counts>) -> String {
    let mut shown = table(Style::Terminal);
    let mut header = vec!["line", "what", "instructions/frame"];
    if older.is_some() {
        header.extend(["before", "change"]);
    }
    shown.set_header(header);
    for (name, what, ..) in &LINES {
        let Some(now) = counts.instructions.get(*name) else {
            continue;
        };
        let mut row = vec![(*name).to_owned(), (*what).to_owned(), format!("{now:.1}")];
        if let Some(before) = older.and_then(|older| older.instructions.get(*name)) {
            row.push(format!("{before:.1}"));
            row.push(format!("{:+.2} %", change(*before, *now)));
        }
        shown.add_row(row);
    }
    shown.to_string()
}

/// The largest growth from `older` in per cent, of the lines that both have; `None` without any.
pub fn growth(counts: &Counts, older: &Counts) -> Option<f64> {
    let both = counts.instructions.iter().filter_map(|(name, now)| {
        let before = older.instructions.get(name)?;
        Some(change(*before, *now))
    });
    both.max_by(f64::total_cmp)
}

fn change(before: f64, now: f64) -> f64 {
    100.0 * (now / before - 1.0)
}

fn find(line: &str) -> Result<&'static (&'static str, &'static str, Run, usize), CountError> {
    let found = LINES.iter().find(|(name, ..)| *name == line);
    found.ok_or_else(|| {
        let all: Vec<&str> = names().collect();
        CountError::Unknown(line.to_owned(), all.join(", "))
    })
}

/// Instructions of one whole run of a line.
fn collected(program: &Path, line: &str, frames: usize) -> Result<u64, CountError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["instructions", "--alone", &frames.to_string(), line])
        .stdin(Stdio::null())
        .output()
        .map_err(CountError::Absent)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let silent = || CountError::Silent {
        line: line.to_owned(),
        said: said.lines().last().unwrap_or("nothing").to_owned(),
    };
    if !output.status.success() {
        return Err(silent());
    }
    collected_by(&said).ok_or_else(silent)
}

/// The count in what Callgrind says at its end: `==7== Collected : 123`.
fn collected_by(said: &str) -> Option<u64> {
    let (_, count) = said
        .lines()
        .find_map(|line| line.split_once("Collected : "))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &[(&str, f64)]) -> Counts {
        let owned = |(name, count): &(&str, f64)| ((*name).to_owned(), *count);
        Counts {
            format: FORMAT,
            compiler: "rustc".to_owned(),
            instructions: lines.iter().map(owned).collect(),
        }
    }

    #[test]
    fn the_count_is_taken_from_what_callgrind_says() {
        let said = "==7== Callgrind\n==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(collected_by(said), Some(123_456));
        assert_eq!(collected_by("==7== Aborted\n"), None);
    }

    #[test]
    fn growth_is_that_of_the_line_that_grew_most() {
        let older = counts(&[("unicast", 200.0), ("nat-out", 1000.0), ("gone", 1.0)]);
        let newer = counts(&[("unicast", 206.0), ("nat-out", 990.0), ("came", 9.0)]);
        let grown = growth(&newer, &older).unwrap();
        assert!((grown - 3.0).abs() < 1e-9, "{grown}");
        assert_eq!(growth(&newer, &counts(&[])), None);
        let shown = render(&newer, Some(&older));
        assert!(
            shown.contains("+3.00 %") && shown.contains("-1.00 %"),
            "{shown}"
        );
    }

    #[test]
    fn an_unknown_line_is_refused_with_those_that_there_are() {
        let refused = run_alone("unicorn", 1).unwrap_err().to_string();
        assert!(
            refused.contains("unicorn") && refused.contains("nat-new"),
            "{refused}"
        );
    }

    #[test]
    fn every_line_runs_as_many_frames_as_it_is_asked_for() {
        for (name, _, run, _) in LINES {
            assert!(run(256) > 0.0, "{name}");
        }
    }
}
