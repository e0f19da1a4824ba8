//! TCP: opening, closing, resets, and the silence after an unsolicited SYN (RFC 5382, RFC 7857
//! section 2).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Head, Message, Quoted, flags};
use super::probe_mapping::{close, syn};
use super::prober::{Flow, Prober};
use super::side::{Mark, Transport};

/// How long a NAT must not answer an unsolicited SYN (RFC 5382 REQ-4).
const SILENT: Duration = Duration::from_secs(6);
/// How much longer its answer is waited for.
const SILENT_MORE: Duration = Duration::from_secs(2);
/// Far outside any window.
const OUT_OF_WINDOW: u32 = 0x4000_0000;

/// A stranger's SYN whose answer has not been looked for yet.
#[derive(Debug)]
pub struct Knock {
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    mark: Mark,
    inside: Mark,
    from: SocketAddr,
    to: SocketAddr,
}

/// Sends a stranger's SYN to a mapping. Nothing else uses the stranger's port, so [`listen`] may
/// look at the end of the run for what came of it, and nobody waits.
///
/// # Errors
/// When a socket fails.
pub fn knock(prober: &mut Prober) -> Result<Knock, Error> {
    let port = prober.remote_port()?;
    let from = SocketAddr::new(prober.remotes[1], port);
    let Some(flow) = prober.tcp_flow(prober.remote(0, 1))? else {
        return Ok(Knock { sent: None });
    };
    let packet = syn(prober, from, &flow.mapping);
    let (mark, inside) = (prober.outside.mark()?, prober.inside.mark()?);
    prober.outside.send(&packet)?;
    let sent = Sent {
        at: Instant::now(),
        mark,
        inside,
        from,
        to: flow.mapping.external,
    };
    Ok(Knock { sent: Some(sent) })
}

/// Judges what came of [`knock`], once enough time has passed.
///
/// # Errors
/// When a socket fails.
pub fn listen(prober: &mut Prober, matrix: &mut Matrix, knock: Knock) -> Result<(), Error> {
    let check = Check::TcpUnsolicited;
    let Some(sent) = knock.sent else {
        matrix.not_tested(
            check,
            "no connection opens, so there is no mapping to knock at",
        );
        return Ok(());
    };
    let came_in = |prober: &mut Prober| -> Result<bool, Error> {
        let seen = prober.inside.since(sent.inside)?;
        Ok(seen
            .iter()
            .filter_map(|seen| seen.packet.ends())
            .any(|(from, _)| from == sent.from))
    };
    loop {
        if came_in(prober)? {
            matrix.not_tested(check, "the filter lets the SYN in");
            return Ok(());
        }
        if let Some((at, what)) = answer(prober, &sent)? {
            let after = at.saturating_duration_since(sent.at);
            let observed = format!("{what} after {:.1} s", after.as_secs_f64());
            matrix.judge(check, after >= SILENT, observed);
            return Ok(());
        }
        let left = (SILENT + SILENT_MORE).saturating_sub(sent.at.elapsed());
        if left.is_zero() {
            let waited = (SILENT + SILENT_MORE).as_secs();
            matrix.judge(check, true, format!("no answer in {waited} s"));
            return Ok(());
        }
        let mark = prober.outside.mark()?;
        prober.outside.wait(mark, left, |_| Some(()))?;
    }
}

fn answer(prober: &mut Prober, sent: &Sent) -> Result<Option<(Instant, &'static str)>, Error> {
    let seen = prober.outside.since(sent.mark)?;
    Ok(seen.iter().find_map(|seen| {
        let packet = &seen.packet;
        if let Some((from, to)) = packet.ends()
            && (from, to) == (sent.to, sent.from)
        {
            let reset = packet.segment()?.flags & flags::RST != 0;
            let what = if reset { "a reset" } else { "a segment" };
            return Some((seen.at, what));
        }
        let quoted = Quoted::read(packet.payload())?;
        let ours = quoted.src == sent.from.ip() && quoted.ports().0 == sent.from.port();
        let what = if packet.is(Message::PortUnreachable) {
            "ICMP port unreachable"
        } else if packet.is(Message::Prohibited) {
            "ICMP administratively prohibited"
        } else {
            "an ICMP error"
        };
        ours.then_some((seen.at, what))
    }))
}

/// Looks at connections.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    connection(prober, matrix)?;
    simultaneous(prober, matrix)?;
    reset(prober, matrix)?;
    forged_reset(prober, matrix)
}

fn told(out: bool, back: bool) -> &'static str {
    match (out, back) {
        (true, true) => "data passes both ways",
        (true, false) => "data does not come in",
        (false, true) => "data does not go out",
        (false, false) => "no data passes",
    }
}

/// One connection from its opening to its second life.
fn connection(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let later = [Check::TcpHalfClose, Check::TcpReopen];
    let Some(mut flow) = prober.tcp_flow(prober.remote(0, 0))? else {
        matrix.judge(Check::TcpConnection, false, "it does not open");
        matrix.none_tested(&later, "no connection opens");
        return Ok(());
    };
    let (out, back) = prober.tcp_talk(&mut flow)?;
    matrix.judge(Check::TcpConnection, out && back, told(out, back));
    if !(out && back) {
        matrix.none_tested(&later, "no data passes");
        return Ok(());
    }
    let closed = half_close(prober, matrix, &mut flow)?;
    if !closed {
        matrix.not_tested(Check::TcpReopen, "the connection does not close");
        return Ok(());
    }
    let reopened = prober.tcp_open(flow.mapping.port, flow.mapping.remote)?;
    let Some(mut again) = reopened else {
        matrix.judge(Check::TcpReopen, false, "it does not open again");
        return Ok(());
    };
    let (out, back) = prober.tcp_talk(&mut again)?;
    matrix.judge(Check::TcpReopen, out && back, told(out, back));
    close(prober, &mut again)
}

/// The remote closes first; the inside talks on, and closes. Whether all of it passed.
fn half_close(prober: &mut Prober, matrix: &mut Matrix, flow: &mut Flow) -> Result<bool, Error> {
    let check = Check::TcpHalfClose;
    if !prober.tcp_in(flow, flags::FIN | flags::ACK, &[])? {
        matrix.judge(check, false, "the remote's FIN does not come in");
        return Ok(false);
    }
    prober.tcp_out(flow, flags::ACK, &[])?;
    let token = prober.token();
    let data = prober.tcp_out(flow, flags::ACK, &token)?;
    let observed = if data {
        "data goes out after the remote's FIN"
    } else {
        "data does not go out after the remote's FIN"
    };
    matrix.judge(check, data, observed);
    let ended = prober.tcp_out(flow, flags::FIN | flags::ACK, &[])?;
    // Nobody sees the last acknowledgment of a proxy.
    prober.tcp_in(flow, flags::ACK, &[])?;
    Ok(data && ended)
}

fn simultaneous(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::TcpSimultaneous;
    let port = prober.port(Transport::Tcp)?;
    let Some(out) = prober.tcp_syn(port, prober.remote(0, 0))? else {
        matrix.judge(check, false, "a SYN does not go out");
        return Ok(());
    };
    let mut flow = Flow {
        mapping: out.mapping,
        inside: super::prober::End {
            next: out.sent,
            expected: 0,
        },
        outside: super::prober::End {
            next: prober.number(),
            expected: out.seen,
        },
    };
    let first = flow.outside.next;
    if !prober.tcp_in(&mut flow, flags::SYN, &[])? {
        matrix.judge(check, false, "the remote's SYN does not come in");
        return Ok(());
    }
    if !prober.tcp_out(&mut flow, flags::SYN | flags::ACK, &[])? {
        matrix.judge(check, false, "the SYN-ACK does not go out");
        return Ok(());
    }
    flow.outside.next = first;
    if !prober.tcp_in(&mut flow, flags::SYN | flags::ACK, &[])? {
        matrix.judge(check, false, "the remote's SYN-ACK does not come in");
        return Ok(());
    }
    let (out, back) = prober.tcp_talk(&mut flow)?;
    matrix.judge(check, out && back, told(out, back));
    close(prober, &mut flow)
}

fn reset(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::TcpReset;
    let remote = prober.remote(0, 0);
    let (one, two) = (prober.tcp_flow(remote)?, prober.tcp_flow(remote)?);
    let (Some(mut one), Some(mut two)) = (one, two) else {
        matrix.not_tested(check, "no connection opens");
        return Ok(());
    };
    let back = prober.tcp_in(&mut one, flags::RST | flags::ACK, &[])?;
    let out = prober.tcp_out(&mut two, flags::RST | flags::ACK, &[])?;
    let observed = match (out, back) {
        (true, true) => "passes both ways",
        (true, false) => "does not come in",
        (false, true) => "does not go out",
        (false, false) => "does not pass",
    };
    matrix.judge(check, out && back, observed);
    Ok(())
}

fn forged_reset(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let check = Check::TcpForgedReset;
    let remote = prober.remote(0, 0);
    let Some(mut flow) = prober.tcp_flow(remote)? else {
        matrix.not_tested(check, "no connection opens");
        return Ok(());
    };
    let (out, back) = prober.tcp_talk(&mut flow)?;
    if !(out && back) {
        matrix.not_tested(check, told(out, back));
        return Ok(());
    }
    let mut segment = flow.outside.segment(flags::RST);
    segment.seq = segment.seq.wrapping_add(OUT_OF_WINDOW);
    let external = flow.mapping.external;
    let head = Head::new(remote.ip(), external.ip());
    let forged = head.tcp((remote.port(), external.port()), segment, &[]);
    prober.outside.send(&forged)?;
    let (out, back) = prober.tcp_talk(&mut flow)?;
    let observed = format!("{} after it", told(out, back));
    matrix.judge(check, out && back, observed);
    close(prober, &mut flow)
}
