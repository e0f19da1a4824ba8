//! What the suites that cross a crate border share.

pub mod daemon;
pub mod lab;
pub mod rig;
