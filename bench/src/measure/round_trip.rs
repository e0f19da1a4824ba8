//! Round trips of one byte over TCP, one after the other on each flow.

use std::io::{self, Read, Write};
use std::time::Instant;

use hdrhistogram::Histogram;

use super::cpu::{self, Ends, Used};
use super::placement;
use super::tcp::{self, Connection};
use super::{MeasureError, Request, refused};
use crate::result::{Metric, Sample};
use crate::system::System;

/// A share of the round trips that goes before those that count.
const WARM_UP_SHARE: u32 = 10;
/// Longest round trip that is told from longer ones, in nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// Measures.
pub fn round_trips(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let placement = request.load.placement;
    let connections = tcp::connect(request, system)?;
    let read = || Used::now(system).map_err(refused("read CPU times of the switch"));
    let (start, before) = (Instant::now(), read()?);
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for Connection { client, server } in connections {
        servers.push(std::thread::spawn(move || -> io::Result<f64> {
            placement::pin_receiver(placement)?;
            echo(server)?;
            cpu::thread_seconds()
        }));
        let count = request.load.round_trips;
        clients.push(std::thread::spawn(move || -> io::Result<_> {
            placement::pin_sender(placement)?;
            Ok((ping(client, count)?, cpu::thread_seconds()?))
        }));
    }
    let panicked = |_| io::Error::other("the thread panicked");
    let mut ends = Ends::default();
    let mut latency = histogram()?;
    for client in clients {
        let pinged = client.join().map_err(panicked).and_then(|done| done);
        let (times, cpu) = pinged.map_err(refused("make round trips"))?;
        latency
            .add(&times)
            .map_err(|e| MeasureError::Stuck(format!("histograms: {e}")))?;
        ends.sender += cpu;
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = read()?;
    for server in servers {
        let echoed = server.join().map_err(panicked).and_then(|done| done);
        ends.receiver += echoed.map_err(refused("echo"))?;
    }
    let (cpu, _) = after.since(&before, ends);
    let micros = |q| latency.value_at_quantile(q) as f64 * 1e-3;
    let rate = latency.len() as f64 / seconds * (1.0 + 1.0 / f64::from(WARM_UP_SHARE));
    Ok(Sample {
        metrics: vec![
            Metric::less("p50", "µs", micros(0.5)),
            Metric::less("p99", "µs", micros(0.99)),
            Metric::less("p99.9", "µs", micros(0.999)),
            Metric::less("max", "µs", latency.max() as f64 * 1e-3),
            Metric::more("round-trips", "1/s", rate),
        ],
        latency: super::quantiles(&latency),
        cpu,
        ..Sample::default()
    })
}

fn histogram() -> Result<Histogram<u64>, MeasureError> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3)
        .map_err(|error| MeasureError::Stuck(format!("histograms: {error}")))
}

fn echo(mut stream: std::net::TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ping(mut stream: std::net::TcpStream, count: u32) -> io::Result<Histogram<u64>> {
    let mut times = Histogram::new_with_bounds(1, LATENCY_MAX, 3)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let warm_up = count / WARM_UP_SHARE;
    let mut byte = [0];
    for round in 0..count + warm_up {
        let start = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut byte)?;
        if round >= warm_up {
            times.saturating_record(start.elapsed().as_nanos() as u64);
        }
    }
    Ok(times)
}
