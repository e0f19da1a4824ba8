//! Bridges that scripts are played to: the kernel's own, which is the oracle, and the real
//! dataplane. See [`crate::bridges`] for scripts and their model.

pub mod causeway;
pub mod kernel;
mod station;
