//! One daemon for a network namespace.
//!
//! Two daemons would take each other's frames, guards and host link, even with state directories of
//! their own. A name in the abstract space of unix sockets says who serves: the kernel keeps that
//! space per network namespace, gives each name to one process, and takes it back when that process
//! ends, however it ends. Nothing is left to clean, and the holder's credentials can be asked for.
//!
//! Any user may take the name. One who has neither our rights nor root's could not serve the
//! namespace, so that holder is told of and does not keep a daemon from starting.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use tokio::task::JoinHandle;

use crate::error::Error;

/// The name, in the abstract space of the namespace.
const NAME: &[u8] = b"causeway/serving";
/// How often, and after what pause, a name is tried again that a daemon has which is just ending: for
/// a second.
const TRIES_MAX: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);
const ROOT: u32 = 0;

/// The claim on a network namespace; it ends when this is dropped.
#[derive(Debug)]
pub struct Serving {
    answering: Option<JoinHandle<()>>,
}

/// What came of one try to get the name.
enum Try {
    Claimed(Serving),
    /// A daemon has it; its process, where it can be seen from here.
    Taken(Option<i32>),
    /// Whoever had it has ended meanwhile.
    Free,
}

impl Serving {
    /// Claims the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::InUse`] with the process that serves it already.
    pub async fn claim() -> Result<Self, Error> {
        let mut process = None;
        for _ in 0..TRIES_MAX {
            let tried = try_claim();
            match tried.map_err(|source| Error::io("claim the network namespace", source))? {
                Try::Claimed(claim) => return Ok(claim),
                Try::Taken(pid) => process = pid,
                Try::Free => continue,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::InUse(format!(
            "another Causeway daemon{} serves this network namespace; stop that one first",
            process_text(process)
        )))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(answering) = &self.answering {
            answering.abort();
        }
    }
}

fn try_claim() -> io::Result<Try> {
    let address = SocketAddr::from_abstract_name(NAME)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => answer(listener).map(Try::Claimed),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => ask(&address),
        Err(error) => Err(error),
    }
}

/// Holds the name, and lets those in who ask for its holder: a full queue would make them wait.
fn answer(listener: UnixListener) -> io::Result<Serving> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let answering = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    Ok(Serving {
        answering: Some(answering),
    })
}

/// Asks the kernel for the holder of the name.
fn ask(address: &SocketAddr) -> io::Result<Try> {
    let stream = match UnixStream::connect_addr(address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Try::Free),
        Err(error) => return Err(error),
    };
    let holder = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
    if [ROOT, geteuid().as_raw()].contains(&holder.uid()) {
        return Ok(Try::Taken(Some(holder.pid())));
    }
    let (pid, uid) = (holder.pid(), holder.uid());
    tracing::warn!(
        pid,
        uid,
        "no daemon, but has the name by which daemons keep each other out"
    );
    Ok(Try::Claimed(Serving { answering: None }))
}

/// ` (process 17)`; of a process that cannot be seen from here, nothing.
pub(crate) fn process_text(pid: Option<i32>) -> String {
    match pid {
        Some(pid) if pid > 0 => format!(" (process {pid})"),
        Some(_) | None => String::new(),
    }
}
