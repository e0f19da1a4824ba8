//! Frames as pcapng (draft-ietf-opsawg-pcapng), which Wireshark and tcpdump read: written for
//! captures and for mirrors alike.
//!
//! Times are in nanoseconds. Blocks are in the machine's byte order.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

/// `if_tsresol`: nanoseconds, 10^-9.
const NANOSECONDS: u8 = 9;

/// Writes one section.
pub struct FrameWriter<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: u32,
}

/// An interface of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceId(u32);

/// A frame that is written.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// By which interface it was seen.
    pub interface: InterfaceId,
    /// When, counted from the Unix epoch.
    pub at: Duration,
    /// What is kept of it.
    pub bytes: &'a [u8],
    /// Its whole size.
    pub size: usize,
}

impl<W: Write> FrameWriter<W> {
    /// Begins a section: a file, or what follows another section in one.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(out: W) -> io::Result<Self> {
        let writer = PcapNgWriter::new(out).map_err(to_io)?;
        Ok(Self {
            writer,
            interfaces: 0,
        })
    }

    /// Describes an interface of Ethernet frames, of which so many bytes are kept.
    ///
    /// # Errors
    /// What the underlying writer says.
    pub fn interface(&mut self, name: &str, snap_size: usize) -> io::Result<InterfaceId> {
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: snap_size as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(to_io)?;
        let id = InterfaceId(self.interfaces);
        self.interfaces += 1;
        Ok(id)
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// What the underlying writer says.
    pub fn packet(
        &mut self,
        packet: &Packet<'_>,
        options: Vec<EnhancedPacketOption<'_>>,
    ) -> io::Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: packet.interface.0,
            timestamp: packet.at,
            original_len: packet.size as u32,
            data: Cow::Borrowed(packet.bytes),
            options,
        };
        self.writer.write_pcapng_block(block).map_err(to_io)?;
        Ok(())
    }

    /// What is written to.
    pub fn get_mut(&mut self) -> &mut W {
        self.writer.get_mut()
    }
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
