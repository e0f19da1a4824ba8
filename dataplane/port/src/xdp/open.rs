//! Opening AF_XDP sockets: what the kernel can give is asked for, and what it refuses is done without
//! where that can be.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane_core::frame::FRAME_SIZE_MAX;
use dataplane_core::headers::{ETHERNET_SIZE, VLAN_TAG_SIZE};

use super::bpf::{self, HostHears, Mode, Pieces};
use super::error::XdpError;
use super::features::{Checksums, Feature, Features, Frames, Polling};
use super::memory::Umem;
use super::ring::Rings;
use super::{DESCRIPTORS_MAX, KERNEL_HEADROOM, METADATA_SIZE, Reach, XdpSocket};
use super::{RECEIVE_CHUNKS, TRANSMIT_CHUNKS};
use crate::{ethtool, packet, sys};

/// Queues of one interface: what [`crate::packet`] allows as well.
pub(super) const QUEUES_MAX: usize = crate::packet::QUEUES_MAX;

/// A chunk for frames of an MTU of 1,500, the smallest that the kernel allows.
const CHUNK_SIZE: usize = 2_048;
/// A chunk for larger frames: a page, the largest that it allows.
const LARGE_CHUNK_SIZE: usize = 4_096;

/// Bytes that the kernel may hold of frames on their way out: all chunks, as it counts them.
const SEND_BUFFER_SIZE: c_int = 8 << 20;

/// Frames that a busy poll may fetch: as many as the kernel fetches at once (`NAPI_POLL_WEIGHT`).
pub const BUSY_POLL_FRAMES_MAX: u16 = 64;
/// How long a busy poll may take, in microseconds. Sockets of AF_XDP look once and do not wait, so all that
/// counts is that it is not 0.
const BUSY_POLL_MICROSECONDS: c_int = 20;

/// How long a queue is waited for that is in use: of a socket that has been closed the kernel lets go a
/// moment later (`xp_put_pool` of net/xdp/xsk_buff_pool.c).
const RELEASE_MAX: Duration = Duration::from_millis(500);
/// How long between asking for it twice, for no event tells of it: the kernel frees what the queue has from a
/// work item of its own.
const RELEASE_STEP: Duration = Duration::from_millis(1);

/// Bytes of frame beyond the MTU: a header with two VLAN tags.
const FRAME_OVERHEAD: usize = ETHERNET_SIZE + 2 * VLAN_TAG_SIZE;

/// The MTU up to which drivers keep a frame in one piece: a page, less what the kernel has in front of
/// and behind it (`veth_xdp_set` of drivers/net/veth.c).
const DRIVER_MTU_MAX: usize = 3_506;

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    /// One end of a veth.
    CableEnd,
    /// A network card.
    Card,
}

/// How to open the queues of an interface.
#[derive(Clone, Debug)]
pub struct XdpBuilder {
    pub(super) name: Box<str>,
    pub(super) queues: usize,
    frame_size: usize,
    busy_poll_frames: Option<u16>,
    interface: Interface,
    refused: Vec<(Feature, c_int)>,
}

impl XdpBuilder {
    /// One queue for frames of an MTU of 1,500 on the interface `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            queues: 1,
            frame_size: FRAME_OVERHEAD + 1_500,
            busy_poll_frames: None,
            interface: Interface::CableEnd,
            refused: Vec::new(),
        }
    }

    /// Opens this many queues, which must be as many as the interface receives by: the kernel chooses
    /// among those of the interface, not among ours.
    #[must_use]
    pub fn queues(mut self, count: usize) -> Self {
        self.queues = count;
        self
    }

    /// Makes room for the frames of an MTU, with two VLAN tags.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.frame_size = FRAME_OVERHEAD + usize::from(mtu);
        self
    }

    /// Has whoever looks for frames fetch up to so many from the interface's driver itself, 1 to
    /// [`BUSY_POLL_FRAMES_MAX`], instead of waiting for the kernel to bring them (Linux 5.11).
    #[must_use]
    pub fn busy_poll(mut self, frames: u16) -> Self {
        self.busy_poll_frames = Some(frames.clamp(1, BUSY_POLL_FRAMES_MAX));
        self
    }

    /// Opens a network card: frames for every station are received, and EAPOL is left to the host's
    /// stack, by which whoever associates the card is let into its network.
    #[must_use]
    pub fn card(mut self) -> Self {
        self.interface = Interface::Card;
        self
    }

    /// Goes on as if the kernel had refused a feature with this error: for tests of what is done
    /// without it.
    #[must_use]
    pub fn refuse(mut self, feature: Feature, errno: c_int) -> Self {
        self.refused.push((feature, errno));
        self
    }

    /// Opens the queues in the calling thread's network namespace. From then on the host's stack
    /// receives nothing on the interface.
    ///
    /// # Errors
    /// As the variants of [`XdpError`] say; the interface is as it was.
    pub fn open(&self) -> Result<Vec<XdpSocket>, XdpError> {
        let site = self.prepare()?;
        let opened = (0..self.queues).map(|queue| self.open_queue(&site, queue));
        let opened = opened.collect::<Result<Vec<Opened>, XdpError>>()?;
        let (hook, mode) = self.redirect(site, opened.iter().map(|queue| queue.fd.as_fd()))?;
        let queues = opened.into_iter();
        Ok(queues.map(|queue| queue.into_socket(mode, &hook)).collect())
    }

    /// Everything that the sockets of an interface are opened with.
    pub(super) fn prepare(&self) -> Result<Site, XdpError> {
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(XdpError::QueueCount(self.queues));
        }
        let index = sys::interface_index(&self.name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.not_found(),
            _ => self.failed("look up the interface of", error),
        })?;
        let has = ethtool::receive_queues(&self.name);
        let has = has.map_err(|error| self.failed("count the queues for", error))?;
        if has.is_some_and(|has| has != self.queues) {
            return Err(XdpError::OtherQueues {
                name: self.name.clone(),
                wanted: self.queues,
                has: has.unwrap_or_default(),
            });
        }
        let map = self.ask(Feature::Map, || bpf::create_map(self.queues as u32));
        let map = map.map_err(|error| self.failed("make the map of", error))?;
        let (program, pieces) = self.load(map.as_fd())?;
        Ok(Site {
            index,
            map,
            program,
            pieces,
        })
    }

    /// Has the interface's frames come to bound sockets, one for each queue.
    pub(super) fn redirect<'a>(
        &self,
        site: Site,
        sockets: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<(Arc<Hook>, Mode), XdpError> {
        for (queue, socket) in (0..).zip(sockets) {
            bpf::put_socket(site.map.as_fd(), queue, socket)
                .map_err(|error| self.failed("enter the socket of", error))?;
        }
        let promiscuous = match self.interface {
            Interface::CableEnd => None,
            Interface::Card => {
                let asked = packet::make_promiscuous(site.index);
                Some(asked.map_err(|error| self.failed("make promiscuous", error))?)
            }
        };
        // Last: whatever the program redirects has a socket to go to.
        let (link, mode) = self.attach(site.program.as_fd(), site.index)?;
        let hook = Hook {
            name: self.name.clone(),
            _link: link,
            _map: site.map,
            _promiscuous: promiscuous,
        };
        Ok((Arc::new(hook), mode))
    }

    /// Asks the kernel, unless the builder is to refuse in its place.
    fn ask<T>(&self, feature: Feature, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.refused.iter().find(|(refused, _)| *refused == feature) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => call(),
        }
    }

    fn load(&self, map: BorrowedFd<'_>) -> Result<(OwnedFd, Pieces), XdpError> {
        let host = match self.interface {
            Interface::CableEnd => HostHears::Nothing,
            Interface::Card => HostHears::Eapol,
        };
        let several = self.ask(Feature::Program, || {
            self.ask(Feature::ProgramOfPieces, || {
                bpf::load(map, host, Pieces::Several)
            })
        });
        let loaded = match several {
            Ok(program) => return Ok((program, Pieces::Several)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.ask(Feature::Program, || bpf::load(map, host, Pieces::One))
            }
            Err(error) => Err(error),
        };
        let program = loaded.map_err(|error| self.failed("load the program of", error))?;
        Ok((program, Pieces::One))
    }

    fn attach(&self, program: BorrowedFd<'_>, index: u32) -> Result<(OwnedFd, Mode), XdpError> {
        let native = self.ask(Feature::Native, || {
            bpf::attach(program, index, Mode::Native)
        });
        match native {
            Ok(link) => return Ok((link, Mode::Native)),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(self.failed("attach the program of", error)),
        }
        let generic = self.ask(Feature::Generic, || {
            bpf::attach(program, index, Mode::Generic)
        });
        let link = generic.map_err(|error| self.failed("attach the program of", error))?;
        Ok((link, Mode::Generic))
    }

    /// One bound socket with its memory and rings.
    fn open_queue(&self, site: &Site, queue: usize) -> Result<Opened, XdpError> {
        let fd = self.socket()?;
        let chunks = RECEIVE_CHUNKS + TRANSMIT_CHUNKS;
        let (umem, checksums) = self.register_memory(fd.as_fd(), chunks)?;
        let rings = self.rings(fd.as_fd())?;
        let frames = self.bind(fd.as_fd(), (site.index, queue as u32), site.pieces)?;
        let frame_size_max = self.frame_size_max(frames, umem.chunk_size())?;
        let polling = self.prefer_busy_polling(fd.as_fd());
        Ok(Opened {
            fd,
            umem,
            rings,
            frames,
            checksums,
            polling,
            frame_size_max,
        })
    }

    /// A socket that takes as much on its way out as there are chunks.
    pub(super) fn socket(&self) -> Result<OwnedFd, XdpError> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = self.ask(Feature::Socket, || sys::socket(libc::AF_XDP, kind, 0));
        let fd = fd.map_err(|error| self.failed("open", error))?;
        let size_buffer = |name| {
            let size = SEND_BUFFER_SIZE;
            sys::set_option(fd.as_fd(), libc::SOL_SOCKET, name, &size)
        };
        // Beyond `net.core.wmem_max` only with CAP_NET_ADMIN; without it, as much as allowed.
        size_buffer(libc::SO_SNDBUFFORCE)
            .or_else(|_| size_buffer(libc::SO_SNDBUF))
            .map_err(|error| self.failed("size the buffer of", error))?;
        Ok(fd)
    }

    /// Has a socket busy polled, if that is wanted.
    fn prefer_busy_polling(&self, socket: BorrowedFd<'_>) -> Polling {
        let Some(frames) = self.busy_poll_frames else {
            return Polling::Unasked;
        };
        let asked = self.ask(Feature::BusyPoll, || {
            // The last one switches it on.
            let options = [
                (libc::SO_PREFER_BUSY_POLL, 1),
                (libc::SO_BUSY_POLL_BUDGET, c_int::from(frames)),
                (libc::SO_BUSY_POLL, BUSY_POLL_MICROSECONDS),
            ];
            options.into_iter().try_for_each(|(name, value)| {
                sys::set_option(socket, libc::SOL_SOCKET, name, &value)
            })
        });
        match asked {
            Ok(()) => Polling::ByOwner,
            Err(_) => Polling::ByKernel,
        }
    }

    /// The rings of a socket that is not bound yet.
    pub(super) fn rings(&self, socket: BorrowedFd<'_>) -> Result<Rings, XdpError> {
        let rings = self.ask(Feature::Memory, || Rings::new(socket));
        rings.map_err(|error| self.failed("map the rings of", error))
    }

    /// Bytes of the largest frame, which is no smaller than the MTU asks for.
    pub(super) fn frame_size_max(
        &self,
        frames: Frames,
        chunk_size: usize,
    ) -> Result<usize, XdpError> {
        let frame_size_max = match frames {
            Frames::SeveralChunks => {
                FRAME_SIZE_MAX.min(DESCRIPTORS_MAX * (chunk_size - METADATA_SIZE))
            }
            Frames::OneChunk => chunk_size - KERNEL_HEADROOM,
        };
        if frame_size_max < self.frame_size {
            return Err(self.too_large(frame_size_max - FRAME_OVERHEAD));
        }
        Ok(frame_size_max)
    }

    /// Makes packet buffers that the kernel knows of.
    pub(super) fn register_memory(
        &self,
        socket: BorrowedFd<'_>,
        chunks: u32,
    ) -> Result<(Umem, Checksums), XdpError> {
        let chunk_size = match self.frame_size + KERNEL_HEADROOM {
            ..=CHUNK_SIZE => CHUNK_SIZE,
            _ => LARGE_CHUNK_SIZE,
        };
        let made = self.ask(Feature::Memory, || Umem::new(chunks as usize, chunk_size));
        let umem = made.map_err(|error| self.failed("make the buffers of", error))?;
        let register = |flags, tx_metadata_len| {
            let registration = libc::xdp_umem_reg {
                addr: umem.address(),
                len: umem.size() as u64,
                chunk_size: chunk_size as u32,
                headroom: 0,
                flags,
                tx_metadata_len,
            };
            sys::set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
        };
        let described = self.ask(Feature::Metadata, || {
            register(libc::XDP_UMEM_TX_METADATA_LEN, METADATA_SIZE as u32)
        });
        match described {
            Ok(()) => return Ok((umem, Checksums::Described)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(self.failed("register the buffers of", error)),
        }
        register(0, 0).map_err(|error| self.failed("register the buffers of", error))?;
        Ok((umem, Checksums::Finished))
    }

    /// Binds a socket that has memory of its own.
    pub(super) fn bind(
        &self,
        socket: BorrowedFd<'_>,
        (index, queue): (u32, u32),
        pieces: Pieces,
    ) -> Result<Frames, XdpError> {
        let flags = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;
        let place = |flags| libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        if pieces == Pieces::Several {
            let several = self.ask(Feature::SeveralChunks, || {
                bind(socket, &place(flags | libc::XDP_USE_SG))
            });
            match several {
                Ok(()) => return Ok(Frames::SeveralChunks),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(self.failed("bind", error)),
            }
        }
        bind(socket, &place(flags)).map_err(|error| self.failed("bind", error))?;
        Ok(Frames::OneChunk)
    }

    /// Binds a socket to a queue of another interface than that of `owner`, whose memory it has as
    /// well, and whose flags.
    pub(super) fn bind_sharing(
        &self,
        socket: BorrowedFd<'_>,
        (index, queue): (u32, u32),
        owner: BorrowedFd<'_>,
    ) -> Result<(), XdpError> {
        let place = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_SHARED_UMEM,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: owner.as_raw_fd().cast_unsigned(),
        };
        bind(socket, &place).map_err(|error| self.failed("bind", error))
    }

    fn not_found(&self) -> XdpError {
        XdpError::NotFound {
            name: self.name.clone(),
        }
    }

    fn too_large(&self, mtu_max: usize) -> XdpError {
        let name = self.name.clone();
        XdpError::TooLarge { name, mtu_max }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> XdpError {
        let name = self.name.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XdpError::NotPermitted { name, operation },
            Some(libc::ENODEV | libc::ENXIO) => XdpError::NotFound { name },
            Some(libc::EBUSY | libc::EEXIST) => XdpError::InUse { name },
            Some(libc::ENOBUFS | libc::ENOMEM) => XdpError::Memory { name },
            Some(libc::ERANGE) => self.too_large(DRIVER_MTU_MAX),
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOSYS) => {
                XdpError::Unsupported { name, operation }
            }
            _ => XdpError::Io {
                name,
                operation,
                source,
            },
        }
    }
}

/// What the sockets of an interface are opened with: nothing of it has an effect yet.
pub(super) struct Site {
    pub(super) index: u32,
    map: OwnedFd,
    program: OwnedFd,
    pieces: Pieces,
}

/// The program on an interface, which ends with the last queue.
pub(super) struct Hook {
    name: Box<str>,
    _link: OwnedFd,
    _map: OwnedFd,
    /// Has a card receive frames for every station.
    _promiscuous: Option<OwnedFd>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A queue that is open, while nothing is redirected to it.
struct Opened {
    fd: OwnedFd,
    umem: Umem,
    rings: Rings,
    frames: Frames,
    checksums: Checksums,
    polling: Polling,
    frame_size_max: usize,
}

impl Opened {
    fn into_socket(self, mode: Mode, hook: &Arc<Hook>) -> XdpSocket {
        let Rings {
            mut fill,
            received,
            transmit,
            completed,
        } = self.rings;
        let chunk = |index: u32| u64::from(index) * self.umem.chunk_size() as u64;
        for index in 0..RECEIVE_CHUNKS {
            fill.push(chunk(index));
        }
        fill.submit();
        let free = (RECEIVE_CHUNKS..RECEIVE_CHUNKS + TRANSMIT_CHUNKS).map(chunk);
        XdpSocket {
            free: free.collect(),
            fd: self.fd,
            umem: self.umem,
            fill,
            received,
            transmit,
            completed,
            features: Features {
                mode,
                frames: self.frames,
                checksums: self.checksums,
                polling: self.polling,
            },
            frame_size_max: self.frame_size_max,
            owed: 0,
            rx_malformed: 0,
            tx_dropped: 0,
            heard: false,
            reach: Reach::Untold,
            hook: Arc::clone(hook),
        }
    }
}

/// Binds a socket to a queue of an interface, which it waits for if it has just been left.
fn bind(socket: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let deadline = Instant::now() + RELEASE_MAX;
    loop {
        match bind_once(socket, address) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(RELEASE_STEP);
            }
            bound => return bound,
        }
    }
}

fn bind_once(socket: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: the address is a live `sockaddr_xdp`, and the size is its own.
    // JUSTIFICATION: std binds to IP and unix addresses only.
    let returned = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const *address).cast(),
            size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
        )
    };
    sys::check(returned).map(drop)
}
