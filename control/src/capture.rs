//! `causeway capture -w F.pcapng [--port P]`: frames as each port saw them, for stock tools.
//!
//! A capture is a trace written as pcapng: an interface block per switch port, an enhanced packet
//! block for a frame where it entered and for each port that it left by, its direction in
//! `epb_flags`, and in the comment what became of it.
//!
//! Limits: frames larger than the snap length are cut, as the block says; a GSO frame is one
//! block, as it crossed the switch.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use dataplane::tracing::Record;
use dataplane::what_if::as_it_leaves;
use dataplane_core::addr::PortId;
use dataplane_core::topology::Topology;
use dataplane_core::verdict::{Awaited, Verdict};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;

use crate::explain::explain;
use crate::pcapng::{FrameWriter, InterfaceId, Packet};

/// Bytes of each frame that a capture keeps when none are named: whole frames of any size.
pub const SNAP_SIZE_DEFAULT: usize = 65_600;

/// `epb_flags`: direction inbound and outbound (draft-ietf-opsawg-pcapng section 4.3.1).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes records as pcapng.
pub struct Capture<W: Write> {
    writer: FrameWriter<W>,
    /// Interfaces by port.
    interfaces: HashMap<PortId, InterfaceId>,
    /// The only port that is captured; `None` for all.
    only: Option<PortId>,
    /// Wall-clock time of the dataplane's origin.
    origin: Duration,
    snap_size: usize,
}

impl<W: Write> Capture<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What the writer said.
    pub fn new(
        out: W,
        only: Option<PortId>,
        origin: Duration,
        snap_size: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            writer: FrameWriter::new(out)?,
            interfaces: HashMap::new(),
            only,
            origin,
            snap_size,
        })
    }

    /// Writes a frame as each captured port saw it. One that its port's link holds is written when
    /// it enters the switch, not twice.
    ///
    /// # Errors
    /// What the writer said.
    pub fn write(&mut self, record: &Record, topology: &Topology) -> io::Result<()> {
        if record.verdict == Verdict::Held(Awaited::Link) {
            return Ok(());
        }
        let lines = explain(&record.steps, topology);
        let story = lines
            .last()
            .map_or_else(String::new, |line| line.text.clone());
        if self.captures(record.ingress) {
            let frame = (&record.before[..], record.size);
            self.block(record, record.ingress, INBOUND, frame, &story, topology)?;
        }
        for port in &record.egress {
            if self.captures(*port) {
                let left = as_it_leaves(topology, record.verdict, *port, &record.after);
                let size = record.size_after + left.len() - record.after.len();
                let kept = &left[..left.len().min(self.snap_size)];
                self.block(record, *port, OUTBOUND, (kept, size), &story, topology)?;
            }
        }
        Ok(())
    }

    /// The writer, for flushing.
    pub fn get_mut(&mut self) -> &mut W {
        self.writer.get_mut()
    }

    fn captures(&self, port: PortId) -> bool {
        self.only.is_none_or(|only| only == port)
    }

    fn block(
        &mut self,
        record: &Record,
        port: PortId,
        flags: u32,
        (bytes, size): (&[u8], usize),
        story: &str,
        topology: &Topology,
    ) -> io::Result<()> {
        let packet = Packet {
            interface: self.interface(port, topology)?,
            at: self.origin + Duration::from_nanos(record.at.nanos()),
            bytes,
            size,
        };
        let comment = format!("#{} {story}", record.sequence);
        let options = vec![
            EnhancedPacketOption::Comment(Cow::Owned(comment)),
            EnhancedPacketOption::Flags(flags),
        ];
        self.writer.packet(&packet, options)
    }

    /// The interface of a port, described when it is first needed.
    fn interface(&mut self, port: PortId, topology: &Topology) -> io::Result<InterfaceId> {
        if let Some(id) = self.interfaces.get(&port) {
            return Ok(*id);
        }
        let name = topology
            .port(port)
            .map_or_else(|| port.to_string(), |p| p.name.to_string());
        let id = self.writer.interface(&name, self.snap_size)?;
        self.interfaces.insert(port, id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::frame::Offload;
    use dataplane_core::time::Instant;
    use dataplane_core::topology::{Port, Role};
    use dataplane_core::trace::Step;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
    use pcap_file::pcapng::{Block, PcapNgReader};

    fn topology() -> Topology {
        let mut topology = Topology::default();
        for (id, name) in [(1, "web"), (2, "db")] {
            topology.put_port(Port::new(PortId(id), name, Role::HostLink));
        }
        topology
    }

    fn record() -> Record {
        let verdict = Verdict::Routed(PortId(2));
        Record {
            sequence: 7,
            worker: 0,
            at: Instant::from_nanos(1_000_000_001),
            ingress: PortId(1),
            size: 100,
            offload: Offload::NONE,
            before: vec![1; 60],
            after: vec![2; 60],
            size_after: 100,
            offload_after: Offload::NONE,
            verdict,
            egress: vec![PortId(2)],
            steps: vec![Step::Verdict(verdict)],
        }
    }

    #[test]
    fn what_a_link_holds_is_written_when_it_enters() {
        let mut capture = Capture::new(Vec::new(), None, Duration::from_secs(100), 96).unwrap();
        let verdict = Verdict::Held(Awaited::Link);
        let held = Record {
            verdict,
            egress: Vec::new(),
            steps: vec![Step::Verdict(verdict)],
            ..record()
        };
        capture.write(&held, &topology()).unwrap();
        capture.write(&record(), &topology()).unwrap();
        let (_, packets) = read(capture.get_mut());
        assert_eq!(packets.len(), 2, "in by the one and out by the other");
    }

    /// (interface, direction, first byte, whole size, comment) of a packet block.
    type Packet = (u32, u32, u8, u32, String);

    /// The interfaces' names, and every packet block.
    fn read(bytes: &[u8]) -> (Vec<String>, Vec<Packet>) {
        let mut reader = PcapNgReader::new(bytes).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(block) => {
                    let name = block.options.iter().find_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                        _ => None,
                    });
                    names.push(name.unwrap());
                }
                Block::EnhancedPacket(block) => {
                    let (mut flags, mut comment) = (0, String::new());
                    for option in &block.options {
                        match option {
                            EnhancedPacketOption::Flags(value) => flags = *value,
                            EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                            _ => {}
                        }
                    }
                    assert_eq!(block.timestamp, Duration::new(101, 1));
                    let first = block.data[0];
                    packets.push((
                        block.interface_id,
                        flags,
                        first,
                        block.original_len,
                        comment,
                    ));
                }
                _ => {}
            }
        }
        (names, packets)
    }

    #[test]
    fn a_frame_is_written_where_it_entered_and_where_it_left() {
        let mut out = Vec::new();
        let origin = Duration::from_secs(100);
        let mut capture = Capture::new(&mut out, None, origin, 60).unwrap();
        capture.write(&record(), &topology()).unwrap();
        let (names, packets) = read(&out);
        assert_eq!(names, ["web", "db"]);
        let story = "#7 routed to db".to_owned();
        assert_eq!(
            packets,
            [(0, 1, 1, 100, story.clone()), (1, 2, 2, 100, story)]
        );
    }

    #[test]
    fn a_capture_of_one_port_has_nothing_of_the_others() {
        let mut out = Vec::new();
        let origin = Duration::from_secs(100);
        let mut capture = Capture::new(&mut out, Some(PortId(2)), origin, 60).unwrap();
        capture.write(&record(), &topology()).unwrap();
        let (names, packets) = read(&out);
        assert_eq!(names, ["db"]);
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].1, OUTBOUND);
    }
}
