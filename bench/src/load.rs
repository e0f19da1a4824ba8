//! Load between two sandboxes, by plain sockets, bounded in time and count.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{self, MsgFlags, MultiHeaders, SockaddrStorage};
use nix::unistd::Pid;
use tests::lab;

use crate::systems::Pair;

/// How long one bulk transfer runs.
const BULK_TIME: Duration = Duration::from_millis(1_500);
/// Of that, how much is not counted: slow start, and caches that fill.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long one rate of datagrams is tried.
const RATE_TIME: Duration = Duration::from_millis(400);
/// Datagrams per system call.
const BURST: usize = 32;
/// Steps of the search for the highest rate: 1.5 % of resolution over a factor of 16.
const SEARCH_STEPS: usize = 8;
/// Round trips of one latency measurement.
const ROUND_TRIPS: usize = 10_000;
const PORT: u16 = 5201;
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// What a bulk transfer came to.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Payload received.
    pub gbits: f64,
    /// CPU seconds of the whole machine for each gigabyte, both ends and the switch included.
    pub cpu_seconds_per_gb: f64,
}

/// One TCP stream from a to b with the given congestion control.
pub fn bulk(pair: &Pair, congestion: &str) -> io::Result<Bulk> {
    let to = SocketAddr::new(pair.address, PORT);
    let listener = pair.b.run(|| TcpListener::bind(to))?;
    let stream = pair
        .a
        .run(|| TcpStream::connect_timeout(&to, lab::DEADLINE))?;
    let name = std::ffi::OsString::from(congestion);
    socket::setsockopt(&stream, socket::sockopt::TcpCongestion, &name)?;
    let (mut sink, _) = listener.accept()?;
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let chunk = vec![0x5a; 1 << 18];
            let mut stream = stream;
            while !stop.load(Ordering::Relaxed) && stream.write_all(&chunk).is_ok() {}
        })
    };
    sink.set_read_timeout(Some(IO_TIMEOUT))?;
    let mut chunk = vec![0; 1 << 18];
    let begin = Instant::now();
    while begin.elapsed() < WARM_UP {
        let _ = read(&mut sink, &mut chunk)?;
    }
    let (start, cpu) = (Instant::now(), machine_cpu_seconds()?);
    let mut bytes = 0;
    while begin.elapsed() < BULK_TIME {
        bytes += read(&mut sink, &mut chunk)?;
    }
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), machine_cpu_seconds()? - cpu);
    stop.store(true, Ordering::Relaxed);
    drop(sink);
    sender
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))?;
    Ok(Bulk {
        gbits: bytes as f64 * 8e-9 / elapsed,
        cpu_seconds_per_gb: cpu / (bytes as f64 * 1e-9),
    })
}

/// Reads what is there; a signal, such as a tracer's, is no reason to stop.
fn read(stream: &mut TcpStream, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Highest rate of 64-byte frames, in millions a second, of which a socket gets 99 %. Datagrams of
/// 18 bytes make frames of 60 bytes, 64 with the frame check sequence.
pub fn small_frames(pair: &Pair) -> io::Result<f64> {
    let (mut low, mut high) = (0.05e6_f64, 2.0e6_f64);
    let mut best = 0.0;
    for _ in 0..SEARCH_STEPS {
        let rate = (low * high).sqrt();
        let (sent, received) = try_rate(pair, rate)?;
        if received >= 0.99 * sent && sent > 0.9 * rate {
            best = received;
            low = rate;
        } else {
            best = if received >= 0.99 * sent {
                best.max(received)
            } else {
                best
            };
            high = rate;
        }
    }
    Ok(best * 1e-6)
}

/// Sends at `rate` for a while; frames sent and received, per second.
fn try_rate(pair: &Pair, rate: f64) -> io::Result<(f64, f64)> {
    let to = SocketAddr::new(pair.address, PORT);
    let receiver = pair.b.run(|| UdpSocket::bind(to))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket::setsockopt(&receiver, socket::sockopt::RcvBufForce, &(8 << 20))?;
    let done = Arc::new(AtomicBool::new(false));
    let counter = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || count_datagrams(&receiver, &done))
    };
    let sender = pair.a.run(|| UdpSocket::bind((pair.unspecified(), 0)))?;
    sender.connect(to)?;
    let sent = send_paced(&sender, rate)?;
    done.store(true, Ordering::Relaxed);
    let received = counter
        .join()
        .map_err(|_| io::Error::other("the receiver panicked"))??;
    let seconds = RATE_TIME.as_secs_f64();
    Ok((sent as f64 / seconds, received as f64 / seconds))
}

/// Open loop: the schedule does not wait for anybody.
fn send_paced(socket: &UdpSocket, rate: f64) -> io::Result<u64> {
    let payload = [0x5a_u8; 18];
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BURST).map(|_| [IoSlice::new(&payload)]).collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let peers = vec![None::<SockaddrStorage>; BURST];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < RATE_TIME {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        if sent >= due {
            std::hint::spin_loop();
            continue;
        }
        let messages = socket::sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &peers,
            [],
            MsgFlags::empty(),
        );
        match messages {
            Ok(messages) => sent += messages.count() as u64,
            // The device's queue is full: the frame is lost, and counted as sent.
            Err(nix::errno::Errno::ENOBUFS) => sent += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}

fn count_datagrams(socket: &UdpSocket, done: &AtomicBool) -> io::Result<u64> {
    let mut buffers = vec![[0_u8; 64]; BURST];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let mut received = 0;
    loop {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match socket::recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter_mut(),
            flags,
            None,
        ) {
            Ok(messages) => received += messages.count() as u64,
            Err(nix::errno::Errno::EAGAIN) if done.load(Ordering::Relaxed) => return Ok(received),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Round-trip times of single bytes over TCP, in microseconds, sorted.
///
/// # Errors
/// What the sockets say.
pub fn round_trips(pair: &Pair, ends: Placement) -> io::Result<Vec<f64>> {
    let to = SocketAddr::new(pair.address, PORT);
    let listener = pair.b.run(|| TcpListener::bind(to))?;
    let mut stream = pair
        .a
        .run(|| TcpStream::connect_timeout(&to, lab::DEADLINE))?;
    let (mut echo, _) = listener.accept()?;
    for side in [&stream, &echo] {
        side.set_nodelay(true)?;
        side.set_read_timeout(Some(IO_TIMEOUT))?;
    }
    let echoing = std::thread::spawn(move || -> io::Result<()> {
        pin(ends.second())?;
        let mut byte = [0];
        while echo.read(&mut byte)? == 1 {
            echo.write_all(&byte)?;
        }
        Ok(())
    });
    let times = std::thread::spawn(move || -> io::Result<Vec<f64>> {
        pin(ends.first())?;
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        let mut byte = [0];
        for round in 0..ROUND_TRIPS + ROUND_TRIPS / 10 {
            let start = Instant::now();
            stream.write_all(&[1])?;
            stream.read_exact(&mut byte)?;
            if round >= ROUND_TRIPS / 10 {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(times)
    });
    let times = times
        .join()
        .map_err(|_| io::Error::other("the pinger panicked"))??;
    echoing
        .join()
        .map_err(|_| io::Error::other("the echo panicked"))??;
    Ok(times)
}

/// Which CPUs the two ends of a conversation run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Both on CPU 0.
    Together,
    /// On CPU 0 and CPU 1.
    Apart,
}

impl Placement {
    const fn first(self) -> usize {
        0
    }

    const fn second(self) -> usize {
        match self {
            Self::Together => 0,
            Self::Apart => 1,
        }
    }
}

/// Ties the calling thread to a CPU.
fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// CPU seconds that this process has used: all ends and workers are threads of it, but for what
/// the kernel does in softirq on behalf of others.
pub fn process_cpu_seconds() -> io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Busy CPU seconds of the whole machine, from /proc/stat: softirq included.
fn machine_cpu_seconds() -> io::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy: f64 = [0, 1, 2, 5, 6]
        .iter()
        .map(|index| ticks.get(*index).copied().unwrap_or(0.0))
        .sum();
    Ok(busy / 100.0)
}
