//! What the suites that cross a crate border share.

pub mod daemon;
pub mod lab;
pub mod rig;
pub mod sim;
pub mod talk;
pub mod tunnel;
pub mod wire;

/// The core's own switch in a bottle, so that its suites and these tell of the same picture.
#[path = "../../dataplane/core/tests/world/mod.rs"]
#[allow(clippy::unwrap_used, clippy::new_without_default)]
pub mod world;
