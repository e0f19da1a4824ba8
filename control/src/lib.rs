//! Causeway's control plane: what the user wants, what the host has, and the steps between.

#![warn(missing_docs)]

pub mod api;
pub mod capture;
pub mod cli;
pub mod config;
pub mod conform;
pub mod container;
pub mod device;
pub mod discovery;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod events;
pub mod explain;
pub mod exposure;
pub mod flood_settings;
pub mod host_link;
pub mod hostnet;
pub mod impairment;
pub mod ipam;
pub mod keep;
pub mod lab_file;
pub mod lifeline;
pub mod link;
pub mod mirror_file;
pub mod model;
pub mod name_listener;
pub mod name_watch;
pub mod names;
pub mod netns;
pub mod owner;
pub mod pcapng;
pub mod plan;
pub mod port_settings;
pub mod publish;
pub mod relay;
pub mod resolv_file;
pub mod rights;
pub mod rules;
pub mod serving;
pub mod store;
pub mod sysctl;
pub mod topology;
pub mod vlans;
pub mod why;
