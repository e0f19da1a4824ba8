//! Hairpin: two inside sockets that reach each other by their external addresses and ports
//! (RFC 4787 section 6). Both send, as two peers do that a rendezvous has told of each other, so
//! that the strictest filter has no reason to refuse.

use std::net::SocketAddr;

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Head, Message, Packet, Quoted, Segment, flags};
use super::prober::{Mapping, PATIENCE, Prober, SILENCE, Token};
use super::side::Transport;

/// Rounds in which both send. The first opens the filters, the second passes them.
const ROUNDS: usize = 3;

/// Looks at hairpinned packets of every transport.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let udp = udp(prober, matrix)?;
    tcp(prober, matrix)?;
    match udp {
        Some((one, two, token)) => error(prober, matrix, (one, two), token)?,
        None => matrix.not_tested(Check::HairpinIcmpError, "no hairpinned packet to answer"),
    }
    ping(prober, matrix)
}

/// What arrived at the one and at the other socket: from where.
type Arrived = [Option<SocketAddr>; 2];

/// Lets both sockets send to each other, and says what arrived at either. `packets` makes the
/// packets of a round, `fits` tells them by their receiver.
fn converse(
    prober: &mut Prober,
    (one, two): (&Mapping, &Mapping),
    mut packets: impl FnMut(&mut Prober) -> [Vec<u8>; 2],
    fits: impl Fn(&Packet) -> bool,
) -> Result<Arrived, Error> {
    let mark = prober.inside.mark()?;
    let mut arrived = [None, None];
    for round in 0..ROUNDS {
        for packet in packets(prober) {
            prober.inside.send(&packet)?;
        }
        let patience = if round == 0 { SILENCE } else { PATIENCE };
        for (at, mapping) in arrived.iter_mut().zip([one, two]) {
            if at.is_some() {
                continue;
            }
            // In the first round one of the two is expected; the other may wait for the second.
            let to_me = |packet: &Packet| {
                let (from, to) = packet.ends()?;
                (to.port() == mapping.port && fits(packet)).then_some(from)
            };
            *at = prober.inside.wait(mark, patience, to_me)?;
            if at.is_some() {
                break;
            }
        }
        match arrived {
            [Some(_), Some(_)] => break,
            // Nothing at all in a round where nothing was lost: it will not get better.
            [None, None] if round > 0 => break,
            _ => {}
        }
    }
    Ok(arrived)
}

fn judge(matrix: &mut Matrix, check: Check, arrived: &Arrived) -> bool {
    let both = arrived.iter().all(Option::is_some);
    let observed = match arrived {
        [Some(_), Some(_)] => "delivered both ways",
        [None, None] => "not delivered",
        _ => "delivered one way",
    };
    matrix.judge(check, both, observed);
    both
}

fn udp(
    prober: &mut Prober,
    matrix: &mut Matrix,
) -> Result<Option<(Mapping, Mapping, Token)>, Error> {
    let remote = prober.remote(0, 0);
    let (one, two) = (prober.udp_mapping(remote)?, prober.udp_mapping(remote)?);
    let (Some(one), Some(two)) = (one, two) else {
        let why = "no mapping could be made";
        matrix.none_tested(&[Check::HairpinUdp, Check::HairpinSource], why);
        return Ok(None);
    };
    let token = prober.token();
    let packets = |prober: &mut Prober| {
        let send = |from: &Mapping, to: &Mapping| {
            let head = Head::new(prober.inside_address(), to.external.ip());
            head.udp((from.port, to.external.port()), &token)
        };
        [send(&one, &two), send(&two, &one)]
    };
    let fits = |packet: &Packet| packet.payload() == token;
    let arrived = converse(prober, (&one, &two), packets, fits)?;
    let both = judge(matrix, Check::HairpinUdp, &arrived);
    let sources: Vec<(SocketAddr, SocketAddr)> = arrived
        .iter()
        .zip([two.external, one.external])
        .filter_map(|(from, wanted)| Some(((*from)?, wanted)))
        .collect();
    match sources.iter().find(|(from, wanted)| from != wanted) {
        Some((from, wanted)) => {
            let observed = format!("{from} instead of {wanted}");
            matrix.judge(Check::HairpinSource, false, observed);
        }
        None if sources.is_empty() => {
            matrix.not_tested(Check::HairpinSource, "nothing was hairpinned");
        }
        None => matrix.judge(Check::HairpinSource, true, "external address and port"),
    }
    Ok(both.then_some((one, two, token)))
}

/// A simultaneous open of two inside sockets: both SYNs must arrive.
fn tcp(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let remote = prober.remote(0, 0);
    let mut mappings = Vec::new();
    for _ in 0..2 {
        let port = prober.port(Transport::Tcp)?;
        mappings.extend(prober.tcp_syn(port, remote)?.map(|syn| syn.mapping));
    }
    let [one, two] = mappings.as_slice() else {
        matrix.not_tested(Check::HairpinTcp, "no mapping could be made");
        return Ok(());
    };
    let numbers = [prober.number(), prober.number()];
    let packets = |prober: &mut Prober| {
        let send = |from: &Mapping, to: &Mapping, seq| {
            let head = Head::new(prober.inside_address(), to.external.ip());
            let segment = Segment {
                seq,
                ack: 0,
                flags: flags::SYN,
            };
            head.tcp((from.port, to.external.port()), segment, &[])
        };
        [send(one, two, numbers[0]), send(two, one, numbers[1])]
    };
    let fits = |packet: &Packet| {
        packet.segment().is_some_and(|segment| {
            segment.flags & flags::TELLING == flags::SYN && numbers.contains(&segment.seq)
        })
    };
    let arrived = converse(prober, (one, two), packets, fits)?;
    judge(matrix, Check::HairpinTcp, &arrived);
    Ok(())
}

/// The second socket refuses what it got; the first must learn of it in its own terms.
fn error(
    prober: &mut Prober,
    matrix: &mut Matrix,
    (one, two): (Mapping, Mapping),
    token: Token,
) -> Result<(), Error> {
    let inside = prober.inside_address();
    let external = one.external.ip();
    let got = Head::new(external, inside).udp((one.external.port(), two.port), &token);
    let refusal = Head::new(inside, external).icmp(Message::PortUnreachable, [0; 4], &got);
    let mark = prober.inside.mark()?;
    prober.inside.send(&refusal)?;
    let quoted = prober.inside.wait(mark, SILENCE, |packet| {
        packet
            .is(Message::PortUnreachable)
            .then(|| Quoted::read(packet.payload()))?
    })?;
    let wanted_ports = (one.port, two.external.port());
    match quoted {
        None => matrix.judge(Check::HairpinIcmpError, false, "it does not come back"),
        Some(quoted) => {
            let right = quoted.src == inside
                && quoted.dst == two.external.ip()
                && quoted.ports() == wanted_ports;
            let observed = if right {
                "comes back, the quoted packet as it was sent".to_owned()
            } else {
                let (src, dst) = quoted.ports();
                let (from, to) = (quoted.src, quoted.dst);
                format!("comes back quoting {from}:{src} to {to}:{dst}")
            };
            matrix.judge(Check::HairpinIcmpError, right, observed);
        }
    }
    Ok(())
}

fn ping(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let Some(external) = prober.externals.first().copied() else {
        matrix.not_tested(Check::HairpinPing, "no external address was seen");
        return Ok(());
    };
    let token = prober.token();
    let id = prober.query_id();
    let [high, low] = id.to_be_bytes();
    let request = Head::new(prober.inside_address(), external).icmp(
        Message::EchoRequest,
        [high, low, 0, 1],
        &token,
    );
    let mark = prober.inside.mark()?;
    prober.inside.send(&request)?;
    let answered = prober.inside.wait(mark, SILENCE, |packet| {
        let reply = packet.is(Message::EchoReply) && packet.payload() == token;
        (reply && packet.echo_id() == Some(id)).then_some(packet.src)
    })?;
    let observed = match answered {
        Some(from) if from == external => "answered".to_owned(),
        Some(from) => format!("answered by {from}"),
        None => "not answered".to_owned(),
    };
    matrix.judge(Check::HairpinPing, answered == Some(external), observed);
    Ok(())
}
