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
    /// Asks the rules; the index of the one that decided, or `None` for the default.
    ///
    /// # Errors
    /// [`DropReason::PolicyDenied`] when a rule denies the frame.
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
