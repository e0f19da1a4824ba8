//! A switch in this process with sandboxes plugged into it: the core and its workers on real
//! devices, without the control plane.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::link::TAP_QUEUE_FRAMES;
use dataplane::{Config, Dataplane};
use dataplane_core::addr::{DomainId, L4Addr, L4Port, MacAddr, PortId, UplinkId};
use dataplane_core::nat::{StaticRule, Target, Transport};
use dataplane_core::topology::{Domain, Gateway, Neighbour, Port, Role, Route, Topology, Uplink};
use dataplane_port::PortIo;
use dataplane_port::guard::{self, GuardPorts, GuardSpec, Guarded};
use dataplane_port::packet::{PacketBuilder, Rings};
use dataplane_port::tap::TapBuilder;
use dataplane_port::tap_plain::PlainTap;
use dataplane_port::xdp::XdpBuilder;
use sha2::{Digest, Sha256};

use crate::lab::{self, Lab, Namespace};

/// A switch with one network.
#[derive(Debug)]
pub struct Rig {
    /// The dataplane under test.
    pub dataplane: Dataplane,
    /// What [`Rig::install`] puts in force.
    pub topology: Topology,
    /// The namespace that plays the host: the switch's ends of veths are in it.
    pub host: Namespace,
    lab: Lab,
}

/// How a sandbox is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A TAP with virtio-net headers, one queue per worker, moved into the sandbox.
    Tap,
    /// A veth whose host end the switch holds by AF_PACKET with rings, guarded from the host's stack.
    Packet,
    /// The same without rings.
    PacketCalls,
    /// A veth whose host end the switch holds by AF_XDP, guarded as well.
    Xdp,
    /// A TAP of one queue without offloads, moved into the sandbox.
    TapPlain,
}

impl Backend {
    /// Every backend that a sandbox can be plugged in with, each as it is at its best.
    pub const ALL: [Self; 4] = [Self::Tap, Self::Packet, Self::Xdp, Self::TapPlain];

    /// Every ordered pair of backends.
    pub fn pairs() -> impl Iterator<Item = (Self, Self)> {
        let from = Self::ALL.into_iter();
        from.flat_map(|from| Self::ALL.into_iter().map(move |to| (from, to)))
    }
}

/// A sandbox with its interface `eth0` plugged into the switch.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The namespace.
    pub ns: Namespace,
    /// The switch port.
    pub port: PortId,
    /// Address of `eth0`.
    pub address: IpAddr,
    /// MAC of `eth0`.
    pub mac: MacAddr,
}

/// The world outside of the host.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Its namespace.
    pub ns: Namespace,
    /// Its address.
    pub address: IpAddr,
}

/// Name of the host's network card.
pub const UPLINK_NAME: &str = "up0";
/// The host's address on it.
pub const HOST_ADDRESS: &str = "192.0.2.1";
/// The address of the namespace outside.
pub const OUTSIDE_ADDRESS: &str = "192.0.2.2";
/// The switch port of the host's network card.
const UPLINK_PORT: PortId = PortId(900);

/// The only network of a new rig.
pub const NETWORK: DomainId = DomainId(1);

/// MAC of the gateway that [`Rig::add_gateway`] makes.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0xca, 0x5e, 0, 0, 1]);

impl Rig {
    /// A switch without ports.
    ///
    /// # Panics
    /// When it cannot start.
    pub fn new(name: &str, config: &Config) -> Self {
        let dataplane = Dataplane::start(config).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut topology = Topology::default();
        topology.put_domain(Domain::new(NETWORK, "net1"));
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        Self {
            dataplane,
            topology,
            host,
            lab,
        }
    }

    /// The lab that the sandboxes are in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Plugs a new sandbox into the network, with `address` such as `10.0.0.2/24`.
    ///
    /// # Panics
    /// When a device cannot be made.
    pub fn sandbox(&mut self, label: &str, address: &str, backend: Backend, mtu: u16) -> Sandbox {
        let ns = self.lab.namespace(label);
        let ports = self.topology.ports.iter().flatten();
        let sandboxes = ports
            .filter(|port| matches!(port.role, Role::Bridge(_)))
            .count();
        let id = PortId(sandboxes as u16 + 1);
        let queues = match backend {
            Backend::Tap => tap_queues(&ns, self.dataplane.workers()),
            Backend::Packet => self.packet_queues(&ns, &format!("p{}", id.0), mtu, Rings::Wanted),
            Backend::PacketCalls => self.packet_queues(&ns, &format!("p{}", id.0), mtu, Rings::Off),
            Backend::Xdp => self.xdp_queues(&ns, &format!("p{}", id.0), mtu),
            Backend::TapPlain => vec![plain_queue(&ns)],
        };
        ns.set_mtu("eth0", mtu.into());
        ns.add_address("eth0", address);
        ns.set_up("eth0");
        self.dataplane.add_port(id, queues).expect("a free port id");
        let prefix = lab::prefix(address);
        let mac = ns.mac("eth0");
        self.topology.put_port(Port {
            mtu,
            ..Port::new(id, label, Role::Bridge(NETWORK))
        });
        let domain = self.domain_mut(NETWORK);
        domain
            .neighbours
            .insert(prefix.address, Neighbour { mac, port: id });
        if !domain.subnets.contains(&prefix) && !domain.contains(prefix.address) {
            domain.subnets.push(prefix);
        }
        self.install();
        Sandbox {
            ns,
            port: id,
            address: prefix.address,
            mac,
        }
    }

    /// Connects the host to a namespace outside, by a network card that the switch shares with
    /// the host: guarded, filtered, and with the NAT's ports on it.
    ///
    /// # Panics
    /// When a device cannot be made or guarded.
    pub fn add_uplink(&mut self, mtu: u16) -> Outside {
        let ns = self.lab.namespace("outside");
        self.lab.cable(&self.host, UPLINK_NAME, &ns, "eth0");
        for (side, name, address) in [
            (&self.host, UPLINK_NAME, HOST_ADDRESS),
            (&ns, "eth0", OUTSIDE_ADDRESS),
        ] {
            side.set_mtu(name, mtu.into());
            side.add_address(name, &format!("{address}/24"));
        }
        let (host_mac, outside_mac) = (self.host.mac(UPLINK_NAME), ns.mac("eth0"));
        let (host, outside) = (lab::ip(HOST_ADDRESS), lab::ip(OUTSIDE_ADDRESS));
        let role = Role::Uplink(UplinkId(0));
        self.topology.put_port(Port {
            mtu,
            ..Port::new(UPLINK_PORT, UPLINK_NAME, role)
        });
        self.topology.local_addresses.insert(host);
        self.topology.uplinks.push(Uplink {
            id: UplinkId(0),
            name: UPLINK_NAME.into(),
            port: UPLINK_PORT,
            mac: host_mac,
            mtu,
            addresses: vec![host],
            neighbours: [(outside, outside_mac)].into_iter().collect(),
            peer: None,
        });
        self.topology.routes.push(Route {
            prefix: lab::prefix(&format!("{HOST_ADDRESS}/24")),
            uplink: Some(UplinkId(0)),
            next_hop: None,
            source: None,
        });
        let spec = self.guard_spec();
        let builder = PacketBuilder::new(UPLINK_NAME)
            .queues(self.dataplane.workers())
            .filter(&spec.socket_filter());
        let sockets = self.host.run(|| {
            guard::install(UPLINK_NAME, Guarded::Spec(&spec)).expect("a guard");
            builder.open()
        });
        let sockets = sockets.unwrap_or_else(|error| panic!("{UPLINK_NAME}: {error}"));
        let queues = sockets
            .into_iter()
            .map(|socket| Box::new(socket) as Box<dyn PortIo>);
        self.dataplane
            .add_port(UPLINK_PORT, queues.collect())
            .expect("a free port id");
        self.install();
        Outside {
            ns,
            address: outside,
        }
    }

    /// Publishes a port of a sandbox on the host's addresses. Before [`Rig::add_uplink`].
    ///
    /// # Panics
    /// When the port is taken.
    pub fn publish(&mut self, transport: Transport, external: u16, sandbox: &Sandbox, inside: u16) {
        let id = self.topology.statics.rules().len() as u32 + 1;
        let target = Target::new(0, NETWORK, L4Addr::new(sandbox.address, inside));
        let rule = StaticRule::new(id, transport, external..=external, target);
        self.topology.statics.add(rule).expect("a free port");
    }

    /// What is ours on the uplink: the NAT's range and the published ports.
    fn guard_spec(&self) -> GuardSpec {
        let ports = |transport, range: &std::ops::RangeInclusive<u16>| GuardPorts {
            transport,
            destination: None,
            first: L4Port(*range.start()),
            last: L4Port(*range.end()),
        };
        let range = &self.topology.nat.port_range;
        let own = [guard::Transport::Tcp, guard::Transport::Udp].map(|t| ports(t, range));
        let published = self.topology.statics.rules().iter().map(|rule| {
            let transport = match rule.transport {
                Transport::Tcp => guard::Transport::Tcp,
                Transport::Udp => guard::Transport::Udp,
            };
            ports(transport, &rule.external_ports)
        });
        let prefixes = self
            .topology
            .domains()
            .flat_map(|domain| domain.subnets.clone());
        GuardSpec {
            addresses: vec![lab::ip(HOST_ADDRESS)],
            ports: own.into_iter().chain(published).collect(),
            prefixes: prefixes.collect(),
            ..GuardSpec::default()
        }
    }

    /// A veth into the sandbox, with its host end held by AF_PACKET, a queue per worker.
    fn packet_queues(
        &self,
        ns: &Namespace,
        host_end: &str,
        mtu: u16,
        rings: Rings,
    ) -> Vec<Box<dyn PortIo>> {
        self.silent_veth(ns, host_end, mtu);
        let builder = PacketBuilder::new(host_end).queues(self.dataplane.workers());
        let sockets = self.host.run(|| builder.rings(rings).open());
        let sockets = sockets.unwrap_or_else(|error| panic!("{host_end}: {error}"));
        sockets
            .into_iter()
            .map(|socket| Box::new(socket) as Box<dyn PortIo>)
            .collect()
    }

    /// A veth into the sandbox, with its host end held by AF_XDP.
    fn xdp_queues(&self, ns: &Namespace, host_end: &str, mtu: u16) -> Vec<Box<dyn PortIo>> {
        self.silent_veth(ns, host_end, mtu);
        let builder = XdpBuilder::new(host_end).mtu(mtu);
        let sockets = self.host.run(|| builder.open());
        let sockets = sockets.unwrap_or_else(|error| panic!("{host_end}: {error}"));
        sockets
            .into_iter()
            .map(|socket| Box::new(socket) as Box<dyn PortIo>)
            .collect()
    }

    /// A veth into the sandbox, on whose other end the host neither answers nor speaks by itself.
    fn silent_veth(&self, ns: &Namespace, host_end: &str, mtu: u16) {
        self.lab.cable(&self.host, host_end, ns, "eth0");
        self.host.set_mtu(host_end, mtu.into());
        let (index, netlink) = (self.host.link(host_end).index, self.host.netlink());
        let silenced = lab::block_on(async {
            netlink.set_down(index).await?;
            netlink.set_addr_gen_mode_none(index).await?;
            netlink.set_up(index).await
        });
        silenced.unwrap_or_else(|error| panic!("{host_end}: {error}"));
        let guarded = self
            .host
            .run(|| guard::install(host_end, Guarded::Everything));
        guarded.unwrap_or_else(|error| panic!("{host_end}: {error}"));
    }

    /// Gives the network a gateway.
    pub fn add_gateway(&mut self, addresses: &[&str], mtu: u16) {
        let addresses = addresses.iter().map(|text| lab::ip(text)).collect();
        self.domain_mut(NETWORK).gateway = Some(Gateway {
            mac: GATEWAY_MAC,
            addresses,
            mtu,
        });
        self.install();
    }

    /// A domain of the topology, to be changed before [`Rig::install`].
    ///
    /// # Panics
    /// When there is no such domain.
    pub fn domain_mut(&mut self, id: DomainId) -> &mut Domain {
        self.topology.domains[id.index()]
            .as_mut()
            .expect("the rig's own domain")
    }

    /// Puts the topology in force.
    ///
    /// # Panics
    /// When a worker does not answer.
    pub fn install(&mut self) {
        self.topology.finish();
        self.dataplane
            .install(self.topology.clone())
            .expect("workers that answer");
    }

    /// Checks all conservation laws, waiting for frames on their way.
    ///
    /// # Panics
    /// When a law does not hold within [`lab::DEADLINE`].
    pub fn check_laws(&self) {
        let deadline = Instant::now() + lab::DEADLINE;
        while let Err(broken) = self.dataplane.stats().check_laws() {
            assert!(Instant::now() < deadline, "{broken}");
            std::thread::yield_now();
        }
    }
}

/// A TAP inside the sandbox, a queue per worker.
fn tap_queues(ns: &Namespace, count: usize) -> Vec<Box<dyn PortIo>> {
    let taps = ns.run(|| TapBuilder::new("eth0").queues(count).create());
    let taps = taps.unwrap_or_else(|error| panic!("eth0: {error}"));
    without_queue(ns);
    taps.into_iter()
        .map(|tap| Box::new(tap) as Box<dyn PortIo>)
        .collect()
}

/// A plain TAP inside the sandbox.
fn plain_queue(ns: &Namespace) -> Box<dyn PortIo> {
    let tap = ns.run(|| PlainTap::create("eth0"));
    let tap = tap.unwrap_or_else(|error| panic!("eth0: {error}"));
    without_queue(ns);
    Box::new(tap)
}

/// Before the first up: with the default discipline the kernel would drop without telling. The
/// device's own queue is as long as the daemon makes it.
fn without_queue(ns: &Namespace) {
    let interface = ns.link("eth0").index;
    let netlink = ns.netlink();
    lab::block_on(netlink.set_noqueue(interface)).expect("noqueue on eth0");
    let longer = netlink.set_tx_queue_frames(interface, TAP_QUEUE_FRAMES);
    lab::block_on(longer).expect("a queue of eth0");
}

/// Pseudo-random bytes with their digest, made before a transfer so as not to slow it down.
#[derive(Debug)]
struct Payload {
    bytes: Vec<u8>,
    digest: Digest256,
}

type Digest256 = [u8; 32];

/// Payloads by size: the same for every transfer of a process.
static PAYLOADS: LazyLock<Mutex<BTreeMap<u64, Arc<Payload>>>> = LazyLock::new(Mutex::default);

fn payload(size: u64) -> Arc<Payload> {
    let mut payloads = PAYLOADS.lock().unwrap_or_else(PoisonError::into_inner);
    let made = payloads.entry(size).or_insert_with(|| {
        let size = usize::try_from(size).expect("a payload fits memory");
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(size as u64).fill(&mut bytes);
        let digest = Sha256::digest(&bytes).into();
        Arc::new(Payload { bytes, digest })
    });
    Arc::clone(made)
}

/// Bytes of a bulk transfer: 200 MB in the long runs (`tests/run --engines` or `--soak`), a fifth
/// of it otherwise, so that the whole matrix of backends stays within a minute.
pub fn bulk_size() -> u64 {
    let long = ["CAUSEWAY_ENGINES", "CAUSEWAY_SOAK"];
    match long.iter().any(|name| std::env::var_os(name).is_some()) {
        true => 200_000_000,
        false => 40_000_000,
    }
}

/// What a transfer came to.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes received.
    pub bytes: u64,
    /// From the first byte sent to the last one received.
    pub elapsed: Duration,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
}

impl std::fmt::Display for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (megabytes, seconds) = (self.bytes / 1_000_000, self.elapsed.as_secs_f64());
        let rate = self.bytes as f64 * 8e-9 / seconds;
        write!(f, "{megabytes} MB in {seconds:.2} s, {rate:.1} Gbit/s")
    }
}

/// Sends `bytes` bytes by TCP from one namespace to a server in another, and compares every byte
/// and the SHA-256 of all with what was sent.
///
/// # Panics
/// When the connection fails or a byte differs.
pub fn transfer(
    from: &Namespace,
    to: &Namespace,
    listen: SocketAddr,
    connect: SocketAddr,
    bytes: u64,
    congestion: Option<&'static str>,
) -> Transfer {
    let payload = payload(bytes);
    let listener = to
        .run(|| TcpListener::bind(listen))
        .expect("a listening socket");
    // Touched once, so that the transfer does not wait for its pages.
    let received = vec![1; payload.bytes.len()];
    let server: JoinHandle<io::Result<Received>> =
        std::thread::spawn(move || receive(&listener, received));
    let start = Instant::now();
    from.run(|| send(connect, &payload.bytes, congestion))
        .unwrap_or_else(|e| panic!("sending: {e}"));
    let received = server.join().expect("a server that does not panic");
    let received = received.unwrap_or_else(|e| panic!("receiving: {e}"));
    let elapsed = start.elapsed();
    if received.bytes != payload.bytes {
        let pairs = received.bytes.iter().zip(&payload.bytes);
        let first = pairs.enumerate().find(|(_, (got, sent))| got != sent);
        panic!("the first byte that differs, as received and as sent: {first:?}");
    }
    let digest: Digest256 = Sha256::digest(&received.bytes).into();
    assert_eq!(digest, payload.digest, "SHA-256");
    Transfer {
        bytes,
        elapsed,
        client: received.client,
    }
}

/// What a server got.
#[derive(Debug)]
struct Received {
    bytes: Vec<u8>,
    client: SocketAddr,
}

const IO_TIMEOUT: Duration = Duration::from_secs(30);

fn send(to: SocketAddr, payload: &[u8], congestion: Option<&str>) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, lab::DEADLINE)?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    if let Some(name) = congestion {
        let name = std::ffi::OsString::from(name);
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpCongestion, &name)?;
    }
    stream.write_all(payload)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut end = [0; 1];
    stream.read_exact(&mut end)
}

/// Fills `bytes`; the stream must end where they do.
fn receive(listener: &TcpListener, mut bytes: Vec<u8>) -> io::Result<Received> {
    let (mut stream, client) = listener.accept()?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.read_exact(&mut bytes)?;
    let mut beyond = [0; 1];
    if stream.read(&mut beyond)? != 0 {
        return Err(io::Error::other("more came than was sent"));
    }
    stream.write_all(&[1])?;
    Ok(Received { bytes, client })
}
