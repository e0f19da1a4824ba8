//! `causeway run`: a program in a sandbox of its own, or of somebody else's.
//!
//! The namespace lives as long as this process and the program; the endpoints are detached when
//! the program ends. Should this process be killed, the program is as well, and the daemon finds the
//! sandbox gone and drops the endpoints itself.

mod args;
mod files;
mod mode;
mod supervise;

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::client::{Client, Error, escape};
use super::guest::Guest;
use crate::api::types::{EndpointCreate, EndpointView, PublicationCreate, PublicationView};
use crate::model::dns::NameLink;
use crate::netns::{self, Netns, Privilege};
use crate::publish::PublishSpec;
pub(super) use args::RunArgs;
use files::Shown;
use mode::Mode;
use supervise::{Signals, supervise};

/// The exit status when it is not the program that failed, as Docker has it.
pub(super) const NOT_RUN: u8 = 125;

/// Makes an ordinary user root of a user namespace, where a sandbox is to be made. Must come before any
/// thread.
///
/// # Errors
/// When the kernel does not let the user.
pub(super) fn enter_user_namespace(args: &RunArgs) -> Result<Privilege, netns::Error> {
    match Mode::of(args) {
        Ok(mode) if mode.makes_sandbox() => netns::become_root(),
        // What is wrong is said when it is tried.
        Ok(_) | Err(_) => Ok(Privilege::Own),
    }
}

/// Makes the sandbox, runs the program, takes the sandbox apart.
pub(super) async fn run(client: &Client, args: RunArgs) -> anyhow::Result<ExitCode> {
    let mode = Mode::of(&args)?;
    let hostname = args.hostname.as_deref().map(files::hostname).transpose()?;
    let asked = Shown {
        servers: args.dns.clone(),
        hosts: Vec::new(),
        hostname,
    };
    // From here on no signal may end us with the sandbox up; one that comes early waits for the
    // program and ends that.
    let mut signals = Signals::catch()?;
    match mode {
        Mode::Host => supervise(&args.command, None, asked, &mut signals).await,
        Mode::None => {
            let ns = Arc::new(Netns::create_unnamed()?);
            supervise(&args.command, Some(ns), asked, &mut signals).await
        }
        Mode::Shared(name) => {
            let (ns, servers) = shared(client, &name).await?;
            let shown = asked.with_servers(servers);
            supervise(&args.command, Some(Arc::new(ns)), shown, &mut signals).await
        }
        Mode::Networks(networks) => {
            let ns = Arc::new(Netns::create_unnamed()?);
            let mut made = Vec::new();
            let prepared = prepare(client, &args, &networks, &ns, &mut made).await;
            let ended = match prepared {
                Ok(found) => {
                    let shown = found.shown(asked, &made);
                    // Ours as well: the daemon would find it gone before it is told.
                    let ns = Some(Arc::clone(&ns));
                    supervise(&args.command, ns, shown, &mut signals).await
                }
                Err(error) => Err(error),
            };
            detach_all(client, &made).await;
            ended
        }
    }
}

/// Takes every endpoint away, whatever happened, and tells each failure.
async fn detach_all(client: &Client, endpoints: &[EndpointView]) {
    for endpoint in endpoints {
        let path = format!("/v1/endpoints/{}", escape(&endpoint.name));
        if let Err(error) = client.delete(&path).await {
            eprintln!("causeway: cannot detach '{}': {error}", endpoint.name);
        }
    }
}

/// The sandbox of somebody else, and the servers that its resolvers ask.
async fn shared(client: &Client, name: &str) -> anyhow::Result<(Netns, Vec<IpAddr>)> {
    let endpoints: Vec<EndpointView> = match client.get("/v1/endpoints").await {
        Ok(listed) => listed,
        // Namespaces, processes and containers are there without one.
        Err(Error::NoDaemon { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let ns = match endpoints.iter().find(|endpoint| endpoint.name == name) {
        Some(endpoint) => Netns::from_path(&endpoint.netns)?,
        None => Guest::find(name)
            .with_context(|| format!("'{name}' is no endpoint either"))?
            .open()?,
    };
    let inode = ns.id().inode();
    let here = endpoints
        .iter()
        .filter(|endpoint| endpoint.netns_inode == inode);
    let servers = here.flat_map(servers_of).collect();
    Ok((ns, servers))
}

fn servers_of(endpoint: &EndpointView) -> impl Iterator<Item = IpAddr> {
    let texts = endpoint.nameservers.iter();
    texts.filter_map(|text| text.parse().ok())
}

fn addresses_of(endpoint: &EndpointView) -> impl Iterator<Item = IpAddr> {
    let texts = endpoint.addresses.iter();
    texts.filter_map(|text| text.split('/').next()?.parse().ok())
}

/// Whom a program is to know.
#[derive(Debug)]
struct Linked {
    link: NameLink,
    target: EndpointView,
}

/// What was found out while the sandbox was made.
#[derive(Debug)]
struct Prepared(Vec<Linked>);

impl Prepared {
    /// What the program is shown beside what was asked for.
    fn shown(&self, asked: Shown, made: &[EndpointView]) -> Shown {
        let mut shown = asked.with_servers(made.iter().flat_map(servers_of).collect());
        if let Some(hostname) = &shown.hostname {
            let own = made.iter().flat_map(addresses_of);
            shown.hosts = own
                .map(|address| (address, vec![hostname.clone()]))
                .collect();
        }
        for Linked { link, target } in &self.0 {
            let mut names = vec![link.alias.to_string()];
            if link.target != link.alias {
                names.push(link.target.to_string());
            }
            let lines = addresses_of(target).map(|address| (address, names.clone()));
            shown.hosts.extend(lines);
        }
        shown
    }
}

impl Shown {
    /// The same with the servers of networks, which go before those asked for: they ask these in turn.
    fn with_servers(mut self, servers: Vec<IpAddr>) -> Self {
        if !servers.is_empty() {
            self.servers = servers;
        }
        self
    }
}

async fn prepare(
    client: &Client,
    args: &RunArgs,
    networks: &[String],
    ns: &Netns,
    made: &mut Vec<EndpointView>,
) -> anyhow::Result<Prepared> {
    let published = published(args)?;
    let linked = linked(client, &args.link, networks).await?;
    // The link to our descriptor is how the daemon opens a namespace without a name.
    let netns = format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
    for (index, network) in networks.iter().enumerate() {
        let links = linked
            .iter()
            .filter(|linked| linked.target.network == *network);
        let mut body = EndpointCreate {
            network: network.clone(),
            netns: Some(netns.clone()),
            name: Some(endpoint_name(args, index)),
            ifname: Some(format!("eth{index}")),
            backend: Some(args.backend.clone()),
            aliases: args.alias.clone(),
            dns: args.dns.iter().map(ToString::to_string).collect(),
            links: links.map(|linked| linked.link.to_string()).collect(),
            ..EndpointCreate::default()
        };
        if index == 0 {
            let asked = [(args.ip.as_ref(), "ipv4"), (args.ip6.as_ref(), "ipv6")];
            (body.addresses, body.without) = super::addresses_asked(asked);
            body.mac.clone_from(&args.mac);
        }
        let attached = client.post("/v1/endpoints", &body).await;
        made.push(attached.with_context(|| match args.network.is_empty() {
            true => format!("cannot use network '{network}', as nothing else is said (--network)"),
            false => format!("cannot use network '{network}'"),
        })?);
    }
    let first = made.first().context("there is no network")?;
    for spec in published {
        let body = PublicationCreate {
            endpoint: first.name.clone(),
            spec,
            ..PublicationCreate::default()
        };
        let _: PublicationView = client.post("/v1/publications", &body).await?;
    }
    Ok(Prepared(linked))
}

fn endpoint_name(args: &RunArgs, index: usize) -> String {
    let given = args.name.clone();
    let base = given.unwrap_or_else(|| format!("run-{}", std::process::id()));
    match index {
        0 => base,
        index => format!("{base}-eth{index}"),
    }
}

/// What is to be published, as the API takes it.
fn published(args: &RunArgs) -> anyhow::Result<Vec<String>> {
    let mut specs = args.publish.clone();
    for text in &args.expose {
        let spec = text.parse::<PublishSpec>().ok();
        let exposed = spec.filter(|spec| spec.host_ports.is_none() && spec.host_ip.is_none());
        if exposed.is_none() {
            bail!(
                "'{text}' cannot be exposed; write PORT[-PORT][/tcp|/udp], such as 80 or 7000-7010/udp"
            );
        }
        if args.publish_all {
            specs.push(text.clone());
        }
    }
    Ok(specs)
}

/// Finds whom links lead to: endpoints that are on one of the sandbox's networks.
async fn linked(
    client: &Client,
    links: &[String],
    networks: &[String],
) -> anyhow::Result<Vec<Linked>> {
    let mut linked = Vec::new();
    for text in links {
        let link: NameLink = text.parse()?;
        let path = format!("/v1/endpoints/{}", escape(link.target.as_str()));
        let target: EndpointView = client.get(&path).await?;
        if !networks.contains(&target.network) {
            let EndpointView { name, network, .. } = &target;
            bail!(
                "'{name}' cannot be linked to, for it is on network '{network}'; add --network {network}"
            );
        }
        linked.push(Linked { link, target });
    }
    Ok(linked)
}
