//! `docs/manual/coverage.md`: which tests show which of the capabilities that the project set out to have.
//!
//! A test says so in the line above its `#[test]`: `/// Covers: 16, 37`. The page has a line for each capability,
//! with its tests; one that should be there and is shown by none is named as such.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What precedes the numbers in the sources.
const MARK: &str = "/// Covers: ";
/// Where tests are that may say it.
const FOLDERS: [&str; 2] = ["tests/tests", "bench/tests"];

/// Whether a capability is the switch's to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// It is.
    In,
    /// It is not, or not yet, for this reason.
    Out(&'static str),
}
use Scope::{In, Out};

/// A part of the list, with its capabilities.
struct Part {
    title: &'static str,
    rows: &'static [(u16, &'static str, Scope)],
}

const DOCKERS: &str = "Docker's own; belongs to a driver for it";
const OVERLAY: &str = "between hosts; an overlay is not built yet";

const PARTS: [Part; 5] = [
    Part {
        title: "Namespaces and cables",
        rows: &[
            (
                1,
                "a namespace has devices, routes, rules and sockets of its own",
                In,
            ),
            (
                2,
                "namespaces are added, listed and removed; `ip netns` knows the same",
                In,
            ),
            (
                3,
                "a name is a bind mount that persists; nothing is left after its removal",
                In,
            ),
            (4, "a hundred namespaces listen on the same port", In),
            (
                5,
                "`lo` is up in a new namespace, or down where asked for",
                In,
            ),
            (6, "no iptables or nftables rule is written", In),
            (7, "a veth pair is made whole: names, MTU, MAC", In),
            (
                8,
                "the far end is made in the namespace, without a moment elsewhere",
                In,
            ),
            (
                9,
                "a card of the host is a port; an endpoint moves to another sandbox under traffic",
                In,
            ),
            (
                10,
                "`eth0` inside; the host's end is a bare plug without addresses",
                In,
            ),
            (
                11,
                "a port follows its carrier, and its stations go with it",
                In,
            ),
            (
                12,
                "of a port's far end are told: namespace, interface, MAC, addresses",
                In,
            ),
            (
                13,
                "addresses at both ends of a wire, or through the switch, ping each other",
                In,
            ),
            (14, "a link that went down works again when it is up", In),
            (
                15,
                "the network namespace is a program's own, and nothing else unless asked for",
                In,
            ),
            (
                16,
                "hidden namespaces: found, exposed, attached by process, path or container",
                In,
            ),
            (
                17,
                "the end of a namespace is seen in 100 ms, and takes port, stations and sessions along",
                In,
            ),
        ],
    },
    Part {
        title: "The bridge is a learning switch",
        rows: &[
            (18, "frames go where their destination was heard", In),
            (19, "forwarding, filtering and flooding, counted apart", In),
            (20, "the story of a first ping, from ARP to unicast", In),
            (21, "the table of stations: port, VLAN, age, kind", In),
            (22, "many namespaces on one switch", In),
            (
                23,
                "the host is on the network, at the gateway's address",
                In,
            ),
            (
                24,
                "no frame is delivered twice, to the switch and the host",
                In,
            ),
            (
                25,
                "networks are routed to each other where that is allowed",
                In,
            ),
            (
                26,
                "a file brings a whole lab up, and a second time changes nothing",
                In,
            ),
            (27, "a listing as `brctl show` has it", In),
            (28, "ports come and go beside others' traffic", In),
            (29, "a sandbox's routes: its subnet, and a way out", In),
            (30, "a port's counters are those of its interface", In),
            (31, "IPv6 link-local addresses work", In),
        ],
    },
    Part {
        title: "Modes and networks",
        rows: &[
            (32, "a network from the start, 172.17.0.0/16", In),
            (33, "addresses are given, taken back and kept", In),
            (34, "a MAC from the address, or a random one", In),
            (35, "mode: a sandbox on a network", In),
            (36, "mode: the host's network", In),
            (37, "mode: another one's sandbox", In),
            (38, "mode: nothing but `lo`, and a network later", In),
            (39, "mode: nothing but `lo`, and no way out", In),
            (40, "networks are listed", In),
            (
                41,
                "networks are made with subnet, gateway, range, IPv6, internal",
                In,
            ),
            (42, "`inspect` in Docker's shape", Out(DOCKERS)),
            (
                43,
                "a second network is plugged in and out while flows go on",
                In,
            ),
            (
                44,
                "networks are removed when nobody is on them; unused ones together",
                In,
            ),
            (
                45,
                "a sandbox on several networks, with a choice of its way out",
                In,
            ),
            (46, "a name for another one that is known one way only", In),
            (47, "names within a network, none across", In),
            (
                48,
                "names and ports follow an endpoint to another address",
                In,
            ),
            (49, "networks keep to themselves, broadcasts too", In),
            (50, "name servers of daemon, network and program", In),
            (
                51,
                "a bridge of the kernel's is taken over",
                Out("belongs to adopting docker0"),
            ),
            (52, "the keys of `daemon.json`", Out(DOCKERS)),
            (
                53,
                "a subnet that the host has a route to is refused, and the route named",
                In,
            ),
            (54, "frames in the switch pass no rule of the host's", In),
        ],
    },
    Part {
        title: "NAT, publishing, filtering",
        rows: &[
            (55, "the way out is by the host's address", In),
            (56, "the way in is by rules with counters", In),
            (57, "`-p PORT`: a free port of the host", In),
            (58, "`-p HOST_PORT:PORT`", In),
            (59, "`-p IP::PORT`, `-p IP:HOST_PORT:PORT`", In),
            (60, "`-P`: all that is exposed; ranges are one rule", In),
            (61, "`port NAME` lists an endpoint's ports", In),
            (62, "one port leads to several servers", In),
            (63, "a sandbox reaches the host's own addresses", In),
            (64, "the host reaches a sandbox by its address", In),
            (
                65,
                "a sandbox reaches other hosts, translated or routed",
                In,
            ),
            (66, "rules with names and counters", In),
            (67, "what the NAT costs", In),
            (
                68,
                "MACs in two places are told of; one MAC for all on Wi-Fi",
                In,
            ),
        ],
    },
    Part {
        title: "The LAN and other hosts",
        rows: &[
            (
                69,
                "the host's address moves to a port beside its card, and back",
                In,
            ),
            (
                70,
                "containers of the LAN and the host reach each other",
                In,
            ),
            (71, "pipework's grammar", In),
            (72, "a container with an address of the LAN's", In),
            (73, "VXLAN", Out(OVERLAY)),
            (74, "one network on several hosts", Out(OVERLAY)),
            (75, "where on which host a station is", Out(OVERLAY)),
        ],
    },
];

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("tests/ has a parent").to_owned()
}

/// A test, as the page names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    file: String,
    test: String,
}

/// The tests that show each capability. Panics where a line says nothing, or something that is not.
fn shown() -> BTreeMap<u16, Vec<Shown>> {
    let mut all: BTreeMap<u16, Vec<Shown>> = BTreeMap::new();
    for folder in FOLDERS {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder of tests") {
            let path = entry.expect("an entry can be read").path();
            let file = path.file_stem().unwrap_or_default().to_string_lossy();
            // The mark above stands here as well.
            if path.extension().is_none_or(|end| end != "rs") || file == "coverage_page" {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            let lines: Vec<&str> = text.lines().collect();
            for (index, line) in lines.iter().enumerate() {
                let Some(numbers) = line.trim_start().strip_prefix(MARK) else {
                    continue;
                };
                let place = format!("{file}.rs:{}", index + 1);
                let test = test_below(&lines[index + 1..]);
                let test = test.unwrap_or_else(|| panic!("{place}: no test below"));
                for number in numbers.split(',') {
                    let number: u16 = number
                        .trim()
                        .parse()
                        .unwrap_or_else(|_| panic!("{place}: '{number}' is no number"));
                    let (file, test) = (file.to_string(), test.to_owned());
                    all.entry(number).or_default().push(Shown { file, test });
                }
            }
        }
    }
    for shown in all.values_mut() {
        shown.sort();
    }
    all
}

/// The name of the test that begins on the next line.
fn test_below<'l>(lines: &[&'l str]) -> Option<&'l str> {
    let [attribute, function, ..] = lines else {
        return None;
    };
    let name = function.trim_start().strip_prefix("fn ")?;
    (attribute.trim() == "#[test]").then(|| name.split('(').next())?
}

fn page(shown: &BTreeMap<u16, Vec<Shown>>) -> String {
    let mut text = String::from(
        "# What the tests show\n\n\
         What the tutorials on container networking show with docker, `ip netns`, `brctl`, pipework and iptables, \
         and the tests that show it with Causeway, in namespaces and by its own command line. This page is \
         generated from the lines `/// Covers:` above tests (`tests/tests/coverage_page.rs`).\n",
    );
    for part in &PARTS {
        let _ = write!(
            text,
            "\n## {}\n\n| | capability | shown by |\n|---|---|---|\n",
            part.title
        );
        for (number, what, scope) in part.rows {
            let tests = shown.get(number).map(Vec::as_slice).unwrap_or_default();
            let cell = match (scope, tests) {
                (Out(reason), []) => format!("out of scope: {reason}"),
                (In, []) => "**not covered yet**".to_owned(),
                (_, tests) => {
                    let names = tests
                        .iter()
                        .map(|one| format!("`{}`: {}", one.file, one.test));
                    names.collect::<Vec<_>>().join("<br>")
                }
            };
            let _ = writeln!(text, "| {number} | {what} | {cell} |");
        }
    }
    text
}

#[test]
fn the_page_says_what_the_tests_say_of_themselves() {
    let shown = shown();
    let rows = PARTS.iter().flat_map(|part| part.rows);
    let numbers: Vec<u16> = rows.map(|(number, ..)| *number).collect();
    assert!(numbers.iter().copied().eq(1..=75), "{numbers:?}");
    let unknown: Vec<_> = shown
        .keys()
        .filter(|number| !numbers.contains(number))
        .collect();
    assert!(unknown.is_empty(), "no such capabilities: {unknown:?}");
    let wanted = page(&shown);
    let path = root().join("docs/manual/coverage.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the tests say; run: UPDATE_GOLDEN=1 cargo test -p tests --test coverage_page",
        path.display()
    );
    println!("covered: {} capabilities", shown.len());
}
