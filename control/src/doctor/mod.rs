//! What of this host is in the way, and what to do about it: facts are read once
//! ([`facts`]), and each check is a pure function of them.
//!
//! Nothing is changed. A check that cannot be made says so; it does not pass.

mod checks;
pub mod facts;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use checks::CHECKS;
use facts::Facts;

/// How bad a finding is, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing of ours is disturbed.
    Note,
    /// Something works less well than it could, or will fail one day.
    Warning,
    /// Something does not work.
    Problem,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is so.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

/// What a check says, before it is known which one it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    severity: Severity,
    text: String,
    fix: Option<String>,
}

impl Said {
    fn ok(text: impl Into<String>) -> Vec<Self> {
        vec![Self {
            severity: Severity::Ok,
            text: text.into(),
            fix: None,
        }]
    }

    fn new(severity: Severity, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            severity,
            text: text.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Makes every check.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let all = CHECKS.iter().flat_map(|(check, examine)| {
        examine(facts).into_iter().map(|said| Finding {
            check: (*check).to_owned(),
            severity: said.severity,
            text: said.text,
            fix: said.fix,
        })
    });
    all.collect()
}
