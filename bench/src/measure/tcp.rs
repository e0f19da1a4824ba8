//! Bytes by TCP streams.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::tests::lab;
use nix::sys::socket::{self, sockopt};
use nix::sys::time::TimeVal;
use socket2::{Domain, Socket, Type};

use super::cpu::{self, Ends, Used};
use super::{MeasureError, Request, placement, refused};
use crate::result::{Metric, Sample};
use crate::scenario::Placement;
use crate::system::{Path, System};

/// Bytes of one read or write: large enough that the call itself costs nothing.
const CHUNK_SIZE: usize = 1 << 18;
/// Longest wait for a byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may take to come through before another one is tried.
const LEADS_NOWHERE: Duration = Duration::from_secs(2);
/// Connections that are tried.
const ATTEMPTS_MAX: u8 = 5;

/// A connection: the client's end and the server's.
pub struct Connection {
    /// In the path's `from`.
    pub client: TcpStream,
    /// In the path's `to`.
    pub server: TcpStream,
}

/// Opens one connection for each of the request's flows; flow `n` takes path `n` modulo their count.
///
/// # Errors
/// With the addresses.
pub fn connect(request: &Request, system: &System) -> Result<Vec<Connection>, MeasureError> {
    let flows = request.flows;
    let congestion = request.congestion.as_deref();
    let mut connections = Vec::with_capacity(flows.into());
    for (index, path) in system.paths.iter().enumerate() {
        let count = (0..flows).skip(index).step_by(system.paths.len()).count();
        let listener = listen(path)?;
        for _ in 0..count {
            connections.push(connect_one(path, &listener, congestion)?);
        }
    }
    Ok(connections)
}

/// A server's socket.
///
/// # Errors
/// With the address.
pub fn listen(path: &Path) -> Result<TcpListener, MeasureError> {
    let listener = path.to.run(|| TcpListener::bind(path.listen));
    listener.map_err(refused(format!("listen on {}", path.listen)))
}

/// Opens a connection, again when it leads nowhere: a relay accepts by itself, and one of them
/// (pasta) loses the first SYN that it passes on and never repeats it.
fn connect_one(
    path: &Path,
    listener: &TcpListener,
    congestion: Option<&str>,
) -> Result<Connection, MeasureError> {
    let timeout = TimeVal::new(LEADS_NOWHERE.as_secs() as i64, 0);
    socket::setsockopt(listener, sockopt::ReceiveTimeout, &timeout)
        .map_err(refused(format!("listen on {}", path.listen)))?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for attempt in 0..ATTEMPTS_MAX {
        let client = path.from.run(|| dial(path.connect, congestion));
        match client.and_then(|client| accept(client, listener, attempt)) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    let (connect, listen) = (path.connect, path.listen);
    Err(refused(format!(
        "connect to {connect} and be accepted at {listen}"
    ))(last))
}

/// Opens the client's end in the namespace of this thread.
///
/// The congestion control is set before the handshake. A connection that began with BBR keeps
/// pacing its segments by a timer under whatever comes after it (`sk_pacing_status` in the kernel's
/// net/sock.h is never taken back), and would measure neither.
fn dial(address: SocketAddr, congestion: Option<&str>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(name) = congestion {
        socket
            .set_tcp_congestion(name.as_bytes())
            .map_err(|error| {
                let text = format!("set congestion control '{name}': {error}");
                io::Error::new(error.kind(), text)
            })?;
    }
    socket.connect_timeout(&address.into(), lab::DEADLINE)?;
    Ok(socket.into())
}

/// The other end of a client's connection; what earlier attempts left is dropped.
fn accept(mut client: TcpStream, listener: &TcpListener, attempt: u8) -> io::Result<Connection> {
    client.write_all(&[attempt])?;
    loop {
        let (mut server, _) = listener.accept()?;
        server.set_read_timeout(Some(LEADS_NOWHERE))?;
        let mut first = [0];
        // The other end of an earlier attempt may come late.
        if server.read_exact(&mut first).is_err() || first != [attempt] {
            continue;
        }
        for side in [&client, &server] {
            side.set_nodelay(true)?;
            side.set_read_timeout(Some(PATIENCE))?;
            side.set_write_timeout(Some(PATIENCE))?;
        }
        return Ok(Connection { client, server });
    }
}

/// Streams from client to server.
pub fn bulk(request: &Request, system: &System) -> Result<Sample, MeasureError> {
    let connections = connect(request, system)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flows: Vec<Flow> = connections
        .into_iter()
        .map(|connection| Flow::start(connection, request.load.placement, &stop))
        .collect();
    let load = &request.load;
    // The load itself is what takes this time.
    std::thread::sleep(Duration::from_millis(load.warm_up_ms));
    let before = Window::open(&flows, system)?;
    std::thread::sleep(Duration::from_millis(load.duration_ms));
    let after = Window::open(&flows, system)?;
    stop.store(true, Ordering::Relaxed);
    for flow in flows {
        flow.end()?;
    }
    Ok(sample(&before, &after))
}

/// Counters at one moment.
struct Window {
    at: Instant,
    bytes: Vec<u64>,
    ends: Ends,
    used: Used,
}

impl Window {
    fn open(flows: &[Flow], system: &System) -> Result<Self, MeasureError> {
        let sum = |count: fn(&Counters) -> &AtomicU64| {
            let nanos = flows
                .iter()
                .map(|flow| count(&flow.counters).load(Ordering::Relaxed));
            nanos.sum::<u64>() as f64 * 1e-9
        };
        Ok(Self {
            at: Instant::now(),
            bytes: flows
                .iter()
                .map(|flow| flow.counters.bytes.load(Ordering::Relaxed))
                .collect(),
            ends: Ends {
                sender: sum(|counters| &counters.sender_nanos),
                receiver: sum(|counters| &counters.receiver_nanos),
            },
            used: Used::now(system).map_err(refused("read CPU times of the switch"))?,
        })
    }
}

fn sample(before: &Window, after: &Window) -> Sample {
    let seconds = (after.at - before.at).as_secs_f64();
    let pairs = after.bytes.iter().zip(&before.bytes);
    let rates: Vec<f64> = pairs
        .map(|(after, before)| (after - before) as f64 * 8e-9 / seconds)
        .collect();
    let total: f64 = rates.iter().sum();
    let ends = Ends {
        sender: after.ends.sender - before.ends.sender,
        receiver: after.ends.receiver - before.ends.receiver,
    };
    let (cpu, machine) = after.used.since(&before.used, ends);
    let gigabytes = total * seconds / 8.0;
    let mut metrics = vec![
        Metric::more("throughput", "Gbit/s", total),
        Metric::less("cpu", "s/GB", machine / gigabytes),
    ];
    if rates.len() > 1 {
        metrics.push(Metric::more("fairness", "Jain", jain(&rates)));
        for (index, rate) in rates.iter().enumerate() {
            metrics.push(Metric::more(&format!("flow-{index}"), "Gbit/s", *rate));
        }
    }
    Sample {
        metrics,
        cpu,
        ..Sample::default()
    }
}

/// Jain's index: 1 when all are equal, 1/n when one has everything.
pub fn jain(rates: &[f64]) -> f64 {
    let (sum, squares) = rates.iter().fold((0.0, 0.0), |(sum, squares), rate| {
        (sum + rate, squares + rate * rate)
    });
    if squares == 0.0 {
        return 1.0; // nobody has anything
    }
    sum * sum / (rates.len() as f64 * squares)
}

/// One stream at work.
struct Flow {
    counters: Arc<Counters>,
    sender: JoinHandle<io::Result<()>>,
    receiver: JoinHandle<io::Result<()>>,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    sender_nanos: AtomicU64,
    receiver_nanos: AtomicU64,
}

impl Flow {
    fn start(connection: Connection, placement: Placement, stop: &Arc<AtomicBool>) -> Self {
        let counters = Arc::new(Counters::default());
        let Connection { client, server } = connection;
        let (stopped, counted) = (Arc::clone(stop), Arc::clone(&counters));
        let sender = std::thread::spawn(move || {
            placement::pin_sender(placement)?;
            send(client, &stopped, &counted)
        });
        let counted = Arc::clone(&counters);
        let receiver = std::thread::spawn(move || {
            placement::pin_receiver(placement)?;
            receive(server, &counted)
        });
        Self {
            counters,
            sender,
            receiver,
        }
    }

    fn end(self) -> Result<(), MeasureError> {
        for (thread, what) in [(self.sender, "send"), (self.receiver, "receive")] {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
            ended.map_err(refused(format!("{what} a stream")))?;
        }
        Ok(())
    }
}

fn send(mut stream: TcpStream, stop: &AtomicBool, counters: &Counters) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK_SIZE];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
        store_cpu(&counters.sender_nanos)?;
    }
    // What is still in the buffers need not arrive.
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: TcpStream, counters: &Counters) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_SIZE];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(size) => {
                counters.bytes.fetch_add(size as u64, Ordering::Relaxed);
                store_cpu(&counters.receiver_nanos)?;
            }
            // A signal, such as a tracer's.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn store_cpu(nanos: &AtomicU64) -> io::Result<()> {
    nanos.store((cpu::thread_seconds()? * 1e9) as u64, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use ::tests::lab::Lab;

    /// What `ss` tells of connections that have sent their SYN and have no answer.
    fn half_open() -> String {
        let command = ["-Htin", "state", "syn-sent"];
        let output = Command::new("ss").args(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_congestion_control_is_set_before_the_handshake() {
        let lab = Lab::new("bench-congestion");
        let ns = lab.namespace("one");
        ns.set_up("lo");
        let dialling = ns.run(|| {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener
                .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
                .unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            // The only place among those to be accepted; who comes after it is not answered.
            let _first = dial(address, None).unwrap();
            let (within, dialled) = (ns.clone(), address);
            let dialling = std::thread::spawn(move || within.run(|| dial(dialled, Some("reno"))));
            lab::wait_until(lab::DEADLINE, "a SYN under reno", || {
                half_open().contains("reno")
            });
            dialling
        });
        // Nobody listens any more: the SYN that is sent again is refused.
        assert!(dialling.join().unwrap().is_err());
        let unknown = dial(([127, 0, 0, 1], 9).into(), Some("none-such")).unwrap_err();
        let text = unknown.to_string();
        assert!(
            text.starts_with("set congestion control 'none-such'"),
            "{text}"
        );
    }

    #[test]
    fn jains_index_is_one_for_equals_and_a_share_for_a_winner() {
        assert!((jain(&[3.0, 3.0, 3.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[4.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert!((jain(&[0.0, 0.0]) - 1.0).abs() < 1e-12);
    }
}
