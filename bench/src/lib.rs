//! Side-by-side experiments: Causeway and other switches doing the same work in one run.
//!
//! # How a run goes
//! A [`scenario`] (TOML) names a topology, a measure, systems and axes. It becomes a list of points, one
//! for each combination of the axes. At each point every system is started in namespaces of its
//! own ([`system`]), measured in turn, A B A B ([`measure`]), and stopped. What was measured is a
//! [`result::Results`]: one JSON document with its manifest, from which every table and plot is
//! made.

pub mod bar;
pub mod compare;
mod core_alone;
pub mod core_scale;
pub mod diff;
pub mod frame_size;
pub mod held;
mod in_memory;
pub mod instructions;
pub mod invented;
pub mod leftover;
pub mod library;
pub mod manifest;
pub mod measure;
pub mod plan;
pub mod primitives;
pub mod profile;
mod progress;
mod prototype;
pub mod real;
pub mod record;
pub mod report;
pub mod result;
pub mod run;
mod scaling;
pub mod scenario;
pub mod session;
pub mod stats;
mod summary;
pub mod system;
