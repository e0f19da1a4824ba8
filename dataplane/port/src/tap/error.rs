//! Why a TAP device could not be opened, and what to do about it.

use std::io;

use super::{QUEUES_MAX, TUN_DEVICE};

/// Why a TAP device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The device node is missing.
    #[error(
        "{TUN_DEVICE} does not exist; load the module (modprobe tun), pass the device into the \
         container (--device /dev/net/tun), or choose the backend 'packet'"
    )]
    NoTunDevice,
    /// The device node or the request was refused.
    #[error(
        "not permitted to {operation} the TAP device '{name}'; it needs CAP_NET_ADMIN in this \
         network namespace and write access to {TUN_DEVICE}"
    )]
    NotPermitted {
        /// The device.
        name: Box<str>,
        /// What was refused.
        operation: &'static str,
    },
    /// Something else has the name, or the device is in use by a single-queue owner.
    #[error("the interface name '{name}' is taken; remove that interface or choose another name")]
    NameTaken {
        /// The device.
        name: Box<str>,
    },
    /// Attaching, but there is nothing to attach to.
    #[error("there is no interface '{name}' in this network namespace to attach to")]
    NotFound {
        /// The device.
        name: Box<str>,
    },
    /// Attaching, but the interface is no TAP, or one made without queues or headers.
    #[error(
        "the interface '{name}' is not a multi-queue TAP device with virtio-net headers; remove \
         it (ip link del {name}) and create it again"
    )]
    NotOurKind {
        /// The device.
        name: Box<str>,
    },
    /// The kernel makes no device of our kind.
    #[error(
        "the kernel makes no TAP device with several queues and virtio-net headers, which '{name}' was \
         to be; choose the backend 'packet' or 'tap-plain'"
    )]
    Unsupported {
        /// The device.
        name: Box<str>,
    },
    /// The kernel would not accept the name.
    #[error("'{name}' is no interface name; use 1 to 15 characters without '/', ':' and spaces")]
    NameInvalid {
        /// The name.
        name: Box<str>,
    },
    /// Zero queues, or too many.
    #[error("a TAP device has 1 to {QUEUES_MAX} queues, not {0}")]
    QueueCount(usize),
    /// Anything else.
    #[error("cannot {operation} the TAP device '{name}': {source}")]
    Io {
        /// The device.
        name: Box<str>,
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapError {
    /// What the kernel says of a device that is being opened.
    pub(crate) fn from_io(name: &str, operation: &'static str, source: io::Error) -> Self {
        let name = name.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { name, operation },
            Some(libc::EBUSY) => Self::NameTaken { name },
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoTunDevice,
            _ => Self::Io {
                name,
                operation,
                source,
            },
        }
    }
}
