//! Causeway's control plane: what the user wants, what the host has, and the steps between.

#![warn(missing_docs)]

pub mod explain;
pub mod link;
pub mod netns;
pub mod why;
