//! What an attachment cannot do without: a device in the sandbox, an address, a route, and a line on disk.
//!
//! There is no daemon, no API, no switch and no picture: what grows here with the number of namespaces and
//! devices of the machine is the kernel's, and Causeway's attachment grows at least as much.

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

use super::forwarder::{self, Queues};
use ::tests::lab::{Lab, Namespace};

/// Sandboxes that were plugged in, with the devices that keep them so.
pub struct Attacher {
    journal: File,
    sandboxes: Vec<(Namespace, Queues)>,
}

impl Attacher {
    /// Nobody is plugged in yet.
    ///
    /// # Errors
    /// When the file cannot be made to which each attachment writes a line.
    pub fn new(lab: &Lab) -> io::Result<Self> {
        Ok(Self {
            journal: File::create(lab.dir().join("attached"))?,
            sandboxes: Vec::new(),
        })
    }

    /// Plugs a sandbox in, with `address` and its prefix length, towards `gateway`. Milliseconds.
    ///
    /// # Errors
    /// When its device or its line cannot be made.
    pub fn attach(&mut self, ns: Namespace, address: &str, gateway: &str) -> io::Result<f64> {
        let start = Instant::now();
        let taps = forwarder::taps(&ns, 1)?;
        ns.add_address("eth0", address);
        ns.set_up("eth0");
        ns.add_default_route("eth0", gateway);
        writeln!(self.journal, "{address}")?;
        self.journal.sync_data()?;
        let took = start.elapsed();
        self.sandboxes.push((ns, taps));
        Ok(took.as_secs_f64() * 1e3)
    }
}
