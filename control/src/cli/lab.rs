//! What the demo and the conformance checker's lab have in common: a host with an outside, and the
//! real daemon serving the host. Everything vanishes with the program.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal as NixSignal;

use super::client::Client;
use crate::api::types::{EndpointCreate, EndpointView, StatusView};
use crate::link::inet::DuplicateDetection;
use crate::link::{Netlink, VethEnd};
use crate::netns::Netns;
use dataplane_core::addr::Prefix;

/// The host's interface that leads outside.
const UPLINK: &str = "up0";
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks whether the daemon answers yet.
const POLL: Duration = Duration::from_millis(10);
/// How long after the first failure the daemon is watched for its end.
const DAEMON_END_MAX: Duration = Duration::from_millis(500);
/// The daemon's socket, in its directory.
const SOCKET: &str = "socket";
/// Directories tried: only a program that was killed leaves one, and process ids seldom come back.
const DIR_TRIES_MAX: u32 = 16;

/// What would outlive the program: the daemon, a child, and its directory. Whoever ends the program,
/// at the end or half-way, takes them away by any of the handles.
#[derive(Clone, Debug)]
pub struct Props {
    /// What the daemon serves, for messages and for the directory's name.
    label: &'static str,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    child: Option<Child>,
    dir: Option<PathBuf>,
    /// Nothing may be added any more.
    struck: bool,
    /// A signal asked for it.
    early: bool,
}

impl Props {
    /// Nothing yet; `label` is one word for what the daemon will serve.
    pub fn new(label: &'static str) -> Self {
        Self {
            label,
            held: Arc::default(),
        }
    }

    /// Ends the daemon and removes its directory; nothing new is held from then on.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn strike(&self) -> anyhow::Result<()> {
        strike(&mut self.lock(), self.label)
    }

    /// The same before the end; [`Props::is_struck_early`] says so before anybody can notice.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn strike_early(&self) -> anyhow::Result<()> {
        let mut held = self.lock();
        held.early = true;
        strike(&mut held, self.label)
    }

    /// Whether [`Props::strike_early`] was called.
    pub fn is_struck_early(&self) -> bool {
        self.lock().early
    }

    /// How the daemon has ended, when it has by itself. Its connections break a moment before
    /// its end can be seen, hence a little patience.
    pub async fn daemon_end(&self) -> Option<String> {
        let deadline = Instant::now() + DAEMON_END_MAX;
        loop {
            let ended = self.lock().child.as_mut()?.try_wait().ok()?;
            if let Some(status) = ended {
                return Some(match status.signal().map(NixSignal::try_from) {
                    Some(Ok(signal)) => format!(
                        "the {}'s daemon was ended by signal {} ({signal})",
                        self.label, signal as i32
                    ),
                    Some(Err(_)) | None => {
                        format!("the {}'s daemon has ended ({status})", self.label)
                    }
                });
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts a daemon that serves `host`, in a directory of its own, and waits until it answers.
    ///
    /// # Errors
    /// With its log when it does not answer, and when somebody has ended the program.
    pub async fn start_daemon(&self, host: &Netns) -> anyhow::Result<Client> {
        let dir = {
            let mut held = self.lock();
            anyhow::ensure!(!held.struck, "the {} was ended", self.label);
            let dir = make_dir(self.label)?;
            held.dir = Some(dir.clone());
            held.child = Some(start_daemon(host, &dir)?);
            dir
        };
        let client = Client::new(&dir.join(SOCKET));
        wait_for_daemon(&client, &dir).await?;
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn strike(held: &mut Held, label: &str) -> anyhow::Result<()> {
    held.struck = true;
    let ended = match held.child.take() {
        // That it has ended by itself is no error, for either call.
        Some(mut child) => child.kill().and_then(|()| child.wait().map(drop)),
        None => Ok(()),
    };
    if let Some(dir) = held.dir.take() {
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    ended.with_context(|| format!("cannot end the {label}'s daemon"))
}

/// A directory that nobody else had or can enter. A killed program leaves its own behind, so the
/// first name may be taken.
fn make_dir(label: &str) -> anyhow::Result<PathBuf> {
    let base = std::env::temp_dir().join(format!("causeway-{label}-{}", std::process::id()));
    for number in 0..DIR_TRIES_MAX {
        let dir = base.with_extension(number.to_string());
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                let dir = dir.display();
                return Err(error).with_context(|| {
                    format!("cannot create {dir}; set TMPDIR to a directory that you may write to")
                });
            }
        }
    }
    let base = base.display();
    anyhow::bail!("{base}.0 to .{DIR_TRIES_MAX} are taken; remove them")
}

/// Connects a host to an outside by a cable with this MTU. The host's end is its uplink.
///
/// # Errors
/// What the kernel said.
pub async fn connect_outside(
    (host, host_addresses): (&Netns, &[Prefix]),
    (outside, outside_addresses): (&Netns, &[Prefix]),
    mtu: u32,
) -> anyhow::Result<()> {
    let (on_host, on_outside) = (Netlink::open(host)?, Netlink::open(outside)?);
    let end = |name| VethEnd {
        name,
        mac: None,
        mtu,
    };
    on_host
        .create_veth(end(UPLINK), end("eth0"), outside)
        .await?;
    for (netlink, name, addresses) in [
        (&on_host, UPLINK, host_addresses),
        (&on_outside, "eth0", outside_addresses),
    ] {
        let link = netlink.require(name).await?.index;
        for address in addresses {
            netlink
                .add_address(link, *address, DuplicateDetection::Off)
                .await?;
        }
        netlink.set_up(link).await?;
    }
    Ok(())
}

fn start_daemon(host: &Netns, dir: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let log = std::fs::File::create(dir.join("log")).context("cannot write the daemon's log")?;
    let mut command = Command::new(program);
    command
        .arg("--socket")
        .arg(dir.join(SOCKET))
        .args([
            "daemon",
            "--until-stdin-closes",
            "--no-default-network",
            "--uplink",
            UPLINK,
        ])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .stdin(Stdio::piped())
        // Ctrl-C is for the program alone, which then ends the daemon.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(log);
    host.run(|| command.spawn())?
        .context("cannot start the daemon")
}

async fn wait_for_daemon(client: &Client, dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(error) = client.get::<StatusView>("/v1/status").await else {
            return Ok(());
        };
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            anyhow::bail!("the daemon does not answer: {error}; its log says:\n{log}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Attaches a namespace to a network; its IPv4 address there.
///
/// # Errors
/// What the daemon said.
pub async fn attach(
    client: &Client,
    ns: &Netns,
    name: &str,
    network: &str,
    backend: &str,
) -> anyhow::Result<Ipv4Addr> {
    let body = EndpointCreate {
        network: network.to_owned(),
        netns: Some(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            ns.as_raw_fd()
        )),
        name: Some(name.to_owned()),
        backend: Some(backend.to_owned()),
        ..EndpointCreate::default()
    };
    let made: EndpointView = client.post("/v1/endpoints", &body).await?;
    let address = made
        .addresses
        .first()
        .and_then(|text| text.split('/').next());
    let address = address.and_then(|text| text.parse().ok());
    address.with_context(|| format!("'{name}' has no IPv4 address"))
}
