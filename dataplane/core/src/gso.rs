//! gso
