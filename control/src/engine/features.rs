//! What the kernel could give of what was asked for: features are negotiated, never assumed, and
//! one that was replaced by something lesser is told.

use dataplane_port::Capabilities;
use dataplane_port::guard::{self, Method};

use super::{Engine, State};
use crate::api::types::FeatureView;
use crate::backend_choice;
use crate::host_link;
use crate::model::Backend;

/// What a TAP passes on where the kernel has everything.
const OFFLOAD_WANTED: &str = "checksums, TCP and UDP segmentation";

impl Engine {
    /// Every negotiated feature with what it came to, read from what is open now.
    pub(super) fn features(&self, state: &State) -> Vec<FeatureView> {
        let mut features = Vec::new();
        let taps = state
            .desired
            .endpoints
            .values()
            .filter(|endpoint| matches!(endpoint.backend, Backend::Tap | Backend::Host));
        for endpoint in taps {
            if let Some(capabilities) = state.capabilities.get(&endpoint.port) {
                let object = format!("endpoint '{}'", endpoint.name);
                features.push(offload(object, *capabilities));
            }
        }
        for endpoint in state.desired.endpoints.values() {
            if let Some(choice) = &endpoint.choice {
                let best = backend_choice::preferred(choice.purpose)[0].label();
                let object = format!("endpoint '{}'", endpoint.name);
                features.push(feature(object, "backend", best, endpoint.backend.label()));
            }
            let negotiated = state.negotiated.get(&endpoint.port);
            let told = negotiated.into_iter().flatten().map(|it| {
                let object = format!("endpoint '{}'", endpoint.name);
                feature(object, it.feature, it.wanted, it.used)
            });
            features.extend(told);
        }
        if state.host_link.is_some() {
            let name = host_link::IFNAME;
            let link = state.host.link(name);
            let by_tap = link.is_none_or(|link| link.kind == "tun");
            let used = if by_tap { "TAP" } else { "veth" };
            let object = format!("host link {name}");
            features.push(feature(object.clone(), "device", "TAP", used));
            match state.capabilities.get(&host_link::PORT) {
                Some(capabilities) if by_tap => features.push(offload(object, *capabilities)),
                Some(_) | None => {}
            }
        }
        for uplink in &state.uplinks {
            let found = self.host.run(|| guard::find(&uplink.name));
            let used = match found {
                Ok(Ok(Some(Method::Bpf))) => "BPF program",
                Ok(Ok(Some(Method::Sink))) => "u32 filters with a sink",
                Ok(Ok(None) | Err(_)) | Err(_) => "none",
            };
            let object = format!("uplink {}", uplink.name);
            features.push(feature(object, "guard", "BPF program", used));
        }
        features
    }
}

/// A sentence for each feature that was replaced.
pub(super) fn warnings(features: &[FeatureView]) -> impl Iterator<Item = String> {
    features.iter().filter(|view| view.replaced).map(|view| {
        let FeatureView {
            object,
            feature,
            wanted,
            used,
            ..
        } = view;
        format!("{object}: {feature} is {used} instead of {wanted}, which this host refuses")
    })
}

fn offload(object: String, capabilities: Capabilities) -> FeatureView {
    let used = match capabilities {
        Capabilities { gso_udp: true, .. } => OFFLOAD_WANTED,
        Capabilities { gso_tcp: true, .. } => "checksums and TCP segmentation",
        Capabilities { checksum: true, .. } => "checksums",
        Capabilities { .. } => "none",
    };
    feature(object, "offload", OFFLOAD_WANTED, used)
}

fn feature(object: String, feature: &str, wanted: &str, used: &str) -> FeatureView {
    FeatureView {
        object,
        feature: feature.to_owned(),
        wanted: wanted.to_owned(),
        used: used.to_owned(),
        replaced: wanted != used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lesser_offload_is_told_and_the_full_one_is_not() {
        let mut capabilities = Capabilities::offloading(65_536);
        let mut told = Vec::new();
        for lose in [
            |_: &mut Capabilities| {},
            |c: &mut Capabilities| c.gso_udp = false,
            |c: &mut Capabilities| c.gso_tcp = false,
            |c: &mut Capabilities| c.checksum = false,
        ] {
            lose(&mut capabilities);
            told.extend(warnings(&[offload("x".to_owned(), capabilities)]));
        }
        assert_eq!(
            told,
            ["checksums and TCP segmentation", "checksums", "none"].map(|used| format!(
                "x: offload is {used} instead of {OFFLOAD_WANTED}, which this host refuses"
            ))
        );
    }
}
