//! The backend of an endpoint, where the daemon chooses it: what was planned is tried, best first.

use super::{Engine, State};
use crate::api::backends::BackendView;
use crate::backend_choice::{self, Facts, Refusal, Search};
use crate::device::Queues;
use crate::error::Error;
use crate::model::{Backend, BackendAsked, BackendChoice, Endpoint, Network, Purpose};

impl Engine {
    /// Makes the device of a new endpoint, by the first backend that works where the choice is ours. What
    /// is tried is in the store before, so that a crash leaves nothing behind.
    pub(super) async fn make_device(
        &self,
        endpoint: &mut Endpoint,
        network: &Network,
    ) -> Result<Queues, Error> {
        let Some(purpose) = endpoint.choice.as_ref().map(|choice| choice.purpose) else {
            self.store.put_endpoint(endpoint)?;
            return self.devices.create(endpoint, network).await;
        };
        let facts = Facts::of_this_machine(network.mtu);
        let mut search = Search::new(backend_choice::plan(purpose, &facts));
        loop {
            let backend = search.to_try()?;
            endpoint.backend = backend;
            self.store.put_endpoint(endpoint)?;
            match self.devices.create(endpoint, network).await {
                Ok(queues) => {
                    note(endpoint, purpose, &search.refusals);
                    return Ok(queues);
                }
                Err(error) => search.refused(backend, error)?,
            }
        }
    }

    /// How the endpoint of a port is connected, what came of it, and why.
    pub async fn backend_of(&self, name: &str) -> Option<BackendView> {
        let state = self.state().await;
        let endpoint = state.desired.endpoint(name)?;
        Some(self.backend_view(&state, endpoint))
    }

    fn backend_view(&self, state: &State, endpoint: &Endpoint) -> BackendView {
        let object = format!("endpoint '{}'", endpoint.name);
        let features = self.features(state).into_iter();
        BackendView {
            backend: endpoint.backend.label().to_owned(),
            asked: asked(endpoint).label().to_owned(),
            why: endpoint.choice.as_ref().map(|choice| choice.why.clone()),
            features: features.filter(|it| it.object == object).collect(),
        }
    }
}

/// What was asked for of an endpoint's backend.
pub(super) fn asked(endpoint: &Endpoint) -> BackendAsked {
    match &endpoint.choice {
        Some(choice) => BackendAsked::Auto(choice.purpose),
        None => BackendAsked::Named(endpoint.backend),
    }
}

/// The choice of a new endpoint's backend, where it is ours, before it was made.
pub(super) const fn begun(asked: BackendAsked) -> Option<BackendChoice> {
    match asked {
        BackendAsked::Named(_) => None,
        BackendAsked::Auto(purpose) => Some(BackendChoice {
            purpose,
            why: String::new(),
        }),
    }
}

/// The backend that is tried first.
pub(super) const fn first(asked: BackendAsked) -> Backend {
    match asked {
        BackendAsked::Named(backend) => backend,
        BackendAsked::Auto(purpose) => backend_choice::preferred(purpose)[0],
    }
}

fn note(endpoint: &mut Endpoint, purpose: Purpose, refusals: &[Refusal]) {
    let why = backend_choice::reason(purpose, endpoint.backend, refusals);
    let backend = endpoint.backend.label();
    tracing::info!(endpoint = %endpoint.name, backend, why, "chose how it is connected");
    if let Some(choice) = &mut endpoint.choice {
        choice.why = why;
    }
}
