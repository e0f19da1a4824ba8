//! Timers, by waiting (RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 5508 REQ-2).
//!
//! # Theory of operation
//! Looking whether a mapping lives may keep it alive, so each is looked at once. For each timer a
//! mapping is made for every *checkpoint* between now and the end of the wait; at a checkpoint its
//! mapping's remote sends, and what does not come in is dead. All timers are watched in one wait, which
//! ends when all are dead. The timer lies between the last checkpoint that a mapping outlived and the first that one did
//! not: checkpoints are a quarter of their age apart, at least a second.
//!
//! Two more mappings are kept busy all the time, one from inside and one from its remote. When a
//! mapping left alone dies and a busy one does not, that direction refreshes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Head, Message, Packet, Segment, flags};
use super::prober::{Flow, Mapping, PATIENCE, Prober, TRIES};
use super::side::Transport;

/// Shortest step between two checkpoints.
const STEP_MIN: Duration = Duration::from_secs(1);
/// The part of its age by which a checkpoint is before the next. Of the longest wait there are 43, and
/// a socket for each TCP and UDP mapping.
const STEP_PART: u32 = 4;
/// By how much a timer may fall short: packets take their time, and a mapping is looked at a moment
/// after its last packet at the earliest.
const SLACK: Duration = Duration::from_secs(1);
/// How long what looks at mappings is waited for, each time it is sent.
const LOOK_PATIENCE: Duration = Duration::from_millis(400);
/// Packets that a busy mapping may lose before it is taken for dead.
const MISSES_MAX: u32 = 2;
/// How long a conversation lasts before the NAT is left alone: some have another timer for those
/// that last longer than two seconds.
const TALK: Duration = Duration::from_millis(2_500);
/// Pause between the packets of a conversation.
const TALK_PAUSE: Duration = Duration::from_millis(500);

/// The timers, with the seconds that the RFC wants at least. A SYN cannot be repeated without meaning
/// something else, nor can the end of a connection: these come last, each with a moment of its own.
const TIMERS: [(Check, u64); 8] = [
    (Check::UdpTimer, 120),
    (Check::UdpTimerTalk, 120),
    (Check::UdpTimerDns, 120),
    (Check::IcmpTimer, 60),
    (Check::TcpTimerEstablished, 7_440),
    (Check::TcpTimerOpening, 240),
    (Check::TcpTimerClosing, 240),
    (Check::TcpTimerReset, 240),
];
/// How many of them have had a conversation that can be repeated.
const REPEATED_COUNT: usize = 5;
/// DNS.
const DNS: u16 = 53;
const REFRESHES: [Check; 2] = [Check::RefreshOut, Check::RefreshIn];

/// Watches the timers for as long as `wait`, if at all.
///
/// # Errors
/// When a socket fails.
pub fn probe(
    prober: &mut Prober,
    matrix: &mut Matrix,
    wait: Option<Duration>,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let Some(wait) = wait else {
        for (check, seconds) in TIMERS {
            matrix.not_tested(check, format!("not waited for: --timers {seconds}"));
        }
        matrix.none_tested(&REFRESHES, "not waited for: --timers SECONDS");
        return Ok(());
    };
    progress("timers: making mappings");
    let checkpoints = checkpoints(wait);
    let mut watches = Vec::new();
    let mut busy = Busy::start(prober)?;
    let (repeated, once) = TIMERS.split_at(REPEATED_COUNT);
    for (stage, timers) in [repeated, once].into_iter().enumerate() {
        for (check, required) in timers {
            match Watch::start(prober, *check, *required, checkpoints.len())? {
                Some(watch) => watches.push(watch),
                None => matrix.not_tested(*check, "no mapping could be made"),
            }
        }
        if stage == 0 {
            talk(prober, &mut watches)?;
        }
    }
    let start = Instant::now();
    for (index, checkpoint) in checkpoints.iter().enumerate() {
        if watches.iter().all(|watch| watch.dead.is_some()) {
            break;
        }
        busy.until(prober, start + *checkpoint, |left| {
            let left = left + wait.saturating_sub(*checkpoint);
            progress(&format!("timers: {} s left at most", left.as_secs()));
        })?;
        look(prober, &mut watches, index)?;
    }
    for watch in &watches {
        watch.judge(matrix);
    }
    let alone = watches
        .iter()
        .find(|watch| watch.check == Check::UdpTimerTalk);
    busy.judge(prober, matrix, alone.and_then(|watch| watch.dead))
}

/// Dense in the beginning and thinner with age, one just before every requirement within the wait, the
/// last at the end.
fn checkpoints(wait: Duration) -> Vec<Duration> {
    let next = |at: &Duration| Some(*at + (*at / STEP_PART).max(STEP_MIN));
    let mut all: Vec<Duration> = std::iter::successors(Some(STEP_MIN), next)
        .take_while(|at| *at < wait)
        .collect();
    let required = TIMERS
        .iter()
        .map(|(_, seconds)| Duration::from_secs(*seconds) - SLACK);
    all.extend(required.filter(|at| *at < wait));
    all.push(wait);
    all.sort();
    all.dedup();
    all
}

/// A mapping that is looked at once.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Udp(Mapping),
    Query {
        id: u16,
        external: (IpAddr, u16),
    },
    Opening {
        mapping: Mapping,
        seen: u32,
    },
    Established(Flow),
    /// Closed, or reset.
    Over(Flow),
}

/// One timer under watch.
struct Watch {
    check: Check,
    required: Duration,
    /// With the moment since when it is left alone.
    subjects: Vec<(Subject, Instant)>,
    alive: Duration,
    dead: Option<Duration>,
}

impl Watch {
    fn start(
        prober: &mut Prober,
        check: Check,
        required: u64,
        count: usize,
    ) -> Result<Option<Self>, Error> {
        let mut subjects = Vec::new();
        for _ in 0..count {
            let Some(subject) = make(prober, check)? else {
                return Ok(None);
            };
            subjects.push((subject, Instant::now()));
        }
        Ok(Some(Self {
            check,
            required: Duration::from_secs(required),
            subjects,
            alive: Duration::ZERO,
            dead: None,
        }))
    }

    fn judge(&self, matrix: &mut Matrix) {
        let required = self.required.as_secs();
        let alive = self.alive.as_secs();
        let Some(dead) = self.dead else {
            if self.holds() {
                matrix.judge(self.check, true, format!("> {alive} s"));
            } else {
                let why = format!("> {alive} s; it takes --timers {required} to tell");
                matrix.not_tested(self.check, why);
            }
            return;
        };
        let observed = format!("between {alive} and {} s", dead.as_secs());
        // For well-known ports a shorter one is allowed.
        let holds = self.holds() || self.check == Check::UdpTimerDns;
        matrix.judge(self.check, holds, observed);
    }

    fn holds(&self) -> bool {
        self.alive + SLACK >= self.required
    }
}

fn make(prober: &mut Prober, check: Check) -> Result<Option<Subject>, Error> {
    let remote = prober.remote(0, 0);
    Ok(match check {
        Check::UdpTimer | Check::UdpTimerTalk => prober.udp_mapping(remote)?.map(Subject::Udp),
        Check::UdpTimerDns => {
            if !prober.outside.reserve(Transport::Udp, DNS)? {
                return Ok(None);
            }
            let dns = SocketAddr::new(remote.ip(), DNS);
            prober.udp_mapping(dns)?.map(Subject::Udp)
        }
        Check::IcmpTimer => {
            let id = prober.query_id();
            prober.ping(id, remote.ip())?.map(|ping| Subject::Query {
                id,
                external: ping.external,
            })
        }
        Check::TcpTimerOpening => {
            let port = prober.port(Transport::Tcp)?;
            prober.tcp_syn(port, remote)?.map(|syn| Subject::Opening {
                mapping: syn.mapping,
                seen: syn.seen,
            })
        }
        _ => {
            let Some(mut flow) = prober.tcp_flow(remote)? else {
                return Ok(None);
            };
            let (out, back) = prober.tcp_talk(&mut flow)?;
            match check {
                Check::TcpTimerClosing => finish(prober, &mut flow)?.then_some(Subject::Over(flow)),
                Check::TcpTimerReset => prober
                    .tcp_out(&mut flow, flags::RST | flags::ACK, &[])?
                    .then_some(Subject::Over(flow)),
                _ => (out && back).then_some(Subject::Established(flow)),
            }
        }
    })
}

/// Closes a connection from both ends; whether both FINs passed.
fn finish(prober: &mut Prober, flow: &mut Flow) -> Result<bool, Error> {
    let remote_ends = prober.tcp_in(flow, flags::FIN | flags::ACK, &[])?;
    let inside_ends = prober.tcp_out(flow, flags::FIN | flags::ACK, &[])?;
    // Nobody sees the last acknowledgment of a proxy.
    prober.tcp_in(flow, flags::ACK, &[])?;
    Ok(remote_ends && inside_ends)
}

/// Lets the subjects that are to have had traffic both ways have it, for a while, and the others be
/// used once more, so that all are left alone at one moment.
fn talk(prober: &mut Prober, watches: &mut [Watch]) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let last = start.elapsed() >= TALK;
        for watch in watches.iter_mut() {
            for (subject, since) in &mut watch.subjects {
                match (watch.check, subject) {
                    (Check::UdpTimerTalk, Subject::Udp(mapping)) => {
                        prober.udp_in(mapping)?;
                        prober.udp_out(mapping.port, mapping.remote)?;
                    }
                    (_, Subject::Udp(mapping)) if last => {
                        prober.udp_out(mapping.port, mapping.remote)?;
                    }
                    (_, Subject::Query { id, .. }) if last => {
                        prober.ping(*id, prober.remotes[0])?;
                    }
                    (_, Subject::Established(flow)) if last => {
                        prober.tcp_talk(flow)?;
                    }
                    _ => {}
                }
                *since = Instant::now();
            }
        }
        if last {
            return Ok(());
        }
        let mark = prober.inside.mark()?;
        prober.inside.wait(mark, TALK_PAUSE, |_| None::<()>)?;
    }
}

/// Looks at the subjects of a checkpoint, at all of them at once: a dead one must not hold up the
/// others.
fn look(prober: &mut Prober, watches: &mut [Watch], index: usize) -> Result<(), Error> {
    let mut open = Vec::new();
    for (which, watch) in watches.iter().enumerate() {
        if watch.dead.is_none() {
            let (subject, since) = watch.subjects[index];
            open.push((which, Probe::of(prober, subject), since));
        }
    }
    let mark = prober.inside.mark()?;
    let now = Instant::now();
    for _ in 0..TRIES {
        for (_, probe, _) in &open {
            prober.outside.send(&probe.packet)?;
        }
        let deadline = Instant::now() + LOOK_PATIENCE;
        while !open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let came = prober.inside.wait(mark, left, |packet| {
                open.iter().position(|(_, probe, _)| (probe.fits)(packet))
            })?;
            let Some(came) = came else { break };
            let (which, _, since) = open.swap_remove(came);
            watches[which].alive = now - since;
        }
        if open.is_empty() {
            break;
        }
    }
    for (which, _, since) in open {
        watches[which].dead = Some(now - since);
    }
    Ok(())
}

/// What a remote sends to see whether a mapping lives, and how it is told when it comes in.
struct Probe {
    packet: Vec<u8>,
    fits: Box<dyn Fn(&Packet) -> bool>,
}

impl Probe {
    fn of(prober: &mut Prober, subject: Subject) -> Self {
        let token = prober.token();
        let by_token = Box::new(move |packet: &Packet| packet.payload() == token);
        match subject {
            Subject::Udp(Mapping {
                remote, external, ..
            }) => Self {
                packet: Head::new(remote.ip(), external.ip())
                    .udp((remote.port(), external.port()), &token),
                fits: by_token,
            },
            Subject::Query { external, .. } => {
                let [high, low] = external.1.to_be_bytes();
                let head = Head::new(prober.remotes[0], external.0);
                Self {
                    packet: head.icmp(Message::EchoReply, [high, low, 0, 1], &token),
                    fits: by_token,
                }
            }
            Subject::Established(flow) => {
                let (remote, external) = (flow.mapping.remote, flow.mapping.external);
                let ports = (remote.port(), external.port());
                let segment = flow.outside.segment(flags::ACK);
                let head = Head::new(remote.ip(), external.ip());
                Self {
                    packet: head.tcp(ports, segment, &token),
                    fits: by_token,
                }
            }
            Subject::Opening { mapping, seen } => {
                let segment = Segment {
                    seq: prober.number(),
                    ack: seen.wrapping_add(1),
                    flags: flags::SYN | flags::ACK,
                };
                Self::by_ends(prober, mapping, segment)
            }
            Subject::Over(flow) => {
                let segment = flow.outside.segment(flags::ACK);
                Self::by_ends(prober, flow.mapping, segment)
            }
        }
    }

    /// A segment without a payload, and so without a token.
    fn by_ends(prober: &Prober, mapping: Mapping, segment: Segment) -> Self {
        let (remote, external) = (mapping.remote, mapping.external);
        let inside = SocketAddr::new(prober.inside_address(), mapping.port);
        let head = Head::new(remote.ip(), external.ip());
        Self {
            packet: head.tcp((remote.port(), external.port()), segment, &[]),
            fits: Box::new(move |packet| packet.ends() == Some((remote, inside))),
        }
    }
}

/// Two mappings that are not left alone.
struct Busy {
    from_inside: Option<Mapping>,
    from_outside: Option<Mapping>,
    /// How many inbound packets in a row have not come in.
    misses: u32,
}

impl Busy {
    fn start(prober: &mut Prober) -> Result<Self, Error> {
        let remote = prober.remote(0, 0);
        let mut mappings = [None, None];
        for slot in &mut mappings {
            *slot = prober.udp_mapping(remote)?;
            if let Some(mapping) = slot {
                // Both have had traffic both ways, as the timer that they are compared with.
                prober.udp_in(mapping)?;
                prober.udp_out(mapping.port, mapping.remote)?;
            }
        }
        let [from_inside, from_outside] = mappings;
        Ok(Self {
            from_inside,
            from_outside,
            misses: 0,
        })
    }

    /// Keeps both busy until `due`.
    fn until(
        &mut self,
        prober: &mut Prober,
        due: Instant,
        mut tell: impl FnMut(Duration),
    ) -> Result<(), Error> {
        loop {
            if let Some(mapping) = self.from_inside {
                prober.udp_out(mapping.port, mapping.remote)?;
            }
            self.inbound(prober)?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tell(left);
            let mark = prober.inside.mark()?;
            prober
                .inside
                .wait(mark, left.min(PATIENCE), |_| None::<()>)?;
        }
    }

    /// Sends from outside, as long as that comes in. Not repeated at once: checkpoints are waiting.
    fn inbound(&mut self, prober: &mut Prober) -> Result<(), Error> {
        let Some(mapping) = self.from_outside.filter(|_| self.misses < MISSES_MAX) else {
            return Ok(());
        };
        let (packet, token) = prober.udp_inbound(mapping.remote, mapping.external);
        let mark = prober.inside.mark()?;
        prober.outside.send(&packet)?;
        let came = prober.inside.wait(mark, LOOK_PATIENCE, |packet| {
            (packet.payload() == token).then_some(())
        })?;
        self.misses = came.map_or(self.misses + 1, |()| 0);
        Ok(())
    }

    fn judge(
        &self,
        prober: &mut Prober,
        matrix: &mut Matrix,
        alone: Option<Duration>,
    ) -> Result<(), Error> {
        let (Some(from_inside), Some(from_outside)) = (self.from_inside, self.from_outside) else {
            matrix.none_tested(&REFRESHES, "no mapping could be made");
            return Ok(());
        };
        let Some(dead) = alone.map(|dead| dead.as_secs()) else {
            let why = "a mapping that is left alone outlives the wait as well";
            matrix.none_tested(&REFRESHES, why);
            return Ok(());
        };
        let told = |lives: bool| {
            let end = if lives { "lives on" } else { "dies" };
            format!("left alone it dies within {dead} s; kept busy it {end}")
        };
        let lives = prober.udp_in(&from_inside)?;
        matrix.judge(Check::RefreshOut, lives, told(lives));
        let lives = self.misses < MISSES_MAX && prober.udp_in(&from_outside)?;
        matrix.judge(Check::RefreshIn, true, told(lives));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Verdict;
    use super::*;

    fn seconds(wait: u64) -> Vec<u64> {
        let all = checkpoints(Duration::from_secs(wait));
        all.iter().map(Duration::as_secs).collect()
    }

    #[test]
    fn checkpoints_end_with_the_wait_and_hold_what_is_required() {
        assert_eq!(seconds(1), [1]);
        assert_eq!(seconds(5), [1, 2, 3, 4, 5]);
        assert_eq!(seconds(12), [1, 2, 3, 4, 5, 6, 7, 9, 12]);
        let long = seconds(8_000);
        assert_eq!(long.last(), Some(&8_000));
        for (_, required) in TIMERS {
            assert!(long.contains(&(required - 1)), "{required}");
        }
        assert_eq!(long.len(), 43, "as the comment on their part says");
    }

    fn judged(alive: u64, dead: Option<u64>) -> (Verdict, String) {
        judged_of(Check::UdpTimer, alive, dead)
    }

    fn judged_of(check: Check, alive: u64, dead: Option<u64>) -> (Verdict, String) {
        let watch = Watch {
            check,
            required: Duration::from_secs(120),
            subjects: Vec::new(),
            alive: Duration::from_secs(alive),
            dead: dead.map(Duration::from_secs),
        };
        let mut matrix = Matrix::default();
        watch.judge(&mut matrix);
        let row = matrix.row(check).unwrap();
        (row.verdict, row.observed.clone())
    }

    #[test]
    fn a_timer_is_told_from_what_was_seen_and_from_nothing_else() {
        let pass = judged(120, None);
        assert_eq!(pass, (Verdict::Pass, "> 120 s".to_owned()));
        let pass = judged(119, Some(130));
        assert_eq!(pass, (Verdict::Pass, "between 119 and 130 s".to_owned()));
        let short = judged(25, Some(30));
        assert_eq!(
            short,
            (Verdict::Deviation, "between 25 and 30 s".to_owned())
        );
        let (verdict, why) = judged(60, None);
        assert_eq!(verdict, Verdict::NotTested);
        assert_eq!(why, "> 60 s; it takes --timers 120 to tell");
        // For DNS a shorter one is allowed, and not waiting for it is still no pass.
        let dns = |alive, dead| judged_of(Check::UdpTimerDns, alive, dead).0;
        assert_eq!(dns(25, Some(30)), Verdict::Pass);
        assert_eq!(dns(60, None), Verdict::NotTested);
    }
}
