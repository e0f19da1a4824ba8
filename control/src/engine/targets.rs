//! The targets of publications: joined, weighed, drained, taken out.
//!
//! Every change is of one publication as a whole: written to the store, then installed, then told
//! to the listeners. Sessions stay where they are, but for those of a target that goes.

use std::collections::HashSet;
use std::net::IpAddr;

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::nat::{Account, Balance, Duty, TARGETS_MAX, WEIGHT_MAX};

use super::{Engine, State};
use crate::error::Error;
use crate::model::{Endpoint, Publication, PublicationTarget, transport_label};
use crate::publish::range_text;
use crate::topology;

use super::publications::PublishRequest;

/// What is to change about one target; what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetChange {
    /// Its share of the new sessions.
    pub weight: Option<u16>,
    /// Whether it gets new sessions.
    pub duty: Option<Duty>,
}

impl Engine {
    /// Leads a publication to one more endpoint.
    pub(super) async fn join(
        &self,
        state: &mut State,
        request: &PublishRequest,
        endpoint: &Endpoint,
        mut publication: Publication,
    ) -> Result<Publication, Error> {
        let spec = &request.spec;
        if publication.target(endpoint.port).is_some() {
            return Err(Error::InUse(format!(
                "{spec} leads to endpoint '{}' already; `causeway publish set` changes its weight",
                endpoint.name
            )));
        }
        if publication.targets.len() >= TARGETS_MAX {
            let what = "targets of one publication";
            let max = TARGETS_MAX;
            return Err(Error::Limit { what, max });
        }
        if request.from.is_some() && request.from != publication.from {
            let there = publication
                .from
                .map_or_else(|| "every client".to_owned(), |from| from.to_string());
            return Err(Error::Invalid(format!(
                "{spec} is published for {there}; join it without --from"
            )));
        }
        publication.targets.push(target_of(request, endpoint)?);
        if topology::rules_of(&state.desired, &publication)
            .iter()
            .all(|rule| rule.target(endpoint.port.0).is_none())
        {
            return Err(Error::Invalid(format!(
                "endpoint '{}' has no address of a family that {spec} is published for; choose \
                 another endpoint",
                endpoint.name
            )));
        }
        if let Some(balance) = request.balance {
            publication.balance = rebalanced(publication.balance, balance);
        }
        self.change(state, publication.clone())?;
        Ok(publication)
    }

    /// Changes how a publication spreads new sessions.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn set_balance(&self, id: u32, balance: Balance) -> Result<(), Error> {
        let mut state = self.state().await;
        let mut publication = publication(&state, id)?;
        publication.balance = rebalanced(publication.balance, balance);
        self.change(&mut state, publication)
    }

    /// Changes a target's weight, or whether it gets new sessions.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Invalid`] for a weight that none can have.
    pub async fn set_target(
        &self,
        id: u32,
        endpoint: &str,
        change: TargetChange,
    ) -> Result<(), Error> {
        let mut state = self.state().await;
        let mut publication = publication(&state, id)?;
        let port = target_port(&state, &publication, endpoint)?;
        let targets = publication.targets.iter_mut();
        for target in targets.filter(|target| target.endpoint == port) {
            if let Some(weight) = change.weight {
                target.weight = check_weight(weight)?;
            }
            target.duty = change.duty.unwrap_or(target.duty);
        }
        self.change(&mut state, publication)
    }

    /// Takes a target out and ends its sessions; the last one takes the publication along.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn remove_target(&self, id: u32, endpoint: &str) -> Result<(), Error> {
        let mut state = self.state().await;
        let mut publication = publication(&state, id)?;
        let port = target_port(&state, &publication, endpoint)?;
        if publication.targets.len() == 1 {
            return self.withdraw(&mut state, id);
        }
        publication.targets.retain(|target| target.endpoint != port);
        self.change(&mut state, publication)?;
        self.forget_target(id, port);
        if let Some(endpoint) = state.desired.endpoints.get(&port) {
            self.forget_fragments(endpoint);
        }
        Ok(())
    }

    /// Puts a publication in force that differs from the one of its id in targets or balance.
    fn change(&self, state: &mut State, changed: Publication) -> Result<(), Error> {
        let id = changed.id;
        self.store.replace_publication(&changed)?;
        let before = state.desired.publications.insert(id, changed);
        if let Err(error) = self.install(state) {
            if let Some(before) = before {
                self.store.replace_publication(&before)?;
                state.desired.publications.insert(id, before);
                self.install(state)?;
            }
            return Err(error);
        }
        self.lead_listeners(state, id);
        Ok(())
    }

    /// Tells a publication's listeners where it leads now.
    pub(super) fn lead_listeners(&self, state: &State, id: u32) {
        let publication = state.desired.publications.get(&id);
        if let (Some(publication), Some(listeners)) = (publication, state.listeners.get(&id)) {
            listeners.follow(topology::rules_of(&state.desired, publication));
        }
    }

    /// Counts what targets and networks carry from zero.
    pub fn zero_nat_rules(&self) {
        self.nat().zero_accounts();
    }

    /// Ends the sessions that a publication led to a target, and forgets what was counted of it.
    pub(super) fn forget_target(&self, publication: u32, endpoint: PortId) {
        let nat = self.nat();
        let rules = topology::rule_ids(publication);
        let gone = |rule: u32, target: u16| target == endpoint.0 && rules.contains(&rule);
        nat.remove_sessions(|session| session.rule.is_some_and(|rule| gone(rule, session.target)));
        nat.forget_accounts(|account| match account {
            Account::Target { rule, target } => gone(rule, target),
            Account::Network(_) => false,
        });
    }

    /// Ends every session of endpoints' addresses, whoever had them. Walks all sessions once.
    pub(super) fn end_sessions<'e>(&self, endpoints: impl IntoIterator<Item = &'e Endpoint>) {
        let owned = owned_by(endpoints);
        let nat = self.nat();
        nat.remove_sessions(|session| owned.contains(&(session.domain, session.inside.ip)));
        nat.forget_fragments(|domain, inside| owned.contains(&(domain, inside)));
    }

    /// Forgets where fragments from and to an endpoint's addresses go.
    pub(super) fn forget_fragments(&self, endpoint: &Endpoint) {
        let owned = owned_by([endpoint]);
        let nat = self.nat();
        nat.forget_fragments(|domain, inside| owned.contains(&(domain, inside)));
    }
}

fn owned_by<'e>(endpoints: impl IntoIterator<Item = &'e Endpoint>) -> HashSet<(DomainId, IpAddr)> {
    let addresses = |endpoint: &'e Endpoint| {
        let addresses = endpoint.addresses.iter();
        addresses.map(|address| (endpoint.domain, *address))
    };
    endpoints.into_iter().flat_map(addresses).collect()
}

/// The target that a request makes of an endpoint.
pub(super) fn target_of(
    request: &PublishRequest,
    endpoint: &Endpoint,
) -> Result<PublicationTarget, Error> {
    Ok(PublicationTarget {
        endpoint: endpoint.port,
        inside_port_first: *request.spec.inside_ports.start(),
        weight: check_weight(request.weight.unwrap_or(1))?,
        duty: Duty::Serving,
    })
}

/// A balance that is asked for again keeps its key, and every client its target.
const fn rebalanced(before: Balance, wanted: Balance) -> Balance {
    match (before, wanted) {
        (Balance::SourceHash { .. }, Balance::SourceHash { .. }) => before,
        (Balance::RoundRobin, _) | (_, Balance::RoundRobin) => wanted,
    }
}

fn check_weight(weight: u16) -> Result<u16, Error> {
    if (1..=WEIGHT_MAX).contains(&weight) {
        return Ok(weight);
    }
    Err(Error::Invalid(format!(
        "a weight is a number from 1 to {WEIGHT_MAX}, not {weight}; to give a target no new \
         sessions, use `causeway publish drain`"
    )))
}

fn publication(state: &State, id: u32) -> Result<Publication, Error> {
    let found = state.desired.publications.get(&id).cloned();
    found.ok_or_else(|| Error::unknown_publication(id))
}

fn target_port(state: &State, publication: &Publication, name: &str) -> Result<PortId, Error> {
    let endpoint = state
        .desired
        .endpoint(name)
        .ok_or_else(|| Error::unknown_endpoint(name))?;
    let target = publication.target(endpoint.port);
    target.map(|target| target.endpoint).ok_or_else(|| {
        let transport = transport_label(publication.transport);
        let ports = range_text(&publication.host_ports);
        Error::NotAttached(format!(
            "{transport} port {ports} does not lead to endpoint '{name}'; `causeway publish ls` \
             lists where it leads"
        ))
    })
}
