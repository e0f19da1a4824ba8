//! NAT sessions that go on after a restart: when they are written, and how they come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::Dataplane;

use super::{Engine, State};
use crate::config::{Config, Sessions};
use crate::error::Error;
use crate::keep::codec::Clocks;
use crate::keep::{self, Keeper};
use crate::parts::Parts;
use crate::topology;

/// What writes sessions, where the configuration asks for it. Where it does not, what an earlier
/// daemon has written is removed: it would be wrong by the time that somebody asks again.
pub(super) fn keeper(
    config: &Config,
    dataplane: &Dataplane,
) -> Result<Option<Mutex<Keeper>>, Error> {
    match config.sessions {
        Sessions::Kept => {
            let nat = Arc::clone(&dataplane.gateway().nat);
            Ok(Some(Mutex::new(Keeper::new(&config.state_dir, nat))))
        }
        Sessions::Forgotten => {
            let failed = |error| Error::io("remove the sessions of an earlier daemon", error);
            keep::discard(&config.state_dir).map_err(failed)?;
            Ok(None)
        }
    }
}

impl Engine {
    /// Puts back what an earlier daemon has left of its sessions, as far as it still fits.
    pub(super) fn restore_sessions(&self, state: &State) -> Result<(), Error> {
        if self.keeper.is_none() {
            return Ok(());
        }
        let now = self.dataplane.now();
        let left = keep::read(
            &self.config.state_dir,
            self.config.nat.sessions_max,
            Clocks::at(now),
        );
        if let Some(problem) = left.problem {
            tracing::warn!(problem, "cannot read all sessions of the last daemon");
        }
        let inputs = topology::Inputs {
            desired: &state.desired,
            parts: &Parts::of(&state.desired),
            host: &state.host,
            // What is published for one of them is at its addresses.
            uplinks: &self.uplinks_there(state)?,
            host_link: None,
            open: &BTreeSet::new(),
            blocked: &BTreeSet::new(),
            nat: &self.config.nat,
            mac_nats: &BTreeMap::new(),
        };
        let topology =
            topology::build(&inputs, None).map_err(|error| Error::Invalid(error.to_string()))?;
        let done = self.nat().restore(&topology, left.sessions, now);
        tracing::info!(
            restored = done.restored,
            expired = done.expired,
            unfit = done.unfit,
            "took up the sessions of the last daemon"
        );
        self.keep_sessions();
        Ok(())
    }

    /// Writes what has changed of the sessions, where they are kept.
    pub fn keep_sessions(&self) {
        let Some(keeper) = &self.keeper else {
            return;
        };
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = keeper.keep(Clocks::at(self.dataplane.now())) {
            tracing::warn!(%error, "cannot keep sessions; they would not survive a restart");
        }
    }
}
