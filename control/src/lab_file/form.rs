//! How the texts of a lab file are read: each into the form in which the daemon lists it.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use dataplane_core::addr::MacAddr;
use dataplane_core::fdb::FdbKind;
use dataplane_core::l2::{MirrorDirection, StormLimit};
use dataplane_core::link::RateLimit;
use dataplane_core::policy::{Action, Protocol};
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::api::bridging::FlagsBody;
use crate::model::{
    self, BackendAsked, LoopDetect, Name, NicBackend, RulePorts, RuleSide, StaticRoute, StpFrames,
};
use crate::netns::NAMED_DIR;
use crate::publish::PublishSpec;
use crate::vlans as vlan_words;

/// No address of that family.
pub(super) const NONE: &str = "none";
/// As the configuration says.
pub(super) const DEFAULT: &str = "default";
/// As suits the subnet.
pub(super) const AUTO: &str = "auto";
/// Nothing is asked.
const ANY: &str = "any";

/// Reads a text by way of a type, and keeps it as `written` writes it.
fn by<'de, D, T, E>(
    deserializer: D,
    read: impl FnOnce(&str) -> Result<T, E>,
    written: impl FnOnce(&T) -> String,
) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
    E: Display,
{
    let text = String::deserialize(deserializer)?;
    let value = read(&text).map_err(|error| D::Error::custom(format!("'{text}': {error}")))?;
    Ok(written(&value))
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display> + Display,
{
    by(deserializer, str::parse::<T>, ToString::to_string).map(Some)
}

pub(super) fn prefix<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    parsed::<D, IpNet>(from)
}

pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    parsed::<D, IpAddr>(from)
}

pub(super) fn address_or_none<'de, D>(from: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let read = |text: &str| match text {
        NONE => Ok(NONE.to_owned()),
        text => text.parse::<IpAddr>().map(|address| address.to_string()),
    };
    by(from, read, Clone::clone).map(Some)
}

pub(super) fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    by(from, str::parse::<MacAddr>, ToString::to_string)
}

pub(super) fn nic_backend<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let label = |backend: &NicBackend| backend.label().to_owned();
    by(from, str::parse::<NicBackend>, label)
}

pub(super) fn nic_backend_default() -> String {
    NicBackend::default().label().to_owned()
}

pub(super) fn optional_mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    mac(from).map(Some)
}

pub(super) fn storm<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    parsed::<D, StormLimit>(from)
}

pub(super) fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    parsed::<D, RateLimit>(from)
}

pub(super) fn stp_frames<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let written = |value: &StpFrames| value.label().to_owned();
    by(from, str::parse::<StpFrames>, written).map(Some)
}

pub(super) fn loop_detect<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let written = |value: &LoopDetect| value.label().to_owned();
    by(from, str::parse::<LoopDetect>, written).map(Some)
}

pub(super) fn backend<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let written = |value: &BackendAsked| value.label().to_owned();
    by(from, str::parse::<BackendAsked>, written).map(Some)
}

pub(super) fn dependence<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let read = |text: &str| match text {
        DEFAULT | AUTO => Ok(DEFAULT.to_owned()),
        text => model::dependence(text).map(|value| value.label().to_owned()),
    };
    by(from, read, Clone::clone).map(Some)
}

pub(super) fn nat_mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let read = |text: &str| match text {
        DEFAULT | AUTO => Ok(AUTO.to_owned()),
        text => model::nat_mode(text).map(|value| value.label().to_owned()),
    };
    by(from, read, Clone::clone).map(Some)
}

pub(super) fn vlans<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    by(from, vlan_words::read, vlan_words::written).map(Some)
}

pub(super) fn balance<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let read = |text: &str| match text {
        "round-robin" | "source-hash" => Ok(text.to_owned()),
        _ => Err("choose round-robin or source-hash"),
    };
    by(from, read, Clone::clone).map(Some)
}

/// A specification with the host's ports: free ones would be others each time.
pub(super) fn spec<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let read = |text: &str| {
        let spec: PublishSpec = text
            .parse()
            .map_err(|error: crate::publish::PublishSpecError| error.to_string())?;
        match spec.host_ports {
            Some(_) => Ok(spec),
            None => Err("write the host's port as well, as in 8080:80".to_owned()),
        }
    };
    by(from, read, ToString::to_string)
}

pub(super) fn fdb_state<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let read = |text: &str| match model::fdb_kind(text) {
        Ok(FdbKind::Dynamic) | Err(_) => Err("choose static, sticky or local"),
        Ok(kind @ (FdbKind::Static | FdbKind::Sticky | FdbKind::Local)) => Ok(kind),
    };
    by(from, read, |kind| kind.label().to_owned())
}

pub(super) fn routes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let written = |text: &String| text.parse::<StaticRoute>().map(|route| route.to_string());
    let routes: Result<Vec<String>, _> = texts.iter().map(written).collect();
    routes.map(Some).map_err(D::Error::custom)
}

pub(super) fn group<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    by(from, model::group, ToString::to_string)
}

pub(super) fn action<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let written = |action: &Action| model::rule_action_label(*action).to_owned();
    by(from, model::rule_action, written)
}

/// A side of a rule. A bare name stays one: what it is the name of is to be seen elsewhere.
pub(super) fn side<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let read = |text: &str| match text.parse::<RuleSide>() {
        Err(_) if text.parse::<Name>().is_ok() => Ok(text.to_owned()),
        side => side.map(|side| side.to_string()),
    };
    by(from, read, Clone::clone)
}

pub(super) fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let written = |of: &Protocol| model::rule_protocol_label(*of);
    by(from, model::rule_protocol, written)
}

pub(super) fn ports<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    by(from, str::parse::<RulePorts>, ToString::to_string)
}

pub(super) fn any() -> String {
    ANY.to_owned()
}

pub(super) fn is_any(text: &str) -> bool {
    text == ANY
}

pub(super) fn direction<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let written = |way: &MirrorDirection| way.label().to_owned();
    by(from, model::mirror_direction, written).map(Some)
}

pub(super) fn static_entry() -> String {
    FdbKind::Static.label().to_owned()
}

/// A namespace by its name, where it has one.
pub(super) fn netns<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| netns_name(&text))
}

/// `blue` for `/run/netns/blue`.
pub(super) fn netns_name(text: &str) -> String {
    let dirs = [NAMED_DIR, "/var/run/netns"];
    let name = dirs.iter().find_map(|dir| text.strip_prefix(dir));
    let name = name.and_then(|rest| rest.strip_prefix('/'));
    name.filter(|name| !name.contains('/'))
        .unwrap_or(text)
        .to_owned()
}

pub(super) fn is_empty(flags: &FlagsBody) -> bool {
    *flags == FlagsBody::default()
}
