//! The namespace lab: sandboxes, cables between them, and plain sockets inside.
//!
//! Every namespace is unnamed, so it vanishes with the last handle, even when a test panics, and
//! any number of tests run side by side. No external tool is called: links are made by
//! rtnetlink, traffic by `std::net`. Tests that need rights they may not have start with
//!
//! ```no_run
//! # fn some_test() {
//! if !tests::lab::require_root("some_test") {
//!     return;
//! }
//! # }
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use control::link::inet::{DuplicateDetection, Route};
use control::link::{Link, Netlink, VethEnd};
use control::netns::Netns;
use dataplane_core::addr::{MacAddr, Prefix};

/// How long a test waits for something that takes milliseconds on a quiet machine.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks at a condition: short against everything that tests wait for.
const POLL_PAUSE: Duration = Duration::from_millis(2);
/// Longest sysctl that a test reads.
const SYSCTL_SIZE_MAX: usize = 65_536;
/// MTU of a cable when a test does not say otherwise.
pub const MTU_DEFAULT: u32 = 1_500;

/// Drives the netlink sockets of every lab of this process.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime for the lab")
});

static SKIPPED: AtomicUsize = AtomicUsize::new(0);
static LABS: AtomicUsize = AtomicUsize::new(0);

/// Waits for a future on the lab's runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// Whether namespaces can be made here. If not, says so on the real standard error, which the
/// test harness does not capture, and counts the test as skipped.
pub fn require_root(test: &str) -> bool {
    match Netns::create_unnamed() {
        Ok(_) => true,
        Err(error) => {
            SKIPPED.fetch_add(1, Ordering::Relaxed);
            // Not eprintln: its output is captured when the test passes.
            if let Err(error) = writeln!(io::stderr(), "needs root: {test} ({error})") {
                panic!("cannot say that {test} is skipped: {error}");
            }
            false
        }
    }
}

/// Tests of this process that [`require_root`] has turned away.
pub fn skipped_count() -> usize {
    SKIPPED.load(Ordering::Relaxed)
}

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` when it still does not after `deadline`.
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(deadline, what, || condition().then_some(()));
}

/// Waits until `probe` finds something.
///
/// # Panics
/// With `what` when it still has not after `deadline`.
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        thread::park_timeout(POLL_PAUSE);
    }
}

/// Connects by TCP, again and again until somebody accepts or `deadline` has passed.
///
/// # Panics
/// When nobody has accepted by then.
pub fn connect(deadline: Duration, address: SocketAddr) -> TcpStream {
    let mut last = None;
    wait_for(
        deadline,
        &format!("a connection to {address}"),
        || match TcpStream::connect_timeout(&address, deadline) {
            Ok(stream) => Some(stream),
            Err(error) => {
                last = Some(error);
                None
            }
        },
    )
}

/// One test's surroundings: a name for messages and a directory that is removed at the end.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
}

impl Lab {
    /// A lab of its own, however many others there are.
    ///
    /// # Panics
    /// When its directory cannot be made.
    pub fn new(name: &str) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let unique = format!("cw-{name}-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(unique);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot create {dir:?}: {e}"));
        Self {
            name: name.to_owned(),
            dir,
        }
    }

    /// A directory for sockets and state.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new namespace with `lo` up, which is gone when the returned handle is.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn namespace(&self, label: &str) -> Namespace {
        let label = format!("{}/{label}", self.name);
        let netns = Netns::create_unnamed().unwrap_or_else(|e| panic!("{label}: {e}"));
        Namespace::new(&label, netns)
    }

    /// Namespaces of these labels, in their order.
    ///
    /// # Panics
    /// When one cannot be made.
    pub fn namespaces<const N: usize>(&self, labels: [&str; N]) -> [Namespace; N] {
        labels.map(|label| self.namespace(label))
    }

    /// A host with an uplink to an outside: 192.0.2.1 on `up0`, 192.0.2.2 on `eth0`, which is also
    /// the host's default route.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn host_and_outside(&self) -> (Namespace, Namespace) {
        let (host, outside) = (self.namespace("host"), self.namespace("outside"));
        self.cable(&host, "up0", &outside, "eth0");
        host.add_address("up0", "192.0.2.1/24");
        outside.add_address("eth0", "192.0.2.2/24");
        host.add_default_route("up0", "192.0.2.2");
        (host, outside)
    }

    /// A veth cable between two namespaces, both ends up.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn cable(&self, one: &Namespace, one_name: &str, two: &Namespace, two_name: &str) {
        let end = |name| VethEnd {
            name,
            mac: None,
            mtu: MTU_DEFAULT,
        };
        block_on(
            one.netlink
                .create_veth(end(one_name), end(two_name), &two.netns),
        )
        .unwrap_or_else(|e| panic!("{}: {e}", one.label));
        one.set_up(one_name);
        two.set_up(two_name);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!(
                "{}: cannot remove {}: {error}",
                self.name,
                self.dir.display()
            );
        }
    }
}

/// A network namespace with what tests do in one. Methods panic with the namespace's label.
#[derive(Clone, Debug)]
pub struct Namespace {
    label: String,
    netns: Netns,
    netlink: Netlink,
}

/// A process that ends with the test.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Namespace {
    /// Takes a namespace into the lab.
    ///
    /// # Panics
    /// When no netlink socket can be opened in it.
    pub fn new(label: &str, netns: Netns) -> Self {
        let context = RUNTIME.enter();
        let netlink = Netlink::open(&netns).unwrap_or_else(|e| panic!("{label}: {e}"));
        drop(context);
        Self {
            label: label.to_owned(),
            netns,
            netlink,
        }
    }

    /// The namespace itself.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its netlink socket; wait for its methods with [`block_on`].
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The path by which another program can open the namespace while this process lives.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.netns.as_raw_fd()
        ))
    }

    /// Runs `work` inside and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns
            .run(work)
            .unwrap_or_else(|e| panic!("{}: {e}", self.label))
    }

    /// Runs `work` inside, on a thread that the caller joins.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let ns = self.clone();
        thread::spawn(move || ns.run(work))
    }

    /// Starts a program inside.
    pub fn start(&self, command: &mut Command) -> Child {
        let started = self.run(|| command.spawn());
        started.unwrap_or_else(|e| panic!("{}: {command:?}: {e}", self.label))
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Link {
        block_on(self.netlink.require(name)).unwrap_or_else(|e| panic!("{}: {e}", self.label))
    }

    /// Brings a link up.
    pub fn set_up(&self, name: &str) {
        let index = self.link(name).index;
        self.expect(block_on(self.netlink.set_up(index)));
    }

    /// Sets a link's MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) {
        let index = self.link(name).index;
        self.expect(block_on(self.netlink.set_mtu(index, mtu)));
    }

    /// The MAC of a link.
    pub fn mac(&self, name: &str) -> MacAddr {
        self.link(name)
            .mac
            .unwrap_or_else(|| panic!("{}: {name} has no MAC", self.label))
    }

    /// Adds an address such as `10.0.0.1/24`, without duplicate address detection.
    pub fn add_address(&self, name: &str, address: &str) {
        let index = self.link(name).index;
        let prefix = prefix(address);
        let add = self
            .netlink
            .add_address(index, prefix, DuplicateDetection::Off);
        self.expect(block_on(add));
    }

    /// Adds the default route by `gateway`.
    pub fn add_default_route(&self, name: &str, gateway: &str) {
        let index = self.link(name).index;
        let route = Route::default_by(ip(gateway), index);
        self.expect(block_on(self.netlink.add_route(route)));
    }

    /// Routes a prefix such as `10.0.0.0/8` to `gateway`.
    pub fn add_route(&self, destination: &str, gateway: &str, name: &str) {
        let mut route = Route::on_link(prefix(destination), self.link(name).index);
        route.gateway = Some(ip(gateway));
        self.expect(block_on(self.netlink.add_route(route)));
    }

    /// Reads a sysctl of the namespace, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str) -> String {
        let path = Path::new("/proc/sys").join(name);
        // Some answer the first read only, and cut the text to its buffer.
        let read = self.run(|| {
            let mut text = vec![0; SYSCTL_SIZE_MAX];
            let size = fs::File::open(&path)?.read(&mut text)?;
            text.truncate(size);
            String::from_utf8(text).map_err(io::Error::other)
        });
        let text = read.unwrap_or_else(|e| panic!("{}: {}: {e}", self.label, path.display()));
        text.trim().to_owned()
    }

    /// Writes a sysctl of the namespace.
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| fs::write(&path, value))
            .unwrap_or_else(|e| panic!("{}: {}: {e}", self.label, path.display()));
    }

    fn expect(&self, result: Result<(), control::link::Error>) {
        result.unwrap_or_else(|e| panic!("{}: {e}", self.label));
    }
}

/// Reads an address; tests write only good ones.
pub fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("'{text}' is no IP address: {e}"))
}

/// Reads an address with its prefix length, such as `10.0.0.1/24`.
pub fn prefix(text: &str) -> Prefix {
    let (address, len) = text
        .split_once('/')
        .unwrap_or_else(|| panic!("'{text}' has no prefix length"));
    let len = len
        .parse()
        .unwrap_or_else(|e| panic!("'{text}' has a bad prefix length: {e}"));
    Prefix::new(ip(address), len)
}
