//! `why` and `capture`.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::client::{Client, escape};
use super::print_json;
use crate::api::debugging::JourneyView;

/// `why`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway why web1 web2                     an echo request between two endpoints
  causeway why web1 198.51.100.7 tcp 443     out, through the NAT
  causeway why 198.51.100.7 192.0.2.1 tcp 8080     in, by a published port
  causeway why host web1 udp 53 --json

The answer comes from the code that forwards, run on a copy of its state: nothing changes.")]
pub struct WhyArgs {
    /// Who sends: an endpoint's name or address, 'host', or an address outside
    pub src: String,
    /// To whom: an endpoint's name, or any address
    pub dst: String,
    /// icmp, tcp or udp [default: icmp]
    #[arg(value_parser = ["icmp", "tcp", "udp"])]
    pub protocol: Option<String>,
    /// The destination port, for tcp and udp
    pub port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `capture`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway capture -w all.pcapng                      until Ctrl-C
  causeway capture -w web1.pcapng --port web1 --count 100
  causeway capture -w - | tcpdump -r -

Each switch port is an interface of the file; comments say what became of a frame.")]
pub struct CaptureArgs {
    /// The file, '-' for standard output
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,
    /// Only frames that enter or leave by this port
    #[arg(long)]
    pub port: Option<String>,
    /// Bytes of each frame that are kept [default: all]
    #[arg(long, value_name = "BYTES")]
    pub snap: Option<usize>,
    /// End after this many frames
    #[arg(long)]
    pub count: Option<u64>,
}

/// Asks what would happen, and prints the answer.
pub async fn why(client: &Client, args: WhyArgs) -> anyhow::Result<()> {
    let mut path = format!(
        "/v1/why?src={}&dst={}",
        escape(&args.src),
        escape(&args.dst)
    );
    if let Some(protocol) = &args.protocol {
        path += &format!("&protocol={protocol}");
    }
    if let Some(port) = args.port {
        path += &format!("&port={port}");
    }
    let journeys: Vec<JourneyView> = client.get(&path).await?;
    if args.json {
        return print_json(&journeys);
    }
    let mut out = io::stdout().lock();
    for journey in &journeys {
        writeln!(out, "{} by {}", journey.frame, journey.ingress)?;
        for step in &journey.steps {
            writeln!(out, "    {:8} {}", step.stage, step.text)?;
        }
        if let Some(rewritten) = &journey.rewritten {
            writeln!(out, "    {:8} {rewritten}", "leaves as")?;
        }
        if let Some(advice) = &journey.advice {
            writeln!(out, "    {:8} {advice}", "to pass")?;
        }
    }
    Ok(())
}

/// Writes a capture until it has enough, or Ctrl-C.
pub async fn capture(client: &Client, args: CaptureArgs) -> anyhow::Result<()> {
    let mut query = Vec::new();
    if let Some(port) = &args.port {
        query.push(format!("port={}", escape(port)));
    }
    if let Some(snap) = args.snap {
        query.push(format!("snap={snap}"));
    }
    if let Some(count) = args.count {
        query.push(format!("count={count}"));
    }
    let path = format!("/v1/capture?{}", query.join("&"));
    let mut body = client.bytes(&path).await?;
    // Opened only now: a refused capture leaves no empty file behind.
    let to_stdout = args.write.as_os_str() == "-";
    let mut out: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout())
    } else {
        let file = File::create(&args.write);
        Box::new(file.with_context(|| format!("cannot write {}", args.write.display()))?)
    };
    let mut written = 0;
    loop {
        let block = tokio::select! {
            block = body.next() => block?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(block) = block else {
            break;
        };
        out.write_all(&block)?;
        out.flush()?;
        written += block.len();
    }
    if !to_stdout {
        eprintln!("{written} bytes written to {}", args.write.display());
    }
    Ok(())
}
