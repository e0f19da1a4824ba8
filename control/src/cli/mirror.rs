//! `mirror`: ports, and files, that show what others carry.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::mirrors::{MirrorCreate, MirrorView};

/// `mirror`
#[derive(Debug, Subcommand)]
pub enum MirrorCommand {
    /// Copy the frames of a port, or of a network, to a port or a file
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
    group(clap::ArgGroup::new("destination").required(true).args(["to", "to_file"])),
    after_help = "Examples:
  causeway mirror add m1 --from web1 --to ids                     both ways
  causeway mirror add m2 --from web1 --direction in --to ids
  causeway mirror add m3 --network web --to ids                   each frame once, as it enters
  causeway mirror add m4 --from web1 -w /var/log/web1.pcapng
  causeway mirror add m5 --network web -w web.pcapng --limit-size 100m --rotate 5
  causeway mirror rm m1

The port that shows the copies (SPAN) carries nothing else: what enters by it ends, and neither floods nor
frames for its endpoint leave by it. With --ingress it is an ordinary port of its network as well.

A file is written by the daemon for as long as the mirror lasts, restarts included. One that is full becomes
FILE.1, that one FILE.2, and the oldest ends. To have what became of each frame beside it, for as long as you
watch: causeway capture -w web1.pcapng --port web1"
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
    pub to: Option<String>,
    /// Let that port be an ordinary one of its network as well
    #[arg(long, conflicts_with = "to_file")]
    pub ingress: bool,
    /// The pcapng file that the daemon writes the copies to
    #[arg(short = 'w', long, value_name = "FILE")]
    pub to_file: Option<PathBuf>,
    /// Size of a file after which another one is begun, in bytes, or with k, m or g (of 1024)
    /// [default: 1g]
    #[arg(long, value_name = "BYTES", value_parser = size, conflicts_with = "to")]
    pub limit_size: Option<u64>,
    /// Files kept, the one that is written among them [default: 10]
    #[arg(long, value_name = "FILES", conflicts_with = "to")]
    pub rotate: Option<u32>,
}

/// Reads a number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, ""),
    };
    let scale: u64 = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(format!("'{unit}' is no unit; write k, m or g, as in 100m")),
    };
    let number = digits.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(scale));
    bytes.ok_or_else(|| format!("'{text}' is no size; write one as 100m or 104857600"))
}

/// The path for the daemon, which is elsewhere.
fn absolute(path: &Path) -> anyhow::Result<String> {
    let whole = std::path::absolute(path);
    let whole = whole.with_context(|| format!("cannot find out where '{}' is", path.display()))?;
    let text = whole.to_str();
    let text = text.with_context(|| format!("'{}' is not UTF-8", whole.display()))?;
    Ok(text.to_owned())
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
                to_file: args.to_file.as_deref().map(absolute).transpose()?,
                limit_size: args.limit_size,
                rotate: args.rotate,
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
            match &mirror.file {
                Some(_) => "-",
                None if mirror.ingress => "open",
                None => "closed",
            }
            .to_owned(),
            mirror.copies.to_string(),
            mirror.dropped.to_string(),
            mirror
                .file
                .as_ref()
                .and_then(|file| file.failure.clone())
                .unwrap_or_default(),
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
        "FAILURE",
    ];
    Ok(table::print(&heading, &rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit_and_nothing_else_is() {
        let read = ["131072", "128k", "100m", "2G"].map(|text| size(text).unwrap());
        assert_eq!(read, [131_072, 131_072, 100 << 20, 2 << 30]);
        for text in [
            "",
            "m",
            "1.5g",
            "-1",
            "10MB",
            "99999999999999999999",
            "18446744073709551615k",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
