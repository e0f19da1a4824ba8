//! Where the demo plays: a host, the outside and three containers, all namespaces of its own, and
//! the real daemon serving the host. Everything vanishes with it.

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
use tokio::task::JoinHandle;

use super::wire::PATIENCE;
use crate::api::types::{
    EndpointCreate, EndpointView, NetworkCreate, NetworkView, PublicationCreate, PublicationView,
    StatusView, TraceView,
};
use crate::cli::client::Client;
use crate::link::inet::DuplicateDetection;
use crate::link::{Netlink, VethEnd};
use crate::netns::Netns;
use dataplane_core::addr::Prefix;

/// The host's address on its uplink, and the one outside (RFC 5737).
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const UPLINK: &str = "up0";
const MTU: u32 = 1_500;
/// Pause between two looks whether the daemon answers yet.
const POLL: Duration = Duration::from_millis(10);
/// How long after the first failure the daemon is watched for its end.
const DAEMON_END_MAX: Duration = Duration::from_millis(500);
/// The daemon's socket, in the demo's directory.
const SOCKET: &str = "socket";
/// Directories tried: only a demo that was killed leaves one, and process ids seldom come back.
const DIR_TRIES_MAX: u32 = 16;

/// A container.
#[derive(Debug)]
pub struct Container {
    pub ns: Netns,
    pub name: &'static str,
    pub address: Ipv4Addr,
}

/// The stage, set.
pub struct Stage {
    pub client: Client,
    pub outside: Netns,
    /// web and app on shop, spy on guests.
    pub web: Container,
    pub app: Container,
    pub spy: Container,
    pub host: Netns,
    /// What the data path has reported since before the containers came.
    pub beginning: Watch,
}

/// What would outlive the program: the daemon, a child, and its directory. Whoever ends the demo,
/// at the end or half-way, takes them away by any of the handles.
#[derive(Clone, Debug, Default)]
pub struct Props(Arc<Mutex<Held>>);

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
    /// Ends the daemon and removes its directory; nothing new is held from then on.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn strike(&self) -> anyhow::Result<()> {
        strike(&mut self.lock())
    }

    /// The same before the end; [`Props::is_struck_early`] says so before anybody can notice.
    ///
    /// # Errors
    /// When something stays behind.
    pub fn strike_early(&self) -> anyhow::Result<()> {
        let mut held = self.lock();
        held.early = true;
        strike(&mut held)
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
                        "the demo's daemon was ended by signal {} ({signal})",
                        signal as i32
                    ),
                    Some(Err(_)) | None => format!("the demo's daemon has ended ({status})"),
                });
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Makes the directory and starts the daemon in it, unless somebody has ended the demo.
    fn start_daemon(&self, host: &Netns) -> anyhow::Result<PathBuf> {
        let mut held = self.lock();
        anyhow::ensure!(!held.struck, "the demo was ended");
        let dir = make_dir()?;
        held.dir = Some(dir.clone());
        held.child = Some(start_daemon(host, &dir)?);
        Ok(dir)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn strike(held: &mut Held) -> anyhow::Result<()> {
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
    ended.context("cannot end the demo's daemon")
}

/// A directory that nobody else had or can enter. A killed demo leaves its own behind, so the
/// first name may be taken.
fn make_dir() -> anyhow::Result<PathBuf> {
    let base = std::env::temp_dir().join(format!("causeway-demo-{}", std::process::id()));
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

/// Sets the stage, with containers connected by `backend`. What outlives a program goes to
/// `props`.
pub async fn set(backend: &str, props: &Props) -> anyhow::Result<Stage> {
    let (host, outside) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    connect_outside(&host, &outside).await?;
    let dir = props.start_daemon(&host)?;
    let client = Client::new(&dir.join(SOCKET));
    wait_for_daemon(&client, &dir).await?;
    for (name, subnet) in [("shop", "10.1.0.0/16"), ("guests", "10.2.0.0/16")] {
        let body = NetworkCreate {
            name: name.to_owned(),
            subnet: Some(subnet.to_owned()),
            ..NetworkCreate::default()
        };
        let _: NetworkView = client.post("/v1/networks", &body).await?;
    }
    let beginning = Watch::start(&client).await?;
    let web = attach(&client, "web", "shop", backend).await?;
    let app = attach(&client, "app", "shop", backend).await?;
    let spy = attach(&client, "spy", "guests", backend).await?;
    let body = PublicationCreate {
        endpoint: "web".to_owned(),
        spec: "8080:80".to_owned(),
        from: None,
    };
    let _: PublicationView = client.post("/v1/publications", &body).await?;
    Ok(Stage {
        client,
        outside,
        web,
        app,
        spy,
        host,
        beginning,
    })
}

async fn connect_outside(host: &Netns, outside: &Netns) -> anyhow::Result<()> {
    let (on_host, on_outside) = (Netlink::open(host)?, Netlink::open(outside)?);
    let end = |name| VethEnd {
        name,
        mac: None,
        mtu: MTU,
    };
    on_host
        .create_veth(end(UPLINK), end("eth0"), outside)
        .await?;
    for (netlink, name, address) in [(&on_host, UPLINK, HOST), (&on_outside, "eth0", OUTSIDE)] {
        let link = netlink.require(name).await?.index;
        let prefix = Prefix::new(address.into(), 24);
        netlink
            .add_address(link, prefix, DuplicateDetection::Off)
            .await?;
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
        .args(["daemon", "--until-stdin-closes", "--uplink", UPLINK])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .stdin(Stdio::piped())
        // Ctrl-C is for the demo alone, which then ends the daemon.
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

async fn attach(
    client: &Client,
    name: &'static str,
    network: &str,
    backend: &str,
) -> anyhow::Result<Container> {
    let ns = Netns::create_unnamed()?;
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
    let address = address.with_context(|| format!("'{name}' has no IPv4 address"))?;
    Ok(Container { ns, name, address })
}

/// The frames that the data path reports while this exists.
pub struct Watch {
    seen: Arc<Mutex<Vec<TraceView>>>,
    reader: JoinHandle<()>,
}

impl Watch {
    /// Starts watching; returns when the workers report.
    pub async fn start(client: &Client) -> anyhow::Result<Self> {
        let mut body = client.bytes("/v1/trace").await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let reader = tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Ok(Some(piece)) = body.next().await {
                rest.extend_from_slice(&piece);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    if let Ok(frame) = serde_json::from_slice(&line) {
                        sink.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(frame);
                    }
                }
            }
        });
        Ok(Self { seen, reader })
    }

    /// The first frame that fits, waiting for it.
    pub async fn find(&self, fits: impl Fn(&TraceView) -> bool) -> Option<TraceView> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.iter().find(|frame| fits(frame)).cloned()
            };
            if found.is_some() || Instant::now() > deadline {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
