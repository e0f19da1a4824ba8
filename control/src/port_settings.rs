//! What is set of an endpoint's switch port, and how it is written down.

use std::fmt;

use dataplane_core::addr::MacAddr;
use dataplane_core::l2::{FloodClass, PortFlags, StormLimit, StormLimits};
use dataplane_core::link::{Direction, Impairment, LinkSpec, RateLimit};
use dataplane_port::Carrier;

use crate::impairment::ImpairmentBody;
use crate::model::Asked;

/// What is set of an endpoint's switch port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// What is switched on.
    pub flags: PortFlags,
    /// How many stations may be learned on it.
    pub mac_limit: Option<u32>,
    /// Whether frames are to flow.
    pub state: AdminState,
    /// How much may be flooded that enters by it.
    pub storm: StormLimits,
    /// Rate limits and impairments, by direction.
    pub links: [LinkSpec; Direction::ALL.len()],
    /// The one MAC that everything carries which leaves by it.
    pub mac_nat: Option<MacAddr>,
}

/// Which MAC everything is to carry that leaves by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneMac {
    /// That of the device by which the switch has the port.
    Device,
    /// This one.
    Given(MacAddr),
}

impl OneMac {
    /// The MAC, where it was named.
    const fn given(self) -> Option<MacAddr> {
        match self {
            Self::Device => None,
            Self::Given(mac) => Some(mac),
        }
    }
}

/// Whether frames are to flow by a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminState {
    /// They are.
    #[default]
    Up,
    /// They are not, and the sandbox sees that it has no cable.
    Down,
}

impl AdminState {
    /// What the sandbox's interface is to see.
    pub const fn carrier(self) -> Carrier {
        match self {
            Self::Up => Carrier::Present,
            Self::Down => Carrier::Absent,
        }
    }
}

impl Default for PortSettings {
    /// As a new bridge port of the kernel, but for port security: an endpoint speaks for itself.
    fn default() -> Self {
        Self {
            flags: PortFlags::default().with(PortFlags::SECURED),
            mac_limit: None,
            state: AdminState::Up,
            storm: StormLimits::default(),
            links: [LinkSpec::default(); Direction::ALL.len()],
            mac_nat: None,
        }
    }
}

/// What a request says of a port; what it does not name stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChange {
    /// Flags to be on.
    pub on: PortFlags,
    /// Flags to be off.
    pub off: PortFlags,
    /// How many stations may be learned on it.
    pub mac_limit: Asked<u32>,
    /// Whether frames are to flow.
    pub state: Option<AdminState>,
    /// How much may be flooded that enters by it, by class.
    pub storm: [Asked<StormLimit>; FloodClass::ALL.len()],
    /// The rates that it may have, by direction.
    pub rates: [Asked<RateLimit>; Direction::ALL.len()],
    /// What is wrong with its links, by direction.
    pub impairments: [Asked<Impairment>; Direction::ALL.len()],
    /// The one MAC that everything is to carry which leaves by it. Whose the device's is has to be put
    /// in its place before the change is made.
    pub mac_nat: Asked<OneMac>,
}

impl Default for PortChange {
    fn default() -> Self {
        Self {
            on: PortFlags::NONE,
            off: PortFlags::NONE,
            mac_limit: Asked::Nothing,
            state: None,
            storm: [Asked::Nothing; FloodClass::ALL.len()],
            rates: [Asked::Nothing; Direction::ALL.len()],
            impairments: [Asked::Nothing; Direction::ALL.len()],
            mac_nat: Asked::Nothing,
        }
    }
}

impl PortChange {
    /// The settings after the request.
    pub fn over(self, before: PortSettings) -> PortSettings {
        let mut storm = before.storm;
        for class in FloodClass::ALL {
            let asked = self.storm[class as usize];
            *storm.of_mut(class) = asked.over(before.storm.of(class));
        }
        let links = Direction::ALL.map(|direction| {
            let link = before.links[direction as usize];
            let impaired = self.impairments[direction as usize].over(Some(link.impairment));
            LinkSpec {
                limit: self.rates[direction as usize].over(link.limit),
                impairment: impaired.unwrap_or_default(),
            }
        });
        PortSettings {
            flags: before.flags.with(self.on).without(self.off),
            mac_limit: self.mac_limit.over(before.mac_limit),
            state: self.state.unwrap_or(before.state),
            storm,
            links,
            mac_nat: self
                .mac_nat
                .over(before.mac_nat.map(OneMac::Given))
                .and_then(OneMac::given),
        }
    }
}

impl fmt::Display for PortChange {
    /// As `port set` and `impair set` take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        for (flag, word) in PortFlags::ALL {
            match (self.on.has(flag), self.off.has(flag)) {
                (true, _) => words.push(format!("{word} on")),
                (_, true) => words.push(format!("{word} off")),
                (false, false) => {}
            }
        }
        let limit = self.mac_limit.in_words(|limit| limit.to_string());
        words.extend(limit.map(|limit| format!("mac-limit {limit}")));
        match self.mac_nat {
            Asked::Nothing => {}
            Asked::Default => words.push("mac-nat off".to_owned()),
            Asked::Value(OneMac::Device) => words.push("mac-nat on".to_owned()),
            Asked::Value(OneMac::Given(mac)) => words.push(format!("mac-nat {mac}")),
        }
        match self.state {
            None => {}
            Some(AdminState::Up) => words.push("up".to_owned()),
            Some(AdminState::Down) => words.push("down".to_owned()),
        }
        for class in FloodClass::ALL {
            let limit = self.storm[class as usize].in_words(|limit| limit.to_string());
            words.extend(limit.map(|limit| format!("storm-{} {limit}", class.label())));
        }
        for direction in Direction::ALL {
            let way = direction.label();
            let rate = self.rates[direction as usize].in_words(|rate| rate.to_string());
            words.extend(rate.map(|rate| format!("rate-{way} {rate}")));
            let impaired = self.impairments[direction as usize];
            let impaired = impaired.in_words(|it| ImpairmentBody::from(it).words());
            words.extend(impaired.map(|impaired| format!("impaired-{way} {impaired}")));
        }
        f.write_str(&words.join(" "))
    }
}

/// A word that names no flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{word}' is nothing that can be set of a port; there are {}",
    flag_words()
)]
pub struct FlagError {
    word: String,
}

fn flag_words() -> String {
    let flags = PortFlags::ALL.map(|(_, word)| word).join(", ");
    format!(
        "{flags}, each with on or off, mac-limit with a number or none, \
         storm-broadcast, storm-multicast and storm-unknown-unicast with frames per second or none, \
         rate-in and rate-out with a rate or none, mac-nat with on, off or a MAC, \
         up and down"
    )
}

/// Flags that are not as for a new port, a word each: `no-learning isolated`.
pub fn changed(flags: PortFlags) -> String {
    let usual = PortSettings::default().flags;
    let words = PortFlags::ALL.into_iter().filter_map(|(flag, word)| {
        let on = flags.has(flag);
        (usual.has(flag) != on).then(|| Word { on, word }.to_string())
    });
    words.collect::<Vec<_>>().join(" ")
}

struct Word {
    on: bool,
    word: &'static str,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no = if self.on { "" } else { "no-" };
        write!(f, "{no}{}", self.word)
    }
}

/// The flags that [`changed`] has written.
///
/// # Errors
/// [`FlagError`] for any other word.
pub fn flags(text: &str) -> Result<PortFlags, FlagError> {
    let mut flags = PortSettings::default().flags;
    for word in text.split_whitespace() {
        flags = match word.strip_prefix("no-") {
            Some(off) => flags.without(flag(off)?),
            None => flags.with(flag(word)?),
        };
    }
    Ok(flags)
}

/// The flag that a word names.
///
/// # Errors
/// [`FlagError`] for any other word.
pub fn flag(word: &str) -> Result<PortFlags, FlagError> {
    PortFlags::named(word).ok_or_else(|| FlagError {
        word: word.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_all_that_it_changes() {
        let mut change = PortChange::default();
        assert_eq!(change.to_string(), "");
        change.on = PortFlags::ISOLATED;
        change.mac_limit = Asked::Value(7);
        change.storm[FloodClass::Broadcast as usize] =
            Asked::Value("1000 burst 10".parse().unwrap());
        change.rates[Direction::In as usize] = Asked::Default;
        change.rates[Direction::Out as usize] = Asked::Value("10mbit burst 32k".parse().unwrap());
        let impaired = Impairment {
            delay: dataplane_core::time::Duration::from_millis(10),
            ..Impairment::default()
        };
        change.impairments[Direction::Out as usize] = Asked::Value(impaired);
        assert_eq!(
            change.to_string(),
            "isolated on mac-limit 7 storm-broadcast 1000 burst 10 rate-in none \
             rate-out 10mbit burst 32768 impaired-out delay 10ms seed 0"
        );
    }

    #[test]
    fn every_set_of_flags_is_read_back_as_it_was_written() {
        for chosen in 0..1u32 << PortFlags::ALL.len() {
            let mut set = PortFlags::NONE;
            for (index, (flag, _)) in PortFlags::ALL.into_iter().enumerate() {
                if chosen >> index & 1 == 1 {
                    set = set.with(flag);
                }
            }
            assert_eq!(flags(&changed(set)), Ok(set), "{}", changed(set));
        }
        assert_eq!(changed(PortSettings::default().flags), "");
        let error = flags("no-learning wings").unwrap_err().to_string();
        assert!(
            error.contains("wings") && error.contains("hairpin"),
            "{error}"
        );
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let before = PortSettings {
            flags: PortSettings::default().flags.with(PortFlags::HAIRPIN),
            mac_limit: Some(7),
            state: AdminState::Down,
            storm: "broadcast 5, multicast 6".parse().unwrap(),
            ..PortSettings::default()
        };
        let change = PortChange {
            on: PortFlags::ISOLATED,
            off: PortFlags::LEARNING | PortFlags::SECURED,
            ..PortChange::default()
        };
        assert_eq!(
            change.to_string(),
            "learning off isolated on port-security off"
        );
        let after = change.over(before);
        let words = "no-learning isolated hairpin no-port-security";
        assert_eq!(changed(after.flags), words);
        let kept = (after.mac_limit, after.state, after.storm);
        assert_eq!(kept, (Some(7), AdminState::Down, before.storm));
        let change = PortChange {
            mac_limit: Asked::Default,
            ..PortChange::default()
        };
        assert_eq!(change.over(after).mac_limit, None);
        let mut change = PortChange::default();
        change.storm[FloodClass::Broadcast as usize] = Asked::Default;
        change.storm[FloodClass::UnknownUnicast as usize] = Asked::Value("9".parse().unwrap());
        change.rates = [Asked::Value("1mbit".parse().unwrap()), Asked::Nothing];
        let changed = change.over(after);
        let limits = changed
            .links
            .map(|link| link.limit.map(|limit| limit.to_string()));
        assert_eq!(limits, [Some("1mbit burst 3028".to_owned()), None]);
        let kept = PortChange::default().over(changed);
        assert_eq!(kept, changed);
        let storm = changed.storm.to_string();
        assert_eq!(storm, "unknown-unicast 9 burst 1, multicast 6 burst 1");
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let mac_nat = |asked| PortChange {
            mac_nat: asked,
            ..PortChange::default()
        };
        let given = mac_nat(Asked::Value(OneMac::Given(mac)));
        assert_eq!(given.to_string(), "mac-nat 02:00:00:00:00:01");
        let with_mac = given.over(changed);
        assert_eq!(with_mac.mac_nat, Some(mac));
        assert_eq!(PortChange::default().over(with_mac), with_mac);
        let off = mac_nat(Asked::Default);
        assert_eq!(
            (off.to_string(), off.over(with_mac)),
            ("mac-nat off".to_owned(), changed)
        );
    }
}
