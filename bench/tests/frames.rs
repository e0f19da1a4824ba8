//! The open loop against a relay that loses, repeats, swaps and stalls as it is told: what is
//! counted is what was done.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::frame_size::FrameSize;
use bench::measure::{Request, measure};
use bench::result::{Flag, Sample};
use bench::scenario::MeasureName;
use bench::system::{Path, System, Work};
use nix::sys::socket::{setsockopt, sockopt};
use tests::lab::{self, Lab};

const RELAY: &str = "10.0.0.3:6000";
const SERVER: &str = "10.0.0.3:5201";

/// What the relay does to the datagrams of a measurement, by their number; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
struct Harm {
    /// Loses every n-th.
    lose: u64,
    /// Sends every n-th twice.
    repeat: u64,
    /// Sends every n-th after the one that follows it.
    swap: u64,
    /// Stands still once, before that one.
    stall_at: u64,
}

/// How long the relay stands still.
const STALL: Duration = Duration::from_millis(50);

/// What the relay has done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    seen: u64,
    lost: u64,
    repeated: u64,
    swapped: u64,
    bytes: u64,
}

fn relay(socket: &UdpSocket, harm: Harm, stop: &AtomicBool) -> Done {
    let mut done = Done::default();
    let mut held: Option<Vec<u8>> = None;
    let mut buffer = [0; 2048];
    let every = |n: u64, number: u64| n > 0 && number.is_multiple_of(n);
    let send = |bytes: &[u8]| drop(socket.send_to(bytes, SERVER));
    while !stop.load(Ordering::Relaxed) {
        let Ok((size, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let bytes = &buffer[..size];
        if bytes[..4] == [0; 4] {
            send(bytes); // a greeting
            continue;
        }
        done.seen += 1;
        done.bytes += size as u64;
        if done.seen == harm.stall_at {
            let start = Instant::now();
            while start.elapsed() < STALL {
                std::thread::park_timeout(STALL);
            }
        }
        if let Some(held) = held.take() {
            send(bytes);
            send(&held);
            done.swapped += 1;
        } else if every(harm.lose, done.seen) {
            done.lost += 1;
        } else if every(harm.swap, done.seen) {
            held = Some(bytes.to_vec());
        } else {
            send(bytes);
            if every(harm.repeat, done.seen) {
                send(bytes);
                done.repeated += 1;
            }
        }
    }
    done.lost += u64::from(held.is_some());
    done
}

/// Measures 10,000 datagrams in half a second through a relay.
fn through(harm: Harm, flows: u16) -> (Sample, Done) {
    let mut request = Request::new(MeasureName::Frames);
    request.flows = flows;
    request.load.rate = 20_000.0;
    request.load.warm_up_ms = 0;
    request.load.duration_ms = 500;
    measured_through(harm, &request)
}

/// Measures through a relay.
fn measured_through(harm: Harm, request: &Request) -> (Sample, Done) {
    let lab = Lab::new("bench-relay");
    let (from, ns) = (lab.namespace("from"), lab.namespace("relay"));
    lab.cable(&from, "eth0", &ns, "eth0");
    from.add_address("eth0", "10.0.0.2/16");
    ns.add_address("eth0", "10.0.0.3/16");
    ns.set_up("lo");
    let socket = ns.run(|| UdpSocket::bind(RELAY)).expect("a relay");
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("room");
    let wait = Some(Duration::from_millis(20));
    socket.set_read_timeout(wait).expect("a timeout");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread: JoinHandle<Done> = std::thread::spawn(move || relay(&socket, harm, &stopped));
    let work = Work::Threads {
        name: "relay".to_owned(),
        prefix: "relay".to_owned(),
    };
    let mut system = System::of_pair(&[from.clone(), ns.clone()], work, Box::new(lab));
    system.paths = vec![Path {
        from,
        to: ns,
        listen: SERVER.parse().expect("an address"),
        connect: RELAY.parse().expect("an address"),
    }];
    let sample = measure(request, &system).expect("a sample");
    stop.store(true, Ordering::Relaxed);
    (sample, thread.join().expect("a relay that does not panic"))
}

fn figure(sample: &Sample, name: &str) -> f64 {
    let metric = sample.metrics.iter().find(|metric| metric.name == name);
    metric.unwrap_or_else(|| panic!("no {name}")).value
}

#[test]
fn loss_order_and_duplicates_are_counted_exactly() {
    if !lab::require_root("frames") {
        return;
    }
    let harm = Harm {
        lose: 10,
        repeat: 7,
        swap: 33,
        ..Harm::default()
    };
    let (sample, done) = through(harm, 1);
    println!("{done:?}: {:?}", sample.metrics);
    assert!(
        done.lost > 100 && done.repeated > 100 && done.swapped > 20,
        "{done:?}"
    );
    let loss = 100.0 * done.lost as f64 / done.seen as f64;
    assert!((figure(&sample, "loss") - loss).abs() < 1e-9, "{loss}");
    assert_eq!(figure(&sample, "duplicates"), done.repeated as f64);
    assert_eq!(figure(&sample, "reordered"), done.swapped as f64);
    for flag in [Flag::Reordered, Flag::Duplicated] {
        assert!(sample.flags.contains(&flag), "{:?}", sample.flags);
    }
    assert!(!sample.flags.contains(&Flag::ReceiverLimited));
}

#[test]
fn nothing_is_counted_on_a_clean_way() {
    if !lab::require_root("frames") {
        return;
    }
    for flows in [1, 7] {
        let (sample, done) = through(Harm::default(), flows);
        println!("{flows} flows: {done:?}");
        for name in ["loss", "duplicates", "reordered"] {
            assert_eq!(figure(&sample, name), 0.0, "{name}");
        }
    }
}

#[test]
fn a_stall_is_paid_by_everything_that_was_due_meanwhile() {
    if !lab::require_root("frames") {
        return;
    }
    let harm = Harm {
        stall_at: 5_000,
        ..Harm::default()
    };
    let (sample, done) = through(harm, 1);
    println!("{done:?}: {:?}", sample.latency);
    assert!(done.seen > harm.stall_at, "{done:?}");
    let stall = STALL.as_micros() as f64;
    // A tenth of all datagrams was due in those 50 ms, each of which waited for what was left.
    assert!(figure(&sample, "p99.9") > 0.9 * stall);
    assert!(figure(&sample, "max") >= 0.95 * stall);
    assert!(figure(&sample, "p99") > 0.7 * stall);
}

#[test]
fn a_relay_that_loses_one_in_a_thousand_has_a_rate_of_bounded_loss_far_above_that_of_none() {
    if !lab::require_root("frames") {
        return;
    }
    let harm = Harm {
        lose: 1_000,
        ..Harm::default()
    };
    let mut request = Request::new(MeasureName::Rfc2544Throughput);
    request.load.trial_ms = 200;
    request.load.rate_max = 40_000.0;
    request.load.resolution = 0.1;
    let (sample, done) = measured_through(harm, &request);
    println!("{done:?}: {:?}", sample.metrics);
    // Of 40,000 a second each trial loses eight: the first rate that may lose none is below 5,000.
    let (ndr, pdr) = (figure(&sample, "ndr"), figure(&sample, "pdr"));
    assert!(ndr < pdr / 2.0, "{ndr} {pdr}");
    let bits = figure(&sample, "pdr-bits");
    assert!((bits - pdr * 64.0 * 8.0 * 1e-3).abs() < 1e-9, "{bits}");
    assert!(figure(&sample, "trials") > 5.0);
}

#[test]
fn a_burst_that_a_relay_thins_out_is_as_long_as_what_it_leaves_whole() {
    if !lab::require_root("frames") {
        return;
    }
    // The hundredth datagram of all, and every hundredth after it: no burst of 100 comes through.
    let harm = Harm {
        lose: 100,
        ..Harm::default()
    };
    let mut request = Request::new(MeasureName::Rfc2544BackToBack);
    request.load.burst_max = 1_000;
    let (sample, done) = measured_through(harm, &request);
    println!("{done:?}: {:?}", sample.metrics);
    let burst = figure(&sample, "burst");
    assert!((1.0..100.0).contains(&burst), "{burst}");
    let bytes = figure(&sample, "burst-bytes");
    assert!((bytes - burst * 0.064).abs() < 1e-9, "{bytes}");
}

#[test]
fn a_mix_of_sizes_is_sent_in_turn_and_its_bytes_are_counted() {
    if !lab::require_root("frames") {
        return;
    }
    let mut request = Request::new(MeasureName::Frames);
    request.flows = 2;
    request.frame_sizes = FrameSize::Imix.sizes(1_500);
    request.load.rate = 20_000.0;
    request.load.warm_up_ms = 0;
    request.load.duration_ms = 600;
    let (sample, done) = measured_through(Harm::default(), &request);
    println!("{done:?}: {:?}", sample.metrics);
    assert_eq!((done.seen, figure(&sample, "loss")), (12_000, 0.0));
    // 6,000 of each flow are 500 whole turns.
    assert!((figure(&sample, "mean-size") - 4_246.0 / 12.0).abs() < 1e-9);
    assert_eq!(done.bytes, 12_000 / 12 * (4_246 - 12 * 46), "payloads");
    let bits = figure(&sample, "bits");
    assert!((bits - 1e-3 * figure(&sample, "throughput") * 8.0 * 4_246.0 / 12.0).abs() < 1e-9);
}
