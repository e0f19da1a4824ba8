//! Fragments, out and in, in order and not (RFC 4787 section 11). Each attempt has an identification
//! and, going out, a port of its own: a NAT that needs the first fragment first must not be helped by
//! the attempt before.

use std::net::{IpAddr, SocketAddr};

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Body, Checked, Head, Packet, fragments, reassemble};
use super::prober::{PATIENCE, Prober, TRIES};
use super::side::{Mark, Side, Transport};

/// Bytes of the datagrams and of their fragments: four of them, and each below any MTU.
const DATAGRAM_SIZE: usize = 1_400;
const FRAGMENT_SIZE: usize = 400;
/// Fragments that are kept for putting together.
const PIECES_MAX: usize = 256;

/// In which order fragments are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    FirstFirst,
    LastFirst,
}

impl Order {
    fn arrange(self, mut pieces: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if self == Self::LastFirst {
            pieces.reverse();
        }
        pieces
    }
}

/// Looks at fragments both ways.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    for (check, order) in [
        (Check::FragmentsOut, Order::FirstFirst),
        (Check::FragmentsOutShuffled, Order::LastFirst),
    ] {
        let whole = out(prober, order)?;
        judge(matrix, check, whole);
    }
    for (check, order) in [
        (Check::FragmentsIn, Order::FirstFirst),
        (Check::FragmentsInShuffled, Order::LastFirst),
    ] {
        let whole = inbound(prober, order)?;
        judge(matrix, check, whole);
    }
    mixed(prober, matrix)
}

/// What became of the fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    WrongSum,
    Lost,
    NoMapping,
}

fn judge(matrix: &mut Matrix, check: Check, outcome: Outcome) {
    match outcome {
        Outcome::Whole => matrix.judge(check, true, "the datagram arrives whole"),
        Outcome::WrongSum => {
            matrix.judge(check, false, "the datagram arrives with a wrong checksum");
        }
        Outcome::Lost => matrix.judge(check, false, "the datagram does not arrive whole"),
        Outcome::NoMapping => matrix.not_tested(check, "no mapping could be made"),
    }
}

fn datagram(prober: &mut Prober, (src, dst): (SocketAddr, SocketAddr), id: u16) -> Sent {
    let mut payload = prober.token().to_vec();
    payload.resize(DATAGRAM_SIZE, 0x5a);
    let packet = Head::new(src.ip(), dst.ip()).udp((src.port(), dst.port()), &payload);
    Sent {
        pieces: fragments(&packet, id, FRAGMENT_SIZE),
        payload,
    }
}

struct Sent {
    pieces: Vec<Vec<u8>>,
    payload: Vec<u8>,
}

fn out(prober: &mut Prober, order: Order) -> Result<Outcome, Error> {
    let mut last = Outcome::Lost;
    for _ in 0..TRIES {
        let port = prober.port(Transport::Udp)?;
        let from = SocketAddr::new(prober.inside_address(), port);
        let id = prober.identification();
        let sent = datagram(prober, (from, prober.remote(0, 0)), id);
        let mark = prober.outside.mark()?;
        for piece in order.arrange(sent.pieces) {
            prober.inside.send(&piece)?;
        }
        last = arrives(&mut prober.outside, mark, &sent.payload)?;
        if last != Outcome::Lost {
            break;
        }
    }
    Ok(last)
}

fn inbound(prober: &mut Prober, order: Order) -> Result<Outcome, Error> {
    let remote = prober.remote(0, 0);
    let mut last = Outcome::Lost;
    for _ in 0..TRIES {
        let Some(mapping) = prober.udp_mapping(remote)? else {
            return Ok(Outcome::NoMapping);
        };
        let id = prober.identification();
        let sent = datagram(prober, (remote, mapping.external), id);
        let mark = prober.inside.mark()?;
        for piece in order.arrange(sent.pieces) {
            prober.outside.send(&piece)?;
        }
        last = arrives(&mut prober.inside, mark, &sent.payload)?;
        if last != Outcome::Lost {
            break;
        }
    }
    Ok(last)
}

/// Two remotes send at once, with one identification between them.
fn mixed(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let (mut whole, mut last) = (0, Outcome::Lost);
    for _ in 0..TRIES {
        let id = prober.identification();
        let mut sent = Vec::new();
        for index in 0..2 {
            let remote = prober.remote(index, 0);
            let Some(mapping) = prober.udp_mapping(remote)? else {
                judge(matrix, Check::FragmentsMixed, Outcome::NoMapping);
                return Ok(());
            };
            sent.push(datagram(prober, (remote, mapping.external), id));
        }
        let mark = prober.inside.mark()?;
        for (one, two) in sent[0].pieces.iter().zip(&sent[1].pieces) {
            prober.outside.send(one)?;
            prober.outside.send(two)?;
        }
        whole = 0;
        for datagram in &sent {
            last = arrives(&mut prober.inside, mark, &datagram.payload)?;
            whole += usize::from(last == Outcome::Whole);
        }
        if whole == 2 {
            break;
        }
    }
    let observed = match last {
        Outcome::WrongSum => "one arrives with a wrong checksum".to_owned(),
        Outcome::Whole | Outcome::Lost | Outcome::NoMapping => format!("{whole} of 2 arrive whole"),
    };
    matrix.judge(Check::FragmentsMixed, whole == 2, observed);
    Ok(())
}

/// Waits for a datagram, whole or in fragments.
fn arrives(side: &mut Side, mark: Mark, payload: &[u8]) -> Result<Outcome, Error> {
    let mut pieces: Vec<Packet> = Vec::new();
    let found = side.wait(mark, PATIENCE, |packet| {
        if matches!(packet.body, Body::Fragment { .. }) && pieces.len() < PIECES_MAX {
            pieces.push(packet.clone());
            let key = |packet: &Packet| -> (IpAddr, u32) { (packet.src, packet.id) };
            let same: Vec<&Packet> = pieces.iter().filter(|p| key(p) == key(packet)).collect();
            return outcome(&reassemble(&same)?, payload);
        }
        outcome(packet, payload)
    })?;
    Ok(found.unwrap_or(Outcome::Lost))
}

fn outcome(packet: &Packet, payload: &[u8]) -> Option<Outcome> {
    if packet.payload() != payload {
        return None;
    }
    Some(match packet.transport_sum() {
        Some(Checked::Wrong) => Outcome::WrongSum,
        Some(Checked::Holds | Checked::Absent) | None => Outcome::Whole,
    })
}
