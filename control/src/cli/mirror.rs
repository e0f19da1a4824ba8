//! `mirror`: ports that show what others carry.

use clap::{Args, Subcommand};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::mirrors::{MirrorCreate, MirrorView};

/// `mirror`
#[derive(Debug, Subcommand)]
pub enum MirrorCommand {
    /// Copy the frames of a port, or of a network, to a port
    Add(MirrorAddArgs),
    /// List mirrors
    Ls(JsonArgs),
    /// End mirrors
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// `mirror add`
#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("source").required(true).args(["from", "network"])),
    after_help = "Examples:
  causeway mirror add m1 --from web1 --to ids                     both ways
  causeway mirror add m2 --from web1 --direction in --to ids
  causeway mirror add m3 --network web --to ids                   each frame once, as it enters
  causeway mirror rm m1

The port that shows the copies (SPAN) carries nothing else: what enters by it ends, and neither floods nor
frames for its endpoint leave by it. With --ingress it is an ordinary port of its network as well.

To write frames to a file, capture them: causeway capture -w web1.pcapng --port web1"
)]
pub struct MirrorAddArgs {
    /// Its name
    pub name: String,
    /// The port that is watched: an endpoint's name, or the port's number
    #[arg(long, value_name = "PORT")]
    pub from: Option<String>,
    /// The network that is watched, with all its ports
    #[arg(long, value_name = "NET")]
    pub network: Option<String>,
    /// Which way, seen from the switch: in, out, both [default: both of a port, in of a network]
    #[arg(long, value_name = "WAY")]
    pub direction: Option<String>,
    /// The port that shows the copies: an endpoint's name, or the port's number
    #[arg(long, value_name = "PORT")]
    pub to: String,
    /// Let that port be an ordinary one of its network as well
    #[arg(long)]
    pub ingress: bool,
}

/// `mirror`
pub(super) async fn mirror(client: &Client, command: MirrorCommand) -> anyhow::Result<()> {
    match command {
        MirrorCommand::Add(args) => {
            let body = MirrorCreate {
                name: args.name,
                port: args.from,
                network: args.network,
                direction: args.direction,
                to: args.to,
                ingress: args.ingress,
            };
            client.create("/v1/mirrors", &body).await?;
        }
        MirrorCommand::Ls(args) => list(client, args.json).await?,
        MirrorCommand::Rm { names } => {
            for name in &names {
                let path = format!("/v1/mirrors/{}", escape(name));
                client.delete(&path).await?;
            }
        }
    }
    Ok(())
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let mirrors: Vec<MirrorView> = client.get("/v1/mirrors").await?;
    if json {
        return print_json(&mirrors);
    }
    let row = |mirror: &MirrorView| {
        let network = mirror
            .network
            .as_ref()
            .map(|name| format!("network {name}"));
        vec![
            mirror.name.clone(),
            mirror.port.clone().or(network).unwrap_or_default(),
            mirror.direction.clone(),
            mirror.to.clone(),
            if mirror.ingress { "open" } else { "closed" }.to_owned(),
            mirror.copies.to_string(),
            mirror.dropped.to_string(),
        ]
    };
    let rows: Vec<_> = mirrors.iter().map(row).collect();
    let heading = [
        "NAME",
        "FROM",
        "DIRECTION",
        "TO",
        "INGRESS",
        "COPIES",
        "DROPPED",
    ];
    Ok(table::print(&heading, &rows)?)
}
