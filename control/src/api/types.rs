//! The API's wire format: JSON, independent of the model, units in the key names.
//!
//! Fields are only added; a client ignores what it does not know.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::loads::{PortLoadView, WorkerLoadView};
pub use super::nat_views::{NatEndpointView, NatPoolView, NatUsageView, RuleView, SessionView};

use super::backends::BackendView;
use super::bridging::{FlagsBody, LinkView, StormView};
use super::reservations::ReservationBody;

/// An error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// What happened, naming the object.
    pub error: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// `POST /v1/networks`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// IPv4 subnet, such as `10.88.0.0/24`.
    pub subnet: Option<String>,
    /// IPv4 gateway.
    pub gateway: Option<String>,
    /// IPv6 subnet.
    pub subnet6: Option<String>,
    /// IPv6 gateway.
    pub gateway6: Option<String>,
    /// Where IPv4 endpoints get their addresses from.
    pub ip_range: Option<String>,
    /// Nothing outside is reachable.
    pub internal: bool,
    /// The host stays out.
    pub no_host_link: bool,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u16>,
    /// How long an FDB entry lives.
    pub ageing_seconds: Option<u32>,
    /// What becomes of BPDUs: `drop` or `forward`.
    pub stp_frames: Option<String>,
    /// What is done about loops: `off`, `event` or `block`.
    pub loop_detect: Option<String>,
    /// VLANs count: a frame reaches only ports in its own.
    pub vlan_filtering: Option<bool>,
    /// The VLAN that the gateway is in, where they count.
    pub gateway_vlan: Option<i64>,
    /// Endpoints reach each other without a rule.
    pub icc: Option<bool>,
    /// Frames to a group go to its listeners, where a querier asks for them.
    pub mcast_snooping: Option<bool>,
    /// The switch is a querier, where there is snooping.
    pub mcast_querier: Option<bool>,
    /// The switch answers ARP requests and neighbour solicitations for endpoints.
    pub arp_suppression: Option<bool>,
    /// On what of the remote an external port depends, as RFC 4787 calls it, or `default`.
    pub nat_mapping: Option<String>,
    /// On what of the remote it depends whether it is let in.
    pub nat_filtering: Option<String>,
    /// Under which address IPv4 packets go outside: `auto`, `masquerade` or `routed`.
    pub nat4: Option<String>,
    /// Under which address IPv6 packets go outside.
    pub nat6: Option<String>,
    /// Who answers for names: `on`, `off`, or the servers that other names are asked of.
    pub dns: Vec<String>,
    /// The LAN's routers, which endpoints use; or `none` alone: the switch has no gateway here.
    pub lan_gateway: Vec<String>,
    /// A network card of the host that is a port of the network.
    pub nic: Option<NicBody>,
}

/// `PATCH /v1/networks/NAME`: what is left out stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSet {
    /// How long an FDB entry lives.
    pub ageing_seconds: Option<u32>,
    /// What becomes of BPDUs: `drop` or `forward`.
    pub stp_frames: Option<String>,
    /// What is done about loops: `off`, `event` or `block`.
    pub loop_detect: Option<String>,
    /// VLANs count: a frame reaches only ports in its own.
    pub vlan_filtering: Option<bool>,
    /// The VLAN that the gateway is in, where they count.
    pub gateway_vlan: Option<i64>,
    /// Endpoints reach each other without a rule.
    pub icc: Option<bool>,
    /// Frames to a group go to its listeners, where a querier asks for them.
    pub mcast_snooping: Option<bool>,
    /// The switch is a querier, where there is snooping.
    pub mcast_querier: Option<bool>,
    /// The switch answers ARP requests and neighbour solicitations for endpoints.
    pub arp_suppression: Option<bool>,
    /// As in [`NetworkCreate`]; `default` for what the configuration says.
    pub nat_mapping: Option<String>,
    /// As in [`NetworkCreate`]; `default` for what the configuration says.
    pub nat_filtering: Option<String>,
    /// As in [`NetworkCreate`]. A change ends the network's flows of that family.
    pub nat4: Option<String>,
    /// As in [`NetworkCreate`]. A change ends the network's flows of that family.
    pub nat6: Option<String>,
    /// As in [`NetworkCreate`]; stays when empty.
    pub dns: Vec<String>,
    /// As in [`NetworkCreate`]; one of the name `none` takes the NIC back.
    pub nic: Option<NicBody>,
}

/// A network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// Its subnets.
    pub subnets: Vec<SubnetView>,
    /// MAC of the gateway.
    pub gateway_mac: String,
    /// Nothing outside is reachable.
    pub internal: bool,
    /// The host has addresses in it.
    pub host_link: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// How long an FDB entry lives.
    pub ageing_seconds: u32,
    /// What becomes of BPDUs: `drop` or `forward`.
    #[serde(default)]
    pub stp_frames: String,
    /// What is done about loops: `off`, `event` or `block`.
    #[serde(default)]
    pub loop_detect: String,
    /// VLANs count: a frame reaches only ports in its own.
    #[serde(default)]
    pub vlan_filtering: bool,
    /// The VLAN that the gateway is in, where they count.
    #[serde(default)]
    pub gateway_vlan: u16,
    /// Endpoints reach each other without a rule.
    #[serde(default)]
    pub icc: bool,
    /// Frames to a group go to its listeners, where a querier asks for them.
    #[serde(default)]
    pub mcast_snooping: bool,
    /// The switch is a querier, where there is snooping.
    #[serde(default)]
    pub mcast_querier: bool,
    /// The switch answers ARP requests and neighbour solicitations for endpoints.
    #[serde(default)]
    pub arp_suppression: bool,
    /// On what of the remote an external port depends: what is in force.
    #[serde(default)]
    pub nat_mapping: String,
    /// On what of the remote it depends whether it is let in: what is in force.
    #[serde(default)]
    pub nat_filtering: String,
    /// Under which address IPv4 packets go outside: `masquerade` or `routed`.
    #[serde(default)]
    pub nat4: String,
    /// Under which address IPv6 packets go outside.
    #[serde(default)]
    pub nat6: String,
    /// Which of these the network itself sets, over the configuration.
    #[serde(default)]
    pub nat_set: NatSetView,
    /// Who answers for names: `on`, `off`, or the servers that other names are asked of.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Whose its way out is: the `switch`'s gateway, or the `lan`'s.
    #[serde(default)]
    pub router: String,
    /// The network card that is a port of it.
    #[serde(default)]
    pub nic: Option<NicView>,
    /// Addresses that are kept for somebody.
    #[serde(default)]
    pub reservations: Vec<ReservationBody>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// A network card that is to be a port of a network.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NicBody {
    /// The interface.
    pub name: String,
    /// The host's addresses and routes move to a port of the host on the network.
    pub take_address: bool,
    /// How long the host does without a confirmation, or a daemon; 60 when left out.
    pub confirm_within_seconds: Option<u32>,
    /// Nobody has to confirm.
    pub no_confirm: bool,
    /// All that leaves by the card carries its MAC. Of a wireless one it always does.
    pub mac_nat: bool,
    /// `packet` (when left out) or `xdp`.
    pub backend: Option<String>,
}

/// A network card that is a port of a network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NicView {
    /// The interface.
    pub name: String,
    /// Its switch port.
    pub port: u16,
    /// `packet` or `xdp`.
    #[serde(default)]
    pub backend: String,
    /// Frames flow.
    pub up: bool,
    /// The host's interface that has its addresses, where they moved.
    pub host_ifname: Option<String>,
    /// Seconds in which the move has to be confirmed; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_seconds: Option<u64>,
}

/// What a network itself sets of its NAT; the rest is as the configuration says.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NatSetView {
    /// The mapping behaviour.
    pub mapping: Option<String>,
    /// The filtering behaviour.
    pub filtering: Option<String>,
    /// The mode of IPv4.
    pub nat4: Option<String>,
    /// The mode of IPv6.
    pub nat6: Option<String>,
}

/// A subnet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SubnetView {
    /// The prefix.
    pub subnet: String,
    /// The gateway's address.
    pub gateway: String,
    /// Where endpoints get their addresses from.
    pub ip_range: String,
}

/// `POST /v1/endpoints`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointCreate {
    /// The network's name; `default` when left out.
    pub network: String,
    /// Name or path of the sandbox.
    pub netns: Option<String>,
    /// A process in the sandbox.
    pub pid: Option<u32>,
    /// The endpoint's name.
    pub name: Option<String>,
    /// The interface's name inside; `eth0` when left out.
    pub ifname: Option<String>,
    /// Addresses, without a length or with the subnet's.
    pub addresses: Vec<String>,
    /// `ipv4`, `ipv6`: given no address of that family.
    pub without: Vec<String>,
    /// The MAC, or `random`; from the address when left out.
    pub mac: Option<String>,
    /// `tap`, `packet`, `xdp` or `tap-plain`, or `auto` and `auto-small` for the best that works; the first
    /// when left out.
    pub backend: Option<String>,
    /// Further names on its network.
    pub aliases: Vec<String>,
    /// The servers that its questions for other names go to.
    pub dns: Vec<String>,
    /// Names that it alone knows others of its network by: `NAME` or `NAME:ALIAS`.
    pub links: Vec<String>,
    /// Whose default route its sandbox has, when it has several endpoints: that of the highest; 0 when
    /// left out.
    pub gw_priority: Option<i32>,
    /// What its sandbox reaches by other routers than the gateway: `10.9.0.0/16=10.88.0.254`.
    pub routes: Vec<String>,
    /// An endpoint of that name gives way, and leaves what is published for it to this one.
    pub replace: bool,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EndpointView {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Its switch port.
    pub port: u16,
    /// Its sandbox.
    pub netns: String,
    /// Which namespace that is.
    #[serde(default)]
    pub netns_inode: u64,
    /// The interface's name inside.
    pub ifname: String,
    /// Its MAC.
    pub mac: String,
    /// Its addresses, with the subnet's length.
    pub addresses: Vec<String>,
    /// How it is connected.
    pub backend: String,
    /// What was asked for: that, or `auto` and `auto-small`.
    #[serde(default)]
    pub backend_asked: Option<String>,
    /// Why it is connected so, where that was the daemon's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_why: Option<String>,
    /// Further names on its network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Names that it alone knows others by.
    #[serde(default)]
    pub links: Vec<String>,
    /// Of several endpoints of a sandbox the highest has the default route.
    #[serde(default)]
    pub gw_priority: i32,
    /// Its static routes, as they are given.
    #[serde(default)]
    pub routes: Vec<String>,
    /// The servers that its questions for other names go to, where it has its own.
    #[serde(default)]
    pub dns: Vec<String>,
    /// What its resolver is to ask: its gateways, where they have the name service.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Frames flow.
    pub up: bool,
}

/// `POST /v1/publications`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PublicationCreate {
    /// The endpoint's name.
    pub endpoint: String,
    /// Such as `8080:80/tcp`.
    pub spec: String,
    /// Only clients of this prefix.
    pub from: Option<String>,
    /// Only clients that come in by this uplink, at whatever addresses it has.
    pub uplink: Option<String>,
    /// Ports that are published already lead to this endpoint as well.
    pub join: bool,
    /// The endpoint's share of new sessions, from 1 to 100; 1 when left out.
    pub weight: Option<u16>,
    /// `round-robin` or `source-hash`.
    pub balance: Option<String>,
}

/// `PATCH /v1/publications/{id}`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PublicationChange {
    /// `round-robin` or `source-hash`.
    pub balance: Option<String>,
}

/// `PATCH /v1/publications/{id}/targets/{endpoint}`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetPatch {
    /// Its share of new sessions, from 1 to 100.
    pub weight: Option<u16>,
    /// `serving` or `draining`.
    pub state: Option<String>,
}

/// A publication. `endpoint`, `inside_port_first` and `spec` are those of its first target.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PublicationView {
    /// Its id.
    pub id: u32,
    /// The endpoint's name.
    pub endpoint: String,
    /// `tcp` or `udp`.
    pub transport: String,
    /// The host's address; none for all.
    pub host_ip: Option<String>,
    /// The uplink by which alone clients come in; none for all.
    #[serde(default)]
    pub uplink: Option<String>,
    /// First port of the host.
    pub host_port_first: u16,
    /// Last port of the host.
    pub host_port_last: u16,
    /// First port of the endpoint.
    pub inside_port_first: u16,
    /// Only clients of this prefix.
    pub from: Option<String>,
    /// As `-p` would say it.
    pub spec: String,
    /// How new sessions are spread over the targets: `round-robin` or `source-hash`.
    #[serde(default)]
    pub balance: String,
    /// Where it leads, in the order in which they came.
    #[serde(default)]
    pub targets: Vec<TargetView>,
}

/// An endpoint that a publication leads to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetView {
    /// The endpoint's name.
    pub endpoint: String,
    /// First port of the endpoint.
    pub inside_port_first: u16,
    /// As `-p` would say it.
    pub spec: String,
    /// Its share of new sessions.
    pub weight: u16,
    /// `serving` or `draining`.
    pub state: String,
    /// Sessions that it has, without those that the host itself made.
    pub live_sessions: u64,
}

/// A switch port with its counters.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortView {
    /// Its id.
    pub port: u16,
    /// Its name.
    pub name: String,
    /// `endpoint`, `host-link` or `uplink`.
    pub role: String,
    /// Its network, of an endpoint.
    pub network: Option<String>,
    /// Frames flow.
    pub up: bool,
    /// Seconds for which it stays blocked, being part of a loop; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_seconds: Option<u64>,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames that the kernel dropped because the port was read too slowly.
    #[serde(default)]
    pub rx_missed: u64,
    /// Frames that were skipped as cut off or shorter than their headers.
    #[serde(default)]
    pub rx_malformed: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that should have been sent and were not.
    pub tx_dropped: u64,
    /// Frames among the sent that the kernel has dropped later.
    #[serde(default)]
    pub tx_lost: u64,
    /// What is switched on for it, of an endpoint's port.
    #[serde(default)]
    pub flags: Option<FlagsBody>,
    /// How many stations may be learned on it, where that is limited.
    #[serde(default)]
    pub mac_limit: Option<u32>,
    /// How many are.
    #[serde(default)]
    pub stations: u32,
    /// Frames whose source was not learned for that limit.
    #[serde(default)]
    pub mac_limit_refused: u64,
    /// The MAC that everything carries which leaves by it, where that is one.
    #[serde(default)]
    pub mac_nat: Option<String>,
    /// Storm control by class, of an endpoint's port.
    #[serde(default)]
    pub storm: Vec<StormView>,
    /// Its links that are no plain cable, or were none.
    #[serde(default)]
    pub links: Vec<LinkView>,
    /// How it is connected, of an endpoint's port that was asked for by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<BackendView>,
}

/// A drop reason with its counter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DropView {
    /// The stage.
    pub stage: String,
    /// The reason's label.
    pub reason: String,
    /// The port, of an egress drop.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<String>,
    /// How many.
    pub count: u64,
    /// Of how many the sender was told, by an ICMP error.
    #[serde(default)]
    pub answered: u64,
    /// What it means.
    pub meaning: String,
}

/// One traced frame, a line of the stream.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TraceView {
    /// Grows by one per frame.
    pub sequence: u64,
    /// Nanoseconds since the daemon's start.
    pub at_nanos: u64,
    /// The port that it entered by.
    pub port: u16,
    /// That port's name.
    pub port_name: String,
    /// Bytes of frame.
    pub size: usize,
    /// What it is.
    pub summary: String,
    /// What each stage did.
    pub steps: Vec<StepView>,
    /// `bridged`, `flooded`, ... or the label of a drop reason.
    pub outcome: String,
    /// The ports that it left by.
    pub egress: Vec<String>,
}

/// One stage of a traced frame.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepView {
    /// The stage.
    pub stage: String,
    /// What it did.
    pub text: String,
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusView {
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_seconds: u64,
    /// Where state is kept.
    pub state_dir: String,
    /// The namespace that it serves, by inode.
    pub netns_inode: u64,
    /// Worker threads.
    pub workers: usize,
    /// Load of each worker.
    #[serde(default)]
    pub worker_loads: Vec<WorkerLoadView>,
    /// Load of each port, the busiest first.
    #[serde(default)]
    pub port_loads: Vec<PortLoadView>,
    /// Generation of the installed topology.
    pub generation: u64,
    /// Networks.
    pub networks: usize,
    /// Endpoints.
    pub endpoints: usize,
    /// Publications.
    pub publications: usize,
    /// NAT sessions.
    pub nat_sessions: usize,
    /// How much of the NAT's limits is used.
    #[serde(default)]
    pub nat: Option<NatUsageView>,
    /// Uplinks.
    pub uplinks: Vec<UplinkView>,
    /// The host link's interface, when it is there.
    pub host_link: Option<String>,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames by verdict.
    pub verdicts: Vec<CountView>,
    /// Frames dropped.
    pub dropped: u64,
    /// What learning has come to.
    #[serde(default)]
    pub learning: Vec<CountView>,
    /// What ports were spared: `listeners` to groups, `groups_refused`, `queries_sent`, `answered_for`
    /// endpoints.
    #[serde(default)]
    pub spared: Vec<CountView>,
    /// API handlers that panicked.
    pub api_panics: u64,
    /// What disturbs forwarding, in words.
    pub warnings: Vec<String>,
    /// What was negotiated with the kernel.
    #[serde(default)]
    pub features: Vec<FeatureView>,
}

/// A feature that the kernel may refuse, and what is used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FeatureView {
    /// Whose it is.
    pub object: String,
    /// `offload`, `device`, `guard`, `backend`, and what a backend has negotiated.
    pub feature: String,
    /// What was asked for.
    pub wanted: String,
    /// What there is.
    pub used: String,
    /// They differ.
    pub replaced: bool,
}

/// An uplink.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UplinkView {
    /// Its interface.
    pub name: String,
    /// It is up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// A labelled counter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CountView {
    /// What is counted.
    pub label: String,
    /// How many.
    pub count: u64,
}

/// `POST /v1/detach`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachBody {
    /// Endpoints to be detached together: all, or none when one of them is not there.
    pub names: Vec<String>,
}
