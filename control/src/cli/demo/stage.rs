//! Where the demo plays: a host, the outside and three containers, all namespaces of its own, and
//! the real daemon serving the host. Everything vanishes with it.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane_core::addr::Prefix;
use tokio::task::JoinHandle;

use super::wire::PATIENCE;
use crate::api::types::{
    NetworkCreate, NetworkView, PublicationCreate, PublicationView, TraceView,
};
use crate::cli::client::Client;
use crate::cli::lab::{self, Props};
use crate::netns::Netns;

/// The host's address on its uplink, and the one outside (RFC 5737).
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MTU: u32 = 1_500;
/// Pause between two looks at what was reported.
const POLL: Duration = Duration::from_millis(10);

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

/// Sets the stage, with containers connected by `backend`. What outlives a program goes to
/// `props`.
pub async fn set(backend: &str, props: &Props) -> anyhow::Result<Stage> {
    let (host, outside) = (Netns::create_unnamed()?, Netns::create_unnamed()?);
    let on_link = |address: Ipv4Addr| [Prefix::new(address.into(), 24)];
    lab::connect_outside((&host, &on_link(HOST)), (&outside, &on_link(OUTSIDE)), MTU).await?;
    let client = props.start_daemon(&host).await?;
    for (name, subnet) in [("shop", "10.1.0.0/16"), ("guests", "10.2.0.0/16")] {
        let body = NetworkCreate {
            name: name.to_owned(),
            subnet: Some(subnet.to_owned()),
            ..NetworkCreate::default()
        };
        let _: NetworkView = client.post("/v1/networks", &body).await?;
    }
    let beginning = Watch::start(&client).await?;
    let attach = async |name, network| -> anyhow::Result<Container> {
        let ns = Netns::create_unnamed()?;
        let address = lab::attach(&client, &ns, name, network, backend).await?;
        Ok(Container { ns, name, address })
    };
    let web = attach("web", "shop").await?;
    let app = attach("app", "shop").await?;
    let spy = attach("spy", "guests").await?;
    let body = PublicationCreate {
        endpoint: "web".to_owned(),
        spec: "8080:80".to_owned(),
        ..PublicationCreate::default()
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
