//! Published ports on the host itself: a kernel listener per port that relays to the endpoint.
//!
//! Clients elsewhere never reach these listeners, their frames are translated by the dataplane
//! and dropped by the guard before the host's stack. The listeners serve connections that the
//! host makes to its own published ports, and they make the claim visible: another program that
//! wants the port gets "address in use", and we learn who had it first. They lead where the NAT's
//! rules lead, and spread connections over targets by the same choice, in turns of their own.
//!
//! Limits: [`PORTS_MAX`] ports per publication, [`CONNECTIONS_MAX`] relayed connections and UDP
//! clients in all, [`CLIENTS_MAX`] UDP clients per port, each forgotten after [`UDP_IDLE`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane_core::addr::{L4Addr, L4Port};
use dataplane_core::nat::{Rotation, StaticRule, Transport};
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::model::transport_label;
use crate::owner;

/// Ports of one publication that are held by a socket each. A larger one is reserved whole
/// instead, and does not serve connections that the host itself makes.
pub const PORTS_MAX: usize = 256;
/// Sockets of one publication: it may be for an uplink, and listens at each address of that.
pub const CLAIMS_MAX: usize = 8 * PORTS_MAX;
/// Connections and UDP clients relayed at a time, for the whole daemon: two descriptors each at
/// most.
pub const CONNECTIONS_MAX: usize = 1_024;
/// UDP clients of one published port at a time: one descriptor each.
pub const CLIENTS_MAX: usize = 256;
/// How long a UDP client is remembered: as long as a UDP session of the NAT at least
/// (RFC 4787 REQ-5).
pub const UDP_IDLE: Duration = Duration::from_secs(120);
/// How long the endpoint may take to accept a relayed connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Largest UDP payload.
const DATAGRAM_SIZE_MAX: usize = 65_535;

/// One published port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's address; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
}

/// The listeners of one publication. Dropping it closes them and their connections.
#[derive(Debug)]
pub struct Listeners {
    rules: watch::Sender<Vec<StaticRule>>,
    /// By the address that they listen at; `None` is every one.
    tasks: BTreeMap<Option<IpAddr>, JoinSet<()>>,
}

/// Where connections are relayed to.
#[derive(Debug)]
struct Course {
    /// The publication's NAT rules, at most one for each address family.
    rules: watch::Receiver<Vec<StaticRule>>,
    rotation: Mutex<Rotation>,
    host_port: L4Port,
}

/// The end of one relayed connection.
#[derive(Clone, Copy, Debug)]
struct Lead {
    rule: u32,
    target: u16,
    inside: L4Addr,
}

/// Sockets that hold the ports of a publication and do not serve yet; none for one that is held
/// by reservation.
#[derive(Debug, Default)]
pub struct Held {
    sockets: Vec<(Socket, Claim)>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Connections that may be relayed, shared by all publications.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl Held {
    /// Takes every port, or none.
    ///
    /// # Errors
    /// [`Error::PortTaken`] with the owner of the first one that is not free, [`Error::Limit`].
    pub async fn take(claims: Vec<Claim>) -> Result<Self, Error> {
        if claims.len() > CLAIMS_MAX {
            return Err(Error::Limit {
                what: "ports of one publication, at each address",
                max: CLAIMS_MAX,
            });
        }
        let mut sockets = Vec::with_capacity(claims.len());
        for claim in claims {
            match bind(&claim).await {
                Ok(socket) => sockets.push((socket, claim)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(Error::PortTaken {
                        transport: transport_label(claim.transport),
                        port: claim.host_port,
                        address: address_text(claim.host_ip),
                        owner: owner::of_port(claim.transport, claim.host_port),
                    });
                }
                Err(error) => {
                    let transport = transport_label(claim.transport);
                    let (address, port) = (address_text(claim.host_ip), claim.host_port);
                    let action = format!("listen on {transport} port {port} of {address}");
                    return Err(Error::io(action, error));
                }
            }
        }
        Ok(Self { sockets })
    }

    /// Starts to serve, by the publication's NAT rules.
    pub fn serve(self, rules: Vec<StaticRule>, budget: &Budget) -> Listeners {
        let mut listeners = Listeners {
            rules: watch::Sender::new(rules),
            tasks: BTreeMap::new(),
        };
        listeners.add(self, budget);
        listeners
    }
}

impl Listeners {
    /// Listens by more sockets, at addresses that it did not listen at before.
    pub fn add(&mut self, held: Held, budget: &Budget) {
        for (socket, claim) in held.sockets {
            let budget = budget.clone();
            let course = Arc::new(Course {
                rules: self.rules.subscribe(),
                rotation: Mutex::default(),
                host_port: L4Port(claim.host_port),
            });
            let tasks = self.tasks.entry(claim.host_ip).or_default();
            match socket {
                Socket::Tcp(listener) => {
                    tasks.spawn(serve_tcp(listener, course, budget));
                }
                Socket::Udp(socket) => {
                    tasks.spawn(serve_udp(Arc::new(socket), course, budget));
                }
            }
        }
    }

    /// Listens nowhere but at `places` from now on.
    pub fn keep(&mut self, places: &[Option<IpAddr>]) {
        self.tasks.retain(|place, _| places.contains(place));
    }

    /// Those of `places` where it does not listen.
    pub fn missing(&self, places: &[Option<IpAddr>]) -> Vec<Option<IpAddr>> {
        let missing = |place: &&Option<IpAddr>| !self.tasks.contains_key(place);
        places.iter().filter(missing).copied().collect()
    }

    /// Leads by other rules from now on, and ends the connections to targets that have gone.
    pub fn follow(&self, rules: Vec<StaticRule>) {
        self.rules.send_replace(rules);
    }
}

impl Course {
    /// Where a new connection of a client goes: to an address of the client's family, or of the
    /// other where there is none. `None` when every target drains.
    fn choose(&self, client: SocketAddr) -> Option<Lead> {
        let client = client.ip().to_canonical();
        let rules = self.rules.borrow();
        let same_family = |rule: &&StaticRule| {
            let mut targets = rule.targets.iter();
            targets.any(|target| target.inside.is_ipv4() == client.is_ipv4())
        };
        let rule = rules.iter().find(same_family).or_else(|| rules.first())?;
        let target = rule.choose(client, |rule| {
            let mut rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
            rotation.advance(&rule.targets)
        })?;
        Some(Lead {
            rule: rule.id,
            target: target.id,
            inside: target.inside_of(rule, self.host_port),
        })
    }

    /// Waits until the rules lead there no more.
    async fn left(&self, lead: Lead) {
        let leads = |rule: &StaticRule| {
            let target = rule.target(lead.target).filter(|_| rule.id == lead.rule);
            target.is_some_and(|target| target.inside_of(rule, self.host_port) == lead.inside)
        };
        let mut rules = self.rules.clone();
        // An error says that the listeners are gone, and this task with them.
        let _ = rules.wait_for(|rules| !rules.iter().any(leads)).await;
    }
}

impl Lead {
    const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.inside.ip, self.inside.l4_port.0)
    }
}

fn address_text(host_ip: Option<IpAddr>) -> String {
    host_ip.map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string())
}

async fn bind(claim: &Claim) -> io::Result<Socket> {
    match claim.host_ip {
        Some(ip) => bind_to(claim.transport, SocketAddr::new(ip, claim.host_port)).await,
        None => {
            // An IPv6 socket takes IPv4 along (RFC 3493 section 5.3), where there is IPv6.
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), claim.host_port);
            match bind_to(claim.transport, any).await {
                Err(error) if lacks_ipv6(&error) => {
                    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), claim.host_port);
                    bind_to(claim.transport, any).await
                }
                other => other,
            }
        }
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

async fn bind_to(transport: Transport, address: SocketAddr) -> io::Result<Socket> {
    match transport {
        Transport::Tcp => TcpListener::bind(address).await.map(Socket::Tcp),
        Transport::Udp => UdpSocket::bind(address).await.map(Socket::Udp),
    }
}

async fn serve_tcp(listener: TcpListener, course: Arc<Course>, budget: Budget) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (client, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a client that has left again; the next one may do.
                tracing::warn!(%error, "cannot accept a connection to a published port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Some(lead), Ok(permit)) = (
            course.choose(address),
            Arc::clone(&budget.0).try_acquire_owned(),
        ) else {
            // Closing is the refusal that TCP knows.
            continue;
        };
        let course = Arc::clone(&course);
        connections.spawn(async move {
            let _permit = permit;
            let inside = lead.address();
            tokio::select! {
                ended = relay_tcp(client, inside) => if let Err(error) = ended {
                    tracing::debug!(%address, %inside, %error, "a relayed connection ended");
                },
                () = course.left(lead) => {}
            }
        });
    }
}

async fn relay_tcp(mut client: TcpStream, inside: SocketAddr) -> io::Result<()> {
    let connect = TcpStream::connect(inside);
    let mut server = tokio::time::timeout(CONNECT_MAX, connect).await??;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, course: Arc<Course>, budget: Budget) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returns: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_SIZE_MAX];
    loop {
        tokio::select! {
            Some(ended) = returns.join_next(), if !returns.is_empty() => {
                if let Ok(client) = ended {
                    clients.remove(&client);
                }
            }
            received = socket.recv_from(&mut buffer) => {
                // An error here is an ICMP message about an earlier answer.
                let Ok((size, client)) = received else { continue };
                if !clients.contains_key(&client) {
                    let Some(lead) = course.choose(client) else { continue };
                    let inside = lead.address();
                    if clients.len() >= CLIENTS_MAX {
                        continue;
                    }
                    let Ok(permit) = Arc::clone(&budget.0).try_acquire_owned() else { continue };
                    match connect_udp(inside).await {
                        Ok(server) => {
                            let server = Arc::new(server);
                            clients.insert(client, Arc::clone(&server));
                            let back = return_udp(server, Arc::clone(&socket), client);
                            let course = Arc::clone(&course);
                            returns.spawn(async move {
                                let _permit = permit;
                                tokio::select! {
                                    client = back => client,
                                    () = course.left(lead) => client,
                                }
                            });
                        }
                        Err(error) => {
                            tracing::debug!(%inside, %error, "cannot relay a datagram");
                            continue;
                        }
                    }
                }
                if let Some(server) = clients.get(&client)
                    && let Err(error) = server.send(&buffer[..size]).await
                {
                    tracing::debug!(%client, %error, "cannot relay a datagram");
                }
            }
        }
    }
}

async fn connect_udp(inside: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match inside {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let server = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    server.connect(inside).await?;
    Ok(server)
}

/// Carries answers back until the client has been idle for long; returns the client.
async fn return_udp(
    server: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
) -> SocketAddr {
    let mut buffer = vec![0; DATAGRAM_SIZE_MAX];
    loop {
        match tokio::time::timeout(UDP_IDLE, server.recv(&mut buffer)).await {
            Ok(Ok(size)) => {
                if socket.send_to(&buffer[..size], client).await.is_err() {
                    return client;
                }
            }
            // Idle, or nobody listens inside.
            Err(_) | Ok(Err(_)) => return client,
        }
    }
}
