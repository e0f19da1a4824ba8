//! What the sources promise of themselves, checked by reading them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use dataplane_core::verdict::DropReason;

/// Crates that the product stands on, each of which must reach the `causeway` binary.
const FOUNDATIONS: [&str; 7] = [
    "tun-tap",
    "etherparse",
    "smoltcp",
    "crossbeam",
    "dashmap",
    "mio",
    "rtnetlink",
];

/// Lines of a Rust file: beyond it nobody reads to the end.
const FILE_LINES_MAX: usize = 700;
/// Lines of `path.rs`, which a newcomer reads in five minutes.
const PATH_LINES_MAX: usize = 170;
/// Lines of a function of the core: about one screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Who may depend on whom: each crate with the crates of ours that it may use.
const DIRECTION: [(&str, &[&str]); 5] = [
    ("dataplane-core", &[]),
    ("dataplane-port", &["dataplane-core"]),
    ("dataplane-service", &["dataplane-core"]),
    (
        "dataplane",
        &["dataplane-core", "dataplane-port", "dataplane-service"],
    ),
    (
        "control",
        &[
            "dataplane-core",
            "dataplane-port",
            "dataplane-service",
            "dataplane",
        ],
    ),
];

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("tests/ has a parent").to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// Every file that git would carry, as (path from the root, content); binary files are left out.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.sort();
    assert!(files.len() > 80, "the tree was read");
    files
}

fn walk(folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the tree can be read") {
        let path = entry.expect("an entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !(name == "target" || name == ".git" || name.ends_with("-target")) {
                walk(&path, files);
            }
        } else if name != "Cargo.lock"
            && name != ".git"
            && let Ok(content) = std::fs::read_to_string(&path)
        {
            let shown = path.strip_prefix(root()).unwrap_or(&path);
            files.push((shown.to_string_lossy().into_owned(), content));
        }
    }
}

fn rust_sources(under: &str) -> Vec<(String, String)> {
    let wanted = |(path, _): &(String, String)| path.starts_with(under) && path.ends_with(".rs");
    sources().into_iter().filter(wanted).collect()
}

/// Lines without their comments; what follows `//` is one, which cuts URLs in strings too.
fn code(content: &str) -> impl Iterator<Item = (usize, &str)> {
    content
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_foundation_reaches_the_binary() {
    for name in FOUNDATIONS {
        let tree = cargo(&["tree", "--offline", "-e", "normal", "-i", name]);
        let reached = tree.lines().any(|line| line.contains("control v"));
        assert!(reached, "{name} does not reach causeway:\n{tree}");
    }
    println!("covered: {} foundations", FOUNDATIONS.len());
}

#[test]
fn dependencies_point_one_way() {
    let ours: BTreeSet<&str> = DIRECTION.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in DIRECTION {
        let arguments = ["tree", "--offline", "-e", "normal,build", "--depth", "1"];
        let arguments = [&arguments[..], &["--prefix", "none", "-p", name]].concat();
        let tree = cargo(&arguments);
        for line in tree.lines().skip(1) {
            let used = line.split(' ').next().unwrap_or_default();
            let forbidden = ["bench", "tests"].contains(&used)
                || ours.contains(used) && !allowed.contains(&used);
            assert!(!forbidden, "{name} depends on {used}");
        }
    }
}

#[test]
fn unsafe_is_in_the_port_crate_alone_and_justified() {
    let mut found = Vec::new();
    let mut blocks = 0;
    for (path, content) in rust_sources("") {
        let lines: Vec<&str> = content.lines().collect();
        for (number, line) in code(&content) {
            let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            if !words.into_iter().any(|word| word == "unsafe") || quoted(line) {
                continue;
            }
            blocks += 1;
            let counter = path == "tests/tests/alloc.rs";
            if !path.starts_with("dataplane/port/") && !counter {
                found.push(format!("{path}:{number}: unsafe outside dataplane/port"));
            }
            let above = &lines[number.saturating_sub(14)..number];
            let told = |line: &&str| line.contains("SAFETY:") || line.contains("/// # Safety");
            if !above.iter().any(told) {
                found.push(format!("{path}:{number}: no SAFETY comment above"));
            }
        }
    }
    println!("covered: {blocks} uses of unsafe");
    assert_none("unsafe", &found);
}

/// Whether the word stands in a string.
fn quoted(line: &str) -> bool {
    line.find('"') < line.find("unsafe") && line.contains('"')
}

#[test]
fn the_core_reads_no_clock_and_touches_no_system() {
    let forbidden = [
        "std::time",
        "std::thread",
        "std::fs",
        "std::env",
        "std::process",
        "std::io",
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "println!",
        "eprintln!",
        "tracing::",
        "thread_rng",
        "unsafe",
    ];
    let mut found = Vec::new();
    for (path, content) in rust_sources("dataplane/core/src") {
        if path.ends_with("tests.rs") || path.contains("/tests/") {
            continue;
        }
        let product = content.split("#[cfg(test)]\nmod tests {").next();
        for (number, line) in code(product.unwrap_or_default()) {
            let hit = forbidden.iter().find(|word| line.contains(**word));
            if let Some(word) = hit.filter(|_| !line.contains("forbid(unsafe_code)")) {
                found.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    assert_none("the core is sans-IO", &found);
}

#[test]
fn nothing_is_left_for_later_and_nothing_names_this_machine() {
    // Written apart, so that this file does not find itself.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X:"],
        ["HA", "CK"],
        ["todo", "!("],
        ["unimplemented", "!("],
        ["for ", "now,"],
        ["#[igno", "re"],
        ["thread::sl", "eep"],
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
    ]
    .map(|halves| halves.concat());
    let mut found = Vec::new();
    for (path, content) in sources() {
        for (index, line) in content.lines().enumerate() {
            let sleeps = line.contains(&marks[8]);
            // The daemon may wait; a test has no business to.
            let test = path.contains("tests/");
            let hit = marks.iter().find(|mark| line.contains(mark.as_str()));
            if let Some(mark) = hit.filter(|_| !sleeps || test) {
                found.push(format!("{path}:{}: {mark}", index + 1));
            }
        }
    }
    assert_none("left behind", &found);
}

#[test]
fn files_and_functions_can_be_read_in_one_go() {
    let mut found = Vec::new();
    let files = rust_sources("");
    for (path, content) in &files {
        let lines = content.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        if path == "dataplane/core/src/path.rs" && lines >= PATH_LINES_MAX {
            found.push(format!("{path}: {lines} lines, below {PATH_LINES_MAX}"));
        }
        if path.starts_with("dataplane/core/src") {
            found.extend(long_functions(path, content));
        }
    }
    println!("covered: {} Rust files", files.len());
    assert_none("too long", &found);
}

/// Functions longer than [`FUNCTION_LINES_MAX`]. rustfmt closes a function at its own indentation.
fn long_functions(path: &str, content: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines: Vec<&str> = content.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        let function = ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn "]
            .iter()
            .any(|beginning| words.starts_with(beginning));
        if !function || words.ends_with('}') || words.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let size = lines[start..].iter().position(|line| *line == end);
        if let Some(size) = size.filter(|size| size + 1 > FUNCTION_LINES_MAX) {
            found.push(format!("{path}:{}: {} lines: {words}", start + 1, size + 1));
        }
    }
    found
}

#[test]
fn the_manual_lists_every_drop_reason() {
    let path = root().join("docs/manual/drops.md");
    let wanted = drops_manual();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).unwrap();
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} differs from DropReason; run: UPDATE_GOLDEN=1 cargo test -p tests --test tidy",
        path.display()
    );
    println!("covered: {} drop reasons", DropReason::COUNT);
}

fn drops_manual() -> String {
    let mut text = String::from(
        "# Drop reasons\n\n\
         Every frame that ends in the switch ends for one of these reasons, and is counted under \
         its label: `causeway drops` lists the counters, `causeway trace` shows the reason of one \
         frame, `causeway why` tells it beforehand. This page is generated from `DropReason` \
         (`dataplane/core/src/verdict.rs`).\n\n\
         | label | stage | what happened |\n|---|---|---|\n",
    );
    for reason in DropReason::ALL {
        let (label, stage, sentence) = (reason.label(), reason.stage(), reason.sentence());
        let _ = writeln!(text, "| `{label}` | {stage} | {sentence} |");
    }
    text
}
