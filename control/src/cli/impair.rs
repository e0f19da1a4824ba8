//! `impair set`, `ls` and `clear`: what is wrong with the links of ports, for experiments.

use clap::{Args, Subcommand};

use super::args::JsonArgs;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::bridging::{ImpairmentSet, LinkView, PortSet};
use crate::api::types::PortView;
use crate::impairment::ImpairmentBody;

/// `impair`
#[derive(Debug, Subcommand)]
pub enum ImpairCommand {
    /// Say all that is wrong with a port's link, in place of what was
    Set(Box<ImpairSetArgs>),
    /// List impaired links
    Ls(JsonArgs),
    /// Make a port's links sound again; its rate limits stay
    Clear {
        /// An endpoint's name, or the port's number
        port: String,
    },
}

/// `impair set`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway impair set web1 --delay 20ms                              40 ms a round trip
  causeway impair set web1 --out --delay 20ms --jitter 2ms --distribution normal
  causeway impair set web1 --in --loss 1% --duplicate 0.1% --corrupt 0.01%
  causeway impair set web1 --loss-model gilbert-elliott 1% 25%       bursts of four frames
  causeway impair set web1 --out --rate 10mbit --delay 5ms --reorder 5% --seed 7
  causeway impair clear web1

In and out are as the switch sees them: in is what the sandbox sends. Chances are percentages, times have
ns, us, ms or s, rates bit, kbit, mbit or gbit. The same seed draws the same.")]
pub struct ImpairSetArgs {
    /// An endpoint's name, or the port's number
    pub port: String,
    /// Only what enters by the port [default: both ways]
    #[arg(long = "in", conflicts_with = "outward")]
    pub inward: bool,
    /// Only what leaves by the port
    #[arg(long = "out")]
    pub outward: bool,
    /// How long a frame is on its way, up to 60s
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub delay: Option<String>,
    /// How much that varies: at most the delay
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub jitter: Option<String>,
    /// How it varies: uniform within the jitter, or normal with it as deviation [default: uniform]
    #[arg(long, value_name = "WORD")]
    pub distribution: Option<String>,
    /// Frames that are lost, each by itself
    #[arg(long, value_name = "CHANCE", allow_hyphen_values = true)]
    pub loss: Option<String>,
    /// Frames that are lost in bursts: chances to turn bad, to recover, and to lose a frame while bad
    /// [100%] and while good [0%]
    #[arg(
        long,
        num_args = 1..=5,
        value_names = ["gilbert-elliott", "P", "R", "LOSS_BAD", "LOSS_GOOD"],
        conflicts_with = "loss"
    )]
    pub loss_model: Vec<String>,
    /// Frames that arrive twice
    #[arg(long, value_name = "CHANCE", allow_hyphen_values = true)]
    pub duplicate: Option<String>,
    /// Frames that are spared the delay, and so overtake
    #[arg(long, value_name = "CHANCE", allow_hyphen_values = true)]
    pub reorder: Option<String>,
    /// Frames of which one bit is flipped
    #[arg(long, value_name = "CHANCE", allow_hyphen_values = true)]
    pub corrupt: Option<String>,
    /// How fast the line is, from 8kbit to 100gbit
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub rate: Option<String>,
    /// Fixes everything that is drawn [default: another one each time]
    #[arg(long)]
    pub seed: Option<u64>,
}
/// Carries out `impair`.
pub(super) async fn impair(client: &Client, command: ImpairCommand) -> anyhow::Result<()> {
    match command {
        ImpairCommand::Ls(args) => list(client, args.json).await,
        ImpairCommand::Set(args) => {
            let body = ImpairmentSet::Set(Box::new(body(&args)));
            let change = PortSet {
                impair_in: (!args.outward).then(|| body.clone()),
                impair_out: (!args.inward).then_some(body),
                ..PortSet::default()
            };
            patch(client, &args.port, &change).await
        }
        ImpairCommand::Clear { port } => {
            let none = || Some(ImpairmentSet::Word("none".to_owned()));
            let change = PortSet {
                impair_in: none(),
                impair_out: none(),
                ..PortSet::default()
            };
            patch(client, &port, &change).await
        }
    }
}

async fn patch(client: &Client, port: &str, change: &PortSet) -> anyhow::Result<()> {
    let path = format!("/v1/ports/{}", escape(port));
    let _: PortView = client.patch(&path, change).await?;
    Ok(())
}

fn body(args: &ImpairSetArgs) -> ImpairmentBody {
    let model = &args.loss_model;
    ImpairmentBody {
        delay: args.delay.clone(),
        jitter: args.jitter.clone(),
        distribution: args.distribution.clone(),
        loss: args.loss.clone(),
        loss_model: (!model.is_empty()).then(|| model.join(" ")),
        duplicate: args.duplicate.clone(),
        reorder: args.reorder.clone(),
        corrupt: args.corrupt.clone(),
        rate: args.rate.clone(),
        // Another one each time, and shown, so that a run can be repeated.
        seed: Some(args.seed.unwrap_or_else(|| fastrand::u32(..).into())),
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let ports: Vec<PortView> = client.get("/v1/ports").await?;
    let links = ports.iter().flat_map(|port| {
        let impaired = port.links.iter().filter(|link| link.impairment.is_some());
        impaired.map(move |link| (port, link))
    });
    if json {
        let view = |(port, link): (&PortView, &LinkView)| serde_json::json!({ "port": port.port, "name": port.name, "link": link });
        return print_json(&links.map(view).collect::<Vec<_>>());
    }
    let row = |(port, link): (&PortView, &LinkView)| {
        let words = link.impairment.as_ref().map(ImpairmentBody::words);
        vec![
            port.name.clone(),
            link.direction.clone(),
            link.held.to_string(),
            link.lost.to_string(),
            words.unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = links.map(row).collect();
    Ok(table::print(
        &["PORT", "DIRECTION", "HELD", "LOST", "IMPAIRMENT"],
        &rows,
    )?)
}
