//! What a NAT does with single packets: their TTL, their checksum, their payload, their size.

use std::net::{IpAddr, SocketAddr};

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Body, Checked, Family, Head, Message, Packet, Quoted, TTL, flags};
use super::probe_mapping::close;
use super::prober::{Mapping, PATIENCE, Prober, TRIES};
use super::side::Transport;

/// FTP's control port, which application gateways look at.
const FTP: u16 = 21;
/// A TCP header without options.
const TCP_HEADER_SIZE: usize = 20;
/// What a packet is filled up with.
const FILL: u8 = 0x33;

/// Looks at single packets.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    zero_checksum(prober, matrix)?;
    ttl(prober, matrix)?;
    ttl_exceeded(prober, matrix)?;
    payload(prober, matrix)?;
    too_big(prober, matrix)?;
    let why = "the two sides have the subnets that they have";
    matrix.not_tested(Check::AddressConflict, why);
    Ok(())
}

/// Judges what was noted along the way.
pub fn conclude(prober: &Prober, matrix: &mut Matrix) {
    let sums = prober.sums;
    let wrong = sums.header_wrong + sums.transport_wrong;
    let observed = if wrong == 0 {
        format!("of all {} packets looked at", sums.count)
    } else {
        format!(
            "of {} packets, {} have a wrong IP header's and {} a wrong transport's",
            sums.count, sums.header_wrong, sums.transport_wrong
        )
    };
    matrix.judge(Check::Checksums, wrong == 0, observed);
    let externals: Vec<String> = prober.externals.iter().map(ToString::to_string).collect();
    let observed = format!("{} in {} packets", externals.join(" "), sums.count);
    matrix.judge(Check::Pooling, externals.len() == 1, observed);
}

fn zero_checksum(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::ZeroChecksum;
    if prober.family() == Family::V6 {
        let why = "every IPv6 datagram has a checksum (RFC 8200 8.1)";
        matrix.not_tested(check, why);
        return Ok(());
    }
    let port = prober.port(Transport::Udp)?;
    let remote = prober.remote(0, 0);
    let token = prober.token();
    let head = Head::new(prober.inside_address(), remote.ip());
    let packet = head.udp_without_checksum((port, remote.port()), &token);
    let with_token = |packet: &Packet| (packet.payload() == token).then(|| packet.clone());
    let Some(out) = prober.out(&[packet], with_token)? else {
        matrix.judge(check, false, "does not go out");
        return Ok(());
    };
    let Some((external, _)) = out.ends() else {
        matrix.not_tested(check, "what went out is no UDP");
        return Ok(());
    };
    let head = Head::new(remote.ip(), external.ip());
    let packet = head.udp_without_checksum((remote.port(), external.port()), &token);
    let back = prober.into(&[packet], with_token)?;
    let absent = |packet: &Packet| packet.transport_sum() == Some(Checked::Absent);
    let observed = match (absent(&out), back.as_ref().map(absent)) {
        (_, None) => "does not come in",
        (true, Some(true)) => "stays without, both ways",
        (false, Some(true)) => "gets one on the way out",
        (true, Some(false)) => "gets one on the way in",
        (false, Some(false)) => "gets one both ways",
    };
    let kept = absent(&out) && back.as_ref().is_some_and(absent);
    matrix.judge(check, kept, observed);
    Ok(())
}

/// A datagram each way, as it arrives.
fn round_trip(prober: &mut Prober) -> Result<Option<(Packet, Packet)>, Error> {
    let port = prober.port(Transport::Udp)?;
    let remote = prober.remote(0, 0);
    let token = prober.token();
    let head = Head::new(prober.inside_address(), remote.ip());
    let packet = head.udp((port, remote.port()), &token);
    let with_token = |packet: &Packet| (packet.payload() == token).then(|| packet.clone());
    let Some(out) = prober.out(&[packet], with_token)? else {
        return Ok(None);
    };
    let Some((external, _)) = out.ends() else {
        return Ok(None);
    };
    let head = Head::new(remote.ip(), external.ip());
    let packet = head.udp((remote.port(), external.port()), &token);
    let back = prober.into(&[packet], with_token)?;
    Ok(back.map(|back| (out, back)))
}

fn ttl(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let Some((out, back)) = round_trip(prober)? else {
        matrix.not_tested(Check::Ttl, "a packet was lost");
        return Ok(());
    };
    let observed = format!("{TTL} becomes {} out and {} in", out.ttl, back.ttl);
    matrix.judge(Check::Ttl, out.ttl < TTL && back.ttl < TTL, observed);
    Ok(())
}

fn ttl_exceeded(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::TtlExceeded;
    let port = prober.port(Transport::Udp)?;
    let remote = prober.remote(0, 0);
    let token = prober.token();
    let mut head = Head::new(prober.inside_address(), remote.ip());
    head.ttl = 1;
    let packet = head.udp((port, remote.port()), &token);
    let (mark, outside) = (prober.inside.mark()?, prober.outside.mark()?);
    let mut answered = None;
    for _ in 0..TRIES {
        prober.inside.send(&packet)?;
        answered = prober.inside.wait(mark, PATIENCE, |packet| {
            let quoted = Quoted::read(packet.payload())?;
            (packet.is(Message::TimeExceeded) && quoted.ports().0 == port).then_some(packet.src)
        })?;
        if answered.is_some() {
            break;
        }
    }
    let passed = prober
        .outside
        .since(outside)?
        .iter()
        .any(|seen| seen.packet.payload() == token);
    let observed = match (answered, passed) {
        (_, true) => "the packet goes out".to_owned(),
        (Some(by), false) => format!("time exceeded from {by}"),
        (None, false) => "no answer".to_owned(),
    };
    matrix.judge(check, answered.is_some() && !passed, observed);
    Ok(())
}

fn payload(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::Payload;
    if !prober.outside.reserve(Transport::Tcp, FTP)? {
        let why = "TCP port 21 is not free outside (CAP_NET_BIND_SERVICE?)";
        matrix.not_tested(check, why);
        return Ok(());
    }
    let remote = SocketAddr::new(prober.remotes[0], FTP);
    let Some(mut flow) = prober.tcp_flow(remote)? else {
        matrix.not_tested(check, "no connection to port 21 opens");
        return Ok(());
    };
    let command = command(prober.inside_address());
    let mark = prober.outside.mark()?;
    let same = prober.tcp_out(&mut flow, flags::ACK, command.as_bytes())?;
    let other = prober.outside.since(mark)?.iter().find_map(|seen| {
        let payload = seen.packet.payload();
        let changed =
            payload[..].starts_with(&command.as_bytes()[..5]) && payload != command.as_bytes();
        changed.then(|| String::from_utf8_lossy(payload).trim().to_owned())
    });
    let observed = match (same, other) {
        (true, _) => "an inside address in it stays".to_owned(),
        (false, Some(other)) => format!("becomes {other}"),
        (false, None) => "does not go out".to_owned(),
    };
    matrix.judge(check, same, observed);
    close(prober, &mut flow)
}

/// What an FTP client says that wants data at its address (RFC 959, RFC 2428).
fn command(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("PORT {a},{b},{c},{d},200,10\r\n")
        }
        IpAddr::V6(v6) => format!("EPRT |2|{v6}|51210|\r\n"),
    }
}

/// What came of a packet of the size that the inside interface takes.
enum TooBig {
    Answered { mtu: u32 },
    Passed,
    Cut,
}

/// A segment, not a datagram: the inside's stack would learn of the MTU by its socket, and the next
/// run would find no packet too large.
fn too_big(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::TooBig;
    let mtu = prober.inside.mtu.min(u32::from(u16::MAX));
    let Some(flow) = prober.tcp_flow(prober.remote(0, 0))? else {
        matrix.not_tested(check, "no connection opens");
        return Ok(());
    };
    let Mapping { port, remote, .. } = flow.mapping;
    let family = Family::of(remote.ip());
    let size = (mtu as usize).saturating_sub(family.header_size() + TCP_HEADER_SIZE);
    let mut head = Head::new(prober.inside_address(), remote.ip());
    head.dont_fragment = true;
    let segment = flow.inside.segment(flags::ACK);
    let packet = head.tcp((port, remote.port()), segment, &vec![FILL; size]);
    let (inside, outside) = (prober.inside.mark()?, prober.outside.mark()?);
    let mut found = None;
    for _ in 0..TRIES {
        if !prober.inside.send(&packet)? {
            let why = format!(
                "the inside host sends nothing of {mtu} bytes to {}",
                remote.ip()
            );
            matrix.not_tested(check, why);
            return Ok(());
        }
        let answer = |packet: &Packet| {
            let quoted = Quoted::read(packet.payload())?;
            let mtu = packet.next_hop_mtu()?;
            (quoted.ports().0 == port).then_some(TooBig::Answered { mtu })
        };
        found = prober.inside.wait(inside, PATIENCE / 2, answer)?;
        if found.is_none() {
            found = prober
                .outside
                .wait(outside, PATIENCE / 2, |packet| match &packet.body {
                    Body::Fragment { .. } => Some(TooBig::Cut),
                    _ => (packet.payload().len() == size).then_some(TooBig::Passed),
                })?;
        }
        if found.is_some() {
            break;
        }
    }
    match found {
        Some(TooBig::Answered { mtu: next }) => {
            let answer = match family {
                Family::V4 => "fragmentation needed",
                Family::V6 => "packet too big",
            };
            let observed = format!("{mtu} bytes: {answer}, MTU {next}");
            let usable = (family.mtu_min()..mtu).contains(&next);
            matrix.judge(check, usable, observed);
        }
        Some(TooBig::Passed) => {
            let why = format!("{mtu} bytes pass: the outside MTU is not smaller");
            matrix.not_tested(check, why);
        }
        Some(TooBig::Cut) => matrix.judge(check, false, "fragmented all the same"),
        None => matrix.judge(
            check,
            false,
            format!("{mtu} bytes vanish without an answer"),
        ),
    }
    Ok(())
}
