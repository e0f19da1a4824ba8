//! A tunnel between two namespaces: a tun device in each, and a thread that carries packets from one
//! to the other. What either sends is IP without an Ethernet header, as through WireGuard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tun_tap::{Iface, Mode};

use crate::lab::Namespace;

/// Pause between two looks at a device that has no packet: short against a round trip.
const LOOK_PAUSE: Duration = Duration::from_micros(100);
/// Largest packet.
const PACKET_SIZE_MAX: usize = 65_535;

/// A tunnel; its devices vanish when it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// A tunnel with a device of this name in both namespaces, up and without addresses.
    ///
    /// # Panics
    /// When a device cannot be made.
    pub fn new(one: &Namespace, two: &Namespace, name: &str) -> Self {
        let open = |ns: &Namespace| {
            let made = ns.run(|| Iface::without_packet_info(name, Mode::Tun));
            let made = made.unwrap_or_else(|e| panic!("{name}: {e}"));
            made.set_non_blocking()
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            ns.set_up(name);
            Arc::new(made)
        };
        let (one, two) = (open(one), open(two));
        let stop = Arc::new(AtomicBool::new(false));
        let carrier = |from: &Arc<Iface>, to: &Arc<Iface>| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            std::thread::spawn(move || carry(&from, &to, &stop))
        };
        let carriers = vec![carrier(&one, &two), carrier(&two, &one)];
        Self { stop, carriers }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            if carrier.join().is_err() && !std::thread::panicking() {
                panic!("a carrier of the tunnel panicked");
            }
        }
    }
}

/// Carries packets until told to stop. One that the other device does not take is lost, as on any
/// link.
fn carry(from: &Iface, to: &Iface, stop: &AtomicBool) {
    let mut packet = vec![0; PACKET_SIZE_MAX];
    while !stop.load(Ordering::Relaxed) {
        match from.recv(&mut packet) {
            Ok(size) => drop(to.send(&packet[..size])),
            // Nothing there, or the device is down.
            Err(_) => std::thread::park_timeout(LOOK_PAUSE),
        }
    }
}
