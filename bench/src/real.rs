//! The real systems, for [`crate::run`], and the core in memory where that is what is measured.

use std::collections::BTreeMap;

use crate::core_scale::CoreInMemory;
use crate::measure::{MeasureError, Request, measure};
use crate::result::Sample;
use crate::run::{Hall, Refusal, Subject};
use crate::scenario::MeasureName;
use crate::system::{self, Setup, StartError, System, SystemName};

/// Starts real systems in namespaces of their own.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    /// What is measured of them.
    pub measure: MeasureName,
}

impl Hall for Real {
    fn start(&mut self, name: SystemName, setup: &Setup) -> Result<Box<dyn Subject>, Refusal> {
        if self.measure == MeasureName::CoreFrames {
            return match name {
                SystemName::Causeway => Ok(Box::new(CoreInMemory::new(setup.ports))),
                other => Err(Refusal::Impossible(format!(
                    "{other} has no core in memory"
                ))),
            };
        }
        match system::start(name, setup) {
            Ok(system) => Ok(Box::new(system)),
            Err(StartError::Absent { reason, .. }) => Err(Refusal::Absent(reason)),
            Err(StartError::Impossible { reason, .. }) => Err(Refusal::Impossible(reason)),
            Err(StartError::Failed { reason, .. }) => Err(Refusal::Failed(reason)),
        }
    }
}

impl Subject for System {
    fn facts(&self) -> BTreeMap<String, String> {
        self.facts.clone()
    }

    fn sample(&mut self, request: &Request) -> Result<Sample, Refusal> {
        let sample = measure(request, self).map_err(|error| match error {
            MeasureError::Stopped(known) => Refusal::Stopped(known),
            other => Refusal::Failed(other.to_string()),
        })?;
        for (who, place) in &sample.places {
            self.facts.insert(format!("cpus of {who}"), place.clone());
        }
        Ok(sample)
    }
}
