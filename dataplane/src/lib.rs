//! Worker threads that move frames between ports through the sans-IO core.
//!
//! [`Dataplane`] is the whole face: start it, give it ports, install a topology, read its
//! counters. What happens to a frame is in `dataplane_core::path`; how frames reach it and leave
//! it is in `worker` and `egress`.
//!
//! Limits: [`WORKERS_MAX`] workers; `dataplane_core::topology` has those of ports and networks.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod announcing;
pub mod balance;
mod command;
mod egress;
mod links;
mod mac_nat;
mod mirror;
mod orders;
mod own_frames;
mod ports;
mod service;
pub mod stats;
mod timer;
mod traced;
pub mod tracing;
mod upstream;
mod waiting;
pub mod what_if;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::gso::Segmenter;
use dataplane_core::l2::{self, ProbeKey, StormMeters, StormView};
use dataplane_core::multicast::{Forget, Mdb, MdbView};
use dataplane_core::path::Switch;
use dataplane_core::route;
use dataplane_core::time::Instant;
use dataplane_core::topology::{AGEING_DEFAULT, PORTS_MAX, Topology};
pub use dataplane_port::BATCH_MAX;
use dataplane_port::{Batch, Carrier, PortIo};
use mio::{Poll, Waker};

use announcing::Announcements;
pub use announcing::{ANNOUNCEMENTS_MAX, PORTS_AT_ONCE as ANNOUNCED_AT_ONCE};
use balance::{Loads, Meter};
pub use command::Notice;
use command::{Attachment, Command, Order};
use egress::Handover;
pub use egress::{HANDOVER_MAX, QUEUE_MAX};
pub use links::LinkStats;
use links::{Links, Registry};
pub use service::{Answered, INJECTED_MAX, SERVICE_QUEUE_MAX};
use service::{Inbox, ServiceHandle};
use stats::{PortCounters, PortStats, Stats, WorkerCounters, WorkerStats};
use timer::Timer;
use worker::{Shared, TIMER, WAKE, Worker};

/// Worker threads of one dataplane.
pub const WORKERS_MAX: usize = 64;
/// Ports that a worker gives up at most before it looks at frames again.
pub const REMOVED_PER_TURN: usize = 32;

/// Notices that may wait for the control side; beyond, the newest are lost and counted. They are
/// hints: who missed one finds out by looking.
pub const NOTICES_MAX: usize = 1_024;

/// How long a worker may take to acknowledge a command. Its turn is a few batches, so this is
/// reached only when the machine is overloaded beyond use.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(10);

/// How a worker waits when no queue is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeps at once: no CPU without traffic, a wake-up's latency with every pause.
    Sleep,
    /// Looks again and again for this long after the last frame, then sleeps.
    Adaptive {
        /// How long.
        spin: Duration,
    },
    /// Never sleeps: one core per worker, least latency.
    Always,
}

/// How a dataplane is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads, 1..=[`WORKERS_MAX`].
    pub workers: usize,
    /// How they wait.
    pub waiting: Waiting,
    /// Frames received from one queue before they are forwarded, 1..=[`BATCH_MAX`]. Fewer make the
    /// first of a burst leave sooner, more share the cost of looking up what a batch needs once.
    pub batch_frames_max: usize,
    /// How many stations may be learned.
    pub fdb_limits: Limits,
    /// What the clock shows at the start, so that times of an earlier process are not before it.
    pub clock_start: Instant,
    /// Seed of hashes and of port selection. Taken from the system's randomness by default.
    pub seed: u64,
}

/// Workers when nobody says how many: half of the CPUs, so that the ends have the others, but at
/// least one and at most four (decision 0009).
fn workers_default() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus / 2).clamp(1, 4)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: workers_default(),
            waiting: Waiting::Adaptive {
                spin: Duration::from_micros(50),
            },
            batch_frames_max: BATCH_MAX,
            fdb_limits: Limits::default(),
            clock_start: Instant::ZERO,
            seed: random_seed(),
        }
    }
}

/// Why the dataplane refused something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a thread, a poll or a waker.
    #[error("cannot start a worker: {0}")]
    Start(#[source] io::Error),
    /// The configuration is impossible.
    #[error("{0} workers were asked for; give 1 to {WORKERS_MAX}")]
    Workers(usize),
    /// The configuration is impossible.
    #[error("batches of {0} frames were asked for; give 1 to {BATCH_MAX}")]
    BatchFrames(usize),
    /// No such port id can be.
    #[error("{0} is beyond the last port id: there are {PORTS_MAX}")]
    PortId(PortId),
    /// The id is taken.
    #[error("{0} is in use; remove it first")]
    PortInUse(PortId),
    /// Neither one queue nor one per worker.
    #[error("{port} has {queues} queues; give one, or one for each of the {workers} workers")]
    Queues {
        /// The port.
        port: PortId,
        /// Queues given.
        queues: usize,
        /// Workers of this dataplane.
        workers: usize,
    },
    /// No further trace can run.
    #[error("{max} traces and captures are running; end one first", max = tracing::TRACES_MAX)]
    Traces,
    /// No frame is that large.
    #[error("a frame of {0} bytes was given; the largest has {max}", max = dataplane_core::frame::FRAME_SIZE_MAX)]
    FrameSize(usize),
    /// A worker could not do as told.
    #[error("a worker refused: {0}")]
    Refused(String),
    /// A worker ended or hangs.
    #[error("a worker has not answered for {} s", ACKNOWLEDGE_MAX.as_secs())]
    Silent,
}

/// A running switch.
#[derive(Debug)]
pub struct Dataplane {
    workers: Vec<WorkerHandle>,
    /// `None` only while it starts and ends.
    service: Option<ServiceHandle>,
    shared: Arc<Shared>,
    fdb: Arc<Fdb>,
    storm: Arc<StormMeters>,
    mdb: Arc<Mdb>,
    gateway: Arc<route::Tables>,
    /// By which loop probes of this process are known.
    probe_key: ProbeKey,
    notices: Receiver<Notice>,
    /// Lock order: `ports`, then `topology`; both only on the control side.
    ports: Mutex<BTreeMap<PortId, PortRecord>>,
    topology: Mutex<Arc<Topology>>,
    /// The picture before that one.
    outdated: Mutex<Option<Arc<Topology>>>,
    /// Counters of ports that were removed, so that the law of frames still holds.
    retired: Mutex<PortStats>,
    traces: Mutex<Traces>,
    /// Locked last: `ports` or `topology` may be held.
    links: Mutex<Registry>,
    /// Locked before `ports`, never while it is held.
    meter: Mutex<Meter>,
}

/// What the control side knows of a port.
#[derive(Debug)]
struct PortRecord {
    /// By worker.
    counters: Vec<Arc<PortCounters>>,
    /// The worker that owns its only queue; `None` when every worker has one.
    owner: Option<usize>,
}

/// Traces that were started, and those that run.
#[derive(Debug, Default)]
struct Traces {
    started: u64,
    running: usize,
}

#[derive(Debug)]
struct WorkerHandle {
    orders: Sender<Order>,
    core: Arc<Counters>,
    counters: Arc<WorkerCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Dataplane {
    /// Starts the workers, with no port and an empty topology.
    ///
    /// # Errors
    /// [`Error::Workers`], [`Error::BatchFrames`], [`Error::Start`].
    pub fn start(config: &Config) -> Result<Self, Error> {
        if !(1..=WORKERS_MAX).contains(&config.workers) {
            return Err(Error::Workers(config.workers));
        }
        if !(1..=BATCH_MAX).contains(&config.batch_frames_max) {
            return Err(Error::BatchFrames(config.batch_frames_max));
        }
        let polls: Vec<Poll> = (0..config.workers)
            .map(|_| Poll::new())
            .collect::<Result<_, _>>()
            .map_err(Error::Start)?;
        let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), WAKE));
        let (notify, notices) = bounded(NOTICES_MAX);
        let service_poll = Poll::new().map_err(Error::Start)?;
        let shared = Arc::new(Shared {
            handovers: polls.iter().map(|_| Handover::new(HANDOVER_MAX)).collect(),
            service: Inbox::new(service_poll.registry()).map_err(Error::Start)?,
            injected: Handover::new(service::INJECTED_MAX),
            wakers: wakers.collect::<Result<_, _>>().map_err(Error::Start)?,
            notices: notify,
            origin: Clock::now(),
            clock_start: config.clock_start,
            waiting: config.waiting,
        });
        let fdb = Fdb::new(config.fdb_limits, config.seed);
        let mdb = Mdb::new(config.seed);
        let gateway = route::Tables::new(config.seed);
        let mut dataplane = Self {
            workers: Vec::new(),
            service: None,
            shared,
            fdb,
            storm: StormMeters::new(),
            mdb,
            gateway,
            probe_key: ProbeKey::new(config.seed),
            notices,
            ports: Mutex::default(),
            topology: Mutex::default(),
            outdated: Mutex::default(),
            retired: Mutex::default(),
            traces: Mutex::default(),
            links: Mutex::default(),
            meter: Mutex::default(),
        };
        for (index, poll) in polls.into_iter().enumerate() {
            let batch = Batch::with_frames_max(config.batch_frames_max);
            let handle = dataplane.start_worker(index, poll, batch)?;
            dataplane.workers.push(handle);
        }
        let service = ServiceHandle::start(&dataplane.shared, service_poll, config.seed);
        dataplane.service = Some(service.map_err(Error::Start)?);
        Ok(dataplane)
    }

    fn start_worker(&self, index: usize, poll: Poll, batch: Batch) -> Result<WorkerHandle, Error> {
        let (orders, inbox) = unbounded();
        let core = Arc::new(Counters::default());
        let counters = Arc::new(WorkerCounters::default());
        let timer = Timer::new(poll.registry(), TIMER).map_err(Error::Start)?;
        let worker = Worker {
            index,
            poll,
            orders: inbox,
            switch: Switch {
                topology: Arc::default(),
                fdb: FdbView::live(Arc::clone(&self.fdb)),
                bridge: l2::State::new(self.probe_key),
                storm: StormView::live(Arc::clone(&self.storm)),
                groups: MdbView::live(Arc::clone(&self.mdb)),
                gateway: route::State::live(&self.gateway),
                counters: Arc::clone(&core),
            },
            shared: Arc::clone(&self.shared),
            counters: Arc::clone(&counters),
            lanes: Vec::new(),
            ready: VecDeque::new(),
            batch,
            segmenter: Segmenter::new(),
            taps: Vec::new(),
            blocked: Vec::new(),
            askable: Vec::new(),
            busy_polled: Vec::new(),
            last_busy: Clock::now(),
            touched: Vec::new(),
            links: Links::new(),
            timer,
            announcements: Announcements::new(Clock::now()),
            questions: Vec::new(),
            next_tick: Clock::now(),
            stopped: false,
        };
        let body = move || run_or_abort(|| worker.run());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(body)
            .map_err(Error::Start)?;
        Ok(WorkerHandle {
            orders,
            core,
            counters,
            thread: Some(thread),
        })
    }

    /// Number of workers: queues that a multi-queue port must bring.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Gives the workers a port: one queue for each of them, or a single queue that the least busy
    /// of them owns and the others hand their frames to. Frames flow once a topology has it.
    ///
    /// # Errors
    /// [`Error::PortId`], [`Error::PortInUse`], [`Error::Queues`]; [`Error::Refused`] when a
    /// queue cannot be polled, after which no worker has the port.
    pub fn add_port(&self, id: PortId, queues: Vec<Box<dyn PortIo>>) -> Result<(), Error> {
        let workers = self.workers();
        if id.index() >= PORTS_MAX {
            return Err(Error::PortId(id));
        }
        if queues.len() != 1 && queues.len() != workers {
            return Err(Error::Queues {
                port: id,
                queues: queues.len(),
                workers,
            });
        }
        let loads = self.loads();
        let mut ports = lock(&self.ports);
        if ports.contains_key(&id) {
            return Err(Error::PortInUse(id));
        }
        let mut owned = vec![0; workers];
        for owner in ports.values().filter_map(|port| port.owner) {
            owned[owner] += 1;
        }
        let single_owner = (queues.len() < workers).then(|| balance::choose_owner(&loads, &owned));
        let lanes: Vec<Arc<PortCounters>> = (0..workers).map(|_| Arc::default()).collect();
        let mut queues = queues.into_iter();
        let attach = |worker: usize| {
            let owned = single_owner.is_none_or(|owner| owner == worker);
            Command::Attach(Attachment {
                id,
                queue: owned.then(|| queues.next()).flatten(),
                owner: single_owner.unwrap_or(worker),
                counters: Arc::clone(&lanes[worker]),
            })
        };
        if let Err(error) = self.order_all(attach) {
            let _ = self.order_all(|_| Command::Detach(id));
            return Err(error);
        }
        let record = PortRecord {
            counters: lanes,
            owner: single_owner,
        };
        ports.insert(id, record);
        Ok(())
    }

    /// Moves the only queue of a port to another worker, without losing or reordering a frame. A
    /// port with a queue for each worker, or none, stays as it is.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Refused`].
    pub fn move_port(&self, id: PortId, to: usize) -> Result<(), Error> {
        let mut ports = lock(&self.ports);
        let Some(record) = ports.get_mut(&id) else {
            return Ok(());
        };
        let Some(from) = record.owner.filter(|from| *from != to) else {
            return Ok(());
        };
        // The order of the steps is explained in `ports`.
        self.order_one(to, Command::Expect(id))?;
        self.order_all(|worker| match worker {
            _ if worker == to || worker == from => Command::Pass,
            _ => Command::Redirect(id, to),
        })?;
        let (give, take) = bounded(1);
        self.order_one(from, Command::Release(id, to, give))?;
        let released = take.try_recv().map_err(|_| Error::Silent)?;
        self.order_one(to, Command::Adopt(id, released))?;
        record.owner = Some(to);
        Ok(())
    }

    /// Measures the load since the last call, and moves the port to another worker whose move evens
    /// it best, if any. Call it about once a second. Returns what moved, and where to.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Refused`].
    pub fn balance(&self) -> Result<Option<(PortId, usize)>, Error> {
        let stats = self.stats();
        let chosen = {
            let mut meter = lock(&self.meter);
            let ports = lock(&self.ports);
            let owner = |id| ports.get(&id).and_then(|port: &PortRecord| port.owner);
            balance::choose_move(meter.measure(Clock::now(), stats, owner))
        };
        if let Some((port, worker)) = chosen {
            self.move_port(port, worker)?;
        }
        Ok(chosen)
    }

    /// How busy workers and ports were between the last two calls of [`Dataplane::balance`].
    pub fn loads(&self) -> Loads {
        lock(&self.meter).loads().clone()
    }

    /// Takes ports from the workers, [`REMOVED_PER_TURN`] in a turn. Their descriptors are closed
    /// when this returns, what was learned on them is forgotten.
    ///
    /// # Errors
    /// [`Error::Silent`]: those of the turns before are gone.
    pub fn remove_ports(&self, ids: &[PortId]) -> Result<(), Error> {
        let mut ports = lock(&self.ports);
        for ids in ids.chunks(REMOVED_PER_TURN) {
            self.order_many(ids, |_, id| Command::Detach(*id))?;
            for id in ids {
                self.fdb.forget_port(*id);
                self.storm.forget_port(*id);
                self.forget_links(*id);
                self.mdb.forget_port(*id, Forget::All);
                if let Some(record) = ports.remove(id) {
                    lock(&self.retired).absorb(&PortStats::sum(*id, &record.counters));
                }
            }
        }
        Ok(())
    }

    /// Takes one port from the workers; see [`Dataplane::remove_ports`].
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub fn remove_port(&self, id: PortId) -> Result<(), Error> {
        self.remove_ports(&[id])
    }

    /// Changes to a new picture; when this returns every worker forwards by it.
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub fn install(&self, mut topology: Topology) -> Result<u64, Error> {
        let mut current = lock(&self.topology);
        topology.generation = current.generation + 1;
        let generation = topology.generation;
        let topology = Arc::new(topology);
        for port in topology.ports.iter().flatten() {
            self.fdb.limit_port(port.id, port.profile.mac_limit);
        }
        for domain in topology.domains().filter(|domain| domain.filters()) {
            self.fdb.open_vlans(domain.id);
        }
        self.connect_links(&topology)?;
        self.order_all(|_| Command::Install(Arc::clone(&topology)))?;
        self.shared.service.install(Arc::clone(&topology));
        *lock(&self.outdated) = Some(std::mem::replace(&mut current, topology));
        Ok(generation)
    }

    /// The picture before the one in force, when nobody has it any more: what both have in common need not
    /// be made again for the next.
    pub fn outdated(&self) -> Option<Topology> {
        lock(&self.outdated).take().and_then(Arc::into_inner)
    }

    /// Plugs or unplugs a port's cable as its far side sees it, where the backend can.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Refused`].
    pub fn set_carrier(&self, id: PortId, carrier: Carrier) -> Result<(), Error> {
        self.order_all(|_| Command::SetCarrier(id, carrier))
    }

    /// Tells the stations of a port's network that `address` is at `mac`, behind that port. The
    /// port must be in the topology. When this returns the first [`ANNOUNCED_AT_ONCE`] ports
    /// were told; the others are in the turns that follow, most of them when no more orders come.
    ///
    /// # Errors
    /// [`Error::Silent`]; [`Error::Refused`] when [`ANNOUNCEMENTS_MAX`] wait already: the first ports
    /// were told all the same.
    pub fn announce(&self, port: PortId, mac: MacAddr, address: IpAddr) -> Result<(), Error> {
        let frame = dataplane_service::announce::announcement(mac, address);
        self.order_one(0, Command::Announce(port, frame))
    }

    /// Sends a loop probe by every port that has [`l2::PortFlags::LOOP_DETECT`] and is up. One that
    /// comes back is told as [`Notice::Sighted`].
    ///
    /// # Errors
    /// [`Error::Silent`].
    pub fn probe(&self) -> Result<(), Error> {
        self.order_one(0, Command::Probe(self.probe_key))
    }

    /// The picture that is in force.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&lock(&self.topology))
    }

    /// The forwarding database.
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// The meters of storm control.
    pub fn storm(&self) -> &StormMeters {
        &self.storm
    }

    /// Who listens to which groups.
    pub fn mdb(&self) -> &Arc<Mdb> {
        &self.mdb
    }

    /// The tables of the gateways: address translations.
    pub fn gateway(&self) -> &Arc<route::Tables> {
        &self.gateway
    }

    /// The dataplane's clock: the `now` of ages and sessions.
    pub fn now(&self) -> Instant {
        self.shared.instant(Clock::now())
    }

    /// What workers have to tell; a hint, never the only source.
    pub fn notices(&self) -> &Receiver<Notice> {
        &self.notices
    }

    /// Reads every counter.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for worker in &self.workers {
            stats.add_core(&worker.core);
            stats.add_floods(&worker.counters);
            stats
                .workers
                .push(WorkerStats::read(&worker.counters, &worker.core));
        }
        let ports = lock(&self.ports);
        stats.ports = ports
            .iter()
            .map(|(id, port)| PortStats::sum(*id, &port.counters))
            .collect();
        stats.links = self.link_stats();
        stats.retired = lock(&self.retired).clone();
        stats
    }

    /// Starts a trace of every frame, keeping up to `snap_size` bytes of each. It ends when the
    /// returned [`TraceStream`] is dropped.
    ///
    /// # Errors
    /// [`Error::Traces`], [`Error::Silent`].
    pub fn trace(self: &Arc<Self>, snap_size: usize) -> Result<TraceStream, Error> {
        let mut traces = lock(&self.traces);
        if traces.running >= tracing::TRACES_MAX {
            return Err(Error::Traces);
        }
        let number = traces.started;
        let (tap, records) = tracing::channel(number, snap_size);
        self.order_all(|_| Command::Trace(tap.clone()))?;
        traces.started += 1;
        traces.running += 1;
        Ok(TraceStream {
            dataplane: Arc::clone(self),
            number,
            records,
        })
    }

    /// Returns the memory of dead FDB entries. Walks the table; call it every few seconds.
    pub fn sweep(&self) -> usize {
        let topology = self.topology();
        let ageing = |id| {
            topology
                .domain(id)
                .map_or(AGEING_DEFAULT, |domain| domain.ageing)
        };
        self.fdb.sweep(self.now(), ageing)
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            service.stop(&self.shared);
        }
        let _ = self.order_all(|_| Command::Stop);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// A running trace.
#[derive(Debug)]
pub struct TraceStream {
    dataplane: Arc<Dataplane>,
    number: u64,
    records: Receiver<tracing::Record>,
}

impl TraceStream {
    /// Where the records arrive.
    pub fn records(&self) -> &Receiver<tracing::Record> {
        &self.records
    }
}

impl Drop for TraceStream {
    fn drop(&mut self) {
        let mut traces = lock(&self.dataplane.traces);
        let _ = self.dataplane.order_all(|_| Command::EndTrace(self.number));
        traces.running -= 1;
    }
}

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shared")
            .field("workers", &self.wakers.len())
            .finish_non_exhaustive()
    }
}

/// Runs a worker or the service thread. A panic ends the process: half of a switch is worse than none, and the next
/// start adopts what is there.
fn run_or_abort(run: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        ::tracing::error!(
            "a thread of the dataplane panicked; ending the process so that a restart can adopt"
        );
        std::process::abort();
    }
}

/// A seed from the system's randomness, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one(0u8)
}

/// Locks on the control side; a panic of another holder leaves plain data behind.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
