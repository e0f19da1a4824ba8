//! New TCP connections, one after the other on each flow.
//!
//! A connection is opened, carries one byte each way and is reset by its client, so that nothing
//! is left in TIME_WAIT and no port runs out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::cpu::{self, Ends, Used};
use super::{MeasureError, Request, placement, refused, tcp};
use crate::result::{Metric, Sample};
use crate::system::{Path, System};

/// Longest wait for a connection or a byte: beyond the first retransmission of a SYN.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest connection that is told from longer ones, in nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// What one client has done.
struct Done {
    connections: u64,
    failures: u64,
    latency: Histogram<u64>,
    cpu_seconds: f64,
}

/// Measures. Each flow has a listener at a port of its own path, so flows of one path share it.
pub fn connections(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let paths = &system.paths[..system.paths.len().min(request.flows.into())];
    let place = request.load.placement;
    let stop = Arc::new(AtomicBool::new(false));
    let mut servers = Vec::new();
    for path in paths {
        let listener = Arc::new(tcp::listen(path)?);
        // One thread for each of its flows, so that none waits for another's byte.
        let flows = usize::from(request.flows).div_ceil(paths.len());
        for _ in 0..flows {
            let (listener, stop) = (Arc::clone(&listener), Arc::clone(&stop));
            servers.push(std::thread::spawn(move || {
                placement::pin_receiver(place)?;
                serve(&listener, &stop)
            }));
        }
    }
    let warm_up = Duration::from_millis(request.load.warm_up_ms);
    let duration = Duration::from_millis(request.load.duration_ms);
    let clients: Vec<_> = (0..request.flows)
        .map(|flow| &system.paths[usize::from(flow) % paths.len()])
        .map(|path| {
            let connect = path.connect;
            path.from.spawn(move || {
                placement::pin_sender(place)?;
                client(connect, warm_up, duration)
            })
        })
        .collect();
    std::thread::sleep(warm_up);
    let read = || Used::now(system).map_err(refused("read CPU times of the switch"));
    let before = read();
    std::thread::sleep(duration);
    let after = read();
    let (done, mut ends) = collect(clients)?;
    stop.store(true, Ordering::Relaxed);
    // Servers count from their beginning; a connection of the warm-up costs what others cost.
    let share = duration.as_secs_f64() / (warm_up + duration).as_secs_f64();
    for path in paths {
        wake(path, servers.len());
    }
    for server in servers {
        let served = server
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        ends.receiver += served.map_err(refused("accept connections"))? * share;
    }
    if done.connections == 0 {
        let to = paths[0].connect;
        return Err(MeasureError::Stuck(format!(
            "none of {} connections to {to} came about",
            done.failures
        )));
    }
    Ok(sample(&done, duration, &before?, &after?, ends))
}

fn sample(done: &Done, duration: Duration, before: &Used, after: &Used, ends: Ends) -> Sample {
    let (cpu, machine) = after.since(before, ends);
    let micros = |q| done.latency.value_at_quantile(q) as f64 * 1e-3;
    let rate = done.connections as f64 / duration.as_secs_f64();
    Sample {
        metrics: vec![
            Metric::more("connections", "1/s", rate),
            Metric::less("connect-p50", "µs", micros(0.5)),
            Metric::less("connect-p99", "µs", micros(0.99)),
            Metric::less("connect-p99.9", "µs", micros(0.999)),
            Metric::less("failures", "connections", done.failures as f64),
            Metric::less(
                "cpu",
                "µs/connection",
                1e6 * machine / done.connections as f64,
            ),
        ],
        latency: super::quantiles(&done.latency),
        cpu,
        ..Sample::default()
    }
}

type Clients = Vec<std::thread::JoinHandle<io::Result<Done>>>;

fn collect(clients: Clients) -> Result<(Done, Ends), MeasureError> {
    let (mut ends, mut total) = (Ends::default(), Done::new().map_err(refused("count"))?);
    for client in clients {
        let done = client
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        let done = done.map_err(refused("open connections"))?;
        total.connections += done.connections;
        total.failures += done.failures;
        ends.sender += done.cpu_seconds;
        total
            .latency
            .add(&done.latency)
            .map_err(|error| MeasureError::Stuck(format!("histograms: {error}")))?;
    }
    Ok((total, ends))
}

impl Done {
    fn new() -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3);
        Ok(Self {
            connections: 0,
            failures: 0,
            latency: latency.map_err(|error| io::Error::other(error.to_string()))?,
            cpu_seconds: 0.0,
        })
    }
}

fn client(to: SocketAddr, warm_up: Duration, duration: Duration) -> io::Result<Done> {
    let mut done = Done::new()?;
    let start = Instant::now();
    let mut cpu = None;
    while start.elapsed() < warm_up + duration {
        let counted = start.elapsed() >= warm_up;
        if counted && cpu.is_none() {
            cpu = Some(cpu::thread_seconds()?);
        }
        let outcome = connect_once(to);
        if !counted {
            continue;
        }
        match outcome {
            Ok(nanos) => {
                done.connections += 1;
                done.latency.saturating_record(nanos);
            }
            Err(_) => done.failures += 1,
        }
    }
    done.cpu_seconds = cpu::thread_seconds()? - cpu.unwrap_or_default();
    Ok(done)
}

/// Nanoseconds until the connection was there.
fn connect_once(to: SocketAddr) -> io::Result<u64> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let nanos = start.elapsed().as_nanos() as u64;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    let reset = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &reset)?;
    Ok(nanos)
}

/// Answers one byte on each connection; CPU seconds.
fn serve(listener: &TcpListener, stop: &AtomicBool) -> io::Result<f64> {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            continue; // reset before it was accepted
        };
        let answer = || -> io::Result<()> {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_exact(&mut [0])?;
            stream.write_all(&[1])?;
            // Until the client's reset, so that the server's side never closes first.
            let _ = stream.read(&mut [0]);
            Ok(())
        };
        // The client counts what failed.
        let _ = { answer }();
    }
    cpu::thread_seconds()
}

/// Connects from beside the servers, so that those who wait to accept see that it is over.
fn wake(path: &Path, servers: usize) {
    for _ in 0..servers {
        let _ = path
            .to
            .run(|| TcpStream::connect_timeout(&path.listen, PATIENCE));
    }
}
