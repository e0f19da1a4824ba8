//! The forwarding database.

/// What learning a source MAC came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// First heard.
    New,
}
