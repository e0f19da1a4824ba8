//! Where the time of every CPU goes while something is measured, sampled by perf(1).
//!
//! All CPUs are sampled and not the switch alone: the ends and the kernel run on them too, and a CPU that has
//! to be woken again and again shows as time of `swapper`, which is the kernel's name of idleness and of the
//! interrupts that end it. A CPU that sleeps all the while is not in the sum. Sampling takes time of its own, so what is profiled is never what gives a figure.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use thiserror::Error;

use crate::plan::{Plan, word};
use crate::run::{self, Hall};

/// Samples a second and CPU: no multiple of the kernel's tick, which would be met again and again.
const FREQUENCY: &str = "4999";
/// Functions that are kept, the heaviest.
const FUNCTIONS_MAX: usize = 12;
/// Threads that are kept, the heaviest.
const THREADS_MAX: usize = 6;

/// Where the time of all CPUs went.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Profile {
    /// By the name of the thread, the heaviest first.
    pub threads: Vec<Part>,
    /// By thread and function, the heaviest first; `[k]` marks the kernel's.
    pub functions: Vec<Part>,
}

/// A part of the time of all CPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Whose.
    pub name: String,
    /// How much of it, in per cent.
    pub percent: f64,
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// perf cannot be started.
    #[error("perf cannot be started ({0}); apt-get install linux-perf brings it")]
    Absent(io::Error),
    /// It ended, or said what nobody understands.
    #[error("perf took no profile: {0}")]
    Silent(String),
    /// A file, or the pipes to it.
    #[error("no profile: {0}")]
    Io(#[from] io::Error),
}

/// Does `work` while all CPUs are sampled.
///
/// # Errors
/// [`ProfileError`]; without perf the work is not begun.
pub fn during<T>(work: impl FnOnce() -> T) -> Result<(T, Profile), ProfileError> {
    let dir = tempfile::tempdir()?;
    let recorder = Recorder::start(dir.path())?;
    let done = work();
    let profile = recorder.finish()?;
    Ok((done, profile))
}

/// A contestant at a point of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Profiled {
    /// The values of its axes.
    pub point: BTreeMap<String, String>,
    /// The system.
    pub system: String,
    /// Where the time went.
    pub profile: Option<Profile>,
    /// Why it was not measured.
    pub refusal: Option<String>,
}

/// Profiles every system of a plan at every point; `progress` is told which one is next.
///
/// # Errors
/// [`ProfileError`]. A system that cannot be measured is none: it says why.
pub fn of_plan(
    plan: &Plan,
    hall: &mut dyn Hall,
    progress: impl Fn(&str),
) -> Result<Vec<Profiled>, ProfileError> {
    let mut all = Vec::new();
    for (index, point) in plan.points.iter().enumerate() {
        for system in &plan.scenario.systems {
            let mut one = Profiled {
                point: point.axes.clone(),
                system: word(system),
                profile: None,
                refusal: None,
            };
            progress(&one.title());
            match run::watched(plan, index, *system, hall, |sample| during(sample)) {
                Ok(Ok((Ok(_), profile))) => one.profile = Some(profile),
                Ok(Err(error)) => return Err(error),
                Ok(Ok((Err(refusal), _))) | Err(refusal) => {
                    one.refusal = Some(refusal.reason().to_owned());
                }
            }
            all.push(one);
        }
    }
    Ok(all)
}

impl Profiled {
    fn title(&self) -> String {
        let axes = self
            .point
            .iter()
            .map(|(name, value)| format!("{name} {value}"));
        let words: Vec<String> = [self.system.clone()].into_iter().chain(axes).collect();
        words.join(", ")
    }
}

impl fmt::Display for Profiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title())?;
        if let Some(refusal) = &self.refusal {
            writeln!(f, "  not measured: {refusal}")?;
        }
        let Some(profile) = &self.profile else {
            return Ok(());
        };
        for (what, parts) in [
            ("by thread", &profile.threads),
            ("by function", &profile.functions),
        ] {
            writeln!(f, "  {what}")?;
            for part in parts {
                writeln!(f, "    {:>5.1} %  {}", part.percent, part.name)?;
            }
        }
        Ok(())
    }
}

/// perf while it samples.
struct Recorder {
    perf: Child,
    samples: PathBuf,
}

impl Recorder {
    /// Returns when perf has said that it samples.
    fn start(dir: &Path) -> Result<Self, ProfileError> {
        let samples = dir.join("samples");
        let mut command = Command::new("perf");
        command
            .args(["record", "--quiet", "--all-cpus", "--freq", FREQUENCY])
            // It begins when it is told to, by its input, and says so by its output.
            .args(["--delay=-1", "--control=fd:0,1", "--output"])
            .arg(&samples)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the bench, which then ends it.
            .process_group(0);
        let perf = command.spawn().map_err(ProfileError::Absent)?;
        let mut recorder = Self { perf, samples };
        match recorder.enable() {
            Ok(answer) if answer.contains("ack") => Ok(recorder),
            Ok(answer) => Err(recorder.last_words(&answer)),
            Err(error) => Err(recorder.last_words(&error.to_string())),
        }
    }

    fn enable(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        if let Some(input) = &mut self.perf.stdin {
            writeln!(input, "enable")?;
        }
        if let Some(output) = &mut self.perf.stdout {
            BufReader::new(output).read_line(&mut answer)?;
        }
        Ok(answer)
    }

    fn last_words(mut self, what: &str) -> ProfileError {
        let _ = self.end();
        let said = self.perf.stderr.take();
        let said = said.and_then(|stderr| io::read_to_string(stderr).ok());
        let said = said.unwrap_or_default();
        ProfileError::Silent(format!("{} {}", what.trim(), said.trim()))
    }

    fn interrupt(&self) {
        let pid = Pid::from_raw(self.perf.id().cast_signed());
        // One that has ended already has been told enough.
        let _ = kill(pid, Signal::SIGINT);
    }

    /// Ends it. Its pipes stay open until it has written its file: it does not finish that when they close.
    fn end(&mut self) -> io::Result<()> {
        let pipes = (self.perf.stdin.take(), self.perf.stdout.take());
        self.interrupt();
        // It ends by the signal itself: its status says nothing.
        self.perf.wait()?;
        drop(pipes);
        Ok(())
    }

    /// Ends it and reads what it has sampled.
    fn finish(mut self) -> Result<Profile, ProfileError> {
        self.end()?;
        let mut report = Command::new("perf");
        let output = report
            .args(["report", "--stdio", "--quiet", "--no-children"])
            .args(["--sort", "comm,symbol", "--field-separator", "\t"])
            .arg("--input")
            .arg(&self.samples)
            .stdin(Stdio::null())
            .output()
            .map_err(ProfileError::Absent)?;
        let profile = read(&String::from_utf8_lossy(&output.stdout));
        if profile.functions.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ProfileError::Silent(said));
        }
        Ok(profile)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Reads lines of a share, a thread and a function each, separated by tabs.
fn read(report: &str) -> Profile {
    let mut threads: BTreeMap<&str, f64> = BTreeMap::new();
    let mut functions = Vec::new();
    for line in report.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t').map(str::trim);
        let (Some(share), Some(thread), Some(function)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(percent) = share.trim_end_matches('%').parse::<f64>() else {
            continue;
        };
        *threads.entry(thread).or_default() += percent;
        functions.push(Part {
            name: format!("{thread} {function}"),
            percent,
        });
    }
    let threads = threads.into_iter().map(|(name, percent)| Part {
        name: name.to_owned(),
        percent,
    });
    Profile {
        threads: heaviest(threads.collect(), THREADS_MAX),
        functions: heaviest(functions, FUNCTIONS_MAX),
    }
}

fn heaviest(mut parts: Vec<Part>, most: usize) -> Vec<Part> {
    parts.sort_by(|one, other| other.percent.total_cmp(&one.percent));
    parts.truncate(most);
    parts
}

impl Profile {
    /// As lines of text: threads, and functions.
    pub fn lines(&self) -> [String; 2] {
        let joined = |parts: &[Part]| {
            let parts: Vec<String> = parts.iter().map(Part::to_string).collect();
            parts.join(", ")
        };
        [
            format!("time of all CPUs: {}", joined(&self.threads)),
            format!("by function: {}", joined(&self.functions)),
        ]
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.1} %", self.name, self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_added_up_by_thread() {
        let report = "# Samples: 4K\n\n\
             40.25%\tworker-0\t[k] tun_get_user\t-\t-\n \
             20.25% \tswapper \t[k] pv_native_safe_halt \t- \t-\n\
             9.50%\tworker-0\t[.] forward\t-\t-\n\
             nonsense\n";
        let profile = read(report);
        assert_eq!(
            profile.lines(),
            [
                "time of all CPUs: worker-0 49.8 %, swapper 20.2 %",
                "by function: worker-0 [k] tun_get_user 40.2 %, \
                 swapper [k] pv_native_safe_halt 20.2 %, worker-0 [.] forward 9.5 %",
            ]
        );
    }

    #[test]
    fn the_heaviest_are_kept() {
        let lines = (0..100).map(|n| format!("0.{n:02}%\tthread-{n}\t[k] f\n"));
        let profile = read(&lines.collect::<String>());
        assert_eq!(profile.threads.len(), THREADS_MAX);
        assert_eq!(profile.functions.len(), FUNCTIONS_MAX);
        assert_eq!(profile.functions[0].name, "thread-99 [k] f");
    }
}
