//! The guard without `cls_bpf`: `u32` filters that redirect to an interface which is down.
//!
//! `mirred` drops what it redirects to a down interface (net/sched/act_mirred.c), and unlike
//! `gact drop` it is in every kernel that we have met. The sink is an `ifb` of its own for each
//! guarded interface, so that it goes with the guard.
//!
//! What `u32` cannot say here, compared to [`GuardSpec::classify`]: IPv4 packets with options and
//! IPv6 packets with extension headers before TCP or UDP stay the host's. A range of ports
//! becomes up to 30 masks. A card's guard takes EAPOL as well. Replacing is not atomic but gapless: the new filters are added at
//! other priorities before the old ones go.
//!
//! Limits: [`FILTERS_MAX`].

use std::io;
use std::net::IpAddr;

use super::netlink::{Request, TrafficControl};
use super::spec::{Family, GuardSpec, Transport};
use super::{GuardError, Guarded, Hook, INGRESS, ignoring};
use crate::sys;

/// Filters of one guard. The kernel walks them one by one for every packet, some 10 ns each.
pub const FILTERS_MAX: usize = 1_024;

/// The priorities of our filters, behind those that an administrator writes by hand: two sets,
/// used in turn, of one priority for each protocol.
const SETS: [[u16; 3]; 2] = [[51_801, 51_802, 51_803], [51_804, 51_805, 51_806]];

// linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
// linux/if_link.h.
const IFLA_INFO_KIND: u16 = 1;

/// Puts the filters on the hook, in place of earlier ones.
pub(super) fn install(hook: &mut Hook, guarded: Guarded<'_>) -> Result<(), GuardError> {
    let filters = selectors(guarded);
    if filters.len() > FILTERS_MAX {
        return Err(GuardError::TooManyRules {
            interface: hook.name.clone(),
        });
    }
    let failed = |hook: &Hook, error| hook.failed("install", error);
    let earlier = find(hook).map_err(|error| failed(hook, error))?;
    let in_use = |set: &[u16; 3]| earlier.iter().any(|place| set.contains(&place.priority()));
    let [first, second] = SETS;
    let set = if in_use(&first) { second } else { first };
    // Only a process that died while it replaced one set by the other leaves both.
    remove_priorities(hook, &earlier, |priority| set.contains(&priority))
        .map_err(|error| failed(hook, error))?;
    if let Err(error) = add(hook, &filters, set) {
        // The earlier set goes on guarding; what of the new one is in place must not add to it.
        let partial = find(hook).unwrap_or_default();
        drop(remove_priorities(hook, &partial, |p| set.contains(&p)));
        return Err(failed(hook, error));
    }
    remove_priorities(hook, &earlier, |priority| !set.contains(&priority))
        .map_err(|error| failed(hook, error))
}

/// Our filters on the hook.
pub(super) fn find(hook: &mut Hook) -> io::Result<Vec<TrafficControl>> {
    let filters = match hook.netlink.filters(hook.interface, INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
        filters => filters?,
    };
    let ours = filters.into_iter().filter(|filter| {
        let priority = filter.place.priority();
        filter.kind == b"u32" && SETS.iter().any(|set| set.contains(&priority))
    });
    Ok(ours.map(|filter| filter.place).collect())
}

/// Removes the filters and the sink.
pub(super) fn remove(hook: &mut Hook) -> io::Result<()> {
    let ours = find(hook)?;
    remove_priorities(hook, &ours, |_| true)?;
    match sys::interface_index(&sink_name(hook.interface)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(index) => {
            let request = Request::new(libc::RTM_DELLINK, 0, &link(index));
            ignoring(libc::ENODEV, hook.netlink.request(request))
        }
    }
}

/// Removes whole priorities, so the hash tables that the kernel makes for each go with them.
fn remove_priorities(
    hook: &mut Hook,
    places: &[TrafficControl],
    which: impl Fn(u16) -> bool,
) -> io::Result<()> {
    let mut infos: Vec<u32> = places.iter().map(|place| place.info).collect();
    infos.sort_unstable();
    infos.dedup();
    for info in infos {
        let place = TrafficControl {
            info,
            ..hook.place(INGRESS)
        };
        if which(place.priority()) {
            hook.remove_filter(place)?;
        }
    }
    Ok(())
}

/// Adds the filters at the priorities of `set`.
fn add(hook: &mut Hook, filters: &[Selector], set: [u16; 3]) -> io::Result<()> {
    let sink = make_sink(hook)?;
    for filter in filters {
        let (protocol, priority) = match filter.family {
            None => (libc::ETH_P_ALL, set[0]),
            Some(Family::V4) => (libc::ETH_P_IP, set[1]),
            Some(Family::V6) => (libc::ETH_P_IPV6, set[2]),
        };
        let place = TrafficControl {
            info: TrafficControl::filter_info(priority, protocol as u16),
            ..hook.place(INGRESS)
        };
        // Without a handle the kernel gives the next one.
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::traffic_control(libc::RTM_NEWTFILTER, flags, place)
            .attribute(libc::TCA_KIND, b"u32\0")
            .nested(libc::TCA_OPTIONS, |options| {
                options
                    .attribute(TCA_U32_SEL, &filter.encode())
                    .nested(TCA_U32_ACT, |actions| redirect_to(sink, actions))
            });
        hook.netlink.request(request)?;
    }
    Ok(())
}

/// The first and only action: to the sink.
fn redirect_to(sink: u32, actions: Request) -> Request {
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let fields = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, sink];
    let parameters: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
    actions.nested(1, |action| {
        action
            .attribute(TCA_ACT_KIND, b"mirred\0")
            .nested(TCA_ACT_OPTIONS, |options| {
                options.attribute(TCA_MIRRED_PARMS, &parameters)
            })
    })
}

/// The sink's index; it is made if it is not there. It is never set up.
fn make_sink(hook: &mut Hook) -> io::Result<u32> {
    let name = sink_name(hook.interface);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut terminated = name.clone().into_bytes();
    terminated.push(0);
    let request = Request::new(libc::RTM_NEWLINK, flags, &link(0))
        .attribute(libc::IFLA_IFNAME, &terminated)
        .nested(libc::IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"ifb")
        });
    ignoring(libc::EEXIST, hook.netlink.request(request))?;
    sys::interface_index(&name)
}

/// The index is unique in the namespace and at most ten digits long.
fn sink_name(interface: u32) -> String {
    format!("cwsk{interface}")
}

/// `struct ifinfomsg` with nothing but an index.
fn link(index: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// One filter: words of the packet, from its IP header on, that must have certain bits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    family: Option<Family>,
    /// Mask, value and offset, in host byte order.
    keys: Vec<(u32, u32, i32)>,
}

impl Selector {
    /// `struct tc_u32_sel` with its keys; masks and values are in network byte order.
    fn encode(&self) -> Vec<u8> {
        // A selector without keys is said by one that any packet matches.
        let any = [(0, 0, 0)];
        let keys = if self.keys.is_empty() {
            &any[..]
        } else {
            &self.keys
        };
        // At most ten keys are built here, see `selectors`.
        let mut bytes = vec![TC_U32_TERMINAL, 0, keys.len() as u8];
        bytes.resize(16, 0);
        for &(mask, value, offset) in keys {
            bytes.extend(mask.to_be_bytes());
            bytes.extend(value.to_be_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend([0; 4]);
        }
        bytes
    }
}

/// What is guarded, as selectors.
fn selectors(guarded: Guarded<'_>) -> Vec<Selector> {
    let Guarded::Spec(spec) = guarded else {
        return vec![Selector {
            family: None,
            keys: Vec::new(),
        }];
    };
    let mut selectors: Vec<Selector> = spec
        .prefixes
        .iter()
        .map(|prefix| Selector {
            family: Some(Family::of(prefix.address)),
            keys: destination_keys(prefix.address, prefix.len),
        })
        .collect();
    for family in [Family::V4, Family::V6] {
        for transport in Transport::ALL {
            port_selectors(spec, family, transport, &mut selectors);
        }
    }
    selectors
}

/// The selectors of one transport's ranges: for each destination and each mask of ports.
fn port_selectors(
    spec: &GuardSpec,
    family: Family,
    transport: Transport,
    selectors: &mut Vec<Selector>,
) {
    let protocol = u32::from(transport.protocol());
    let (headers, port_offset) = match family {
        // Header length 5; fragment offset 0; protocol.
        Family::V4 => (
            vec![
                (0xff00_0000, 0x4500_0000, 0),
                (0x0000_1fff, 0, 4),
                (0x00ff_0000, protocol << 16, 8),
            ],
            20,
        ),
        // Next header.
        Family::V6 => (vec![(0x0000_ff00, protocol << 8, 4)], 40),
    };
    for (destination, ranges) in spec.ranges(transport, family) {
        let destinations: Vec<Option<IpAddr>> = match destination {
            None if !spec.addresses.is_empty() => {
                let same = spec.addresses.iter().filter(|a| Family::of(**a) == family);
                same.copied().map(Some).collect()
            }
            one => vec![one],
        };
        for destination in destinations {
            for &(first, last) in &ranges {
                for (mask, value) in port_masks(first, last) {
                    let mut keys = headers.clone();
                    if let Some(address) = destination {
                        keys.extend(destination_keys(address, u8::MAX));
                    }
                    keys.push((mask.into(), value.into(), port_offset));
                    selectors.push(Selector {
                        family: Some(family),
                        keys,
                    });
                }
            }
        }
    }
}

/// The keys of a destination prefix; none when it has length zero.
fn destination_keys(address: IpAddr, len: u8) -> Vec<(u32, u32, i32)> {
    let (words, first): (Vec<u32>, i32) = match address {
        IpAddr::V4(v4) => (vec![v4.to_bits()], 16),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            let words = [96, 64, 32, 0].map(|shift: u32| (bits >> shift) as u32);
            (words.to_vec(), 24)
        }
    };
    let mut bits = u32::from(len);
    let mut keys = Vec::new();
    for (word, offset) in words.into_iter().zip((first..).step_by(4)) {
        let mask = u32::MAX
            .checked_shr(bits)
            .map_or(u32::MAX, |host_part| !host_part);
        if mask != 0 {
            keys.push((mask, word & mask, offset));
        }
        bits = bits.saturating_sub(32);
    }
    keys
}

/// A range of ports as (mask, value) pairs: the largest aligned blocks, at most 30 of them.
fn port_masks(first: u16, last: u16) -> Vec<(u16, u16)> {
    let mut masks = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let size = 1 << aligned.min((end - next).ilog2());
        masks.push((!(size - 1) as u16, next as u16));
        next += size;
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_masks_cover_exactly_the_range() {
        for (first, last) in [
            (0, 65_535),
            (1, 65_534),
            (80, 80),
            (1_000, 1_003),
            (65_535, 65_535),
        ] {
            let masks = port_masks(first, last);
            assert!(masks.len() <= 30, "{first}-{last}: {}", masks.len());
            for port in 0..=u16::MAX {
                let hits = masks.iter().filter(|(mask, value)| port & mask == *value);
                let expected = usize::from((first..=last).contains(&port));
                assert_eq!(hits.count(), expected, "{port} of {first}-{last}");
            }
        }
        assert_eq!(port_masks(49_152, 65_535), [(0xc000, 0xc000)]);
    }

    #[test]
    fn destination_keys_are_the_prefix() {
        let v4 = "198.51.100.9".parse().unwrap();
        assert_eq!(destination_keys(v4, 24), [(0xffff_ff00, 0xc633_6400, 16)]);
        assert!(destination_keys(v4, 0).is_empty());
        let v6 = "2001:db8:1:8000::".parse().unwrap();
        assert_eq!(
            destination_keys(v6, 49),
            [(u32::MAX, 0x2001_0db8, 24), (0xffff_8000, 0x0001_8000, 28)]
        );
        assert_eq!(destination_keys(v6, u8::MAX).len(), 4);
    }

    #[test]
    fn selector_has_the_kernels_layout() {
        let encoded = Selector {
            family: None,
            keys: vec![(0xff, 0x11, 20)],
        }
        .encode();
        assert_eq!(encoded.len(), 32);
        assert_eq!(encoded[..3], [TC_U32_TERMINAL, 0, 1]);
        assert_eq!(encoded[16..24], [0, 0, 0, 0xff, 0, 0, 0, 0x11]);
    }
}
