//! What sits at the far ends of a bridge's cables: sockets that send and hear whole frames.

use std::time::{Duration, Instant};

use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::packet::PacketSocket;
use dataplane_port::{Batch, PortIo};

use crate::bridges::{Outputs, PORTS};
use crate::lab::{self, Namespace};

/// One for each port.
#[derive(Debug)]
pub(super) struct Stations([Station; PORTS]);

impl Stations {
    /// Those whose interfaces are called by a stem and the port.
    pub fn new(ns: &Namespace, stem: &str) -> Self {
        Self(ns.run(|| std::array::from_fn(|port| Station::open(&format!("{stem}{port}")))))
    }

    pub fn send(&mut self, port: usize, frame: &[u8]) {
        self.0[port].send(frame);
    }

    /// What each has heard.
    pub fn collect(&mut self) -> Outputs {
        self.0.each_mut().map(Station::collect)
    }
}

/// A socket, with the buffers that it is used with.
#[derive(Debug)]
pub(super) struct Station {
    socket: PacketSocket,
    tx: [FrameBuf; 1],
    rx: Batch,
}

impl Station {
    pub fn open(name: &str) -> Self {
        let socket = PacketSocket::open(name);
        Self {
            socket: socket.unwrap_or_else(|error| panic!("{name}: {error}")),
            tx: [FrameBuf::new()],
            rx: Batch::new(),
        }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.tx[0].copy_from(frame, Offload::NONE);
        let sent = self.socket.send(&mut self.tx);
        assert_eq!(sent.expect("a frame that the device takes"), 1);
    }

    pub fn collect(&mut self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        while self.socket.recv(&mut self.rx).is_ok_and(|count| count > 0) {
            heard.extend(self.rx.frames().iter().map(|frame| frame.bytes().to_vec()));
            self.rx.clear();
        }
        heard
    }
}

/// No stack of the namespace speaks by itself.
pub(super) fn silence(ns: &Namespace) {
    for scope in ["all", "default"] {
        ns.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

/// Lets time pass, which is what a script is about.
pub(super) fn pass(time: Duration) {
    let end = Instant::now() + time;
    lab::wait_until(time + lab::DEADLINE, "time to pass", || {
        Instant::now() >= end
    });
}
