//! The scenarios that come with the program.

use std::path::Path;

use anyhow::{Context, bail};

use crate::plan::{self, Plan};

/// Name and text of each, in the order in which they are listed.
pub const ALL: [(&str, &str); 29] = [
    ("smoke", include_str!("../scenarios/smoke.toml")),
    ("pair-bulk", include_str!("../scenarios/pair-bulk.toml")),
    ("pair-frames", include_str!("../scenarios/pair-frames.toml")),
    (
        "pair-latency",
        include_str!("../scenarios/pair-latency.toml"),
    ),
    (
        "pair-connections",
        include_str!("../scenarios/pair-connections.toml"),
    ),
    (
        "rfc2544-throughput",
        include_str!("../scenarios/rfc2544-throughput.toml"),
    ),
    (
        "rfc2544-latency",
        include_str!("../scenarios/rfc2544-latency.toml"),
    ),
    (
        "rfc2544-back-to-back",
        include_str!("../scenarios/rfc2544-back-to-back.toml"),
    ),
    ("imix", include_str!("../scenarios/imix.toml")),
    (
        "rfc2889-capacity",
        include_str!("../scenarios/rfc2889-capacity.toml"),
    ),
    (
        "rfc2889-learning-rate",
        include_str!("../scenarios/rfc2889-learning-rate.toml"),
    ),
    (
        "rfc2889-broadcast",
        include_str!("../scenarios/rfc2889-broadcast.toml"),
    ),
    ("backends", include_str!("../scenarios/backends.toml")),
    (
        "backends-frames",
        include_str!("../scenarios/backends-frames.toml"),
    ),
    (
        "backends-small",
        include_str!("../scenarios/backends-small.toml"),
    ),
    (
        "backends-small-strict",
        include_str!("../scenarios/backends-small-strict.toml"),
    ),
    (
        "backends-bulk",
        include_str!("../scenarios/backends-bulk.toml"),
    ),
    (
        "backends-latency",
        include_str!("../scenarios/backends-latency.toml"),
    ),
    (
        "rfc2544-small",
        include_str!("../scenarios/rfc2544-small.toml"),
    ),
    ("workers", include_str!("../scenarios/workers.toml")),
    ("star-idle", include_str!("../scenarios/star-idle.toml")),
    (
        "mesh-fairness",
        include_str!("../scenarios/mesh-fairness.toml"),
    ),
    (
        "scale-stations",
        include_str!("../scenarios/scale-stations.toml"),
    ),
    ("scale-ports", include_str!("../scenarios/scale-ports.toml")),
    (
        "scale-sessions",
        include_str!("../scenarios/scale-sessions.toml"),
    ),
    (
        "scale-sandboxes",
        include_str!("../scenarios/scale-sandboxes.toml"),
    ),
    ("nat-bulk", include_str!("../scenarios/nat-bulk.toml")),
    (
        "nat-connections",
        include_str!("../scenarios/nat-connections.toml"),
    ),
    (
        "forward-bulk",
        include_str!("../scenarios/forward-bulk.toml"),
    ),
];

/// The plan of a scenario: a file, or the name of one that comes with the program.
///
/// # Errors
/// What is wrong with the scenario, with its name and the line.
pub fn open(scenario: &str) -> anyhow::Result<Plan> {
    let built_in = ALL.iter().find(|(name, _)| *name == scenario);
    let text = match built_in {
        Some((_, text)) => (*text).to_owned(),
        None if Path::new(scenario).exists() => {
            std::fs::read_to_string(scenario).with_context(|| format!("cannot read {scenario}"))?
        }
        None => {
            let names = ALL.map(|(name, _)| name);
            let like = |name: &&str| (strsim::jaro_winkler(scenario, name) * 1000.0) as u32;
            let nearest = names.iter().copied().max_by_key(like).unwrap_or_default();
            bail!(
                "there is no file {scenario}, and no scenario of that name; the nearest is \
                 {nearest}; `bench list` shows all"
            );
        }
    };
    plan::read(&text).with_context(|| format!("scenario {scenario} is refused"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_can_be_planned_and_is_called_after_its_file() {
        for (name, _) in ALL {
            let plan = open(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(plan.scenario.name, name);
            assert!(!plan.scenario.about.is_empty(), "{name} says what it shows");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let error = open("pair-blk").unwrap_err().to_string();
        assert!(error.contains("the nearest is pair-bulk"), "{error}");
    }
}
