//! Addresses that are kept for somebody, or kept free.

use std::fmt;
use std::str::FromStr;

use dataplane_core::addr::MacAddr;

use super::Name;

/// For whom an address is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// For something that the switch does not know: no endpoint gets it.
    Nobody,
    /// For the endpoint of that name.
    Named(Name),
    /// For the endpoint with that MAC.
    Mac(MacAddr),
}

/// Who asks for an address.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'c> {
    /// The endpoint's name.
    pub name: &'c Name,
    /// Its MAC, where it was given one.
    pub mac: Option<MacAddr>,
}

impl Holder {
    /// Whether the address is kept for this endpoint.
    pub fn is(&self, claimant: Claimant<'_>) -> bool {
        match self {
            Self::Nobody => false,
            Self::Named(name) => name == claimant.name,
            Self::Mac(mac) => Some(*mac) == claimant.mac,
        }
    }
}

/// Text that names no holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither an endpoint's name nor a MAC; write web1 or 02:42:0a:58:00:09")]
pub struct HolderError(pub String);

impl FromStr for Holder {
    type Err = HolderError;

    /// A name, or a MAC, which no name can be: it has colons.
    fn from_str(text: &str) -> Result<Self, HolderError> {
        let wrong = || HolderError(text.to_owned());
        match text.contains(':') {
            true => text.parse().map(Self::Mac).map_err(|_| wrong()),
            false => text.parse().map(Self::Named).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody"),
            Self::Named(name) => write!(f, "endpoint '{name}'"),
            Self::Mac(mac) => write!(f, "{mac}"),
        }
    }
}

impl Holder {
    /// The text that it is read from; `None` of one for nobody.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Nobody => None,
            Self::Named(name) => Some(name.to_string()),
            Self::Mac(mac) => Some(mac.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_a_name_or_a_mac() {
        for text in ["web1", "02:42:0a:58:00:09"] {
            let holder: Holder = text.parse().unwrap();
            assert_eq!(holder.text().as_deref(), Some(text));
        }
        for text in ["", "a b", "02:42", "x:y"] {
            assert_eq!(text.parse::<Holder>(), Err(HolderError(text.to_owned())));
        }
        let (web1, mac) = ("web1".parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 1]));
        let claimant = |mac| Claimant { name: &web1, mac };
        assert!(Holder::Named(web1.clone()).is(claimant(None)));
        assert!(Holder::Mac(mac).is(claimant(Some(mac))));
        assert!(!Holder::Mac(mac).is(claimant(None)));
        assert!(!Holder::Nobody.is(claimant(Some(mac))));
    }
}
