//! The daemon's configuration file: TOML, units in the key names, unknown keys are errors.
//!
//! ```toml
//! state_dir = "/var/lib/causeway"
//! socket = "/run/causeway/causeway.sock"
//! workers = 2
//! uplinks = ["eth0"]              # [] for none; left out: the default route's interface
//! metrics = "127.0.0.1:9309"      # for scrapers that cannot open the socket; loopback only
//! socket_group = "adm"            # whose members may use the socket
//!
//! [dns]
//! servers = ["192.0.2.53"]        # left out: those of resolv_conf, read again when it changes
//! resolv_conf = "/etc/resolv.conf"
//!
//! [default_network]               # made on the first start; default_network = false for none
//! bip = "172.17.0.1/16"           # left out: this, or a subnet that clashes with no route
//! fixed_cidr = "172.17.128.0/17"  # where endpoints get their addresses from
//! bip6 = "fd00:17::1/64"
//! mtu = 1500                      # left out: the uplinks'
//! internal = false
//!
//! [[default_address_pools]]       # where networks without --subnet get theirs from
//! base = "10.201.0.0/16"
//! size = 24
//!
//! [nat]
//! port_first = 49152
//! port_last = 65535
//! tcp_opening_timeout_seconds = 240
//! tcp_established_timeout_seconds = 7440
//! tcp_closing_timeout_seconds = 240
//! udp_timeout_seconds = 300
//! udp_dns_timeout_seconds = 300   # datagrams to port 53
//! icmp_timeout_seconds = 60
//! force = false                   # true: timeouts below the RFCs' least are taken
//! clamp_mss = false               # true: TCP's offers are held to the MTU of the way
//! udp_inbound_refresh = true      # packets from the remote keep a UDP session alive
//! sessions_max = 1048576
//! sessions_per_endpoint_max = 65536
//! keep_sessions = false           # true: flows go on after a restart of the daemon
//! share_ports = true              # towards different remotes, when no port is free
//! external_addresses = ["198.51.100.1", "198.51.100.2"]   # each endpoint behind one of them
//! mapping = "endpoint-independent"             # or "address-dependent",
//! filtering = "address-and-port-dependent"     #    "address-and-port-dependent"
//!
//! [nat.networks.games]            # a network with a behaviour of its own
//! filtering = "endpoint-independent"
//! ```
//!
//! Options of the command line win over the file; so does what `network create` and `network set`
//! say of a network's NAT, which is kept with the network.

mod default_network;
mod pools;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use dataplane::Waiting;
use dataplane_core::nat::{Behaviour, Dependence, NatConfig, NatConfigError, Timeouts};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::UPLINKS_MAX;
use dataplane_port::xdp::BUSY_POLL_FRAMES_MAX;
use serde::Deserialize;

use crate::link::{IfNameError, check_ifname};

pub use default_network::{DEFAULT_NETWORK, DefaultNetwork, DefaultNetworkConfig};
pub use pools::AddressPool;

use default_network::DefaultNetworkFile;

/// Where state is kept unless told otherwise.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/causeway";
/// Where the API listens unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/causeway/causeway.sock";
/// Where the host's resolver is told its servers.
pub const RESOLV_CONF_DEFAULT: &str = "/etc/resolv.conf";
/// Worker threads at most: more queues per TAP than this help nobody.
pub const WORKERS_MAX: usize = 16;
/// How long an adaptive worker looks for frames, when the file does not say.
const SPIN_MICROSECONDS_DEFAULT: u64 = 50;
/// The longest that makes sense: beyond a tick, `always` says it better.
const SPIN_MICROSECONDS_MAX: u64 = 100_000;
/// External ports that a NAT range must have at least, so that every one of its shards gets some.
const NAT_PORTS_MIN: u16 = 512;
/// A session that is silent for longer than a week is nobody's.
const TIMEOUT_SECONDS_MAX: u64 = 7 * 24 * 3_600;
/// Where the dataplane's clock begins when sessions are kept: they may be as old as a year, and must
/// not seem to be of before it.
const KEPT_CLOCK_START: Instant = Instant::from_secs(366 * 24 * 3_600);
/// Ports that stay the host's at least when the NAT range is chosen.
const HOST_PORTS_MIN: u16 = 4_096;

/// What the daemon was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// Where the API listens.
    pub socket: PathBuf,
    /// Workers, how they wait, and the size of their batches.
    pub dataplane: dataplane::Config,
    /// Frames that a worker fetches from the driver of an endpoint by AF_XDP while it looks for some;
    /// `None` leaves that to the kernel.
    pub busy_poll_frames: Option<u16>,
    /// The external interfaces.
    pub uplinks: Uplinks,
    /// Ranges, timeouts and limits of the NAT.
    pub nat: NatConfig,
    /// Whether NAT sessions outlive the daemon.
    pub sessions: Sessions,
    /// Where names are asked for that are no endpoint's.
    pub dns: DnsConfig,
    /// Where metrics are served besides the socket.
    pub metrics: Option<SocketAddr>,
    /// Whose members may use the socket, besides its owner.
    pub socket_group: Option<String>,
    /// The network that is there from the first start.
    pub default_network: DefaultNetwork,
    /// Where networks get their subnets from that name none; Docker's, when there are none.
    pub pools: Vec<AddressPool>,
    /// The step of a NIC's move at which the daemon kills itself, for tests.
    pub die_at: Option<String>,
}

/// Where names are asked for that are no endpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The servers; those of `resolv_conf` when there are none.
    pub servers: Vec<IpAddr>,
    /// The host's resolv.conf(5).
    pub resolv_conf: PathBuf,
}

/// Whether NAT sessions outlive the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sessions {
    /// They end with it.
    #[default]
    Forgotten,
    /// They are written to the state directory, and the next daemon goes on with them.
    Kept,
}

/// Which interfaces lead outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplinks {
    /// The one of the default route.
    DefaultRoute,
    /// These, or none.
    Named(Vec<String>),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {} is wrong: {source}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A number is out of range.
    #[error("{key} must be from {min} to {max}, not {value}")]
    Range {
        /// Which.
        key: &'static str,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// What it is.
        value: u64,
    },
    /// Busy polling by workers that do not look.
    #[error(
        "busy_poll_frames is for workers that look for frames, and with waiting = \"sleep\" none \
         does; leave one of them out"
    )]
    BusyPollAsleep,
    /// The NAT range leaves the host too little, or has too little itself.
    #[error(
        "nat.port_first and nat.port_last must span at least {NAT_PORTS_MIN} ports and leave the \
         host {HOST_PORTS_MIN} above 1023; {first}-{last} does not"
    )]
    NatRange {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// A pool of no address.
    #[error("nat.external_addresses names no address; leave it out to use the uplink's own")]
    NoExternalAddress,
    /// Settings of the NAT that make no sense or are below what an RFC asks.
    #[error("nat: {0}")]
    Nat(#[from] NatConfigError),
    /// Not an interface.
    #[error(transparent)]
    IfName(#[from] IfNameError),
    /// Too many uplinks.
    #[error("at most {UPLINKS_MAX} uplinks, not {0}")]
    UplinkCount(usize),
    /// Metrics for everybody.
    #[error(
        "metrics are served on the loopback interface only, not on {0}; give an address such as \
         127.0.0.1:9309, or have a proxy ask there"
    )]
    NotLoopback(SocketAddr),
    /// An address of another family than the key's.
    #[error("{key} takes an {family} address with a length, not {value}")]
    Family {
        /// Which.
        key: &'static str,
        /// The family.
        family: &'static str,
        /// What it is.
        value: ipnet::IpNet,
    },
    /// A range of no subnet.
    #[error("default_network.fixed_cidr is a part of the subnet; give default_network.bip as well")]
    RangeWithoutSubnet,
    /// A pool of which no subnet can be taken.
    #[error(
        "a pool of default_address_pools is an IPv4 prefix without host bits and of 8 bits at least, \
         with a size from its own length to 30 and at most {max} subnets; base {base} with size \
         {size} is not", max = pools::POOL_SUBNETS_MAX
    )]
    Pool {
        /// The prefix.
        base: ipnet::IpNet,
        /// The length of its subnets.
        size: u8,
    },
    /// `none` among others.
    #[error("--uplink none excludes other uplinks; leave one of them out")]
    NoneAmongOthers,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    workers: Option<usize>,
    waiting: Option<WaitingMode>,
    spin_microseconds: Option<u64>,
    busy_poll_frames: Option<u64>,
    batch_frames_max: Option<usize>,
    uplinks: Option<Vec<String>>,
    metrics: Option<SocketAddr>,
    socket_group: Option<String>,
    #[serde(default)]
    nat: NatFile,
    #[serde(default)]
    dns: DnsFile,
    #[serde(default)]
    default_network: DefaultNetworkFile,
    #[serde(default)]
    default_address_pools: Vec<AddressPool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DnsFile {
    #[serde(default)]
    servers: Vec<IpAddr>,
    resolv_conf: Option<PathBuf>,
}

/// How workers wait for frames when none are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WaitingMode {
    /// Asleep at once: no CPU without traffic, a wake-up's latency with every pause.
    Sleep,
    /// Looking for frames for `spin_microseconds` after the last one, then asleep.
    Adaptive,
    /// Never asleep: one core per worker, least latency.
    Always,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NatFile {
    port_first: Option<u16>,
    port_last: Option<u16>,
    tcp_opening_timeout_seconds: Option<u64>,
    tcp_established_timeout_seconds: Option<u64>,
    tcp_closing_timeout_seconds: Option<u64>,
    udp_timeout_seconds: Option<u64>,
    udp_dns_timeout_seconds: Option<u64>,
    icmp_timeout_seconds: Option<u64>,
    sessions_max: Option<usize>,
    sessions_per_endpoint_max: Option<usize>,
    clamp_mss: Option<bool>,
    udp_inbound_refresh: Option<bool>,
    share_ports: Option<bool>,
    keep_sessions: Option<bool>,
    external_addresses: Option<Vec<IpAddr>>,
    mapping: Option<DependenceName>,
    filtering: Option<DependenceName>,
    #[serde(default)]
    networks: BTreeMap<String, BehaviourFile>,
    #[serde(default)]
    force: bool,
}

/// A network's own behaviour; what it leaves out is as for the others.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BehaviourFile {
    mapping: Option<DependenceName>,
    filtering: Option<DependenceName>,
}

/// [`Dependence`] as RFC 4787 calls it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DependenceName {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

impl From<DependenceName> for Dependence {
    fn from(name: DependenceName) -> Self {
        match name {
            DependenceName::EndpointIndependent => Self::EndpointIndependent,
            DependenceName::AddressDependent => Self::AddressDependent,
            DependenceName::AddressAndPortDependent => Self::AddressAndPortDependent,
        }
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--workers`
    pub workers: Option<usize>,
    /// `--waiting`
    pub waiting: Option<WaitingMode>,
    /// `--uplink`, repeated
    pub uplinks: Vec<String>,
    /// `--keep-sessions`; left out, it is for the file to say
    pub sessions: Sessions,
    /// `--dns`, repeated
    pub dns_servers: Vec<IpAddr>,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--socket-group`
    pub socket_group: Option<String>,
    /// `--no-default-network`; left out, it is for the file to say
    pub default_network: Option<DefaultNetwork>,
    /// `--die-at`
    pub die_at: Option<String>,
}

impl Config {
    /// Reads the file, if any, and lets the command line win.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, Error> {
        let file = match path {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let mut dataplane = dataplane_config(&file, &overrides)?;
        let busy_poll_frames = busy_poll_frames(&file, dataplane.waiting)?;
        let sessions = match file.nat.keep_sessions {
            Some(true) => Sessions::Kept,
            Some(false) | None => overrides.sessions,
        };
        if sessions == Sessions::Kept {
            dataplane.clock_start = KEPT_CLOCK_START;
        }
        let uplinks = match (overrides.uplinks, file.uplinks) {
            (names, _) if !names.is_empty() => Uplinks::Named(named_uplinks(names)?),
            (_, Some(names)) => Uplinks::Named(named_uplinks(names)?),
            (_, None) => Uplinks::DefaultRoute,
        };
        let or_default =
            |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| PathBuf::from(default));
        Ok(Self {
            state_dir: or_default(overrides.state_dir.or(file.state_dir), STATE_DIR_DEFAULT),
            socket: or_default(overrides.socket.or(file.socket), SOCKET_DEFAULT),
            dataplane,
            busy_poll_frames,
            uplinks,
            nat: nat(&file.nat)?,
            sessions,
            dns: DnsConfig {
                servers: match overrides.dns_servers {
                    servers if servers.is_empty() => file.dns.servers,
                    servers => servers,
                },
                resolv_conf: or_default(file.dns.resolv_conf, RESOLV_CONF_DEFAULT),
            },
            metrics: loopback(overrides.metrics.or(file.metrics))?,
            socket_group: overrides.socket_group.or(file.socket_group),
            default_network: file.default_network.checked(overrides.default_network)?,
            pools: pools::checked(file.default_address_pools)?,
            die_at: overrides.die_at,
        })
    }
}

/// Metrics have no password, so they are told to this host alone.
fn loopback(address: Option<SocketAddr>) -> Result<Option<SocketAddr>, Error> {
    match address {
        Some(address) if !address.ip().is_loopback() => Err(Error::NotLoopback(address)),
        address => Ok(address),
    }
}

fn dataplane_config(file: &File, overrides: &Overrides) -> Result<dataplane::Config, Error> {
    let mut config = dataplane::Config::default();
    if let Some(workers) = overrides.workers.or(file.workers) {
        check_range("workers", workers as u64, 1, WORKERS_MAX as u64)?;
        config.workers = workers;
    }
    if let Some(frames) = file.batch_frames_max {
        check_range(
            "batch_frames_max",
            frames as u64,
            1,
            dataplane::BATCH_MAX as u64,
        )?;
        config.batch_frames_max = frames;
    }
    let spin = file.spin_microseconds.unwrap_or(SPIN_MICROSECONDS_DEFAULT);
    check_range("spin_microseconds", spin, 1, SPIN_MICROSECONDS_MAX)?;
    let mode = overrides.waiting.or(file.waiting);
    config.waiting = match mode.unwrap_or(WaitingMode::Adaptive) {
        WaitingMode::Sleep => Waiting::Sleep,
        WaitingMode::Adaptive => Waiting::Adaptive {
            spin: Duration::from_micros(spin),
        },
        WaitingMode::Always => Waiting::Always,
    };
    Ok(config)
}

fn busy_poll_frames(file: &File, waiting: Waiting) -> Result<Option<u16>, Error> {
    let Some(frames) = file.busy_poll_frames else {
        return Ok(None);
    };
    check_range("busy_poll_frames", frames, 1, BUSY_POLL_FRAMES_MAX.into())?;
    if waiting == Waiting::Sleep {
        return Err(Error::BusyPollAsleep);
    }
    Ok(u16::try_from(frames).ok())
}

fn read(path: &Path) -> Result<File, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| Error::Syntax {
        path: path.to_owned(),
        source,
    })
}

fn named_uplinks(mut names: Vec<String>) -> Result<Vec<String>, Error> {
    if names.iter().any(|name| name == "none") {
        if names.len() > 1 {
            return Err(Error::NoneAmongOthers);
        }
        return Ok(Vec::new());
    }
    names.dedup();
    names.iter().try_for_each(|name| check_ifname(name))?;
    if names.len() > UPLINKS_MAX {
        return Err(Error::UplinkCount(names.len()));
    }
    Ok(names)
}

fn nat(file: &NatFile) -> Result<NatConfig, Error> {
    let mut nat = NatConfig::default();
    let first = file.port_first.unwrap_or(*nat.port_range.start());
    let last = file.port_last.unwrap_or(*nat.port_range.end());
    let count = last
        .checked_sub(first)
        .map_or(0, |difference| difference.saturating_add(1));
    let left_to_host = (u16::MAX - 1_023).saturating_sub(count);
    if first < 1_024 || count < NAT_PORTS_MIN || left_to_host < HOST_PORTS_MIN {
        return Err(Error::NatRange { first, last });
    }
    nat.port_range = first..=last;
    set_timeouts(file, &mut nat.timeouts)?;
    if let Some(count) = file.sessions_max {
        check_range("nat.sessions_max", count as u64, 64, 64 << 20)?;
        nat.sessions_max = count;
    }
    if let Some(count) = file.sessions_per_endpoint_max {
        check_range("nat.sessions_per_endpoint_max", count as u64, 1, 64 << 20)?;
        nat.sessions_per_endpoint_max = count;
    }
    set_behaviour(file, &mut nat)?;
    nat.check()?;
    if !file.force {
        nat.timeouts.check()?;
    }
    Ok(nat)
}

fn set_behaviour(file: &NatFile, nat: &mut NatConfig) -> Result<(), Error> {
    let over =
        |mapping: Option<DependenceName>, filtering: Option<DependenceName>, base: Behaviour| {
            Behaviour {
                mapping: mapping.map_or(base.mapping, Into::into),
                filtering: filtering.map_or(base.filtering, Into::into),
            }
        };
    nat.behaviour = over(file.mapping, file.filtering, nat.behaviour);
    for (name, own) in &file.networks {
        let behaviour = over(own.mapping, own.filtering, nat.behaviour);
        nat.networks.insert(name.clone(), behaviour);
    }
    nat.share_ports = file.share_ports.unwrap_or(nat.share_ports);
    nat.clamp_mss = file.clamp_mss.unwrap_or(nat.clamp_mss);
    nat.udp_inbound_refresh = file.udp_inbound_refresh.unwrap_or(nat.udp_inbound_refresh);
    if let Some(addresses) = &file.external_addresses {
        if addresses.is_empty() {
            return Err(Error::NoExternalAddress);
        }
        nat.external_addresses.clone_from(addresses);
    }
    Ok(())
}

fn set_timeouts(file: &NatFile, timeouts: &mut Timeouts) -> Result<(), Error> {
    let mut dns = timeouts.udp;
    for (key, value, target) in [
        (
            "nat.tcp_opening_timeout_seconds",
            file.tcp_opening_timeout_seconds,
            &mut timeouts.tcp_opening,
        ),
        (
            "nat.tcp_established_timeout_seconds",
            file.tcp_established_timeout_seconds,
            &mut timeouts.tcp_established,
        ),
        (
            "nat.tcp_closing_timeout_seconds",
            file.tcp_closing_timeout_seconds,
            &mut timeouts.tcp_closing,
        ),
        (
            "nat.udp_timeout_seconds",
            file.udp_timeout_seconds,
            &mut timeouts.udp,
        ),
        (
            "nat.udp_dns_timeout_seconds",
            file.udp_dns_timeout_seconds,
            &mut dns,
        ),
        (
            "nat.icmp_timeout_seconds",
            file.icmp_timeout_seconds,
            &mut timeouts.icmp,
        ),
    ] {
        if let Some(seconds) = value {
            check_range(key, seconds, 1, TIMEOUT_SECONDS_MAX)?;
            *target = Duration::from_secs(seconds);
        }
    }
    timeouts.udp_dns = file.udp_dns_timeout_seconds.map(|_| dns);
    Ok(())
}

fn check_range(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Range {
        key,
        min,
        max,
        value,
    })
}

#[cfg(test)]
mod tests;
