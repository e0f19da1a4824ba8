//! `apply`, `down` and `export`: a lab in one file.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::client::{Client, escape};
use super::{nic, print_json};
use crate::api::bridging::{FdbSet, ImpairmentSet, LimitBody, PortSet};
use crate::api::groups::{ListenerBody, MdbView};
use crate::api::mirrors::MirrorCreate;
use crate::api::rules::{RuleCreate, RuleSet, RuleView};
use crate::api::types::{
    DetachBody, EndpointCreate, EndpointView, NetworkCreate, NetworkSet, NetworkView, NicBody,
    PortView, PublicationChange, PublicationCreate, PublicationView, TargetPatch,
};
use crate::api::vlans::{PortVlansView, VlanAdd};
use crate::engine::DETACHED_MAX;
use crate::impairment::ImpairmentBody;
use crate::lab_file::plan::{self, Namespaces, Rest, Sharing, Step};
use crate::lab_file::{
    EndpointFile, LabFile, MirrorFile, NetworkFile, NicFile, Observed, PortFile, PublicationFile,
    RuleFile,
};
use crate::netns::{Loopback, NAMED_DIR, Netns};
use crate::vlans;

/// The file when none is named.
const FILE_DEFAULT: &str = "lab.toml";
/// No address of a family.
const NONE: &str = "none";

/// `apply`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway apply                        lab.toml of this directory
  causeway apply -f lab.toml --dry-run  what would be done, and nothing done
  causeway export | ssh host causeway apply -f -

A file that has been applied is applied again without a step. What it leaves out stays as it is. A
step that fails ends it; what was done stays, and the next try goes on from there.")]
pub struct ApplyArgs {
    /// The file; '-' for the standard input
    #[arg(short, long, default_value = FILE_DEFAULT)]
    pub file: PathBuf,
    /// Print the steps and do none
    #[arg(long)]
    pub dry_run: bool,
    /// Remove networks, endpoints, publications, rules and mirrors that the file does not name, but for
    /// the network 'default'
    #[arg(long)]
    pub prune: bool,
    /// Print the steps as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}

/// `down`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway down                  what lab.toml of this directory names
  causeway down -f lab.toml --namespaces
  causeway down --all            every endpoint and network but 'default'")]
pub struct DownArgs {
    /// The file; '-' for the standard input
    #[arg(short, long, default_value = FILE_DEFAULT)]
    pub file: PathBuf,
    /// Remove the namespaces of the file as well
    #[arg(long)]
    pub namespaces: bool,
    /// Everything that is there, whatever a file says
    #[arg(long, conflicts_with_all = ["file", "namespaces"])]
    pub all: bool,
    /// Print the steps and do none
    #[arg(long)]
    pub dry_run: bool,
}

/// `export`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway export > lab.toml
  causeway export --json | jq .networks")]
pub struct ExportArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `apply`
pub(super) async fn apply(client: &Client, args: &ApplyArgs) -> anyhow::Result<()> {
    let wanted = read(&args.file)?;
    let there = observe(client).await?.lab();
    let rest = match args.prune {
        true => Rest::Goes,
        false => Rest::Stays,
    };
    let steps = plan::apply(&wanted, &there, rest)?;
    if args.json {
        return print_json(&steps.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    carry_out(client, &steps, args.dry_run).await
}

/// `down`
pub(super) async fn down(client: &Client, args: &DownArgs) -> anyhow::Result<()> {
    let steps = match args.all {
        true => {
            let there = observe(client).await?.lab();
            plan::apply(&LabFile::default(), &there, Rest::Goes)?
        }
        false => {
            let named = read(&args.file)?;
            let namespaces = match args.namespaces {
                true => Namespaces::Go,
                false => Namespaces::Stay,
            };
            plan::down(&named, &observe(client).await?.lab(), namespaces)
        }
    };
    carry_out(client, &steps, args.dry_run).await
}

/// `export`
pub(super) async fn export(client: &Client, args: &ExportArgs) -> anyhow::Result<()> {
    let observed = observe(client).await?;
    for rule in observed.rules_left_out() {
        let (name, absent) = (&rule.name, rule.absent.join(", "));
        eprintln!("left out: rule '{name}', which fits nothing while {absent} is not there");
    }
    let lab = observed.lab_to_read();
    if args.json {
        return print_json(&lab);
    }
    Ok(write!(io::stdout(), "{}", lab.to_text()?)?)
}

fn read(path: &Path) -> anyhow::Result<LabFile> {
    let text = match path.to_str() {
        Some("-") => io::read_to_string(io::stdin().lock().by_ref()),
        _ => std::fs::read_to_string(path),
    };
    let path = path.display();
    let text = text.with_context(|| format!("cannot read {path}"))?;
    LabFile::read(&text).with_context(|| format!("{path} is no lab"))
}

async fn observe(client: &Client) -> anyhow::Result<Observed> {
    let mut observed = Observed {
        networks: client.get("/v1/networks").await?,
        ports: client.get("/v1/ports").await?,
        vlans: client.get("/v1/vlans").await?,
        publications: client.get("/v1/publications").await?,
        rules: client.get("/v1/rules").await?,
        mirrors: client.get("/v1/mirrors").await?,
        namespaces: namespaces()?,
        ..Observed::default()
    };
    for network in &observed.networks {
        let path = format!("/v1/networks/{}", escape(&network.name));
        let name = &network.name;
        let fdb = client.get(&format!("{path}/fdb")).await?;
        observed.fdb.insert(name.clone(), fdb);
        let mdb: MdbView = client.get(&format!("{path}/mdb")).await?;
        observed.mdb.insert(name.clone(), mdb.groups);
    }
    Ok(observed)
}

/// The namespaces that have a name, as `ip netns` lists them.
fn namespaces() -> anyhow::Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(NAMED_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {NAMED_DIR}")),
    };
    let name = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    Ok(entries.filter_map(name).collect())
}

async fn carry_out(client: &Client, steps: &[Step], dry_run: bool) -> anyhow::Result<()> {
    let count = steps.len();
    if steps.is_empty() {
        writeln!(io::stdout(), "nothing to do")?;
        return Ok(());
    }
    // Long work is watched; what a program reads has no numbers in it.
    let numbered = io::stdout().is_terminal() && !dry_run;
    for (index, step) in steps.iter().enumerate() {
        if !dry_run {
            carry_out_one(client, step).await.with_context(|| {
                let number = index + 1;
                format!("cannot {step} (step {number} of {count}; those before it are done)")
            })?;
        }
        match numbered {
            true => writeln!(io::stdout(), "[{}/{count}] {step}", index + 1)?,
            false => writeln!(io::stdout(), "{step}")?,
        }
    }
    Ok(())
}

async fn carry_out_one(client: &Client, step: &Step) -> anyhow::Result<()> {
    let of_network = |name: &str| format!("/v1/networks/{}", escape(name));
    match step {
        Step::Unpublish(publication) => unpublish(client, publication).await?,
        Step::Detach(names) => {
            for names in names.chunks(DETACHED_MAX) {
                let body = DetachBody {
                    names: names.to_vec(),
                };
                client.create("/v1/detach", &body).await?;
            }
        }
        Step::RemoveNetwork(name) => client.delete(&of_network(name)).await?,
        Step::RemoveNamespace(name) => Netns::remove_named(name)?,
        Step::CreateNamespace(name) => drop(Netns::create_named(name, Loopback::Up)?),
        Step::CreateNetwork(name, network) => {
            let made: NetworkView = client.post("/v1/networks", &create(name, network)).await?;
            remind(&made);
        }
        Step::ChangeNetwork(name, network) => {
            let made: NetworkView = client.patch(&of_network(name), &change(network)).await?;
            remind(&made);
        }
        Step::Release(network, ip) => {
            let path = format!("{}/reservations/{}", of_network(network), escape(ip));
            client.delete(&path).await?;
        }
        Step::Reserve(network, body) => {
            let path = format!("{}/reservations", of_network(network));
            client.create(&path, body).await?;
        }
        Step::Attach(name, endpoint) => attach(client, name, endpoint, false).await?,
        Step::Reattach(name, endpoint) => attach(client, name, endpoint, true).await?,
        Step::SetPort(name, port) => {
            let path = format!("/v1/ports/{}", escape(name));
            let _: PortView = client.patch(&path, &port_set(port)).await?;
        }
        Step::SetVlans {
            endpoint,
            there,
            wanted,
        } => set_vlans(client, endpoint, there, wanted).await?,
        Step::SetFdb(network, entry) => {
            let body = FdbSet {
                mac: entry.mac.clone(),
                port: entry.port.clone(),
                vlan: entry.vlan.map(i64::from),
                state: Some(entry.state.clone()),
            };
            let path = format!("{}/fdb", of_network(network));
            client.create(&path, &body).await?;
        }
        Step::Publish(publication, sharing) => publish(client, publication, *sharing).await?,
        Step::SetBalance(publication) => {
            let body = PublicationChange {
                balance: publication.balance.clone(),
            };
            let id = id_of(client, publication).await?;
            let path = format!("/v1/publications/{id}");
            let _: PublicationView = client.patch(&path, &body).await?;
        }
        Step::SetTarget(publication) => set_target(client, publication).await?,
        Step::AddListener(network, entry) => {
            let body = ListenerBody {
                group: entry.group.clone(),
                port: entry.port.clone(),
                vlan: entry.vlan.map(i64::from),
            };
            let path = format!("{}/mdb", of_network(network));
            client.create(&path, &body).await?;
        }
        Step::AddRule(rule, place) => {
            client
                .create("/v1/rules", &rule_create(rule, place))
                .await?;
        }
        Step::ChangeRule(rule) => {
            let _: RuleView = client.patch(&of_rule(&rule.name), &rule_set(rule)).await?;
        }
        Step::MoveRule(name, place) => {
            let body = RuleSet {
                place: Some(place.clone()),
                ..RuleSet::default()
            };
            let _: RuleView = client.patch(&of_rule(name), &body).await?;
        }
        Step::RemoveRule(name) => client.delete(&of_rule(name)).await?,
        Step::AddMirror(name, mirror) => {
            client
                .create("/v1/mirrors", &mirror_create(name, mirror))
                .await?;
        }
        Step::RemoveMirror(name) => {
            let path = format!("/v1/mirrors/{}", escape(name));
            client.delete(&path).await?;
        }
    }
    Ok(())
}

fn of_rule(name: &str) -> String {
    format!("/v1/rules/{}", escape(name))
}

fn rule_create(file: &RuleFile, place: &str) -> RuleCreate {
    let file = file.clone();
    RuleCreate {
        name: file.name,
        action: file.action,
        from: Some(file.from),
        to: Some(file.to),
        protocol: Some(file.protocol),
        source_ports: Some(file.source_ports),
        ports: Some(file.ports),
        uplink: file.uplink,
        place: Some(place.to_owned()),
    }
}

fn rule_set(file: &RuleFile) -> RuleSet {
    let file = file.clone();
    RuleSet {
        action: Some(file.action),
        from: Some(file.from),
        to: Some(file.to),
        protocol: Some(file.protocol),
        source_ports: Some(file.source_ports),
        ports: Some(file.ports),
        uplink: Some(file.uplink.unwrap_or_default()),
        place: None,
    }
}

fn mirror_create(name: &str, file: &MirrorFile) -> MirrorCreate {
    let file = file.clone();
    MirrorCreate {
        name: name.to_owned(),
        port: file.from,
        network: file.network,
        direction: file.direction,
        to: file.to,
        ingress: file.ingress,
        to_file: file.to_file,
        limit_size: file.limit_size,
        rotate: file.rotate,
    }
}

fn remind(network: &NetworkView) {
    if let Some(reminder) = nic::to_confirm(network) {
        eprintln!("{reminder}");
    }
}

fn nic_body(file: &NicFile) -> NicBody {
    NicBody {
        name: file.name.clone(),
        take_address: file.take_address,
        mac_nat: file.mac_nat,
        backend: Some(file.backend.clone()),
        ..NicBody::default()
    }
}

fn create(name: &str, file: &NetworkFile) -> NetworkCreate {
    let file = file.clone();
    NetworkCreate {
        name: name.to_owned(),
        subnet: file.subnet,
        gateway: file.gateway,
        subnet6: file.subnet6,
        gateway6: file.gateway6,
        ip_range: file.ip_range,
        internal: file.internal.unwrap_or(false),
        no_host_link: file.host_link == Some(false),
        mtu: file.mtu,
        ageing_seconds: file.ageing_seconds,
        stp_frames: file.stp_frames,
        loop_detect: file.loop_detect,
        vlan_filtering: file.vlan_filtering,
        gateway_vlan: file.gateway_vlan.map(i64::from),
        mcast_snooping: file.mcast_snooping,
        mcast_querier: file.mcast_querier,
        arp_suppression: file.arp_suppression,
        icc: file.icc,
        nat_mapping: file.nat_mapping,
        nat_filtering: file.nat_filtering,
        nat4: file.nat4,
        nat6: file.nat6,
        dns: file.dns.unwrap_or_default(),
        lan_gateway: file.lan_gateway.unwrap_or_default(),
        nic: file.nic.as_ref().map(nic_body),
    }
}

fn change(file: &NetworkFile) -> NetworkSet {
    let file = file.clone();
    NetworkSet {
        ageing_seconds: file.ageing_seconds,
        stp_frames: file.stp_frames,
        loop_detect: file.loop_detect,
        vlan_filtering: file.vlan_filtering,
        gateway_vlan: file.gateway_vlan.map(i64::from),
        mcast_snooping: file.mcast_snooping,
        mcast_querier: file.mcast_querier,
        arp_suppression: file.arp_suppression,
        icc: file.icc,
        nat_mapping: file.nat_mapping,
        nat_filtering: file.nat_filtering,
        nat4: file.nat4,
        nat6: file.nat6,
        dns: file.dns.unwrap_or_default(),
        nic: file.nic.as_ref().map(nic_body),
    }
}

async fn attach(
    client: &Client,
    name: &str,
    file: &EndpointFile,
    replace: bool,
) -> anyhow::Result<()> {
    let asked = [(&file.ip, "ipv4"), (&file.ip6, "ipv6")];
    let is_none = |ip: &Option<String>| ip.as_deref() == Some(NONE);
    let without = asked.iter().filter(|(ip, _)| is_none(ip));
    let given = asked.iter().filter(|(ip, _)| !is_none(ip));
    let body = EndpointCreate {
        network: file.network.clone(),
        netns: Some(file.netns.clone()),
        name: Some(name.to_owned()),
        ifname: file.ifname.clone(),
        addresses: given.filter_map(|(ip, _)| (*ip).clone()).collect(),
        without: without.map(|(_, family)| (*family).to_owned()).collect(),
        mac: file.mac.clone(),
        backend: file.backend.clone(),
        aliases: file.aliases.clone().unwrap_or_default(),
        links: file.links.clone().unwrap_or_default(),
        gw_priority: file.gw_priority,
        routes: file.routes.clone().unwrap_or_default(),
        dns: file.dns.clone().unwrap_or_default(),
        replace,
        ..EndpointCreate::default()
    };
    let _: EndpointView = client.post("/v1/endpoints", &body).await?;
    Ok(())
}

fn port_set(file: &PortFile) -> PortSet {
    // Another one each time where the file says none, and kept, so that a run can be repeated.
    let impairment = |body: &Option<ImpairmentBody>| {
        let body = body.clone()?;
        let seed = body.seed.or_else(|| Some(fastrand::u32(..).into()));
        Some(ImpairmentSet::Set(Box::new(ImpairmentBody {
            seed,
            ..body
        })))
    };
    PortSet {
        flags: file.flags,
        mac_limit: file.mac_limit.map(|count| LimitBody::Count(count.into())),
        storm_broadcast: file.storm_broadcast.clone(),
        storm_multicast: file.storm_multicast.clone(),
        storm_unknown_unicast: file.storm_unknown_unicast.clone(),
        rate_in: file.rate_in.clone(),
        rate_out: file.rate_out.clone(),
        mac_nat: file.mac_nat.clone(),
        impair_in: impairment(&file.impair_in),
        impair_out: impairment(&file.impair_out),
        ..PortSet::default()
    }
}

async fn set_vlans(
    client: &Client,
    endpoint: &str,
    there: &str,
    wanted: &str,
) -> anyhow::Result<()> {
    let path = format!("/v1/ports/{}/vlans", escape(endpoint));
    for span in vlans::read(there)?.spans() {
        let span = vlans::span_text(&span.vlans);
        client.delete(&format!("{path}/{span}")).await?;
    }
    let wanted = vlans::read(wanted)?;
    for span in wanted.spans() {
        let body = VlanAdd {
            vlans: vlans::span_text(&span.vlans),
            pvid: vlans::is_pvid(&wanted, &span),
            untagged: span.form == dataplane_core::l2::Form::Untagged,
        };
        let _: PortVlansView = client.post(&path, &body).await?;
    }
    Ok(())
}

async fn publish(
    client: &Client,
    publication: &PublicationFile,
    sharing: Sharing,
) -> anyhow::Result<()> {
    let body = PublicationCreate {
        endpoint: publication.endpoint.clone(),
        spec: publication.spec.clone(),
        from: publication.from.clone(),
        uplink: publication.uplink.clone(),
        join: sharing == Sharing::Joins,
        weight: publication.weight,
        balance: publication.balance.clone(),
    };
    let _: PublicationView = client.post("/v1/publications", &body).await?;
    Ok(())
}

async fn set_target(client: &Client, publication: &PublicationFile) -> anyhow::Result<()> {
    let id = id_of(client, publication).await?;
    let body = TargetPatch {
        weight: publication.weight,
        state: publication.draining.map(|draining| match draining {
            true => "draining".to_owned(),
            false => "serving".to_owned(),
        }),
    };
    let endpoint = escape(&publication.endpoint);
    let path = format!("/v1/publications/{id}/targets/{endpoint}");
    let _: PublicationView = client.patch(&path, &body).await?;
    Ok(())
}

async fn unpublish(client: &Client, publication: &PublicationFile) -> anyhow::Result<()> {
    let id = id_of(client, publication).await?;
    let endpoint = escape(&publication.endpoint);
    let path = format!("/v1/publications/{id}/targets/{endpoint}");
    Ok(client.delete(&path).await?)
}

/// The number of a publication, which one that has just been made is listed by.
async fn id_of(client: &Client, publication: &PublicationFile) -> anyhow::Result<u32> {
    if let Some(id) = publication.id {
        return Ok(id);
    }
    let listed: Vec<PublicationView> = client.get("/v1/publications").await?;
    let is_meant = |view: &&PublicationView| {
        let mut targets = view.targets.iter();
        view.uplink == publication.uplink
            && targets.any(|target| {
                (&target.spec, &target.endpoint) == (&publication.spec, &publication.endpoint)
            })
    };
    let found = listed.iter().find(is_meant).map(|view| view.id);
    found.with_context(|| format!("{} is not published any more", publication.spec))
}
