//! How busy workers and ports are, and which port should change its worker.
//!
//! # Theory of operation
//! Workers count the nanoseconds that they spend on frames ([`WorkerStats::busy_nanos`]), and each
//! port those spent on what it received. `Meter::measure` turns two readings into shares of a core.
//! Multi-queue ports have a queue on every worker and the kernel spreads their flows; a port with a
//! single queue is bound to one worker, so a few busy ones can share a worker while another idles.
//! [`choose_move`] finds the port whose move helps most; `Dataplane::balance` carries it out, one
//! port a call, so that its effect is measured before the next.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Clock};

use dataplane_core::addr::PortId;

use crate::stats::{PortStats, Stats, WorkerStats};

/// Share of a core below which a worker is no bottleneck, whatever the others do.
pub const BUSY_MIN: f64 = 0.5;

/// What a move must take off the busiest worker, as a share of a core: less is noise.
pub const GAIN_MIN: f64 = 0.1;

/// The shortest time between two readings: a shorter one says more of the clock than of the load.
pub const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// What was going on between the last two readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loads {
    /// Between the two readings.
    pub interval: Duration,
    /// By worker.
    pub workers: Vec<WorkerLoad>,
    /// By port, in the order of their ids.
    pub ports: Vec<PortLoad>,
}

/// The load of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkerLoad {
    /// Share of the time spent on frames, 0 to 1.
    pub busy: f64,
    /// Share of the time spent looking for frames in vain, 0 to 1. The rest it slept.
    pub spinning: f64,
    /// Frames received a second.
    pub rx_frames: f64,
    /// Frames of an average batch; 0 without traffic.
    pub batch_frames: f64,
}

/// The load of one port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortLoad {
    /// Which port.
    pub port: PortId,
    /// The worker that owns its only queue; `None` when every worker has one.
    pub owner: Option<usize>,
    /// Time that all workers spent on frames that it received, as a share of one core.
    pub busy: f64,
    /// Frames received a second.
    pub rx_frames: f64,
    /// Bytes received a second.
    pub rx_bytes: f64,
    /// Frames sent a second.
    pub tx_frames: f64,
    /// Bytes sent a second.
    pub tx_bytes: f64,
}

/// The last reading and what it came to.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Option<(Clock, Vec<WorkerStats>, BTreeMap<PortId, PortStats>)>,
    loads: Loads,
}

impl Meter {
    /// Takes a reading and returns the loads since the last one. A reading that comes too soon
    /// changes nothing.
    pub fn measure(
        &mut self,
        now: Clock,
        stats: Stats,
        owner: impl Fn(PortId) -> Option<usize>,
    ) -> &Loads {
        let ports: BTreeMap<PortId, PortStats> = stats
            .ports
            .into_iter()
            .map(|port| (port.port, port))
            .collect();
        if let Some((then, workers_before, ports_before)) = &self.last {
            let interval = now.saturating_duration_since(*then);
            if interval < INTERVAL_MIN {
                return &self.loads;
            }
            let workers = stats.workers.iter().zip(workers_before);
            self.loads = Loads {
                interval,
                workers: workers
                    .map(|(after, before)| worker_load(after, before, interval))
                    .collect(),
                ports: ports
                    .values()
                    .filter_map(|after| {
                        let before = ports_before.get(&after.port)?;
                        Some(port_load(after, before, owner(after.port), interval))
                    })
                    .collect(),
            };
        }
        self.last = Some((now, stats.workers, ports));
        &self.loads
    }

    /// The loads between the last two readings.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }
}

fn worker_load(after: &WorkerStats, before: &WorkerStats, interval: Duration) -> WorkerLoad {
    let share = |after, before| share(after, before, interval);
    let (frames, batches) = (after.rx - before.rx, after.batches - before.batches);
    WorkerLoad {
        busy: share(after.busy_nanos, before.busy_nanos),
        spinning: share(after.spin_nanos, before.spin_nanos),
        rx_frames: frames as f64 / interval.as_secs_f64(),
        batch_frames: frames as f64 / batches.max(1) as f64,
    }
}

/// Counters of a port that was removed and came again begin at zero, hence the saturation.
fn port_load(
    after: &PortStats,
    before: &PortStats,
    owner: Option<usize>,
    interval: Duration,
) -> PortLoad {
    let rate = |after: u64, before| after.saturating_sub(before) as f64 / interval.as_secs_f64();
    PortLoad {
        port: after.port,
        owner,
        busy: rate(after.busy_nanos, before.busy_nanos) * 1e-9,
        rx_frames: rate(after.rx_frames, before.rx_frames),
        rx_bytes: rate(after.rx_bytes, before.rx_bytes),
        tx_frames: rate(after.sent_frames, before.sent_frames),
        tx_bytes: rate(after.sent_bytes, before.sent_bytes),
    }
}

fn share(after: u64, before: u64, interval: Duration) -> f64 {
    (after.saturating_sub(before) as f64 / interval.as_nanos() as f64).min(1.0)
}

/// The worker that a new single-queue port should go to: the least busy, and among equals the one
/// that owns the fewest such ports.
pub(crate) fn choose_owner(loads: &Loads, owned: &[usize]) -> usize {
    let busy = |worker: usize| loads.workers.get(worker).map_or(0.0, |load| load.busy);
    // In steps of a tenth: idle workers differ by noise only.
    let rank = |worker: &usize| ((busy(*worker) * 10.0) as u64, owned[*worker]);
    (0..owned.len()).min_by_key(rank).unwrap_or(0)
}

/// The single-queue port to move, and the worker to move it to: the one after whose move the busier
/// of the two is least busy. `None` when nobody is overloaded or no move helps.
pub fn choose_move(loads: &Loads) -> Option<(PortId, usize)> {
    let busy = |worker: usize| loads.workers[worker].busy;
    let by_load = |a: &usize, b: &usize| busy(*a).total_cmp(&busy(*b));
    let from = (0..loads.workers.len()).max_by(by_load)?;
    let to = (0..loads.workers.len()).min_by(by_load)?;
    if busy(from) < BUSY_MIN {
        return None;
    }
    let after = |port: &PortLoad| (busy(from) - port.busy).max(busy(to) + port.busy);
    loads
        .ports
        .iter()
        .filter(|port| port.owner == Some(from) && after(port) <= busy(from) - GAIN_MIN)
        .min_by(|a, b| after(a).total_cmp(&after(b)))
        .map(|port| (port.port, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(workers: &[f64], ports: &[(u16, Option<usize>, f64)]) -> Loads {
        let port = |&(id, owner, busy): &(u16, Option<usize>, f64)| PortLoad {
            port: PortId(id),
            owner,
            busy,
            rx_frames: 0.0,
            rx_bytes: 0.0,
            tx_frames: 0.0,
            tx_bytes: 0.0,
        };
        Loads {
            interval: Duration::from_secs(1),
            workers: workers
                .iter()
                .map(|&busy| WorkerLoad {
                    busy,
                    ..WorkerLoad::default()
                })
                .collect(),
            ports: ports.iter().map(port).collect(),
        }
    }

    #[test]
    fn the_port_that_evens_the_load_best_moves() {
        let ports = [
            (1, Some(0), 0.6),
            (2, Some(0), 0.3),
            (3, Some(1), 0.1),
            (4, Some(0), 0.05),
        ];
        let busy = loads(&[0.95, 0.1], &ports);
        assert_eq!(choose_move(&busy), Some((PortId(2), 1)), "0.65 and 0.4");
    }

    #[test]
    fn nothing_moves_without_need_or_gain() {
        let idle = loads(&[0.4, 0.0], &[(1, Some(0), 0.2)]);
        assert_eq!(choose_move(&idle), None, "nobody is a bottleneck");
        let single = loads(&[0.9, 0.0], &[(1, Some(0), 0.9)]);
        assert_eq!(choose_move(&single), None, "the load would move as a whole");
        let shared = loads(&[0.9, 0.1], &[(1, None, 0.9)]);
        assert_eq!(choose_move(&shared), None, "a queue on every worker");
        let even = loads(&[0.9, 0.8], &[(1, Some(0), 0.1)]);
        assert_eq!(choose_move(&even), None, "less than {GAIN_MIN} is noise");
        assert_eq!(choose_move(&Loads::default()), None);
    }

    #[test]
    fn what_moved_does_not_move_back() {
        let mut now = loads(&[1.0, 0.0], &[(1, Some(0), 0.5), (2, Some(0), 0.5)]);
        let (port, to) = choose_move(&now).expect("a move");
        now.ports[usize::from(port.0) - 1].owner = Some(to);
        now.workers[0].busy -= 0.5;
        now.workers[to].busy += 0.5;
        assert_eq!(choose_move(&now), None);
    }

    #[test]
    fn new_ports_go_to_the_least_busy_and_then_to_the_emptiest() {
        assert_eq!(choose_owner(&Loads::default(), &[2, 1, 1]), 1);
        let one_busy = loads(&[0.9, 0.02, 0.01], &[]);
        assert_eq!(choose_owner(&one_busy, &[0, 3, 4]), 1, "noise is no load");
    }

    #[test]
    fn shares_are_of_the_interval_between_two_readings() {
        let stats = |busy_nanos, rx_frames| Stats {
            workers: vec![WorkerStats {
                busy_nanos,
                rx: rx_frames,
                batches: rx_frames / 4,
                ..WorkerStats::default()
            }],
            ports: vec![PortStats {
                port: PortId(7),
                rx_frames,
                busy_nanos,
                ..PortStats::default()
            }],
            ..Stats::default()
        };
        let mut meter = Meter::default();
        let start = Clock::now();
        let owner = |_| Some(0);
        assert!(meter.measure(start, stats(0, 0), owner).ports.is_empty());
        let later = start + Duration::from_secs(2);
        let loads = meter.measure(later, stats(500_000_000, 800), owner).clone();
        assert_eq!(loads.workers[0].busy, 0.25);
        assert_eq!(loads.workers[0].batch_frames, 4.0);
        assert_eq!(loads.ports[0].rx_frames, 400.0);
        let soon = later + INTERVAL_MIN / 2;
        let same = meter.measure(soon, stats(600_000_000, 900), owner);
        assert_eq!(*same, loads, "too soon to say anything");
    }
}
