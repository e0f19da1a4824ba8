//! The loads: each is bounded in time and count, and says what it could not do.
