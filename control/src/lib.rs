//! Causeway's control plane: what the user wants, what the host has, and the steps between.

#![warn(missing_docs)]

pub mod config;
pub mod explain;
pub mod ipam;
pub mod link;
pub mod model;
pub mod netns;
pub mod publish;
pub mod store;
pub mod why;
