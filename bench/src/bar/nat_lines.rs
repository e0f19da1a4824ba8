//! Line 4: out by source NAT, and in by a published port.
//!
//! Bulk TCP is measured with both congestion controls. The prototype is a forwarder between a TAP
//! and packet sockets that rewrites one address.

use super::contest::{self, CAUSEWAY, Contest, Entrant, at_least};
use super::{Line, Options, modes};
use crate::measure::Request;
use crate::prototype::Prototype;
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
        entrants.extend(Prototype::TAPS.map(Entrant::Prototype));
        if shape == Shape::PortForward {
            entrants.push(PROXY);
        }
        let setup = options.setup(shape);
        for congestion in ["bbr", "cubic"] {
            let shown = congestion.replace("bbr", "BBR");
            let name = format!("nat {way}, bulk TCP, {shown}: ratio to nft");
            let mut request = Request::new(MeasureName::TcpBulk);
            request.congestion = Some(congestion.to_owned());
            let bulk = contest::hold(options, &name, &setup, &entrants, &request)?;
            let wanted = at_least(4, &name, 0.6, 0.9);
            let mut line = bulk.line(wanted, "throughput", "Gbit/s", NFT);
            let parted = bulk.modes(NFT, "throughput");
            line.behind.extend(modes::shown(&parted, "Gbit/s"));
            lines.push(line);
            if shape == Shape::PortForward {
                let name = format!("nat in, bulk TCP, {shown}: ratio to docker-proxy");
                lines.push(against_proxy(&bulk, &name, 1.0, "throughput", "Gbit/s"));
            }
        }
        let name = format!("nat {way}, new connections: ratio to nft");
        let request = Request::new(MeasureName::Connections);
        let connections = contest::hold(options, &name, &setup, &entrants, &request)?;
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
