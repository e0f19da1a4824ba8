//! Tables of real switches: their size, how fast they learn, and what they flood.

use bench::measure::{Request, measure};
use bench::result::{Flag, Sample};
use bench::scenario::MeasureName;
use bench::system::{self, Path, SERVER_PORT, Setup, Shape, System, SystemName, Work};
use dataplane::Config;
use dataplane_core::fdb::Limits;
use tests::lab;
use tests::rig::{Backend, Rig};

/// Entries of the small table.
const ENTRIES: usize = 600;

fn figure(sample: &Sample, name: &str) -> f64 {
    let metric = sample.metrics.iter().find(|metric| metric.name == name);
    metric.unwrap_or_else(|| panic!("no {name}")).value
}

fn star(name: SystemName, ports: u16) -> System {
    let setup = Setup {
        shape: Shape::Star,
        ports,
        ..Setup::default()
    };
    system::start(name, &setup).expect("it starts")
}

/// Causeway with three sandboxes and a table of [`ENTRIES`].
fn small() -> System {
    let limits = Limits {
        entries_max: ENTRIES,
        ..Limits::default()
    };
    let config = Config {
        fdb_limits: limits,
        ..Config::default()
    };
    let mut rig = Rig::new("bench-addresses", &config);
    let sandboxes: Vec<_> = (0..3)
        .map(|index| {
            let address = format!("10.0.0.{}/16", index + 2);
            rig.sandbox(&format!("s{index}"), &address, Backend::Tap, 1_500)
        })
        .collect();
    let paths = (0..3).map(|index| {
        let to = &sandboxes[(index + 1) % 3];
        let server = std::net::SocketAddr::new(to.address, SERVER_PORT);
        Path {
            from: sandboxes[index].ns.clone(),
            to: to.ns.clone(),
            listen: server,
            connect: server,
        }
    });
    let work = Work::Threads {
        name: "causeway".to_owned(),
        prefix: "worker-".to_owned(),
    };
    System::of_paths(paths.collect(), work, Box::new(rig))
}

#[test]
fn the_size_of_a_small_table_is_found() {
    if !lab::require_root("addresses") {
        return;
    }
    let system = small();
    let mut request = Request::new(MeasureName::Rfc2889Capacity);
    request.load.rate = 20_000.0;
    request.load.resolution = 0.001;
    let sample = measure(&request, &system).expect("a sample");
    println!("{:?}", sample.metrics);
    // The tester's station and those of the sandboxes have entries too.
    let found = figure(&sample, "addresses") as usize;
    assert!((ENTRIES - 8..ENTRIES).contains(&found), "{found}");
    assert!(sample.flags.is_empty(), "{:?}", sample.flags);
}

#[test]
fn a_table_larger_than_what_is_tried_is_flagged() {
    if !lab::require_root("addresses") {
        return;
    }
    let mut request = Request::new(MeasureName::Rfc2889Capacity);
    request.load.rate = 20_000.0;
    request.load.addresses_max = 2_000;
    for name in [SystemName::Bridge, SystemName::Causeway] {
        let sample = measure(&request, &star(name, 3)).expect("a sample");
        assert_eq!(figure(&sample, "addresses"), 2_000.0, "{name}");
        assert_eq!(sample.flags, [Flag::CeilingReached], "{name}");
    }
}

#[test]
fn addresses_are_learned_at_some_rate_and_a_full_table_learns_at_none() {
    if !lab::require_root("addresses") {
        return;
    }
    let mut request = Request::new(MeasureName::Rfc2889LearningRate);
    request.load.addresses = 512;
    request.load.rate = 20_000.0;
    request.load.rate_max = 50_000.0;
    request.load.resolution = 0.2;
    for name in [SystemName::Bridge, SystemName::Causeway] {
        let sample = measure(&request, &star(name, 3)).expect("a sample");
        println!("{name}: {:?} {:?}", sample.metrics, sample.flags);
        assert!(figure(&sample, "learning-rate") > 1_000.0, "{name}");
    }
    // More than the small table has room for.
    request.load.addresses = 1_000;
    let sample = measure(&request, &small()).expect("a sample");
    assert_eq!(figure(&sample, "learning-rate"), 0.0);
    assert_eq!(sample.flags, [Flag::FloorReached]);
}

#[test]
fn broadcasts_reach_every_other_port() {
    if !lab::require_root("addresses") {
        return;
    }
    let mut request = Request::new(MeasureName::Rfc2889Broadcast);
    request.load.trial_ms = 200;
    request.load.rate_max = 10_000.0;
    request.load.pdr_loss_max = 0.05;
    for name in [SystemName::Bridge, SystemName::Causeway] {
        let sample = measure(&request, &star(name, 4)).expect("a sample");
        println!("{name}: {:?} {:?}", sample.metrics, sample.flags);
        let pdr = figure(&sample, "pdr");
        assert!(pdr > 0.0005 && pdr <= 0.0101, "{name}: {pdr}");
        let copies = figure(&sample, "pdr-copies");
        assert!((copies - 3.0 * pdr).abs() < 1e-9, "{name}: three others");
        assert!(figure(&sample, "p50-at-50") > 0.0, "{name}");
    }
}
