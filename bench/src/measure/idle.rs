//! CPU time of a switch with no traffic.

use std::io;
use std::time::{Duration, Instant};

use super::cpu::{Ends, Used};
use super::{MeasureError, Request, refused};
use crate::result::{Metric, Sample};
use crate::system::System;

/// No packet for this long is quiet: sandboxes announce themselves for a while (duplicate address
/// detection, multicast reports), which is traffic and not idleness.
const QUIET: Duration = Duration::from_secs(2);
/// Longest wait for quiet; it is measured all the same.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at the counters of the sandboxes.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Waits for quiet, then watches for the duration of the load.
pub fn idle(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    settle(system)?;
    let read = || Used::now(system).map_err(refused("read CPU times of the switch"));
    let (start, before) = (Instant::now(), read()?);
    // Nothing is waited for but time itself: this measures doing nothing.
    std::thread::sleep(Duration::from_millis(request.load.duration_ms));
    let after = read()?;
    let seconds = start.elapsed().as_secs_f64();
    let share = 100.0 * after.switch_since(&before) / seconds;
    let (cpu, _) = after.since(&before, Ends::default());
    Ok(Sample {
        metrics: vec![Metric::less("cpu", "%", share)],
        cpu,
        ..Sample::default()
    })
}

fn settle(system: &System) -> Result<(), MeasureError> {
    let packets = || packets(system).map_err(refused("read packet counters of the sandboxes"));
    let deadline = Instant::now() + SETTLE_MAX;
    let (mut seen, mut since) = (packets()?, Instant::now());
    while since.elapsed() < QUIET && Instant::now() < deadline {
        std::thread::sleep(LOOK_PAUSE);
        let now = packets()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Packets that the clients' and servers' interfaces have received and sent, ever.
fn packets(system: &System) -> io::Result<u64> {
    let ends = system.paths.iter().flat_map(|path| [&path.from, &path.to]);
    let counts = ends.map(|ns| ns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")));
    counts
        .map(|text| Ok(text?.lines().map(packets_of).sum::<u64>()))
        .sum()
}

/// A line of /proc/net/dev: the name, then eight counters of receiving and eight of sending, with
/// the packets second.
fn packets_of(line: &str) -> u64 {
    let counters = line.split_once(':').map_or("", |(_, counters)| counters);
    let counters: Vec<u64> = counters
        .split_whitespace()
        .filter_map(|text| text.parse().ok())
        .collect();
    [1, 9].iter().filter_map(|index| counters.get(*index)).sum()
}

#[cfg(test)]
mod tests {
    use super::packets_of;

    #[test]
    fn packets_are_the_second_counter_of_either_direction() {
        let line = "  eth0: 100 7 0 0 0 0 0 0 200 5 0 0 0 0 0 0";
        assert_eq!(packets_of(line), 12);
        assert_eq!(packets_of(" face |bytes    packets errs"), 0);
    }
}
