//! ICMP errors: translated with what they quote, refused when they are forged, and no reason to end
//! anything (RFC 5508 section 4, RFC 4787 section 10).

use std::net::{IpAddr, SocketAddr};

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Checked, Head, Message, Packet, Quoted, Segment, flags};
use super::prober::{Flow, GRACE, Mapping, Prober};
use super::side::Transport;

/// An MTU that a router outside might have: its bytes differ, and no probe sends more.
const MTU: u16 = 1_476;

/// Looks at errors both ways.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    udp(prober, matrix)?;
    tcp(prober, matrix)?;
    query(prober, matrix)?;
    outbound(prober, matrix)
}

/// A packet that went out: as it was sent inside, and as it was seen outside.
struct Crossed {
    sent: Vec<u8>,
    seen: Vec<u8>,
}

/// What came of an error from outside.
enum Came {
    Nothing,
    Right { rest: [u8; 4] },
    Wrong(String),
}

/// Sends an error about a packet that went out, and reads what comes in.
fn error_in(
    prober: &mut Prober,
    from: IpAddr,
    (message, rest): (Message, [u8; 4]),
    about: &Crossed,
) -> Result<Came, Error> {
    let Some(quoted) = Packet::read(&about.seen) else {
        return Ok(Came::Nothing);
    };
    let packet = Head::new(from, quoted.src).icmp(message, rest, &about.seen);
    let seen = prober.into(&[packet], |packet| {
        (packet.is(message) && packet.src == from).then(|| packet.clone())
    })?;
    let Some(packet) = seen else {
        return Ok(Came::Nothing);
    };
    prober.note(&packet);
    Ok(examine(&packet, &about.sent))
}

/// Compares what an error quotes with what was sent.
fn examine(packet: &Packet, sent: &[u8]) -> Came {
    let super::packet::Body::Icmp { rest, .. } = &packet.body else {
        return Came::Nothing;
    };
    let (quoted, wanted) = (Quoted::read(packet.payload()), Quoted::read(sent));
    let (Some(quoted), Some(wanted)) = (quoted, wanted) else {
        return Came::Wrong("comes in without a readable quotation".to_owned());
    };
    let wrong = if packet.transport_sum() == Some(Checked::Wrong) {
        Some("its checksum is wrong")
    } else if (quoted.src, quoted.dst) != (wanted.src, wanted.dst) {
        Some("the quoted addresses are not those that were sent")
    } else if !quoted.header_sum_holds {
        Some("the quoted IP header has a wrong checksum")
    } else if quoted.transport[..4] != wanted.transport[..4] {
        Some("the quoted ports, or type and checksum, are not those that were sent")
    } else if quoted.transport[4..8] != wanted.transport[4..8] {
        Some("the quoted transport header is not the one that was sent")
    } else {
        None
    };
    match wrong {
        Some(wrong) => Came::Wrong(format!("comes in, but {wrong}")),
        None => Came::Right { rest: *rest },
    }
}

fn judge(matrix: &mut Matrix, check: Check, came: Came) {
    match came {
        Came::Nothing => matrix.judge(check, false, "does not come in"),
        Came::Right { .. } => {
            matrix.judge(check, true, "comes in, the quoted packet as it was sent");
        }
        Came::Wrong(observed) => matrix.judge(check, false, observed),
    }
}

/// A datagram that crosses, as both sides have it.
fn udp_crossed(prober: &mut Prober, mapping: &Mapping) -> Result<Option<Crossed>, Error> {
    let token = prober.token();
    let Mapping {
        port,
        remote,
        external,
    } = *mapping;
    let sent = Head::new(prober.inside_address(), remote.ip()).udp((port, remote.port()), &token);
    let found = prober.out(std::slice::from_ref(&sent), |packet| {
        (packet.payload() == token).then_some(())
    })?;
    let seen = Head::new(external.ip(), remote.ip()).udp((external.port(), remote.port()), &token);
    Ok(found.map(|()| Crossed { sent, seen }))
}

fn udp(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let checks = [
        Check::ErrorUdp,
        Check::ErrorBadSum,
        Check::ErrorUnknown,
        Check::ErrorKeepsUdp,
    ];
    let router = prober.remotes[1];
    let Some(mapping) = prober.udp_mapping(prober.remote(0, 0))? else {
        matrix.none_tested(&checks, "no mapping could be made");
        return Ok(());
    };
    let Some(crossed) = udp_crossed(prober, &mapping)? else {
        matrix.none_tested(&checks, "no packet came out to be quoted");
        return Ok(());
    };
    forged(prober, matrix, &mapping, &crossed)?;
    let port = (Message::PortUnreachable, [0; 4]);
    let came = error_in(prober, mapping.remote.ip(), port, &crossed)?;
    judge(matrix, Check::ErrorUdp, came);
    let host = (Message::HostUnreachable, [0; 4]);
    error_in(prober, router, host, &crossed)?;
    let after = prober.udp_out(mapping.port, mapping.remote)?;
    let back = prober.udp_in(&mapping)?;
    let observed = match (&after, back) {
        (None, _) => "nothing goes out after errors",
        (Some(after), _) if after.external != mapping.external => "another mapping after errors",
        (Some(_), false) => "nothing comes in after errors",
        (Some(_), true) => "goes on after errors",
    };
    let kept = after == Some(mapping) && back;
    matrix.judge(Check::ErrorKeepsUdp, kept, observed);
    Ok(())
}

/// An error with a wrong checksum, and one about a mapping that is not there; a good datagram is
/// their fence.
fn forged(
    prober: &mut Prober,
    matrix: &mut Matrix,
    mapping: &Mapping,
    crossed: &Crossed,
) -> Result<(), Error> {
    let checks = [Check::ErrorBadSum, Check::ErrorUnknown];
    let router = prober.remotes[1];
    let external = mapping.external.ip();
    // Messages that no other error here is tell the two apart from all else.
    let messages = [Message::Rare, Message::Rarer];
    let head = Head::new(router, external);
    let mut wrong = head.icmp(messages[0], [0; 4], &crossed.seen);
    wrong[head.family().header_size() + 2] ^= 0x55;
    let nobody = prober.query_id();
    let quoted = Head::new(external, mapping.remote.ip());
    let quoted = quoted.udp((nobody, mapping.remote.port()), b"was never sent");
    let unknown = head.icmp(messages[1], [0; 4], &quoted);
    let mark = prober.inside.mark()?;
    prober.outside.send(&wrong)?;
    prober.outside.send(&unknown)?;
    if !prober.udp_in(mapping)? {
        matrix.none_tested(&checks, "nothing comes in by the mapping");
        return Ok(());
    }
    prober.inside.wait(mark, GRACE, |_| None::<()>)?;
    for (check, message) in checks.into_iter().zip(messages) {
        let came = prober
            .inside
            .since(mark)?
            .iter()
            .any(|seen| seen.packet.is(message));
        matrix.judge(check, !came, if came { "comes in" } else { "dropped" });
    }
    Ok(())
}

fn tcp(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let checks = [Check::ErrorTcp, Check::ErrorTooBig, Check::ErrorKeepsTcp];
    let Some(mut flow) = prober.tcp_flow(prober.remote(0, 0))? else {
        matrix.none_tested(&checks, "no connection opens");
        return Ok(());
    };
    let Some(crossed) = tcp_crossed(prober, &mut flow)? else {
        matrix.none_tested(&checks, "no segment came out to be quoted");
        return Ok(());
    };
    let (router, remote) = (prober.remotes[1], flow.mapping.remote.ip());
    let came = error_in(prober, router, (Message::HostUnreachable, [0; 4]), &crossed)?;
    judge(matrix, Check::ErrorTcp, came);
    // About TCP, because the inside's stack would believe one about a datagram, and remember it.
    let field = Message::mtu_field(MTU);
    let too_big = (Message::TooBig, field);
    let came = error_in(prober, router, too_big, &crossed)?;
    match came {
        Came::Right { rest } if rest != field => {
            let mtu = u32::from_be_bytes(rest);
            let observed = format!("comes in with MTU {mtu} instead of {MTU}");
            matrix.judge(Check::ErrorTooBig, false, observed);
        }
        came => judge(matrix, Check::ErrorTooBig, came),
    }
    for message in [Message::ProtocolUnreachable, Message::PortUnreachable] {
        error_in(prober, remote, (message, [0; 4]), &crossed)?;
    }
    let (out, back) = prober.tcp_talk(&mut flow)?;
    let observed = match (out, back) {
        (true, true) => "goes on after errors",
        (false, _) => "nothing goes out after errors",
        (true, false) => "nothing comes in after errors",
    };
    matrix.judge(Check::ErrorKeepsTcp, out && back, observed);
    super::probe_mapping::close(prober, &mut flow)
}

fn tcp_crossed(prober: &mut Prober, flow: &mut Flow) -> Result<Option<Crossed>, Error> {
    let token = prober.token();
    let Mapping {
        port,
        remote,
        external,
    } = flow.mapping;
    let segment = flow.inside.segment(flags::ACK);
    let sent = Head::new(prober.inside_address(), remote.ip());
    let sent = sent.tcp((port, remote.port()), segment, &token);
    let before = flow.outside;
    if !prober.tcp_out(flow, flags::ACK, &token)? {
        return Ok(None);
    }
    // What the remote got: its own idea of both numbers.
    let segment = Segment {
        seq: before.expected,
        ack: before.next,
        flags: flags::ACK,
    };
    let seen = Head::new(external.ip(), remote.ip());
    let seen = seen.tcp((external.port(), remote.port()), segment, &token);
    Ok(Some(Crossed { sent, seen }))
}

fn query(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let checks = [Check::ErrorQuery, Check::ErrorKeepsQuery];
    let id = prober.query_id();
    let (to, router) = (prober.remotes[0], prober.remotes[1]);
    let Some(first) = prober.ping(id, to)? else {
        matrix.none_tested(&checks, "an echo request did not arrive outside");
        return Ok(());
    };
    let request = |from: IpAddr, id: u16| {
        let [high, low] = id.to_be_bytes();
        Head::new(from, to).icmp(Message::EchoRequest, [high, low, 0, 1], b"a query")
    };
    let crossed = Crossed {
        sent: request(prober.inside_address(), id),
        seen: request(first.external.0, first.external.1),
    };
    let came = error_in(prober, router, (Message::TimeExceeded, [0; 4]), &crossed)?;
    judge(matrix, Check::ErrorQuery, came);
    let again = prober.ping(id, to)?;
    let kept = again == Some(first);
    let observed = match again {
        None => "no request goes out after an error".to_owned(),
        Some(again) if again.external != first.external => {
            "another mapping after an error".to_owned()
        }
        Some(again) if !again.answered => "no reply comes in after an error".to_owned(),
        Some(_) => "goes on after an error".to_owned(),
    };
    matrix.judge(Check::ErrorKeepsQuery, kept, observed);
    Ok(())
}

/// The inside refuses a datagram of its remote; the remote must learn of it in its own terms.
fn outbound(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::ErrorOutbound;
    let port = prober.port(Transport::Udp)?;
    let remote = prober.remote(0, 0);
    let mapping = prober.udp_out(port, remote)?;
    let Some(mapping) = mapping else {
        matrix.not_tested(check, "no mapping could be made");
        return Ok(());
    };
    if !prober.udp_in(&mapping)? {
        matrix.not_tested(check, "nothing comes in by the mapping");
        return Ok(());
    }
    let inside = SocketAddr::new(prober.inside_address(), port);
    let got = Head::new(remote.ip(), inside.ip()).udp((remote.port(), port), b"refused");
    let refusal = Head::new(inside.ip(), remote.ip()).icmp(Message::PortUnreachable, [0; 4], &got);
    let seen = prober.out(&[refusal], |packet| {
        let quoted = Quoted::read(packet.payload())?;
        let about = quoted.src == remote.ip() && quoted.ports().0 == remote.port();
        (packet.is(Message::PortUnreachable) && about).then(|| (packet.clone(), quoted))
    })?;
    let Some((packet, quoted)) = seen else {
        matrix.judge(check, false, "does not go out");
        return Ok(());
    };
    prober.note(&packet);
    let to_mapping = quoted.dst == mapping.external.ip()
        && quoted.ports().1 == mapping.external.port()
        && quoted.header_sum_holds;
    let observed = if packet.src != mapping.external.ip() {
        format!("goes out from {}", packet.src)
    } else if to_mapping {
        "goes out, the quoted packet as the remote sent it".to_owned()
    } else {
        let (dst, port) = (quoted.dst, quoted.ports().1);
        format!("goes out quoting a packet to {dst}:{port}")
    };
    let right = to_mapping && packet.src == mapping.external.ip();
    matrix.judge(check, right, observed);
    Ok(())
}
