//! Endpoints whose backend the daemon chooses: what it takes, what it says of it, and what it does instead.

#![allow(clippy::unwrap_used)]

mod program;

use serde_json::Value;
use tests::daemon::{Daemon, attach_words};
use tests::lab::{Lab, ip, require_root};

use program::*;

/// The connection of a port, as `port show` tells it.
fn connection(daemon: &Daemon, endpoint: &str) -> Value {
    daemon.json(&["port", "show", endpoint])["connection"].clone()
}

#[test]
fn the_best_backend_for_a_purpose_is_chosen_told_of_and_kept() {
    if !require_root("the_best_backend_for_a_purpose_is_chosen_told_of_and_kept") {
        return;
    }
    let lab = Lab::new("auto");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let before = [&host, &a, &b].map(footprint);
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    let path = a.path();
    let words = [&attach_words(&path, "n", "a")[..], &["--backend", "auto"]].concat();
    let output = daemon.output(&words);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "a eth0 10.88.0.2/24\n"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    let why = "best for large and small frames together";
    assert!(said.contains(&format!("backend packet: {why}")), "{said}");
    daemon.attach(&b, "n", "b", &["--backend", "auto-small"]);

    let told = |daemon: &Daemon| ["a", "b"].map(|name| connection(daemon, name));
    let [of_a, of_b] = told(&daemon);
    assert_eq!(
        (&of_a["backend"], &of_a["asked"]),
        (&"packet".into(), &"auto".into())
    );
    assert_eq!(
        (&of_b["backend"], &of_b["asked"]),
        (&"xdp".into(), &"auto-small".into())
    );
    assert_eq!(of_a["why"], why);
    let ring = "by a ring of shared memory";
    let features = of_a["features"].as_array().unwrap().iter();
    let used: Vec<_> = features
        .map(|it| (it["feature"].clone(), it["used"].clone()))
        .collect();
    let wanted = [
        ("backend", "packet"),
        ("reception", ring),
        ("sending", ring),
    ];
    assert_eq!(
        used,
        wanted.map(|(feature, used)| (feature.into(), used.into()))
    );
    let shown = daemon.run(&["port", "show", "a"]);
    assert!(
        shown.contains("  backend packet, asked for auto: best"),
        "{shown}"
    );
    assert!(shown.contains("    reception by a ring"), "{shown}");
    let _server = echo(&b, "10.88.0.3:80");
    assert_eq!(seen_address(&a, "10.88.0.3:80"), ip("10.88.0.2"));

    daemon.kill();
    daemon.restart();
    assert_eq!(told(&daemon), [of_a, of_b]);
    assert_eq!(seen_address(&a, "10.88.0.3:80"), ip("10.88.0.2"));

    // What a lab is written as is what was asked for, which leads to the same.
    let file = lab.dir().join("lab.toml");
    let written = daemon.run(&["export"]);
    assert!(written.contains("backend = \"auto-small\""), "{written}");
    std::fs::write(&file, &written).unwrap();
    let applied = daemon.run(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(applied, "nothing to do\n");
    daemon.clean();
    assert_eq!([&host, &a, &b].map(footprint), before);
}

#[test]
fn what_the_machine_refuses_is_named_with_what_is_used_instead() {
    if !require_root("what_the_machine_refuses_is_named_with_what_is_used_instead") {
        return;
    }
    let lab = Lab::new("auto-poor");
    let [host, a, b] = lab.namespaces(["host", "a", "b"]);
    let before = [&host, &a, &b].map(footprint);
    let mut daemon = Daemon::start_short_of_memory(&lab, &host, &["--uplink", "none"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    let path = b.path();
    let words = attach_words(&path, "n", "b");
    let refused = daemon.refused(&[&words[..], &["--backend", "xdp"]].concat());
    assert!(refused.contains("limit of locked memory"), "{refused}");
    let output = daemon.output(&[&words[..], &["--backend", "auto-small"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for words in [
        "backend packet: xdp would be better; xdp was not used: no memory for the AF_XDP socket",
        "limit of locked memory",
    ] {
        assert!(said.contains(words), "{said}");
    }
    let of_b = connection(&daemon, "b");
    assert_eq!(
        (&of_b["backend"], &of_b["asked"]),
        (&"packet".into(), &"auto-small".into())
    );
    let status = daemon.json(&["status"]);
    let warned = status["warnings"].as_array().unwrap().iter();
    let warning = "endpoint 'b': backend is packet instead of xdp, which this host refuses";
    assert!(warned.clone().any(|it| it == warning), "{status}");
    assert!(
        daemon.log().contains("xdp was not used"),
        "{}",
        daemon.log()
    );
    let _server = echo(&b, "10.88.0.3:80");
    assert_eq!(seen_address(&a, "10.88.0.3:80"), ip("10.88.0.2"));
    daemon.run(&["detach", "b"]);
    assert_eq!(footprint(&b), before[2], "no half-made device is left");
    daemon.clean();
    assert_eq!([&host, &a, &b].map(footprint), before);
}
