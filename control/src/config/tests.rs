//! The configuration, from files.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn load(text: &str) -> Result<Config, String> {
    load_with(text, Overrides::default())
}

fn load_with(text: &str, overrides: Overrides) -> Result<Config, String> {
    // Tests run side by side.
    static LOADED: AtomicU32 = AtomicU32::new(0);
    let number = LOADED.fetch_add(1, Ordering::Relaxed);
    let name = format!("cw-config-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let config = Config::load(Some(&path), overrides);
    std::fs::remove_file(&path).unwrap();
    config.map_err(|error| error.to_string())
}

#[test]
fn workers_wait_as_the_file_or_the_command_line_says() {
    let waiting = |text: &str| load(text).map(|config| config.dataplane.waiting);
    assert_eq!(waiting("waiting = \"always\""), Ok(Waiting::Always));
    let spin = Duration::from_micros(7);
    assert_eq!(
        waiting("spin_microseconds = 7"),
        Ok(Waiting::Adaptive { spin })
    );
    let overrides = Overrides {
        waiting: Some(WaitingMode::Sleep),
        ..Overrides::default()
    };
    let config = Config::load(None, overrides).unwrap();
    assert_eq!(config.dataplane.waiting, Waiting::Sleep);
    assert_eq!(
        load("batch_frames_max = 8")
            .unwrap()
            .dataplane
            .batch_frames_max,
        8
    );
    let polled = |text: &str| load(text).map(|config| config.busy_poll_frames);
    assert_eq!(polled("busy_poll_frames = 64"), Ok(Some(64)));
    assert_eq!(polled(""), Ok(None));
    let asleep = polled("busy_poll_frames = 8\nwaiting = \"sleep\"").unwrap_err();
    assert!(asleep.contains("none does; leave one"), "{asleep}");
    for wrong in [
        "spin_microseconds = 0",
        "busy_poll_frames = 0",
        "busy_poll_frames = 65",
        "batch_frames_max = 65",
        "workers = 0",
    ] {
        let key = wrong.split(' ').next().unwrap();
        let error = waiting(wrong).unwrap_err();
        assert!(
            error.contains(key) && error.contains("from 1 to"),
            "{error}"
        );
    }
    assert!(
        waiting("waiting = \"sometimes\"")
            .unwrap_err()
            .contains("sometimes")
    );
}

#[test]
fn an_empty_file_gives_the_defaults_and_the_command_line_wins() {
    let config = load("").unwrap();
    assert_eq!(config.socket, Path::new(SOCKET_DEFAULT));
    assert_eq!(config.uplinks, Uplinks::DefaultRoute);
    let (ours, theirs) = (config.dataplane, dataplane::Config::default());
    assert_eq!(
        (ours.workers, ours.waiting),
        (theirs.workers, theirs.waiting)
    );
    assert_eq!(ours.batch_frames_max, theirs.batch_frames_max);
    let overrides = Overrides {
        socket: Some("/tmp/s".into()),
        uplinks: vec!["none".to_owned()],
        ..Overrides::default()
    };
    let config = Config::load(None, overrides).unwrap();
    assert_eq!(config.socket, Path::new("/tmp/s"));
    assert_eq!(config.uplinks, Uplinks::Named(Vec::new()));
}

#[test]
fn a_network_may_behave_otherwise_than_the_rest() {
    let text = "[nat]\nmapping = \"address-dependent\"\nshare_ports = false\nclamp_mss = true\n\
                udp_inbound_refresh = false\nexternal_addresses = [\"192.0.2.1\"]\n\
                [nat.networks.games]\nfiltering = \"endpoint-independent\"";
    let nat = load(text).unwrap().nat;
    let strict = Dependence::AddressAndPortDependent;
    let (games, web) = (nat.behaviour_of("games"), nat.behaviour_of("web"));
    assert_eq!(games.mapping, Dependence::AddressDependent);
    assert_eq!(games.filtering, Dependence::EndpointIndependent);
    assert_eq!(
        (web.mapping, web.filtering),
        (Dependence::AddressDependent, strict)
    );
    assert!(nat.clamp_mss && !nat.share_ports && !nat.udp_inbound_refresh);
    assert_eq!(nat.external_addresses.len(), 1);
    let empty = load("[nat]\nexternal_addresses = []").unwrap_err();
    assert!(empty.contains("names no address"), "{empty}");
    let wrong = load("[nat]\nfiltering = \"symmetric\"").unwrap_err();
    assert!(wrong.contains("symmetric"), "{wrong}");
}

#[test]
fn sessions_are_kept_where_the_file_or_the_command_line_says_so() {
    let with = |text: &str, sessions| {
        let overrides = Overrides {
            sessions,
            ..Overrides::default()
        };
        let kept = load_with(text, overrides).unwrap();
        let from_start = kept.dataplane.clock_start == Instant::ZERO;
        assert_eq!(from_start, kept.sessions == Sessions::Forgotten);
        kept.sessions
    };
    let file = "[nat]\nkeep_sessions = true";
    assert_eq!(with("", Sessions::Forgotten), Sessions::Forgotten);
    assert_eq!(with(file, Sessions::Forgotten), Sessions::Kept);
    assert_eq!(with("", Sessions::Kept), Sessions::Kept);
    let off = "[nat]\nkeep_sessions = false";
    assert_eq!(with(off, Sessions::Kept), Sessions::Kept);
}

#[test]
fn timeouts_below_the_rfcs_least_need_force() {
    let short = "[nat]\ntcp_closing_timeout_seconds = 10";
    let error = load(short).unwrap_err();
    assert!(
        error.contains("RFC 5382") && error.contains("force"),
        "{error}"
    );
    let timeouts = load(&format!("{short}\nforce = true"))
        .unwrap()
        .nat
        .timeouts;
    assert_eq!(timeouts.tcp_closing.as_secs(), 10);
    assert_eq!(timeouts.udp_dns, None);
    let dns = load("[nat]\nudp_dns_timeout_seconds = 10").unwrap();
    let timeouts = dns.nat.timeouts;
    assert_eq!(
        (timeouts.udp_dns, timeouts.udp.as_secs()),
        (Some(Duration::from_secs(10)), 300)
    );
}

#[test]
fn unknown_keys_and_values_out_of_range_are_named() {
    for (text, part) in [
        ("workerz = 2", "workerz"),
        ("[nat]\nudp_timeout = 3", "udp_timeout"),
        ("workers = 0", "workers must be from 1 to 16"),
        (
            "[nat]\nudp_timeout_seconds = 0",
            "nat.udp_timeout_seconds must be from 1",
        ),
        (
            "[nat]\nport_first = 60000\nport_last = 50000",
            "60000-50000",
        ),
        ("[nat]\nport_first = 2000", "2000-65535"),
        ("uplinks = [\"a b\"]", "'a b'"),
        ("uplinks = [\"none\", \"eth0\"]", "--uplink none"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}
