//! `ns`: network namespaces, by names that `ip netns` has as well, and those without any.
//!
//! What is done here is done to the machine and not by a daemon, so none need run. One that does tells which
//! endpoints are where, and detaches those whose name goes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::args::JsonArgs;
use super::client::{Client, Error};
use super::guest::{Guest, process_of_container};
use super::{print_json, table};
use crate::api::types::{DetachBody, EndpointView};
use crate::discovery::{self, Found, Process};
use crate::exposure;
use crate::netns::{self, Loopback, NAMED_DIR, Netns};
use crate::resolv_file::netns_name;

/// Processes that a line for people names.
const PROCESSES_SHOWN: usize = 3;
/// Digits of a container's id that a line for people shows, as engines print them.
const ID_SHOWN: usize = 12;

/// `ns`
#[derive(Debug, Subcommand)]
pub enum NsCommand {
    /// List named network namespaces, as `ip netns` does
    #[command(after_help = "Examples:
  causeway ns ls
  causeway ns ls --json | jq -r '.[].name'")]
    Ls(JsonArgs),
    /// Make network namespaces with a name that `ip netns` knows as well
    #[command(after_help = "Examples:
  causeway ns add blue green
  causeway ns add raw --lo down      as the kernel makes it: 127.0.0.1 is unreachable")]
    Add {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// What becomes of lo
        #[arg(long, value_enum, default_value = "up")]
        lo: Lo,
    },
    /// Remove names of network namespaces, and detach what is attached by them
    #[command(after_help = "Examples:
  causeway ns rm blue

A namespace lives on, without its name, while a process is in it or somebody holds it.")]
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List all network namespaces that processes and mounts lead to, named or not
    #[command(after_help = "Examples:
  causeway ns discover
  causeway ns discover --json | jq '.[] | select(.names == [])'

A `*` marks the namespace that this command runs in. Processes in parentheses only hold it open.")]
    Discover(JsonArgs),
    /// Give the namespace of a process or container a name that `ip netns` knows
    #[command(after_help = "Examples:
  causeway ns expose 4711 web          ip netns exec web ...
  causeway ns expose 4fa6e0f0c678 web  a container, by the id that `docker ps` prints
  causeway ns unexpose web")]
    Expose {
        /// A process id, or a container's id or its beginning
        #[arg(value_name = "PID|ID")]
        guest: String,
        /// The name
        name: String,
    },
    /// Take names away that `expose` has given
    Unexpose {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// `--lo`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lo {
    /// It is up
    Up,
    /// It is down, as the kernel makes it
    Down,
}

/// A named namespace, in JSON.
#[derive(Debug, Serialize)]
struct NamedView {
    name: String,
    /// Absent for a name that leads nowhere.
    inode: Option<u64>,
    exposed: bool,
    /// Absent when no daemon answers.
    endpoints: Option<Vec<String>>,
}

/// A namespace that was found, in JSON.
#[derive(Debug, Serialize)]
struct FoundView {
    inode: u64,
    /// It is the one that the command runs in.
    own: bool,
    names: Vec<String>,
    mounts: Vec<String>,
    processes: Vec<ProcessView>,
    holders: Vec<ProcessView>,
    /// Absent when no daemon answers.
    endpoints: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct ProcessView {
    pid: u32,
    program: String,
    cgroup: String,
    container: Option<String>,
}

pub(super) async fn ns(client: &Client, command: NsCommand) -> anyhow::Result<()> {
    match command {
        NsCommand::Ls(args) => ls(&endpoints(client).await?, args.json),
        NsCommand::Add { names, lo } => {
            let loopback = match lo {
                Lo::Up => Loopback::Up,
                Lo::Down => Loopback::Down,
            };
            for name in &names {
                Netns::create_named(name, loopback)?;
            }
            Ok(())
        }
        NsCommand::Rm { names } => {
            for name in &names {
                rm(client, name).await?;
            }
            Ok(())
        }
        NsCommand::Discover(args) => discover(&endpoints(client).await?, args.json),
        NsCommand::Expose { guest, name } => {
            netns::named_path(&name)?;
            let path = exposure::expose(&hidden(&guest)?.open()?, &name)?;
            writeln!(io::stdout(), "{}", path.display())?;
            Ok(())
        }
        NsCommand::Unexpose { names } => {
            let endpoints = endpoints(client).await?;
            for name in &names {
                unexpose(&endpoints, name)?;
            }
            Ok(())
        }
    }
}

/// The endpoints of the daemon, if one answers.
struct Endpoints(Option<Vec<EndpointView>>);

async fn endpoints(client: &Client) -> anyhow::Result<Endpoints> {
    match client.get("/v1/endpoints").await {
        Ok(listed) => Ok(Endpoints(Some(listed))),
        // Also of a daemon that is somebody else's: the machine is the same without it.
        Err(Error::NoDaemon { .. }) => Ok(Endpoints(None)),
        Err(error) => Err(error.into()),
    }
}

impl Endpoints {
    /// The names of those in a namespace.
    fn within(&self, inode: Option<u64>) -> Option<Vec<String>> {
        let all = self.0.as_ref()?.iter();
        let here = all.filter(|endpoint| inode == Some(endpoint.netns_inode));
        Some(here.map(|endpoint| endpoint.name.clone()).collect())
    }

    /// The names of those that were attached by a namespace's name, and end with it.
    fn by_name(&self, name: &str) -> Vec<String> {
        let all = self.0.iter().flatten();
        let here = all.filter(|endpoint| netns_name(Path::new(&endpoint.netns)) == Some(name));
        here.map(|endpoint| endpoint.name.clone()).collect()
    }
}

fn ls(endpoints: &Endpoints, json: bool) -> anyhow::Result<()> {
    let named = discovery::named().with_context(|| format!("cannot read {NAMED_DIR}"))?;
    let views = named.into_iter().map(|named| NamedView {
        exposed: named.inode.is_some() && exposure::exposed(&named.name) == named.inode,
        endpoints: endpoints.within(named.inode),
        inode: named.inode,
        name: named.name,
    });
    let views: Vec<NamedView> = views.collect();
    if json {
        return print_json(&views);
    }
    let row = |view: &NamedView| {
        let inode = view.inode.map(|inode| inode.to_string());
        vec![
            view.name.clone(),
            inode.unwrap_or_else(|| "gone".to_owned()),
            if view.exposed { "yes" } else { "no" }.to_owned(),
            endpoints_text(view.endpoints.as_ref()),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    Ok(table::print(
        &["NAME", "INODE", "EXPOSED", "ENDPOINTS"],
        &rows,
    )?)
}

fn endpoints_text(endpoints: Option<&Vec<String>>) -> String {
    match endpoints {
        None => "?".to_owned(),
        Some(names) if names.is_empty() => "-".to_owned(),
        Some(names) => names.join(","),
    }
}

async fn rm(client: &Client, name: &str) -> anyhow::Result<()> {
    // A name that cannot be is told of before anything is detached.
    netns::named_path(name)?;
    let names = endpoints(client).await?.by_name(name);
    if !names.is_empty() {
        client.create("/v1/detach", &DetachBody { names }).await?;
    }
    Netns::remove_named(name)?;
    exposure::forget(name);
    Ok(())
}

fn unexpose(endpoints: &Endpoints, name: &str) -> anyhow::Result<()> {
    let attached = endpoints.by_name(name);
    if !attached.is_empty() && exposure::exposed(name).is_some() {
        let attached = attached.join(" ");
        bail!("'{name}' is how {attached} came to be attached; `causeway detach {attached}` first");
    }
    Ok(exposure::unexpose(name)?)
}

/// The sandbox of a process or a container.
fn hidden(word: &str) -> anyhow::Result<Guest> {
    if let Ok(pid) = word.parse()
        && Path::new("/proc").join(word).exists()
    {
        return Ok(Guest::Pid(pid));
    }
    Ok(Guest::Pid(process_of_container(word)?))
}

fn discover(endpoints: &Endpoints, json: bool) -> anyhow::Result<()> {
    let all = discovery::discover().context("cannot read /proc")?;
    let own = discovery::inode_at(Path::new("/proc/self/ns/net"));
    let found: BTreeMap<u64, Found> = all.namespaces;
    let views = found.into_iter().map(|(inode, found)| FoundView {
        inode,
        own: Some(inode) == own,
        names: found.names.into_iter().collect(),
        mounts: found
            .mounts
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        processes: found.processes.into_iter().map(ProcessView::from).collect(),
        holders: found.holders.into_iter().map(ProcessView::from).collect(),
        endpoints: endpoints.within(Some(inode)),
    });
    let views: Vec<FoundView> = views.collect();
    if json {
        print_json(&views)?;
    } else {
        let rows: Vec<_> = views.iter().map(FoundView::row).collect();
        let heading = ["INODE", "NAMES", "PROCESSES", "CONTAINERS", "ENDPOINTS"];
        table::print(&heading, &rows)?;
    }
    if all.hidden_processes > 0 {
        eprintln!(
            "causeway: {} processes could not be looked into; as root, all can",
            all.hidden_processes
        );
    }
    Ok(())
}

impl From<Process> for ProcessView {
    fn from(process: Process) -> Self {
        Self {
            pid: process.pid,
            program: process.program,
            cgroup: process.cgroup,
            container: process.container,
        }
    }
}

impl FoundView {
    fn row(&self) -> Vec<String> {
        let own = if self.own { "*" } else { "" };
        let mut names = self.names.clone();
        names.extend(self.mounts.iter().cloned());
        let mut containers: Vec<String> = Vec::new();
        for process in &self.processes {
            let id = process.container.iter();
            for id in id.map(|id| id.chars().take(ID_SHOWN).collect()) {
                if !containers.contains(&id) {
                    containers.push(id);
                }
            }
        }
        vec![
            format!("{}{own}", self.inode),
            some_text(names.join(",")),
            self.processes_text(),
            some_text(containers.join(",")),
            endpoints_text(self.endpoints.as_ref()),
        ]
    }

    fn processes_text(&self) -> String {
        let (within, holders) = (named(&self.processes), named(&self.holders));
        match (within.is_empty(), holders.is_empty()) {
            (true, true) => "-".to_owned(),
            (false, _) => within,
            (true, false) => format!("({holders})"),
        }
    }
}

/// The first processes, and how many more there are.
fn named(processes: &[ProcessView]) -> String {
    let shown = processes.iter().take(PROCESSES_SHOWN);
    let shown: Vec<String> = shown
        .map(|process| format!("{} {}", process.pid, process.program))
        .collect();
    let more = processes.len().saturating_sub(PROCESSES_SHOWN);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn some_text(text: String) -> String {
    match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    }
}
