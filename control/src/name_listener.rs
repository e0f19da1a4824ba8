//! The name service for the host itself: sockets at a gateway's address.
//!
//! What the host sends to an address of its own never reaches the switch, so the host's questions
//! to a gateway (`dig @10.88.0.1`) come to sockets of the host's. They answer addresses of the host alone,
//! which the kernel believes nobody else: whoever is outside is not to ask here. Questions are put to the
//! service as those of endpoints are.
//!
//! Limits: [`CONNECTIONS_MAX`] connections at each address, each closed after [`IDLE`]; datagrams wait in
//! the kernel's buffer, and the service has limits of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dataplane::Dataplane;
use dataplane_core::addr::{DomainId, L4Port};
use dataplane_service::dns::Via;
use dataplane_service::dns::message::Transport;
use dataplane_service::stack::QUESTION_SIZE_MAX;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections at one address.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be silent, and its question unanswered.
pub const IDLE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Sockets at one gateway. Dropping it closes them soon.
#[derive(Debug)]
pub struct NameListener {
    tasks: JoinSet<()>,
}

impl NameListener {
    /// Listens at a gateway of a network.
    ///
    /// # Errors
    /// What the kernel said, such as that another name server has the port.
    pub fn open(dataplane: &Arc<Dataplane>, domain: DomainId, gateway: IpAddr) -> io::Result<Self> {
        let datagrams = UdpSocket::from_std(bind(gateway, Type::DGRAM)?.into())?;
        let connections = bind(gateway, Type::STREAM)?;
        connections.listen(BACKLOG)?;
        let connections = TcpListener::from_std(connections.into())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::clone(dataplane), domain, datagrams));
        tasks.spawn(serve_tcp(Arc::clone(dataplane), domain, connections));
        Ok(Self { tasks })
    }

    /// Closes the sockets: when this returns, the ports are free.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

fn bind(gateway: IpAddr, kind: Type) -> io::Result<Socket> {
    let protocol = match kind {
        Type::DGRAM => Protocol::UDP,
        _ => Protocol::TCP,
    };
    let address = SocketAddr::new(gateway, L4Port::DNS.0);
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether it is the host itself that asks.
fn is_host(dataplane: &Dataplane, client: IpAddr) -> bool {
    let client = client.to_canonical();
    client.is_loopback() || dataplane.topology().is_host_address(client)
}

async fn serve_udp(dataplane: Arc<Dataplane>, domain: DomainId, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUESTION_SIZE_MAX];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((size, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if !is_host(&dataplane, client.ip()) {
            continue;
        }
        let via = Via {
            domain,
            source: client.ip(),
            transport: Transport::Udp,
        };
        let back = Arc::clone(&socket);
        dataplane.ask_name(via, buffer[..size].to_vec(), move |answer| {
            // A full buffer loses the answer, as a network would.
            let _ = back.try_send_to(&answer.bytes, client);
        });
    }
}

async fn serve_tcp(dataplane: Arc<Dataplane>, domain: DomainId, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = open.join_next(), if !open.is_empty() => {}
            accepted = listener.accept() => {
                let Ok((connection, client)) = accepted else { continue };
                if !is_host(&dataplane, client.ip()) {
                    continue;
                }
                // One too many is closed at once.
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                let dataplane = Arc::clone(&dataplane);
                open.spawn(async move {
                    let _permit = permit;
                    let via = Via { domain, source: client.ip(), transport: Transport::Tcp };
                    // However it ends, the connection is closed.
                    let _ = converse(&dataplane, via, connection).await;
                });
            }
        }
    }
}

async fn converse(dataplane: &Dataplane, via: Via, mut connection: TcpStream) -> io::Result<()> {
    loop {
        let size = usize::from(timeout(IDLE, connection.read_u16()).await??);
        if size > QUESTION_SIZE_MAX {
            return Ok(());
        }
        let mut question = vec![0; size];
        timeout(IDLE, connection.read_exact(&mut question)).await??;
        let (told, answer) = oneshot::channel();
        let asked = dataplane.ask_name(via, question, move |answer| {
            let _ = told.send(answer.bytes);
        });
        if !asked {
            return Ok(());
        }
        let Ok(answer) = timeout(IDLE, answer).await? else {
            return Ok(());
        };
        let size = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&size.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, connection.write_all(&message)).await??;
    }
}
