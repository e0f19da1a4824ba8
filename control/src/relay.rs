//! Published ports on the host itself: a kernel listener per port that relays to the endpoint.
//!
//! Clients elsewhere never reach these listeners, their frames are translated by the dataplane
//! and dropped by the guard before the host's stack. The listeners serve connections that the
//! host makes to its own published ports, and they make the claim visible: another program that
//! wants the port gets "address in use", and we learn who had it first.
//!
//! Limits: [`PORTS_MAX`] ports per publication, [`CONNECTIONS_MAX`] relayed connections and UDP
//! clients in all, [`CLIENTS_MAX`] UDP clients per port, each forgotten after [`UDP_IDLE`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dataplane_core::nat::Transport;
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::model::transport_label;
use crate::owner;

/// Ports of one publication that are held by a socket each. A larger one is reserved whole
/// instead, and does not serve connections that the host itself makes.
pub const PORTS_MAX: usize = 256;
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
    /// Where to: one address of each family at most, all with the same port.
    pub inside: Vec<SocketAddr>,
}

/// The listeners of one publication. Dropping it closes them and their connections.
#[derive(Debug)]
pub struct Listeners {
    _tasks: JoinSet<()>,
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
        if claims.len() > PORTS_MAX {
            return Err(Error::Limit {
                what: "ports of one publication",
                max: PORTS_MAX,
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

    /// Starts to serve.
    pub fn serve(self, budget: &Budget) -> Listeners {
        let mut tasks = JoinSet::new();
        for (socket, claim) in self.sockets {
            let budget = budget.clone();
            match socket {
                Socket::Tcp(listener) => {
                    tasks.spawn(serve_tcp(listener, claim.inside, budget));
                }
                Socket::Udp(socket) => {
                    tasks.spawn(serve_udp(Arc::new(socket), claim.inside, budget));
                }
            }
        }
        Listeners { _tasks: tasks }
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

/// The endpoint's address of the client's family, or the one that it has.
fn choose(inside: &[SocketAddr], client: SocketAddr) -> Option<SocketAddr> {
    let canonical = client.ip().to_canonical();
    inside
        .iter()
        .find(|address| address.is_ipv4() == canonical.is_ipv4())
        .or_else(|| inside.first())
        .copied()
}

async fn serve_tcp(listener: TcpListener, inside: Vec<SocketAddr>, budget: Budget) {
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
        let (Some(inside), Ok(permit)) = (
            choose(&inside, address),
            Arc::clone(&budget.0).try_acquire_owned(),
        ) else {
            // Closing is the refusal that TCP knows.
            continue;
        };
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = relay_tcp(client, inside).await {
                tracing::debug!(%address, %inside, %error, "a relayed connection ended");
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

async fn serve_udp(socket: Arc<UdpSocket>, inside: Vec<SocketAddr>, budget: Budget) {
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
                    let Some(inside) = choose(&inside, client) else { continue };
                    if clients.len() >= CLIENTS_MAX {
                        continue;
                    }
                    let Ok(permit) = Arc::clone(&budget.0).try_acquire_owned() else { continue };
                    match connect_udp(inside).await {
                        Ok(server) => {
                            let server = Arc::new(server);
                            clients.insert(client, Arc::clone(&server));
                            let back = return_udp(server, Arc::clone(&socket), client);
                            returns.spawn(async move {
                                let _permit = permit;
                                back.await
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
