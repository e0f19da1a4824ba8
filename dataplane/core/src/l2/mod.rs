//! Admission of frames into a bridge domain, and their way out of it.

mod claims;
mod egress;
mod flags;
mod mac_nat;
mod mirror;
mod probe;
mod profile;
mod security;
mod storm;
mod suppress;
mod vlan;
mod watch;

use crate::addr::{DomainId, MacAddr, VlanId};
use crate::fdb::{FdbKey, Learn};
use crate::frame::Frame;
use crate::headers::{ETHERNET_SIZE, Headers, VLAN_TAG_SIZE, ethertype};
use crate::time::Instant;
use crate::topology::{Domain, Port, Role, Topology};
use crate::verdict::DropReason;

pub use claims::{Claim, Claims};
pub(crate) use egress::{Takers, are_isolated, bridge, flood, leave};
pub use flags::{FloodClass, PortFlags};
pub use mac_nat::{Located, MAC_NAT_ADDRESSES_MAX, MAC_NAT_AGEING};
pub use mac_nat::{MacNat, MacNatEntry, MacNatTable, TableFull, Untranslatable};
pub use mirror::{MIRRORS_MAX, Mirror, MirrorDirection, MirrorSource};
pub use probe::{PROBE_ETHERTYPE, PROBE_GROUP, PROBE_SIZE, ProbeKey};
pub use profile::PortProfile;
pub use security::{Families, Identity};
pub use storm::{STORM_BURST_MAX, STORM_RATE_MAX};
pub use storm::{StormLimit, StormLimitError, StormLimits, StormMeters, StormView};
pub(crate) use suppress::answer;
pub use vlan::{Form, PortVlans, VLAN_DEFAULT, VLANS, VlanSpan, reshape};
pub use watch::{FLAP_MOVES, FLAP_WINDOW, Sighting, Watch};

/// The VLAN of every frame in a domain that is transparent to tags.
pub const TRANSPARENT: VlanId = VlanId(0);

/// Destination and source of an Ethernet header.
#[inline]
pub(crate) const fn addresses(ethernet: &[u8; ETHERNET_SIZE]) -> [MacAddr; 2] {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = *ethernet;
    [
        MacAddr([d0, d1, d2, d3, d4, d5]),
        MacAddr([s0, s1, s2, s3, s4, s5]),
    ]
}

/// Whether a frame to a link-local group is forwarded all the same: none but BPDUs, where they are
/// let, as by a kernel bridge without spanning tree.
#[cold]
fn passes(flags: PortFlags, group: MacAddr) -> bool {
    group == MacAddr::BRIDGE_GROUP && flags.has(PortFlags::BPDUS)
}

/// What one worker keeps of the bridge domains, besides its view of the FDB.
#[derive(Debug)]
pub struct State {
    /// What it has noticed about the wiring.
    pub watch: Watch,
    /// Which addresses it has heard claimed by somebody else than their endpoints.
    pub claims: Claims,
}

impl State {
    /// Nothing yet. Probes of this process are known by `key`.
    pub fn new(key: ProbeKey) -> Self {
        Self {
            watch: Watch::new(key),
            claims: Claims::default(),
        }
    }

    /// Takes note of what a frame tells of stations: one that has moved, an address that is claimed.
    #[inline]
    pub(crate) fn notice(
        &mut self,
        learned: Learn,
        domain: Option<&Domain>,
        vlan: VlanId,
        headers: &Headers,
        frame: &Frame<'_>,
        now: Instant,
    ) {
        let Some(domain) = domain else {
            return;
        };
        if let Learn::Moved { from } = learned {
            let key = FdbKey::new(domain.id, vlan, headers.src);
            self.watch.moved(key, from, frame.ingress, now);
        }
        if headers.dst.is_group() && vlan == domain.gateway_vlan {
            self.claims.hear(domain, headers, frame);
        }
    }
}

/// What only some ports ask of a frame that enters; the VLAN that it is in.
///
/// # Errors
/// `LoopProbe`, `MirrorPort`, `SourceMacForeign`, `SourceAddressForeign`, `VlanNoPvid`, `VlanIngress`,
/// and of a port with a single MAC `MacNatEcho`, `MacNatUnknown`, `MacNatNotIp`.
// Cold for the sake of the other ports: what they keep in registers stays there.
#[cold]
#[inline(never)]
fn examine(
    state: &mut State,
    topology: &Topology,
    port: &Port,
    domain: DomainId,
    headers: &mut Headers,
    frame: &mut Frame<'_>,
    now: Instant,
) -> Result<VlanId, DropReason> {
    let probe = headers.dst == PROBE_GROUP && headers.ethertype == PROBE_ETHERTYPE;
    if probe && state.watch.is_own_probe(frame.bytes(), domain, port.id) {
        return Err(DropReason::LoopProbe);
    }
    if port.flags.has(PortFlags::MIRROR) {
        return Err(DropReason::MirrorPort);
    }
    if port.flags.has(PortFlags::SECURED) {
        let checked = port.profile.identity.check(headers, frame);
        checked.inspect_err(|_| state.claims.refused(domain, headers, frame))?;
    }
    let vlan = match port.flags.has(PortFlags::FILTERING) {
        true => port.profile.classify(headers.tag)?,
        false => TRANSPARENT,
    };
    if port.flags.has(PortFlags::MAC_NAT)
        && let Some(nat) = &port.profile.mac_nat
    {
        nat.enter(port, topology.domain(domain), headers, frame, now)?;
    }
    Ok(vlan)
}

/// Whether nothing but the tag of its own VLAN stands before what a frame carries, if that.
#[inline]
pub(crate) fn is_plain(headers: &Headers, vlan: VlanId) -> bool {
    headers.tag.is_none_or(|tag| {
        let single = headers.l3_offset == ETHERNET_SIZE + VLAN_TAG_SIZE;
        vlan != TRANSPARENT && tag.tpid == ethertype::VLAN && single
    })
}

/// Decides whether a frame may enter its domain, and in which VLAN; one that came to a MAC which stations
/// share is given to whom it is for. Frames of the host link and of uplinks enter no domain and pass.
///
/// # Errors
/// `SourceGroup`, `SourceZero`: no station can have such an address, and learning it would send
/// other stations' frames astray. `LoopProbe`: a probe of ours, of which [`State::watch`] has taken
/// note. `MirrorPort`: it only shows copies. `SourceMacForeign`, `SourceAddressForeign`: the port is
/// secured, and its endpoint has neither. `VlanNoPvid`, `VlanIngress`: the port is not in the VLAN of
/// the frame. `MacNatEcho`, `MacNatUnknown`, `MacNatNotIp`: all stations share the port's MAC, and the
/// frame is theirs, or for none that is known. `LinkLocalGroup`: IEEE 802.1Q-2018 clause 8.6.3.
#[inline]
pub fn admit(
    state: &mut State,
    topology: &Topology,
    port: &Port,
    headers: &mut Headers,
    frame: &mut Frame<'_>,
    now: Instant,
) -> Result<VlanId, DropReason> {
    let Role::Bridge(domain) = port.role else {
        return Ok(TRANSPARENT);
    };
    if headers.src.is_group() {
        return Err(DropReason::SourceGroup);
    }
    if headers.src == MacAddr::ZERO {
        return Err(DropReason::SourceZero);
    }
    let vlan = if port.flags.has(PortFlags::EXAMINED) {
        examine(state, topology, port, domain, headers, frame, now)?
    } else {
        TRANSPARENT
    };
    if headers.dst.is_link_local_group() && !passes(port.flags, headers.dst) {
        return Err(DropReason::LinkLocalGroup);
    }
    Ok(vlan)
}
