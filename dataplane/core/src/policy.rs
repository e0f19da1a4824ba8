//! The policy stage: rules compiled by the control plane, asked once per frame.
//!
//! Without rules every frame passes, as on docker0.

use crate::headers::Headers;
use crate::topology::Port;
use crate::trace::Target;
use crate::verdict::DropReason;

/// The compiled rules of a topology. No rule can be written yet, so every frame passes.
#[derive(Clone, Debug, Default)]
pub struct Policy {}

impl Policy {
    /// Asks the rules; the index of the one that let the frame pass, or `None` for the default.
    ///
    /// # Errors
    /// The drop reason of a rule that denies the frame; none can be written yet.
    #[inline]
    pub fn check(
        &self,
        _port: &Port,
        _headers: &Headers,
        _target: Target,
    ) -> Result<Option<u16>, DropReason> {
        Ok(None)
    }
}
