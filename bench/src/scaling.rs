//! Real workers on ports in memory: what the dataplane costs when no system call is made.
//!
//! A port hands out copies of one frame as fast as a worker takes them, another swallows whatever
//! is sent; each has a queue on every worker. So nothing but the worker's turn and the core is
//! measured, and two workers share nothing that two threads of an application would not share.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use dataplane::{Config, Dataplane, Waiting};
use dataplane_core::addr::MacAddr;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::topology::{Domain, Role, Topology};
use dataplane_port::{Batch, Capabilities, PortIo};

use crate::in_memory::{NETWORK, SINK, SOURCE, port, station};

const SENDER: MacAddr = station(0);
const RECEIVER: MacAddr = station(1);
/// Bytes of a frame: the smallest of Ethernet, without its check sequence.
const FRAME_SIZE: usize = 60;
/// Frames of each queue in one measurement: a quarter of a second.
const FRAMES: u64 = 3_000_000;
/// Steps of each thread in one calibration: about as long.
const ALU_STEPS: u64 = 200_000_000;
/// A measurement that takes longer than this has gone wrong.
const MEASURE_MAX: Duration = Duration::from_secs(60);

/// A dataplane that forwards from memory to memory.
pub struct MemoryPath {
    dataplane: Arc<Dataplane>,
    quotas: Vec<Arc<AtomicU64>>,
    finished: Receiver<Instant>,
}

/// One queue of a port in memory.
struct Queue {
    frame: [u8; FRAME_SIZE],
    /// Frames still to hand out.
    quota: Arc<AtomicU64>,
    finished: Sender<Instant>,
}

impl PortIo for Queue {
    fn capabilities(&self) -> Capabilities {
        Capabilities::offloading(2_048)
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        // Acquire: with the store of whoever asks for frames.
        let before = self.quota.load(Ordering::Acquire);
        let mut left = before;
        while left > 0
            && let Some(mut buf) = rx.take_buffer()
        {
            buf.copy_from(&self.frame, Offload::NONE);
            rx.push(buf);
            left -= 1;
        }
        if before == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.quota.store(left, Ordering::Relaxed);
        if left == 0 {
            // Nobody waits any more only when the measurement was given up.
            let _ = self.finished.send(Instant::now());
        }
        Ok((before - left) as usize)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        Ok(frames.len())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn frame(dst: MacAddr, src: MacAddr) -> [u8; FRAME_SIZE] {
    let mut frame = [0x5a; FRAME_SIZE];
    frame[..6].copy_from_slice(&dst.0);
    frame[6..12].copy_from_slice(&src.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

impl MemoryPath {
    /// Starts `workers`, with the receiver's station known.
    ///
    /// # Errors
    /// When the dataplane cannot start, or a worker does not answer.
    pub fn start(workers: usize) -> anyhow::Result<Self> {
        let config = Config {
            workers,
            waiting: Waiting::Sleep,
            ..Config::default()
        };
        let dataplane = Arc::new(Dataplane::start(&config)?);
        let (finish, finished) = channel();
        let queues = |dst, src| -> (Vec<Box<dyn PortIo>>, Vec<Arc<AtomicU64>>) {
            (0..workers)
                .map(|_| {
                    let quota = Arc::new(AtomicU64::new(0));
                    let queue = Queue {
                        frame: frame(dst, src),
                        quota: Arc::clone(&quota),
                        finished: finish.clone(),
                    };
                    (Box::new(queue) as Box<dyn PortIo>, quota)
                })
                .unzip()
        };
        let (source, quotas) = queues(RECEIVER, SENDER);
        let (sink, hellos) = queues(MacAddr::BROADCAST, RECEIVER);
        dataplane.add_port(SOURCE, source)?;
        dataplane.add_port(SINK, sink)?;
        dataplane.install(topology())?;
        let started = Self {
            dataplane,
            quotas,
            finished,
        };
        started.hand_out(&hellos[..1], 1)?;
        Ok(started)
    }

    /// Nanoseconds a frame, of the workers together.
    ///
    /// # Errors
    /// When the workers do not come to an end.
    pub fn nanos(&self) -> anyhow::Result<f64> {
        let seconds = self.hand_out(&self.quotas, FRAMES)?;
        Ok(seconds * 1e9 / (FRAMES as f64 * self.quotas.len() as f64))
    }

    /// Starts a trace, lets it see a frame or more, and ends it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn trace_once(&self) -> anyhow::Result<()> {
        let trace = self.dataplane.trace(FRAME_SIZE)?;
        self.hand_out(&self.quotas, 1)?;
        let seen = trace.records().recv_timeout(MEASURE_MAX);
        seen.context("the trace saw no frame")?;
        Ok(())
    }

    /// Seconds until every queue has handed out `frames`.
    fn hand_out(&self, quotas: &[Arc<AtomicU64>], frames: u64) -> anyhow::Result<f64> {
        let start = Instant::now();
        for quota in quotas {
            // Release: with the load of the worker.
            quota.store(frames, Ordering::Release);
        }
        let mut last = start;
        for _ in quotas {
            let finished = self.finished.recv_timeout(MEASURE_MAX);
            last = last.max(finished.context("workers that do not come to an end")?);
        }
        Ok((last - start).as_secs_f64())
    }
}

fn topology() -> Topology {
    let mut topology = Topology::default();
    topology.put_domain(Domain::new(NETWORK, "memory"));
    for id in [SOURCE, SINK] {
        topology.put_port(port(id, Role::Bridge(NETWORK)));
    }
    topology.finish();
    topology
}

/// Steps a nanosecond of `threads` that only compute: what the machine's CPUs give to as many
/// threads, whatever they do.
///
/// # Errors
/// When a thread panicked.
pub fn alu(threads: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let running: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(|| {
                (0..ALU_STEPS).fold(1u64, |x, step| {
                    std::hint::black_box(x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(step))
                })
            })
        })
        .collect();
    for thread in running {
        let joined = thread.join();
        joined.map_err(|_| anyhow::anyhow!("a thread of the calibration panicked"))?;
    }
    Ok((threads as u64 * ALU_STEPS) as f64 / start.elapsed().as_nanos() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_asked_for_is_forwarded_once() {
        let started = MemoryPath::start(2).expect("two workers");
        let before = started.dataplane.stats().verdicts;
        assert!(before.iter().all(|(_, count)| *count <= 1), "the hello");
        started.hand_out(&started.quotas, 10_000).expect("an end");
        started.trace_once().expect("a trace");
        let deadline = Instant::now() + MEASURE_MAX;
        let expected = 2 * 10_000 + 2;
        let bridged = || {
            let stats = started.dataplane.stats();
            stats.port(SINK).map_or(0, |port| port.sent_frames)
        };
        while bridged() != expected {
            assert!(Instant::now() < deadline, "{} of {expected}", bridged());
            std::thread::yield_now();
        }
        started.dataplane.stats().check_laws().expect("both laws");
        let stats = started.dataplane.stats();
        assert!(stats.workers.iter().all(|worker| worker.rx > 10_000));
    }
}
