//! Line 4: out by source NAT, and in by a published port.

use super::contest::{self, CAUSEWAY, Contest, Entrant, at_least};
use super::{Line, Options};
use crate::measure::Request;
use crate::scenario::MeasureName;
use crate::system::{Shape, SystemName};

const NFT: Entrant = Entrant::System(SystemName::Nft);
const PROXY: Entrant = Entrant::System(SystemName::DockerProxy);

/// Every line, or one that says why there is none.
pub fn lines(options: &Options) -> anyhow::Result<Vec<Line>> {
    if let Err(absent) = crate::system::availability(SystemName::Nft) {
        let name = "nat out and port-forward in, against nft and docker-proxy";
        return Ok(vec![Line::unmeasured(4, name, &absent.to_string())]);
    }
    let mut lines = Vec::new();
    for (shape, way) in [(Shape::NatOut, "out"), (Shape::PortForward, "in")] {
        let mut entrants = vec![NFT, CAUSEWAY];
        if shape == Shape::PortForward {
            entrants.push(PROXY);
        }
        let hold = |what: &str, measure| -> anyhow::Result<Contest> {
            let (setup, request) = (options.setup(shape), Request::new(measure));
            contest::hold(options, what, &setup, &entrants, &request)
        };
        let name = format!("nat {way}, bulk TCP: ratio to nft");
        let bulk = hold(&name, MeasureName::TcpBulk)?;
        let wanted = at_least(4, &name, 0.6, 0.9);
        lines.push(bulk.line(wanted, "throughput", "Gbit/s", NFT));
        if shape == Shape::PortForward {
            let name = "nat in, bulk TCP: ratio to docker-proxy";
            lines.push(against_proxy(&bulk, name, 1.0, "throughput", "Gbit/s"));
        }
        let name = format!("nat {way}, new connections: ratio to nft");
        let connections = hold(&name, MeasureName::Connections)?;
        let wanted = at_least(4, &name, 0.5, 1.0);
        lines.push(connections.line(wanted, "connections", "1/s", NFT));
        if shape == Shape::PortForward {
            let name = "nat in, new connections: ratio to docker-proxy";
            lines.push(against_proxy(&connections, name, 2.0, "connections", "1/s"));
        }
    }
    Ok(lines)
}

fn against_proxy(held: &Contest, name: &str, least: f64, metric: &str, unit: &str) -> Line {
    if held.figure(PROXY, metric).is_none() {
        return Line::unmeasured(4, name, &held.absent.join("; "));
    }
    let mut line = held.line(at_least(4, name, least, least), metric, unit, PROXY);
    line.stretch = None;
    line
}
