//! Who used how much CPU time.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};

use crate::system::{System, Work};

/// Ticks of `/proc/stat` in a second: `USER_HZ`, the same on every architecture of Linux.
const TICKS: f64 = 100.0;

/// CPU seconds of a switch and of the machine, up to a moment.
#[derive(Clone, Debug)]
pub struct Used {
    switch: BTreeMap<String, f64>,
    machine: f64,
}

impl Used {
    /// Up to now.
    ///
    /// # Errors
    /// When a process of the switch is gone.
    pub fn now(system: &System) -> io::Result<Self> {
        let mut switch = BTreeMap::new();
        for work in &system.work {
            let (name, seconds) = match work {
                Work::Process { name, pid } => (name, process_seconds(*pid)?),
                Work::Threads { name, prefix } => (name, threads_seconds(prefix)?),
            };
            *switch.entry(name.clone()).or_default() += seconds;
        }
        Ok(Self {
            switch,
            machine: machine_seconds()?,
        })
    }

    /// What was used since `before`, with what the ends used by themselves, and the machine's
    /// total.
    pub fn since(&self, before: &Self, ends: Ends) -> (BTreeMap<String, f64>, f64) {
        let mut cpu = BTreeMap::from([
            ("sender".to_owned(), ends.sender),
            ("receiver".to_owned(), ends.receiver),
        ]);
        for (name, seconds) in &self.switch {
            let earlier = before.switch.get(name).copied().unwrap_or(0.0);
            cpu.insert(name.clone(), seconds - earlier);
        }
        let machine = self.machine - before.machine;
        let known: f64 = cpu.values().sum();
        // Ticks are coarse: what is known by the nanosecond may be more.
        cpu.insert("kernel".to_owned(), (machine - known).max(0.0));
        (cpu, machine.max(known))
    }

    /// CPU seconds of the switch alone since `before`.
    pub fn switch_since(&self, before: &Self) -> f64 {
        self.switch.values().sum::<f64>() - before.switch.values().sum::<f64>()
    }
}

/// CPU seconds of the threads at the ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// Of all senders.
    pub sender: f64,
    /// Of all receivers.
    pub receiver: f64,
}

/// CPU seconds of the calling thread.
///
/// # Errors
/// Never on Linux.
pub fn thread_seconds() -> io::Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9)
}

/// The ids of the threads of a process whose names begin with `prefix`.
///
/// # Errors
/// When there is no such process.
pub fn threads(pid: &str, prefix: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // A thread may end between the listing and the look.
        let Ok(name) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let id: Option<i32> = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        found.extend(id.filter(|_| name.starts_with(prefix)));
    }
    Ok(found)
}

fn process_seconds(pid: u32) -> io::Result<f64> {
    Ok(sum(&pid.to_string(), &threads(&pid.to_string(), "")?))
}

fn threads_seconds(prefix: &str) -> io::Result<f64> {
    Ok(sum("self", &threads("self", prefix)?))
}

/// By the scheduler, which counts nanoseconds.
fn sum(pid: &str, threads: &[i32]) -> f64 {
    let seconds = threads.iter().filter_map(|thread| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        let nanos: f64 = text.split_whitespace().next()?.parse().ok()?;
        Some(nanos * 1e-9)
    });
    seconds.sum()
}

/// Busy CPU seconds of the whole machine, softirq included.
fn machine_seconds() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let fields = first.split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index));
    Ok(busy.sum::<f64>() / TICKS)
}
