//! What the suites that cross a crate border share.

pub mod conform;
pub mod daemon;
pub mod footprint;
pub mod lab;
pub mod oracle;
pub mod rig;
pub mod sim;
pub mod site;
pub mod talk;
pub mod tunnel;
pub mod wire;

/// Scripts of frames and the model that says what a bridge does with them, as the core's suite has
/// them.
#[path = "../../dataplane/core/tests/bridges/mod.rs"]
#[allow(clippy::unwrap_used, clippy::new_without_default)]
pub mod bridges;

/// The core's own switch in a bottle, so that its suites and these tell of the same picture.
#[path = "../../dataplane/core/tests/world/mod.rs"]
#[allow(clippy::unwrap_used, clippy::new_without_default)]
pub mod world;
