//! What the RFCs ask of a NAT, asked of ours: every requirement is one row, which is a test on a
//! virtual clock through `forward`, and a line of `docs/manual/nat-conformance.md`.
//!
//! A row passes when its body returns. One with a timer passes only when its body has let the clock
//! run for as long as the timer; otherwise the page says "not tested". `UPDATE_GOLDEN=1` writes the
//! page anew.

#![allow(clippy::unwrap_used)]

mod ipv6;
mod lab;
mod pieces;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;
mod routed;

use std::fmt::Write as _;
use std::path::Path;

use lab::Lab;

/// One requirement.
pub struct Row {
    name: &'static str,
    /// RFC and requirement.
    clause: &'static str,
    asks: &'static str,
    ours: &'static str,
    claim: Claim,
    run: fn(&mut Lab),
}

/// What a row claims of our behaviour, once its body has run.
#[derive(Clone, Copy)]
pub enum Claim {
    /// As the RFC asks.
    Meets,
    /// As the RFC asks, after so many seconds of the clock.
    MeetsAfter(u64),
    /// Otherwise, and why. The body shows what happens instead.
    Deviates(&'static str),
}

/// Declares rows: each is a test of its own, and all are lines of the page.
macro_rules! rows {
    ($($name:ident($clause:literal, $asks:literal, $ours:literal, $claim:expr, $run:expr)),+ $(,)?) => {
        pub const ROWS: &[crate::Row] = &[
            $(crate::Row {
                name: stringify!($name),
                clause: $clause,
                asks: $asks,
                ours: $ours,
                claim: $claim,
                run: $run,
            }),+
        ];

        $(#[test]
        fn $name() {
            crate::outcome_of(stringify!($name));
        })+
    };
}
pub(crate) use rows;

fn all() -> impl Iterator<Item = &'static Row> {
    [
        rfc4787::ROWS,
        rfc5382::ROWS,
        rfc5508::ROWS,
        rfc7857::ROWS,
        rfc6888::ROWS,
        ipv6::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// Runs a row; panics when the behaviour is not what it claims.
fn outcome(row: &Row) -> &'static str {
    let mut lab = Lab::new();
    (row.run)(&mut lab);
    match row.claim {
        Claim::Meets => "pass",
        Claim::MeetsAfter(seconds) if lab.waited() >= seconds => "pass",
        Claim::MeetsAfter(_) => "not tested",
        Claim::Deviates(_) => "deviation",
    }
}

fn outcome_of(name: &str) -> &'static str {
    let row = all().find(|row| row.name == name);
    outcome(row.expect("a test has a row"))
}

#[test]
fn the_page_says_what_the_tests_found() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manual/nat-conformance.md");
    let wanted = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is out of date; run: UPDATE_GOLDEN=1 cargo test -p tests --test nat_rfc",
        path.display()
    );
    println!("covered: {} requirements", all().count());
}

#[test]
fn a_timer_that_nobody_waited_for_is_not_tested() {
    let row = |run| Row {
        name: "",
        clause: "",
        asks: "",
        ours: "",
        claim: Claim::MeetsAfter(60),
        run,
    };
    assert_eq!(outcome(&row(|lab| lab.wait(59))), "not tested");
    assert_eq!(outcome(&row(|lab| lab.wait(60))), "pass");
}

#[test]
fn the_only_deviations_are_those_that_were_agreed() {
    for row in all() {
        if matches!(row.claim, Claim::Deviates(_)) {
            assert!(
                row.clause.starts_with("4787 REQ-3"),
                "{}: {}",
                row.name,
                row.clause
            );
        }
    }
}

fn page() -> String {
    let mut text = String::from(
        "# NAT conformance\n\n\
         What the RFCs ask of a NAT and what ours does. This page is generated from the tests in \
         `tests/tests/nat_rfc`: each line is one test on a virtual clock, which sends frames \
         through the data path itself; *not tested* is a timer that nobody waited for. `SHOULD` and \
         `MAY` are the RFCs' own words. Settings are those of the section `[nat]` of the \
         configuration file, and RFC 7857 goes before the RFCs that it updates.\n\n\
         | requirement | what it asks | what Causeway does | result | test |\n\
         |---|---|---|---|---|\n",
    );
    for row in all() {
        let result = match (outcome(row), row.claim) {
            (result, Claim::Deviates(why)) => format!("{result}: {why}"),
            (result, Claim::Meets | Claim::MeetsAfter(_)) => result.to_owned(),
        };
        let (clause, asks, ours, name) = (row.clause, row.asks, row.ours, row.name);
        let _ = writeln!(text, "| {clause} | {asks} | {ours} | {result} | `{name}` |");
    }
    text
}
