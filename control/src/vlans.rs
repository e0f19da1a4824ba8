//! VLANs of networks and ports, in words: `1 pvid untagged, 10-20`.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::str::FromStr;

use dataplane_core::addr::VlanId;
use dataplane_core::l2::{Form, PortVlans, VLAN_DEFAULT, VLANS, VlanSpan};

/// Whether VLANs count in a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VlanFiltering {
    /// Tags pass as they are.
    #[default]
    Off,
    /// A frame reaches only ports in its VLAN.
    On,
}

/// How VLANs are set of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkVlans {
    /// Whether they count.
    pub filtering: VlanFiltering,
    /// That of the gateway, where they do.
    pub gateway: VlanId,
}

impl Default for NetworkVlans {
    fn default() -> Self {
        Self {
            filtering: VlanFiltering::Off,
            gateway: VLAN_DEFAULT,
        }
    }
}

/// What a request says of a network's VLANs; what it does not name stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkVlansChange {
    /// Of [`NetworkVlans::filtering`].
    pub filtering: Option<VlanFiltering>,
    /// Of [`NetworkVlans::gateway`].
    pub gateway: Option<VlanId>,
}

impl NetworkVlansChange {
    /// The settings after the request.
    pub fn over(self, before: NetworkVlans) -> NetworkVlans {
        NetworkVlans {
            filtering: self.filtering.unwrap_or(before.filtering),
            gateway: self.gateway.unwrap_or(before.gateway),
        }
    }
}

/// How a port is to be in VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// How frames leave.
    pub form: Form,
    /// What becomes of frames without a tag.
    pub pvid: Pvid,
}

/// What becomes of frames that enter a port without a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pvid {
    /// They are in this VLAN.
    This,
    /// It is not for this VLAN to say.
    Other,
}

/// Text or a number that names no VLANs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    /// It is neither a number nor two.
    #[error(
        "'{0}' names no VLAN; write a number from {first} to {last}, or two with a hyphen between \
         them, such as 10-20", first = VLANS.start(), last = VLANS.end()
    )]
    Text(String),
    /// The number is reserved or too large.
    #[error(
        "there is no VLAN {0}; VLANs are from {first} to {last}", first = VLANS.start(),
        last = VLANS.end()
    )]
    Range(i64),
    /// The last comes before the first.
    #[error("'{0}' ends before it begins; write the smaller VLAN first, such as 10-20")]
    Backwards(String),
    /// Many VLANs as the one of untagged frames.
    #[error(
        "'{0}' are several VLANs, and frames without a tag are in one; give one VLAN with pvid"
    )]
    ManyPvids(String),
}

/// The VLAN of a number.
///
/// # Errors
/// [`VlanError::Range`].
pub fn vlan(number: i64) -> Result<VlanId, VlanError> {
    let known = u16::try_from(number)
        .ok()
        .filter(|vlan| VLANS.contains(vlan));
    known.map(VlanId).ok_or(VlanError::Range(number))
}

/// A VLAN or an interval of them: `10`, `10-20`.
///
/// # Errors
/// [`VlanError`] for anything else.
pub fn interval(text: &str) -> Result<RangeInclusive<u16>, VlanError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| i64::from_str(text.trim_start_matches('+'));
    let (Ok(first), Ok(last)) = (number(first), number(last)) else {
        return Err(VlanError::Text(text.to_owned()));
    };
    let (first, last) = (vlan(first)?.0, vlan(last)?.0);
    if last < first {
        return Err(VlanError::Backwards(text.to_owned()));
    }
    Ok(first..=last)
}

/// Makes a port a member of VLANs, of which nothing that was set before is left.
///
/// # Errors
/// [`VlanError::ManyPvids`].
pub fn add(
    vlans: &mut PortVlans,
    interval: &RangeInclusive<u16>,
    membership: Membership,
) -> Result<(), VlanError> {
    let is_pvid = membership.pvid == Pvid::This;
    if is_pvid && interval.start() != interval.end() {
        return Err(VlanError::ManyPvids(span_text(interval)));
    }
    vlans.add(interval.clone(), membership.form);
    if is_pvid {
        vlans.set_pvid(VlanId(*interval.start()));
    }
    Ok(())
}

/// An interval as people write it: `10`, `10-20`.
pub fn span_text(interval: &RangeInclusive<u16>) -> String {
    match (interval.start(), interval.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

/// Whether a span, which then is a single VLAN, is that of frames without a tag.
pub fn is_pvid(vlans: &PortVlans, span: &VlanSpan) -> bool {
    vlans.pvid() == Some(VlanId(*span.vlans.start()))
}

/// A port's VLANs in words.
pub fn written(vlans: &PortVlans) -> String {
    let mut text = String::new();
    for span in vlans.spans() {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{}", span_text(&span.vlans));
        if is_pvid(vlans, &span) {
            text += " pvid";
        }
        if span.form == Form::Untagged {
            text += " untagged";
        }
    }
    text
}

/// The VLANs that [`written`] has written.
///
/// # Errors
/// [`VlanError`] for any other text.
pub fn read(text: &str) -> Result<PortVlans, VlanError> {
    let mut vlans = PortVlans::NONE;
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let mut words = part.split_whitespace();
        let interval = interval(words.next().unwrap_or_default())?;
        let membership = membership(words).ok_or_else(|| VlanError::Text(part.to_owned()))?;
        add(&mut vlans, &interval, membership)?;
    }
    Ok(vlans)
}

/// What `pvid` and `untagged` say, in any order; `None` for any other word.
pub fn membership<'w>(words: impl Iterator<Item = &'w str>) -> Option<Membership> {
    let mut membership = Membership {
        form: Form::Tagged,
        pvid: Pvid::Other,
    };
    for word in words {
        match word {
            "pvid" => membership.pvid = Pvid::This,
            "untagged" => membership.form = Form::Untagged,
            _ => return None,
        }
    }
    Some(membership)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(written(&PortVlans::default()), "1 pvid untagged");
        for text in ["", "1 pvid untagged", "1-9, 10 pvid, 11-4094 untagged"] {
            assert_eq!(written(&read(text).unwrap()), text);
        }
    }

    #[test]
    fn what_is_no_vlan_is_told_with_what_is_one() {
        assert_eq!(interval("10-20"), Ok(10..=20));
        assert_eq!(interval("4094"), Ok(4_094..=4_094));
        for (text, said) in [
            ("0", "from 1 to 4094"),
            ("4095", "from 1 to 4094"),
            ("70000", "from 1 to 4094"),
            ("10-4095", "from 1 to 4094"),
            ("20-10", "smaller VLAN first"),
            ("ten", "names no VLAN"),
            ("", "names no VLAN"),
            ("-5", "names no VLAN"),
        ] {
            let error = interval(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let error = read("10-20 pvid").unwrap_err().to_string();
        assert!(error.contains("one VLAN with pvid"), "{error}");
        assert!(read("10 fast").is_err());
    }
}
