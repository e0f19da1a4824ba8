//! The words of the command line, as users of docker, podman and ip expect them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::apply::{ApplyArgs, DownArgs, ExportArgs};
use super::bench::BenchCommand;
use super::conform::ConformArgs;
use super::debugging::{CaptureArgs, WhyArgs};
use super::demo::DemoArgs;
use super::dns::DnsCommand;
use super::doctor::DoctorArgs;
use super::events::EventsArgs;
use super::fdb::FdbCommand;
use super::impair::ImpairCommand;
use super::mac_nat::MacNatCommand;
use super::mdb::MdbCommand;
use super::mirror::MirrorCommand;
use super::network::{PruneArgs, ReserveArgs};
use super::nic::{LifelineArgs, NicArgs};
use super::ns::NsCommand;
use super::plug::PlugArgs;
use super::port::PortArgs;
use super::rule::{AllowArgs, RuleCommand};
use super::run::RunArgs;
use super::show::ShowArgs;
use super::vlan::{NetworkVlanArgs, VlanCommand};
use crate::config::{DEFAULT_NETWORK, WaitingMode};

/// A userspace Ethernet switch and NAT for network namespaces.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version,
    propagate_version = true,
    after_help = "Examples:
  causeway demo                                        the tour, in namespaces of its own
  causeway daemon &                                    serve this network namespace
  causeway network create web --subnet 10.88.0.0/24
  causeway run --network web -p 8080:80 -- httpd -f    a program in a sandbox of its own
  causeway attach --netns blue --network web           an interface for a namespace that is there
  causeway trace --contains TCP                        watch what happens to frames
  causeway why web1 198.51.100.7 tcp 443               what would happen, and why
  causeway nat conform                                 what our NAT does, beside the RFCs

Exit status: 0 done, 1 failed, 2 wrong usage; `run` ends with its program's, or with 125."
)]
pub struct Cli {
    /// The daemon's socket [default: /run/causeway/causeway.sock]
    #[arg(long, global = true, env = "CAUSEWAY_SOCKET")]
    pub socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this network namespace, in the foreground
    Daemon(DaemonArgs),
    /// The tour: containers, networks, NAT, published ports; leaves nothing behind
    Demo(DemoArgs),
    /// Bring everything to what a lab file says
    Apply(ApplyArgs),
    /// Take away what a lab file names
    Down(DownArgs),
    /// Print a lab file of what is there
    Export(ExportArgs),
    /// Networks: create, list, inspect, change, remove
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Give a network namespace an interface on a network
    Attach(AttachArgs),
    /// As pipework: connect a container to a network or a card of the host
    Plug(PlugArgs),
    /// Take an endpoint's interface away
    Detach(DetachArgs),
    /// Network namespaces: named, hidden, exposed
    #[command(subcommand)]
    Ns(NsCommand),
    /// Run a program in a sandbox of its own
    Run(RunArgs),
    /// Ports of the host that lead to endpoints
    #[command(subcommand)]
    Publish(PublishCommand),
    /// `port NAME`: an endpoint's published ports; `port ls`: switch ports with counters
    Port(PortArgs),
    /// What is wrong with the links of ports, for experiments: delay, loss and the like
    #[command(subcommand)]
    Impair(ImpairCommand),
    /// The forwarding database
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// VLANs (802.1Q): in which ones ports are
    #[command(subcommand)]
    Vlan(VlanCommand),
    /// The multicast database: who listens to which groups
    #[command(subcommand)]
    Mdb(MdbCommand),
    /// Ports by which one MAC leaves for all, as to Wi-Fi: who is behind them
    #[command(subcommand)]
    MacNat(MacNatCommand),
    /// Names: what is answered, and why
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Mirrors (SPAN): ports that show what others carry
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Let one open connections to another: between networks, or where --icc is off
    Allow(AllowArgs),
    /// Take back what was allowed by the same words
    Disallow(AllowArgs),
    /// Who may open connections to whom: ordered rules
    #[command(subcommand)]
    Rule(RuleCommand),
    /// What the outside can reach, and which rules it meets
    Exposure(JsonArgs),
    /// Network address translation
    #[command(subcommand)]
    Nat(NatCommand),
    /// Why frames were dropped
    Drops(JsonArgs),
    /// Watch what the data path does with frames
    Trace(TraceArgs),
    /// What would happen to a packet, stage by stage, and what would change it
    Why(WhyArgs),
    /// Write frames as the ports see them to a pcapng file
    Capture(CaptureArgs),
    /// What has happened: attachments, changes, ports that went down, loops, limits
    Events(EventsArgs),
    /// What the data path costs on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// What of this host is in the way, and what to do about it
    Doctor(DoctorArgs),
    /// Networks with their interfaces, as `brctl show` lists bridges
    Show(ShowArgs),
    /// What frames came to: forwarded, filtered, flooded and why, counted apart
    Stats(JsonArgs),
    /// The daemon at a glance
    Status(JsonArgs),
    /// Take everything of ours off the host; the daemon must not run
    Clean(CleanArgs),
    /// Give the host its NICs back when the daemon is gone
    #[command(hide = true)]
    Lifeline(LifelineArgs),
    /// Print a completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `--json`
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `daemon`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway daemon
  causeway daemon --uplink eth0 --uplink eth1
  causeway daemon --workers 2 --waiting always
  causeway daemon --metrics 127.0.0.1:9309 --log json --socket-group adm
  causeway --socket /tmp/c.sock daemon --state-dir /tmp/c --uplink none")]
pub struct DaemonArgs {
    /// Configuration file (TOML)
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Where state is kept [default: /var/lib/causeway]
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// An interface that leads outside, or 'none'; repeats [default: the default route's]
    #[arg(long, value_name = "IF|none")]
    pub uplink: Vec<String>,
    /// Worker threads [default: half of the CPUs, at least 1 and at most 4]
    #[arg(long)]
    pub workers: Option<usize>,
    /// How workers wait for frames [default: adaptive]
    #[arg(long, value_enum, value_name = "MODE")]
    pub waiting: Option<WaitingMode>,
    /// A server that is asked for names that are no endpoint's; repeats [default: those of
    /// /etc/resolv.conf]
    #[arg(long, value_name = "IP")]
    pub dns: Vec<std::net::IpAddr>,
    /// Let NAT sessions outlive the daemon: flows go on after a restart
    #[arg(long)]
    pub keep_sessions: bool,
    /// Serve the metrics of `GET /metrics` on this address of the loopback interface as well
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Let the members of this group use the socket: they may do everything
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, value_enum, value_name = "FORM", default_value_t = LogForm::Text, hide_default_value = true)]
    pub log: LogForm,
    /// Make no network 'default' on the first start
    #[arg(long)]
    pub no_default_network: bool,
    /// Stop when the standard input, a pipe, is closed: for a parent that may be killed
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    /// Routes of the API that only tests need
    #[arg(long, hide = true)]
    pub debug_routes: bool,
    /// The step of a NIC's move at which to die, for tests
    #[arg(long, hide = true)]
    pub die_at: Option<String>,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogForm {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// `network`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create(NetworkCreateArgs),
    /// List networks
    Ls(JsonArgs),
    /// Show networks with their endpoints, as JSON
    Inspect {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Change a network in use
    Set(NetworkSetArgs),
    /// Keep the host's addresses moved to a network's port (--take-address)
    Confirm {
        /// Which
        name: String,
    },
    /// Remove networks
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Keep an address for an endpoint, or from all
    Reserve(ReserveArgs),
    /// Give a reserved address back
    Release {
        /// The network
        name: String,
        /// The address
        ip: String,
    },
    /// Remove the networks that no endpoint is on, but for 'default'
    Prune(PruneArgs),
}

/// `network create`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway network create web
  causeway network create web --subnet 10.88.0.0/24 --gateway 10.88.0.254 --mtu 9000
  causeway network create dual --subnet 10.89.0.0/24 --subnet6 fd00:89::/64
  causeway network create db --internal
  causeway network create tv --mcast-querier on
  causeway network create shared --icc off                  endpoints reach each other by 'allow' only
  causeway network create v6 --subnet6 2001:db8:5::/64 --nat6 routed
  causeway network create games --nat-filtering endpoint-independent
  causeway network create lan --nic eth1 --lan-gateway 192.168.1.1 --subnet 192.168.1.0/24
  causeway network create lan --nic eth0 --take-address     the host's address moves along; confirm it
  causeway network create lan --nic eth1 --mac-nat          for a switch that admits one MAC")]
pub struct NetworkCreateArgs {
    /// Its name
    pub name: String,
    /// IPv4 subnet [default: a free one]
    #[arg(long)]
    pub subnet: Option<String>,
    /// IPv4 gateway [default: the subnet's first address]
    #[arg(long)]
    pub gateway: Option<String>,
    /// IPv6 subnet
    #[arg(long)]
    pub subnet6: Option<String>,
    /// IPv6 gateway [default: the subnet's first address]
    #[arg(long)]
    pub gateway6: Option<String>,
    /// Where IPv4 endpoints get their addresses from [default: the whole subnet]
    #[arg(long)]
    pub ip_range: Option<String>,
    /// Nothing outside is reachable
    #[arg(long)]
    pub internal: bool,
    /// The host stays out of the network
    #[arg(long)]
    pub no_host_link: bool,
    /// Largest IP packet, in bytes [default: the uplinks' smallest, or 1500 without one]
    #[arg(long)]
    pub mtu: Option<u16>,
    /// How long a station is remembered, in seconds [default: 300]
    #[arg(long, value_name = "SEC")]
    pub ageing: Option<u32>,
    /// BPDUs (01:80:c2:00:00:00) end at the port or pass: drop, forward [default: drop]
    #[arg(long, value_name = "WHAT")]
    pub stp_frames: Option<String>,
    /// Ports that are connected outside: nothing, an event, or the newer port is blocked: off, event,
    /// block [default: off]
    #[arg(long, value_name = "WHAT")]
    pub loop_detect: Option<String>,
    #[command(flatten)]
    pub vlans: NetworkVlanArgs,
    /// Endpoints reach each other without a rule [default: on]
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub icc: Option<bool>,
    #[command(flatten)]
    pub flood: FloodArgs,
    #[command(flatten)]
    pub nat: NatArgs,
    /// Who answers for names at the gateway: the switch (on), which asks these servers for others'
    /// names (IP, repeats), or the host (off) [default: on, with the daemon's servers]
    #[arg(long, value_name = "IP|on|off")]
    pub dns: Vec<String>,
    /// The LAN's router, which endpoints use; repeats. The switch then has no gateway and no NAT here;
    /// 'none': nor do endpoints get a default route
    #[arg(long, value_name = "IP|none")]
    pub lan_gateway: Vec<String>,
    #[command(flatten)]
    pub nic: NicArgs,
}

/// What of a network's frames is spared the ports that have no use for it.
#[derive(Debug, Args)]
pub struct FloodArgs {
    /// Frames to a group go to its listeners, where a querier asks for them [default: on]
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub mcast_snooping: Option<bool>,
    /// The switch asks for listeners, where there is snooping [default: off]
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub mcast_querier: Option<bool>,
    /// The switch answers ARP and neighbour discovery for endpoints [default: off]
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub arp_suppression: Option<bool>,
}

fn on_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".to_owned()),
    }
}

/// How a network's packets are translated.
#[derive(Debug, Args)]
pub struct NatArgs {
    /// On what of the remote an external port depends: endpoint-independent, address-dependent,
    /// address-and-port-dependent [default: as configured]
    #[arg(long, value_name = "BEHAVIOUR")]
    pub nat_mapping: Option<String>,
    /// Who is let in by an open external port: anybody (endpoint-independent), who was spoken to
    /// (address-dependent), or who answers (address-and-port-dependent) [default: as configured]
    #[arg(long, value_name = "BEHAVIOUR")]
    pub nat_filtering: Option<String>,
    /// Under which address IPv4 packets go outside: the host's (masquerade, auto) or their own
    /// (routed) [default: auto]
    #[arg(long, value_name = "MODE")]
    pub nat4: Option<String>,
    /// Under which address IPv6 packets go outside: the host's (masquerade), their own (routed),
    /// or their own where the subnet is globally routable (auto) [default: auto]
    #[arg(long, value_name = "MODE")]
    pub nat6: Option<String>,
}

/// `network set`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway network set games --nat-filtering endpoint-independent
  causeway network set games --nat-filtering default        as the configuration says
  causeway network set web --nat6 routed --ageing 60
  causeway network set web --mcast-querier on               groups go to their listeners only
  causeway network set lan --nic eth1                       a card of the host as a port; 'none' ends it

What is set here goes before the configuration file. Flows that are there go on as they were made; a
change of --nat4 or --nat6 ends those of the family.")]
pub struct NetworkSetArgs {
    /// Its name
    pub name: String,
    /// How long a station is remembered, in seconds
    #[arg(long, value_name = "SEC")]
    pub ageing: Option<u32>,
    /// BPDUs (01:80:c2:00:00:00) end at the port or pass: drop, forward
    #[arg(long, value_name = "WHAT")]
    pub stp_frames: Option<String>,
    /// Ports that are connected outside: nothing, an event, or the newer port is blocked: off, event,
    /// block
    #[arg(long, value_name = "WHAT")]
    pub loop_detect: Option<String>,
    #[command(flatten)]
    pub vlans: NetworkVlanArgs,
    /// Endpoints reach each other without a rule; a change holds for connections that are there, too
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    pub icc: Option<bool>,
    #[command(flatten)]
    pub flood: FloodArgs,
    #[command(flatten)]
    pub nat: NatArgs,
    /// Who answers for names at the gateway: on, off, or the servers for others' names; repeats
    #[arg(long, value_name = "IP|on|off")]
    pub dns: Vec<String>,
    #[command(flatten)]
    pub nic: NicArgs,
}

/// `attach`
#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("sandbox").required(true).args(["netns", "pid", "container"])),
    after_help = "Examples:
  causeway attach --netns blue                            on the network 'default'
  causeway attach --netns blue --network web
  causeway attach --pid 4711 --network web --name db --ip 10.88.0.9 --ifname eth1
  causeway attach --container 4fa6e0f0 --network web     by the id that `docker ps` prints
  causeway attach --netns blue --network wan --ifname eth1 --gw-priority 10    the way out from now on
  causeway attach --netns green --network web --name web1 --replace    its ports lead here now
  causeway attach --netns blue --network web --route 10.9.0.0/16=10.88.0.254
  causeway attach --netns red --network lab --ip none     an address by DHCP"
)]
pub struct AttachArgs {
    /// A namespace's name (as in 'ip netns') or path
    #[arg(long, value_name = "NAME|PATH")]
    pub netns: Option<String>,
    /// A process in the namespace
    #[arg(long)]
    pub pid: Option<u32>,
    /// A container's id, or its beginning, as docker, podman, containerd and CRI-O print it
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// The network
    #[arg(long, default_value = DEFAULT_NETWORK)]
    pub network: String,
    /// The endpoint's name [default: from the namespace]
    #[arg(long)]
    pub name: Option<String>,
    /// The interface's name inside
    #[arg(long, default_value = "eth0")]
    pub ifname: String,
    /// IPv4 address, or 'none' for one that the sandbox gets by DHCP [default: a free one]
    #[arg(long, value_name = "IP|none")]
    pub ip: Option<String>,
    /// IPv6 address, or 'none' for one by DHCPv6 or router advertisements [default: a free one]
    #[arg(long, value_name = "IP|none")]
    pub ip6: Option<String>,
    /// MAC, or 'random' [default: from the address]
    #[arg(long, value_name = "MAC|random")]
    pub mac: Option<String>,
    /// Which of a sandbox's endpoints has the default route: that of the highest number, of equals the
    /// first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub gw_priority: i32,
    /// How it is connected: tap, packet, xdp, tap-plain; auto and auto-small: the best that works here
    #[arg(long, default_value = "tap")]
    pub backend: String,
    /// What is reached by another router than the gateway; repeats
    #[arg(long, value_name = "SUBNET=ROUTER")]
    pub route: Vec<String>,
    /// A further name on its network; repeats
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// A server that its questions for others' names go to; repeats [default: the network's]
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// Take the place of the endpoint of that name, with what is published for it
    #[arg(long, requires = "name")]
    pub replace: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `detach`
#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("which").required(true).args(["names", "network", "netns", "pid", "container"])),
    after_help = "Examples:
  causeway detach web1 web2                all of them, or none when one is not there
  causeway detach --network web            all that the network has
  causeway detach --netns blue
  causeway detach --pid 4711 --ifname eth1"
)]
pub struct DetachArgs {
    /// The endpoints' names
    pub names: Vec<String>,
    /// A network, of which all are detached that were attached
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// The namespace's name (as in 'ip netns') or path
    #[arg(long, value_name = "NAME|PATH")]
    pub netns: Option<String>,
    /// A process in the namespace
    #[arg(long)]
    pub pid: Option<u32>,
    /// A container's id, or its beginning
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// The interface's name inside
    #[arg(long, default_value = "eth0", conflicts_with_all = ["names", "network"])]
    pub ifname: String,
}

/// `publish`
#[derive(Debug, Subcommand)]
pub enum PublishCommand {
    /// Publish a port of an endpoint
    #[command(after_help = "Examples:
  causeway publish add 8080:80 web1
  causeway publish add 127.0.0.1:5353:53/udp dns1
  causeway publish add 7000-7010 web1 --from 192.0.2.0/24
  causeway publish add 443:8443 web1 --uplink wan1         at that uplink's addresses alone
  causeway publish add 8080:80 web2 --join                 a second target beside web1
  causeway publish add 8080:8000 web3 --join --weight 2    a third, with twice the share")]
    Add(PublishAddArgs),
    /// Change how a publication spreads new sessions, or the weight of a target
    #[command(after_help = "Examples:
  causeway publish set 8080:80 --balance source-hash
  causeway publish set 8080:80 web2 --weight 3")]
    Set {
        /// The publication, by specification as listed or by id
        spec: String,
        /// The target, for its weight
        #[arg(requires = "weight")]
        endpoint: Option<String>,
        /// The target's share of new sessions, from 1 to 100
        #[arg(long, value_name = "N", requires = "endpoint")]
        weight: Option<u16>,
        /// round-robin or source-hash
        #[arg(long, value_name = "MODE", required_unless_present = "weight")]
        balance: Option<String>,
    },
    /// Give a target no new sessions; it keeps those that it has
    #[command(after_help = "Examples:
  causeway publish drain 8080:80 web1
  causeway publish ls                          until SESSIONS says 0
  causeway publish rm 8080:80 --target web1")]
    Drain(TargetArgs),
    /// Give a target new sessions again
    Undrain(TargetArgs),
    /// Withdraw publications, by specification as listed or by id
    #[command(after_help = "Examples:
  causeway publish rm 8080:80
  causeway publish rm 8080:80 --target web2    the others stay")]
    Rm {
        /// Which
        #[arg(required = true)]
        specs: Vec<String>,
        /// Only this target of it; the last one takes the publication along
        #[arg(long, value_name = "ENDPOINT")]
        target: Option<String>,
    },
    /// List publications
    Ls(JsonArgs),
}

/// `publish add`
#[derive(Debug, Args)]
pub struct PublishAddArgs {
    /// [[IP:]HOST_PORT:]PORT[/tcp|/udp]
    pub spec: String,
    /// The endpoint
    pub endpoint: String,
    /// Only clients of this prefix
    #[arg(long, value_name = "CIDR")]
    pub from: Option<String>,
    /// Only clients that come in by this uplink, at whatever addresses it has
    #[arg(long, value_name = "IF")]
    pub uplink: Option<String>,
    /// Where the host's ports are published already, lead them to this endpoint as well
    #[arg(long)]
    pub join: bool,
    /// The endpoint's share of new sessions, from 1 to 100 [default: 1]
    #[arg(long, value_name = "N")]
    pub weight: Option<u16>,
    /// How new sessions are spread over targets: round-robin, or source-hash for the same target
    /// for the same client address [default: round-robin]
    #[arg(long, value_name = "MODE")]
    pub balance: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `publish drain`, `publish undrain`
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The publication, by specification as listed or by id
    pub spec: String,
    /// The target
    pub endpoint: String,
}

/// `nat`
#[derive(Debug, Subcommand)]
pub enum NatCommand {
    /// List sessions
    Sessions(JsonArgs),
    /// Sessions, packets and bytes of each published port's targets, and of each network
    #[command(after_help = "Examples:
  causeway nat rules
  causeway nat rules --zero     print them, then count from zero (as iptables -Z)")]
    Rules {
        /// Make the counters zero once they are printed
        #[arg(long)]
        zero: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how much of the limits is used: sessions, ports, the fullest endpoints
    #[command(after_help = "Examples:
  causeway nat usage
  causeway nat usage --json | jq .pools")]
    Usage(JsonArgs),
    /// Check a NAT, ours or another, against the RFCs by real packets
    Conform(ConformArgs),
}

/// `trace`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway trace
  causeway trace --port web1 --count 10
  causeway trace --contains 10.88.0.2 --json")]
pub struct TraceArgs {
    /// Only frames in whose summary or steps this text occurs
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// The same as FILTER
    #[arg(long, conflicts_with = "filter")]
    pub contains: Option<String>,
    /// Only frames that entered by this port
    #[arg(long)]
    pub port: Option<String>,
    /// End after this many frames
    #[arg(long)]
    pub count: Option<usize>,
    /// Print a JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// `clean`
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Where state is kept
    #[arg(long, default_value = crate::config::STATE_DIR_DEFAULT)]
    pub state_dir: PathBuf,
}
