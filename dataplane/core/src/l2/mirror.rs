//! Mirrors (SPAN): what enters or leaves by some ports is copied to another one, for watching.

use crate::addr::{DomainId, PortId};
use crate::topology::{Port, Role};

/// Mirrors of one process: each is asked of every frame while there is any.
pub const MIRRORS_MAX: usize = 16;

/// A mirror. What it copies is not forwarded, so no mirror ever copies a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// What is watched.
    pub from: MirrorSource,
    /// On which of its ways.
    pub direction: MirrorDirection,
    /// Where the copies go.
    pub to: PortId,
}

/// What a mirror watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorSource {
    /// One port.
    Port(PortId),
    /// Every port of a bridge domain.
    Domain(DomainId),
}

/// On which way frames are copied, seen from the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorDirection {
    /// As they enter, whatever becomes of them.
    In,
    /// As they leave.
    Out,
    /// As they enter and as they leave.
    Both,
}

impl MirrorDirection {
    /// Every direction.
    pub const ALL: [Self; 3] = [Self::In, Self::Out, Self::Both];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Both => "both",
        }
    }
}

impl Mirror {
    /// Whether frames that enter by `port` are copied.
    pub fn copies_from(&self, port: &Port) -> bool {
        self.direction != MirrorDirection::Out && self.watches(port)
    }

    /// Whether frames that leave by `port` are copied; those to the mirror's own port are there.
    pub fn copies_to(&self, port: &Port) -> bool {
        self.direction != MirrorDirection::In && self.watches(port)
    }

    fn watches(&self, port: &Port) -> bool {
        let meant = match self.from {
            MirrorSource::Port(id) => port.id == id,
            MirrorSource::Domain(domain) => port.role == Role::Bridge(domain),
        };
        meant && port.id != self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_copies_what_it_is_told_to_and_never_its_own_port() {
        let port = |id, domain| Port::new(PortId(id), "p", Role::Bridge(DomainId(domain)));
        let ports = [port(1, 1), port(2, 1), port(3, 2), port(9, 1)];
        let uplink = Port::new(PortId(1), "up", Role::HostLink);
        for (from, wanted) in [
            (MirrorSource::Port(PortId(1)), vec![1]),
            (MirrorSource::Port(PortId(9)), vec![]),
            (MirrorSource::Domain(DomainId(1)), vec![1, 2]),
        ] {
            for direction in MirrorDirection::ALL {
                let to = PortId(9);
                let mirror = Mirror {
                    from,
                    direction,
                    to,
                };
                let ids = |copies: &dyn Fn(&Port) -> bool| -> Vec<u16> {
                    let copied = ports.iter().filter(|port| copies(port));
                    copied.map(|port| port.id.0).collect()
                };
                let none = Vec::new();
                let (enter, leave) = match direction {
                    MirrorDirection::In => (&wanted, &none),
                    MirrorDirection::Out => (&none, &wanted),
                    MirrorDirection::Both => (&wanted, &wanted),
                };
                assert_eq!(&ids(&|port| mirror.copies_from(port)), enter);
                assert_eq!(&ids(&|port| mirror.copies_to(port)), leave);
            }
        }
        let domain = Mirror {
            from: MirrorSource::Domain(DomainId(1)),
            direction: MirrorDirection::Both,
            to: PortId(9),
        };
        assert!(!domain.copies_from(&uplink), "of no domain");
    }
}
