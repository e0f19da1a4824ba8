//! What the suites of `causeway nat conform` share: running it, reading what it found, and ways between
//! two namespaces for it to look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::daemon::{binary, path_text};
use crate::lab::{Lab, Namespace, block_on};

/// Where programs are that apt installs.
const PROGRAM_DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What a run found of one NAT: verdict and observation by name.
pub type Rows = BTreeMap<String, (String, String)>;

/// Runs the checker.
///
/// # Panics
/// When it does not start.
pub fn conform(words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(["nat", "conform"]).args(words);
    command.output().expect("the program starts")
}

/// Runs the checker on NATs and returns what it found: of each target IPv4 before IPv6.
///
/// # Panics
/// When it fails, or when one of them translates nothing.
pub fn found(words: &[&str]) -> Vec<Rows> {
    let reports = reports(words).into_iter();
    let translated = |(kind, rows): (String, Rows)| {
        assert!(kind.ends_with("translated"), "{kind}");
        rows
    };
    reports.map(translated).collect()
}

/// Runs the checker and returns what it found, with the family and whether there is a translation.
///
/// # Panics
/// When it fails.
pub fn reports(words: &[&str]) -> Vec<(String, Rows)> {
    let words = [words, &["--json"]].concat();
    let output = conform(&words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    let reports: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let reports = reports.as_array().expect("a report for each target");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let row = |row: &Value| {
        let finding = (text(&row["verdict"]), text(&row["observed"]));
        (text(&row["name"]), finding)
    };
    let rows = |report: &Value| -> (String, Rows) {
        let rows = report["rows"].as_array().expect("rows");
        let kind = format!("{} {}", text(&report["family"]), text(&report["mode"]));
        println!("{}, {kind}, seed {}", report["target"], report["seed"]);
        for row in rows {
            let (source, name) = (text(&row["source"]), text(&row["name"]));
            let (verdict, observed) = (text(&row["verdict"]), text(&row["observed"]));
            println!("  {source:32} {name:24} {verdict:10} {observed}");
        }
        (kind, rows.iter().map(row).collect())
    };
    reports.iter().map(rows).collect()
}

/// The names of the rows with a verdict.
pub fn with_verdict<'a>(rows: &'a Rows, verdict: &str) -> Vec<&'a str> {
    let of = |(name, finding): (&'a String, &(String, String))| {
        (finding.0 == verdict).then_some(name.as_str())
    };
    rows.iter().filter_map(of).collect()
}

/// Asserts a row's verdict, and a part of what was observed.
///
/// # Panics
/// When it is another.
#[track_caller]
pub fn assert_finding(rows: &Rows, name: &str, verdict: &str, observed: &str) {
    let finding = &rows[name];
    assert_eq!(finding.0, verdict, "{name}: {finding:?}");
    assert!(finding.1.contains(observed), "{name}: {finding:?}");
}

/// An inside and an outside with a host between them that does nothing yet.
#[derive(Debug)]
pub struct Way {
    /// Where it all is.
    pub lab: Lab,
    /// Behind the NAT.
    pub inside: Namespace,
    /// Where the NAT is to be.
    pub host: Namespace,
    /// The remotes.
    pub outside: Namespace,
    /// Another host inside, where the NAT has to know it.
    pub second: Option<Namespace>,
}

impl Way {
    /// The outside's MTU is smaller than the inside's.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (host, outside) = lab.host_and_outside();
        host.add_address("up0", "2001:db8::1/64");
        outside.add_address("eth0", "2001:db8::2/64");
        host.set_mtu("up0", 1_400);
        outside.set_mtu("eth0", 1_400);
        let inside = lab.namespace("inside");
        Self {
            lab,
            inside,
            host,
            outside,
            second: None,
        }
    }

    /// The inside behind the host by a cable; the host forwards.
    pub fn routed(name: &str) -> Self {
        let way = Self::new(name);
        way.lab.cable(&way.host, "in0", &way.inside, "eth0");
        way.host.add_address("in0", "10.0.0.1/24");
        way.inside.add_address("eth0", "10.0.0.2/24");
        way.inside.add_default_route("eth0", "10.0.0.1");
        way.host.add_address("in0", "fd00::1/64");
        way.inside.add_address("eth0", "fd00::2/64");
        way.inside.add_default_route("eth0", "fd00::1");
        way.host.set_sysctl("net/ipv4/ip_forward", "1");
        way.host.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        way
    }

    /// The kernel's masquerade, of both families, by the program `nft`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn nft(name: &str, nft: &Path) -> Self {
        let way = Self::routed(name);
        let rules = way.lab.dir().join("rules.nft");
        let table = |family| {
            format!(
                "table {family} nat {{\n\
                 chain out {{ type nat hook postrouting priority srcnat; \
                 oifname \"up0\" masquerade; }}\n}}\n"
            )
        };
        std::fs::write(&rules, table("ip") + &table("ip6")).expect("a file in the lab's directory");
        let mut command = Command::new(nft);
        command.arg("-f").arg(&rules);
        let output = way.host.run(|| command.output()).expect("nft starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        way
    }

    /// The words for the checker.
    pub fn target(&self, name: &str) -> String {
        let namespaces = [&self.inside, &self.outside].into_iter();
        let paths: Vec<String> = namespaces
            .chain(&self.second)
            .map(|ns| path_text(&ns.path()).to_owned())
            .collect();
        format!("{name}={}", paths.join(","))
    }

    /// How many addresses the inside and the outside have.
    ///
    /// # Panics
    /// When the kernel does not tell.
    pub fn addresses(&self) -> [usize; 2] {
        [&self.inside, &self.outside].map(|ns| {
            let all = block_on(ns.netlink().addresses());
            all.expect("the kernel lists them").len()
        })
    }
}

/// A program of a package, or a word about its absence.
pub fn program(test: &str, name: &str, package: &str) -> Option<PathBuf> {
    let found = PROGRAM_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists());
    if found.is_none() {
        println!("not tested: {test}: {name} is not installed (apt-get install {package})");
    }
    found
}
