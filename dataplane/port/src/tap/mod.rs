//! TAP devices with a virtio-net header: the default backend.
//!
//! The device is moved into a sandbox as its `eth0` while the descriptors stay here. Checksums
//! and segmentation stay unfinished in both directions, so a 64 KiB TCP frame crosses the switch
//! with one `read` and one `write` (linux/if_tun.h, Documentation/networking/tuntap.rst).
//!
//! The device appears in the network namespace in which `/dev/net/tun` is opened: the calling
//! thread's. Address, MTU, MAC, name and state are set by rtnetlink elsewhere. Set the root qdisc
//! to `noqueue` before the first "up", or a multi-queue TAP costs megabytes and drops unseen.
//!
//! Limits: [`QUEUES_MAX`] queues. A frame is read whole or not at all: the kernel caps GSO at
//! 64 KiB for a TAP (`TSO_LEGACY_MAX_SIZE`), which is what a [`FrameBuf`] holds.
//! Thread-safety: each [`Tap`] is one queue with one owner; the queues of a device are
//! independent.

mod error;

use std::ffi::{c_int, c_uint, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use dataplane_core::frame::{FRAME_SIZE_MAX, FrameBuf};

use crate::virtio::{self, VNET_HEADER_SIZE};
use crate::{BATCH_MAX, Batch, Capabilities, Carrier, EdgeStats, PortIo, sys};

pub use error::TapError;

/// Queues of one device (`MAX_TAP_QUEUES` in drivers/net/tun.c).
pub const QUEUES_MAX: usize = 256;

/// Where TAP devices come from.
const TUN_DEVICE: &str = "/dev/net/tun";

/// One queue of a TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: Box<str>,
    offload: TapOffload,
    rx_malformed: u64,
}

/// What may stay unfinished in frames from and to a TAP device, in falling order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TapOffload {
    /// Complete frames only.
    None,
    /// Unfinished L4 checksums.
    Checksum,
    /// Also oversized TCP frames.
    Tcp,
    /// Also oversized UDP frames: `TUN_F_USO4` and `TUN_F_USO6`, Linux 6.2 and later.
    TcpUdp,
}

impl TapOffload {
    /// What is tried, best first.
    const FALLBACKS: [Self; 4] = [Self::TcpUdp, Self::Tcp, Self::Checksum, Self::None];

    /// The argument of `TUNSETOFFLOAD`.
    const fn bits(self) -> c_uint {
        const TCP: c_uint =
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        match self {
            Self::None => 0,
            Self::Checksum => libc::TUN_F_CSUM,
            Self::Tcp => TCP,
            Self::TcpUdp => TCP | libc::TUN_F_USO4 | libc::TUN_F_USO6,
        }
    }
}

/// What is asked of the kernel, each in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `/dev/net/tun`.
    Node,
    /// A device with several queues and virtio-net headers: without it there is none of this kind.
    Queues,
    /// The size of the headers, which a new device has anyway.
    HeaderSize,
    /// Frames that are unfinished so far; without it, less so.
    Offload(TapOffload),
}

/// Whether a device outlives its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The device vanishes with its last descriptor.
    WhileOpen,
    /// The device stays, without carrier, and can be attached to again.
    Persistent,
}

/// How to open a TAP device.
#[derive(Clone, Debug)]
pub struct TapBuilder {
    name: Box<str>,
    queues: usize,
    persistence: Option<Persistence>,
    send_buffer_size: Option<u32>,
    offload_max: TapOffload,
    refused: Vec<(Feature, c_int)>,
}

impl TapBuilder {
    /// A device with one queue and all offloads that the kernel accepts.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            queues: 1,
            persistence: None,
            send_buffer_size: None,
            offload_max: TapOffload::TcpUdp,
            refused: Vec::new(),
        }
    }

    /// Opens this many queues: one per worker.
    #[must_use]
    pub fn queues(mut self, count: usize) -> Self {
        self.queues = count;
        self
    }

    /// Sets whether the device outlives its descriptors. Without it, a new device does not, and
    /// an existing one is left as it is.
    #[must_use]
    pub fn persistence(mut self, persistence: Persistence) -> Self {
        self.persistence = Some(persistence);
        self
    }

    /// Bounds what may be queued towards the device in bytes (`TUNSETSNDBUF`); a writer beyond
    /// that gets `WouldBlock`. Without it there is no bound, and no `WouldBlock`.
    #[must_use]
    pub fn send_buffer_size(mut self, bytes: u32) -> Self {
        self.send_buffer_size = Some(bytes);
        self
    }

    /// Negotiates nothing better than `offload`.
    #[must_use]
    pub fn offload_max(mut self, offload: TapOffload) -> Self {
        self.offload_max = offload;
        self
    }

    /// Goes on as if the kernel had refused a feature with this error: for tests of what is done without it.
    #[must_use]
    pub fn refuse(mut self, feature: Feature, errno: c_int) -> Self {
        self.refused.push((feature, errno));
        self
    }

    /// Creates the device in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`TapError::NameTaken`] when any interface has the name: joining somebody else's device
    /// would silently take a share of its frames. [`TapError::Unsupported`] when the kernel makes no such
    /// device.
    pub fn create(&self) -> Result<Vec<Tap>, TapError> {
        self.open(Opening::Create)
    }

    /// Attaches to an existing persistent device in the calling thread's network namespace, with
    /// the flags that [`TapBuilder::create`] uses.
    ///
    /// # Errors
    /// [`TapError::NotFound`] when there is none, [`TapError::NotOurKind`] when it was not made
    /// by [`TapBuilder::create`].
    pub fn attach(&self) -> Result<Vec<Tap>, TapError> {
        sys::interface_index(&self.name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TapError::NotFound {
                name: self.name.clone(),
            },
            _ => self.failed("look up", error),
        })?;
        self.open(Opening::Attach)
    }

    fn open(&self, opening: Opening) -> Result<Vec<Tap>, TapError> {
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(TapError::QueueCount(self.queues));
        }
        let mut files = Vec::with_capacity(self.queues);
        for index in 0..self.queues {
            // Only the first queue can be the one that creates the device.
            let opening = if index == 0 { opening } else { Opening::Attach };
            files.push(self.open_queue(opening)?);
        }
        let Some(first) = files.first() else {
            return Err(TapError::QueueCount(0));
        };
        let offload = self.configure(first, opening)?;
        Ok(files
            .into_iter()
            .map(|file| Tap {
                file,
                name: self.name.clone(),
                offload,
                rx_malformed: 0,
            })
            .collect())
    }

    /// One descriptor, bound to the device.
    fn open_queue(&self, opening: Opening) -> Result<File, TapError> {
        let name = sys::interface_name(&self.name).ok_or_else(|| TapError::NameInvalid {
            name: self.name.clone(),
        })?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = self
            .ask(Feature::Node, || options.open(TUN_DEVICE))
            .map_err(|error| self.failed("open", error))?;
        let mut flags =
            libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        if opening == Opening::Create {
            flags |= libc::IFF_TUN_EXCL;
        }
        let mut request = InterfaceRequest {
            name,
            // The field is 16 bits of flags (`ifr_flags`), of which IFF_TUN_EXCL is the highest.
            flags: flags as u16,
            padding: [0; 22],
        };
        self.ask(Feature::Queues, || {
            let request = IoctlArgument::Request(&mut request);
            ioctl(file.as_fd(), libc::TUNSETIFF, request)
        })
        .map_err(|error| match (error.raw_os_error(), opening) {
            (Some(libc::EBUSY), _) => TapError::NameTaken {
                name: self.name.clone(),
            },
            (Some(libc::EINVAL), Opening::Attach) => TapError::NotOurKind {
                name: self.name.clone(),
            },
            // Flags that the kernel does not know (`TUN_FEATURES` of drivers/net/tun.c); the name is valid.
            (Some(libc::EINVAL), Opening::Create) => TapError::Unsupported {
                name: self.name.clone(),
            },
            _ => self.failed("bind", error),
        })?;
        Ok(file)
    }

    /// Asks the kernel, unless the builder is to refuse in its place.
    fn ask<T>(&self, feature: Feature, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.refused.iter().find(|(refused, _)| *refused == feature) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => call(),
        }
    }

    /// Settings of the device as a whole; returns the offload that the kernel accepted.
    fn configure(&self, file: &File, opening: Opening) -> Result<TapOffload, TapError> {
        let header_size = VNET_HEADER_SIZE as c_int;
        let sized = self.ask(Feature::HeaderSize, || {
            let size = IoctlArgument::Int(&header_size);
            ioctl(file.as_fd(), libc::TUNSETVNETHDRSZ, size)
        });
        match (sized, opening) {
            // A new device has headers of this size (`tun_set_iff` of drivers/net/tun.c).
            (Ok(()), _) | (Err(_), Opening::Create) => {}
            (Err(error), Opening::Attach) => {
                return Err(self.failed("set the header size of", error));
            }
        }
        if let Some(bytes) = self.send_buffer_size {
            let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
            ioctl(file.as_fd(), libc::TUNSETSNDBUF, IoctlArgument::Int(&bytes))
                .map_err(|error| self.failed("set the send buffer of", error))?;
        }
        if let Some(persistence) = self.persistence {
            set_persistence(file.as_fd(), persistence)
                .map_err(|error| self.failed("set the persistence of", error))?;
        }
        let mut refused = None;
        for offload in TapOffload::FALLBACKS {
            if offload > self.offload_max {
                continue;
            }
            let bits = IoctlArgument::Value(c_ulong::from(offload.bits()));
            let set = || ioctl(file.as_fd(), libc::TUNSETOFFLOAD, bits);
            match self.ask(Feature::Offload(offload), set) {
                Ok(()) => return Ok(offload),
                Err(error) => refused = Some(error),
            }
        }
        let error = refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
        Err(self.failed("set the offloads of", error))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> TapError {
        TapError::from_io(&self.name, operation, source)
    }
}

/// Whether the first queue makes the device or joins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Create,
    Attach,
}

impl Tap {
    /// Creates a device with `queues` queues that vanishes with its last descriptor.
    ///
    /// # Errors
    /// As [`TapBuilder::create`].
    pub fn create(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        TapBuilder::new(name).queues(queues).create()
    }

    /// The name that the device was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel and we agreed to leave unfinished.
    pub fn offload(&self) -> TapOffload {
        self.offload
    }

    /// The device's index in the calling thread's network namespace.
    ///
    /// # Errors
    /// `NotFound` when the device is not in that namespace under its first name.
    pub fn interface_index(&self) -> io::Result<u32> {
        sys::interface_index(&self.name)
    }

    /// Sets whether the device outlives its descriptors.
    ///
    /// # Errors
    /// What `TUNSETPERSIST` says.
    pub fn set_persistence(&self, persistence: Persistence) -> io::Result<()> {
        set_persistence(self.file.as_fd(), persistence)
    }

    /// Reads one frame; `Ok(None)` when it was shorter than its own header.
    #[inline]
    fn read_frame(&mut self, buf: &mut FrameBuf) -> io::Result<Option<usize>> {
        let area = buf.receive_area(VNET_HEADER_SIZE);
        let size = self.file.read(area)?;
        let Some((header, _)) = area.split_first_chunk() else {
            return Ok(None);
        };
        let Some(frame_size) = size.checked_sub(VNET_HEADER_SIZE) else {
            return Ok(None);
        };
        let offload = virtio::sanitise(virtio::decode(header), frame_size);
        buf.set_received(frame_size, offload);
        Ok(Some(frame_size))
    }

    /// Writes one frame with its header.
    #[inline]
    fn write_frame(&mut self, frame: &mut FrameBuf) -> io::Result<usize> {
        let header = virtio::encode(frame.offload);
        if let Some(area) = frame.with_prefix(VNET_HEADER_SIZE) {
            area[..VNET_HEADER_SIZE].copy_from_slice(&header);
            return self.file.write(area);
        }
        // A frame whose headroom was used up by what the path put in front of it.
        let parts = [io::IoSlice::new(&header), io::IoSlice::new(frame.bytes())];
        self.file.write_vectored(&parts)
    }
}

impl PortIo for Tap {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            frame_size_max: FRAME_SIZE_MAX,
            checksum: self.offload >= TapOffload::Checksum,
            gso_tcp: self.offload >= TapOffload::Tcp,
            gso_udp: self.offload >= TapOffload::TcpUdp,
        }
    }

    fn recv(&mut self, rx: &mut Batch) -> io::Result<usize> {
        let before = rx.len();
        // Skipped frames count too, so that a flood of them cannot hold the worker.
        for _ in 0..BATCH_MAX {
            let Some(mut buf) = rx.take_buffer() else {
                break;
            };
            match self.read_frame(&mut buf) {
                Ok(Some(_)) => rx.push(buf),
                Ok(None) => {
                    self.rx_malformed += 1;
                    rx.recycle(buf);
                }
                Err(error) => {
                    rx.recycle(buf);
                    if rx.len() == before {
                        return Err(classified(error));
                    }
                    if error.kind() == io::ErrorKind::WouldBlock {
                        rx.mark_drained();
                    }
                    break;
                }
            }
        }
        Ok(rx.len() - before)
    }

    fn send(&mut self, frames: &mut [FrameBuf]) -> io::Result<usize> {
        for (sent, frame) in frames.iter_mut().enumerate() {
            match self.write_frame(frame) {
                Ok(_) => {}
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(classified(error)),
            }
        }
        Ok(frames.len())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn set_carrier(&self, carrier: Carrier) -> io::Result<()> {
        set_carrier(self.file.as_fd(), carrier)
    }

    /// What the device dropped because its queue was full is in its own statistics alone
    /// (`tx_dropped`, as the sandbox sees it): a descriptor does not tell.
    fn edge_stats(&self) -> EdgeStats {
        EdgeStats {
            rx_malformed: self.rx_malformed,
            ..EdgeStats::default()
        }
    }
}

/// `TUNSETCARRIER` on a descriptor of `/dev/net/tun`; kernels before 4.20 do not know it.
pub(crate) fn set_carrier(fd: BorrowedFd<'_>, carrier: Carrier) -> io::Result<()> {
    let present = c_int::from(carrier == Carrier::Present);
    ioctl(fd, libc::TUNSETCARRIER, IoctlArgument::Int(&present))
}

/// `TUNSETPERSIST` on a descriptor of `/dev/net/tun`.
pub(crate) fn set_persistence(fd: BorrowedFd<'_>, persistence: Persistence) -> io::Result<()> {
    let on = c_ulong::from(persistence == Persistence::Persistent);
    ioctl(fd, libc::TUNSETPERSIST, IoctlArgument::Value(on))
}

/// The kernel's words in those of [`PortIo`]: EIO means that the interface is down, EBADFD that
/// the device or its namespace is gone (drivers/net/tun.c).
pub(crate) fn classified(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EIO | libc::EBADFD | libc::ENODEV | libc::ENXIO) => {
            io::Error::new(io::ErrorKind::NotConnected, error)
        }
        _ => error,
    }
}

/// `struct ifreq` of linux/if.h, as far as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [libc::c_char; sys::INTERFACE_NAME_SIZE],
    flags: u16,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// What the third argument of an ioctl is.
enum IoctlArgument<'a> {
    /// The value itself.
    Value(c_ulong),
    /// The address of an int.
    Int(&'a c_int),
    /// The address of an `ifreq`.
    Request(&'a mut InterfaceRequest),
}

/// One of the requests of linux/if_tun.h, on a descriptor of `/dev/net/tun`.
fn ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: IoctlArgument<'_>) -> io::Result<()> {
    let argument = match argument {
        IoctlArgument::Value(value) => value,
        IoctlArgument::Int(value) => (&raw const *value) as c_ulong,
        IoctlArgument::Request(value) => (&raw mut *value) as c_ulong,
    };
    // SAFETY: the argument is either a number or the address of a live struct of the type that
    // the request reads; TUNSETIFF also writes to it, which the exclusive
    // reference allows.
    // JUSTIFICATION: std has no ioctl.
    let returned = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    sys::check(returned).map(drop)
}
