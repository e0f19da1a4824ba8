//! What the suites that cross a crate border share.

pub mod lab;
pub mod rig;
