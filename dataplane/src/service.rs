//! The service thread: what is delivered to the switch's own services, and what they answer.
//!
//! # Theory of operation
//! Workers put frames into the [`Inbox`] and go on; a full one refuses, which they count. The thread
//! takes a turn when frames, orders or answers from upstream are there or a time has come: frames
//! into the [`Stack`] of their network, questions out of it and to the [`Resolver`], answers back,
//! and frames out to [`SERVICE_WORKER`], which enqueues them like other frames of the switch's own.
//! The thread may be slow or stuck: nobody waits for it.
//!
//! Pictures are left in the inbox, the latest in place of the one before.
//!
//! Limits: [`SERVICE_QUEUE_MAX`] frames in, [`INJECTED_MAX`] frames out, [`ORDERS_MAX`] orders; those of
//! stacks and the resolver are theirs.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::{Domain, Resolver as ResolverOf, Topology};
use dataplane_service::dns::message::Transport;
use dataplane_service::dns::{Answer, Counters, CountersView, Resolver, Via, Zones};
use dataplane_service::stack::{Client, Stack, Station};
use mio::{Events, Poll, Registry, Waker};

use crate::egress::Handover;
use crate::upstream::{Heard, Upstreams};
use crate::worker::{Shared, WAKE, Worker};
use crate::{Dataplane, lock, run_or_abort};

/// Frames that wait for the service thread: a burst of as many questions is taken whole.
pub const SERVICE_QUEUE_MAX: usize = 512;
/// Frames taken in one turn, before anything is answered.
const TURN_FRAMES_MAX: usize = 64;
/// Frames of services that wait to be enqueued.
pub const INJECTED_MAX: usize = 512;
/// Questions and other orders of the control side that wait.
const ORDERS_MAX: usize = 1_024;
/// The worker that sends what the switch itself says.
pub(crate) const SERVICE_WORKER: usize = 0;
/// Readiness events taken from one poll.
const EVENTS_MAX: usize = 256;

/// What a question of the control side has come to.
pub type Answered = Answer<()>;

type Reply = Box<dyn FnOnce(Answered) + Send>;

/// What workers and the control side leave for the service thread.
pub(crate) struct Inbox {
    frames: Handover<(DomainId, PortId)>,
    waker: Waker,
    /// The thread is about to sleep, or sleeps: who brings something wakes it.
    asleep: AtomicBool,
    topology: Mutex<Option<Arc<Topology>>>,
    zones: Mutex<Option<Arc<Zones>>>,
}

impl Inbox {
    pub fn new(registry: &Registry) -> io::Result<Self> {
        Ok(Self {
            frames: Handover::new(SERVICE_QUEUE_MAX),
            waker: Waker::new(registry, WAKE)?,
            asleep: AtomicBool::new(false),
            topology: Mutex::default(),
            zones: Mutex::default(),
        })
    }

    /// Gives a frame in exchange for a free buffer; gives it back when there is no room.
    fn give(&self, domain: DomainId, from: PortId, frame: FrameBuf) -> Result<FrameBuf, FrameBuf> {
        let given = self.frames.give((domain, from), frame);
        self.wake();
        given
    }

    /// Leaves a picture for the thread to follow.
    pub fn install(&self, topology: Arc<Topology>) {
        *lock(&self.topology) = Some(topology);
        self.wake();
    }

    fn wake(&self) {
        // In one order with `Service::sleep`, which says that it sleeps before it looks once more.
        if self.asleep.swap(false, Ordering::SeqCst) {
            // A full eventfd still wakes.
            let _ = self.waker.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty() && lock(&self.topology).is_none() && lock(&self.zones).is_none()
    }
}

impl Worker {
    /// Hands a frame to the service thread.
    #[cold]
    pub fn serve(&mut self, domain: DomainId, from: PortId, buf: FrameBuf) {
        let given = self.shared.service.give(domain, from, buf);
        let spare = given.unwrap_or_else(|buf| {
            self.counters.service_refused.add(1);
            buf
        });
        self.batch.recycle(spare);
    }
}

enum Order {
    Ask(Via, Vec<u8>, Reply),
    Flush(Sender<usize>),
    Stop,
}

/// The control side's end of the service thread.
#[derive(Debug)]
pub(crate) struct ServiceHandle {
    orders: Sender<Order>,
    counters: Arc<Counters>,
    thread: JoinHandle<()>,
}

impl ServiceHandle {
    pub fn start(shared: &Arc<Shared>, poll: Poll, seed: u64) -> io::Result<Self> {
        let (orders, inbox) = bounded(ORDERS_MAX);
        let counters = Arc::new(Counters::default());
        let service = Service {
            shared: Arc::clone(shared),
            poll,
            orders: inbox,
            topology: Arc::default(),
            stacks: HashMap::new(),
            touched: BTreeSet::new(),
            resolver: Resolver::new(Arc::clone(&counters), seed),
            upstreams: Upstreams::default(),
            counters: Arc::clone(&counters),
            spare: Some(FrameBuf::new()),
            stopped: false,
        };
        let thread = std::thread::Builder::new()
            .name("service".to_owned())
            .spawn(move || run_or_abort(|| service.run()))?;
        Ok(Self {
            orders,
            counters,
            thread,
        })
    }

    fn order(&self, shared: &Shared, order: Order) -> Result<(), Order> {
        let sent = self.orders.try_send(order);
        shared.service.wake();
        sent.map_err(|(TrySendError::Full(order) | TrySendError::Disconnected(order))| order)
    }

    pub fn stop(self, shared: &Shared) {
        let _ = self.orders.send(Order::Stop);
        shared.service.wake();
        let _ = self.thread.join();
    }
}

impl Dataplane {
    /// Answers by other zones from now on.
    pub fn set_zones(&self, zones: Arc<Zones>) {
        *lock(&self.shared.service.zones) = Some(zones);
        self.shared.service.wake();
    }

    /// Asks the name service as a client of that network would. `reply` is called on the service
    /// thread, and not at all for a message that is met with silence.
    ///
    /// `false` when too many questions wait.
    pub fn ask_name(
        &self,
        via: Via,
        message: Vec<u8>,
        reply: impl FnOnce(Answered) + Send + 'static,
    ) -> bool {
        let order = Order::Ask(via, message, Box::new(reply));
        let service = self.service.as_ref();
        service.is_some_and(|service| service.order(&self.shared, order).is_ok())
    }

    /// Forgets what upstream servers have said. Returns how many answers that were.
    pub fn flush_names(&self) -> usize {
        let (done, count) = bounded(1);
        let service = self.service.as_ref();
        let sent = service.map(|service| service.order(&self.shared, Order::Flush(done)));
        match sent {
            Some(Ok(())) => count.recv_timeout(crate::ACKNOWLEDGE_MAX).unwrap_or(0),
            Some(Err(_)) | None => 0,
        }
    }

    /// What the name service has counted.
    pub fn name_stats(&self) -> CountersView {
        let service = self.service.as_ref();
        service.map_or_else(CountersView::default, |service| service.counters.read())
    }
}

/// Who has asked a question.
enum Asker {
    Station(DomainId, Client),
    Caller(Reply),
}

impl core::fmt::Debug for Asker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Station(..) => "Station",
            Self::Caller(_) => "Caller",
        })
    }
}

struct Open {
    stack: Stack,
    /// When it wants to be run, without anything new.
    due: Option<Instant>,
}

struct Service {
    shared: Arc<Shared>,
    poll: Poll,
    orders: Receiver<Order>,
    topology: Arc<Topology>,
    /// Of networks from which something was asked.
    stacks: HashMap<DomainId, Open>,
    /// Networks whose stack is to be run in this turn.
    touched: BTreeSet<DomainId>,
    resolver: Resolver<Asker>,
    upstreams: Upstreams,
    counters: Arc<Counters>,
    /// In exchange for what is sent.
    spare: Option<FrameBuf>,
    stopped: bool,
}

impl Service {
    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.stopped {
            self.follow();
            self.take_orders();
            self.take_frames();
            self.touch_due();
            self.resolver.tick(self.now());
            self.resolve();
            self.run_stacks();
            self.sleep(&mut events);
        }
    }

    fn now(&self) -> Instant {
        self.shared.instant(std::time::Instant::now())
    }

    /// Follows the pictures that were left.
    fn follow(&mut self) {
        if let Some(zones) = lock(&self.shared.service.zones).take() {
            self.resolver.follow(zones);
        }
        let Some(topology) = lock(&self.shared.service.topology).take() else {
            return;
        };
        self.stacks.retain(|domain, open| {
            let gateway = topology.domain(*domain).filter(|domain| serves(domain));
            let gateway = gateway.and_then(|domain| domain.gateway.as_ref());
            gateway.is_some_and(|gateway| open.stack.is_of(gateway))
        });
        self.topology = topology;
    }

    fn take_orders(&mut self) {
        for _ in 0..ORDERS_MAX {
            match self.orders.try_recv() {
                Ok(Order::Ask(via, message, reply)) => {
                    let now = self.now();
                    self.resolver.ask(Asker::Caller(reply), via, &message, now);
                }
                Ok(Order::Flush(done)) => {
                    let _ = done.send(self.resolver.flush());
                }
                Ok(Order::Stop) => self.stopped = true,
                Err(_) => return,
            }
        }
    }

    fn take_frames(&mut self) {
        let shared = Arc::clone(&self.shared);
        for _ in 0..TURN_FRAMES_MAX {
            let Some(((domain, port), mut frame)) = shared.service.frames.take() else {
                return;
            };
            // What a sandbox leaves to its device is as good as done.
            if checksum::complete(&mut frame).is_ok() {
                self.take_frame(domain, port, &frame);
            }
            shared.service.frames.give_back(frame);
        }
    }

    fn take_frame(&mut self, id: DomainId, port: PortId, frame: &FrameBuf) {
        let now = self.now();
        let domain = self.topology.domain(id).filter(|domain| serves(domain));
        let Some(gateway) = domain.and_then(|domain| domain.gateway.as_ref()) else {
            return;
        };
        let open = self.stacks.entry(id).or_insert_with(|| Open {
            stack: Stack::new(gateway, now),
            due: None,
        });
        open.stack.receive(frame.bytes(), port, now);
        self.touched.insert(id);
    }

    /// Takes questions to the resolver, its answers to those who asked, and its queries to servers.
    fn resolve(&mut self) {
        let now = self.now();
        for domain in self.touched.iter().copied() {
            let Some(open) = self.stacks.get_mut(&domain) else {
                continue;
            };
            while let Some(asked) = open.stack.take_asked() {
                let via = Via {
                    domain,
                    source: asked.source,
                    transport: match asked.client {
                        Client::Udp(_) => Transport::Udp,
                        Client::Tcp { .. } => Transport::Tcp,
                    },
                };
                let asker = Asker::Station(domain, asked.client);
                self.resolver.ask(asker, via, &asked.bytes, now);
            }
        }
        while let Some(send) = self.resolver.take_send() {
            if let Err(error) = self.upstreams.open(self.poll.registry(), &send) {
                tracing::debug!(server = %send.server, %error, "cannot ask a name server");
                self.resolver.fail(send.exchange, now);
            }
        }
        while let Some(answer) = self.resolver.take_answer() {
            self.give_answer(answer);
        }
        let resolver = &self.resolver;
        self.upstreams
            .keep(self.poll.registry(), |exchange| resolver.is_open(exchange));
    }

    fn give_answer(&mut self, answer: Answer<Asker>) {
        match answer.client {
            Asker::Station(domain, client) => {
                let Some(open) = self.stacks.get_mut(&domain) else {
                    return;
                };
                self.touched.insert(domain);
                if open.stack.answer(client, &answer.bytes) {
                    return;
                }
                self.run_stack(domain);
                let open = self.stacks.get_mut(&domain);
                if !open.is_some_and(|open| open.stack.answer(client, &answer.bytes)) {
                    self.counters.unsent.add(1);
                }
            }
            Asker::Caller(reply) => reply(Answer {
                client: (),
                bytes: answer.bytes,
                code: answer.code,
                records: answer.records,
                how: answer.how,
            }),
        }
    }

    /// Includes the stacks whose time has come in this turn.
    fn touch_due(&mut self) {
        let now = self.now();
        let due = |open: &Open| open.due.is_some_and(|due| due <= now);
        let due = self.stacks.iter().filter(|(_, open)| due(open));
        self.touched.extend(due.map(|(domain, _)| *domain));
    }

    /// Runs the stacks that something has come to, or whose time has come.
    fn run_stacks(&mut self) {
        for domain in core::mem::take(&mut self.touched) {
            self.run_stack(domain);
        }
    }

    fn run_stack(&mut self, id: DomainId) {
        let now = self.now();
        let (Some(open), Some(domain)) = (self.stacks.get_mut(&id), self.topology.domain(id))
        else {
            return;
        };
        let place = |address| {
            let neighbour = domain.neighbours.get(&address)?;
            Some(Station {
                port: neighbour.port,
                mac: neighbour.mac,
            })
        };
        let (spare, shared, counters) = (&mut self.spare, &self.shared, &self.counters);
        let mut sent = false;
        open.stack.run(now, place, |port, frame| {
            sent = true;
            if !inject(shared, spare, port, frame) {
                counters.unsent.add(1);
            }
        });
        open.due = open.stack.next_due(now).map(|delay| now + delay);
        if open.stack.has_asked() {
            open.due = Some(now);
        }
        if sent {
            // A full eventfd still wakes.
            let _ = self.shared.wakers[SERVICE_WORKER].wake();
            self.note_connections();
        }
    }

    fn note_connections(&self) {
        let stacks = || self.stacks.values().map(|open| &open.stack);
        let open = stacks().map(Stack::connections).sum();
        self.counters.tcp_connections.set(open);
        let refused = stacks().map(Stack::refused);
        let refused: u64 = refused
            .map(|refused| refused.connections + refused.oversize)
            .sum();
        self.counters
            .tcp_refused
            .set(usize::try_from(refused).unwrap_or(usize::MAX));
    }

    /// Sleeps until there is something to do, and takes up what servers have sent.
    fn sleep(&mut self, events: &mut Events) {
        let now = self.now();
        let stacks = self.stacks.values().filter_map(|open| open.due);
        let stacks = stacks.map(|due| due.since(now));
        let timeout = stacks.chain(self.resolver.next_due(now)).min();
        let inbox = &self.shared.service;
        inbox.asleep.store(true, Ordering::SeqCst);
        let idle = inbox.is_empty() && self.orders.is_empty() && !self.stopped;
        let timeout = if idle { timeout } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(events, timeout);
        inbox.asleep.store(false, Ordering::SeqCst);
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => panic!("the service thread cannot poll any more: {error}"),
        }
        let now = self.now();
        for event in events.iter().filter(|event| event.token() != WAKE) {
            let exchange = event.token().0 as u64;
            let resolver = &mut self.resolver;
            self.upstreams.take(exchange, |heard| match heard {
                Heard::Message(bytes) => resolver.receive(exchange, bytes, now),
                Heard::Failure => resolver.fail(exchange, now),
            });
        }
    }
}

/// Whether a network's DNS is the service's to answer.
fn serves(domain: &Domain) -> bool {
    domain.resolver == ResolverOf::Service
}

/// Leaves a frame for the worker; `false` when there is no room.
fn inject(shared: &Shared, spare: &mut Option<FrameBuf>, port: PortId, frame: &[u8]) -> bool {
    let mut buf = spare.take().unwrap_or_default();
    buf.copy_from(frame, Offload::NONE);
    match shared.injected.give(port, buf) {
        Ok(free) => {
            *spare = Some(free);
            true
        }
        Err(buf) => {
            *spare = Some(buf);
            false
        }
    }
}
