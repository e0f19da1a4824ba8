//! Tells that something in a namespace has changed, so that it is read again.
//!
//! The kernel's notifications are only taken as a hint of *what* to read again: a notification
//! can be lost (the socket's buffer is finite), a dump cannot be wrong. Hints are merged in a
//! set, so a burst of any size costs one flag each and nothing queues up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Error;
use crate::netns::Netns;

/// A set of kinds of objects that have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes(u8);

impl Changes {
    /// A link came, went, or changed its state.
    pub const LINKS: Self = Self(1);
    /// An address came or went.
    pub const ADDRESSES: Self = Self(2);
    /// A route came or went.
    pub const ROUTES: Self = Self(4);
    /// A neighbour was resolved, changed or lost.
    pub const NEIGHBOURS: Self = Self(8);
    /// Anything: notifications were lost.
    pub const ALL: Self = Self(15);

    /// Whether nothing has changed.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any kind of `other` is in this set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for Changes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A subscription to the changes of one namespace.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicU8,
    notify: Notify,
}

impl Shared {
    fn add(&self, changes: Changes) {
        if !changes.is_empty() {
            // Pairs with the swap in `Watch::changed`.
            self.pending.fetch_or(changes.0, Ordering::Release);
            self.notify.notify_one();
        }
    }
}

impl Watch {
    /// Subscribes in `ns`, within a tokio runtime. Changes from here on are reported; dump what
    /// is there after this call, not before.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(ns: &Netns) -> Result<Self, Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let runtime = tokio::runtime::Handle::current();
        let opened = ns
            .run(|| {
                let _context = runtime.enter();
                rtnetlink::new_multicast_connection(&groups)
            })
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let (connection, handle, mut messages) = opened?;
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            // The connection ends with its last handle.
            let _handle = handle;
            while let Some((message, _)) = messages.next().await {
                sink.add(changes_of(&message));
            }
            // The socket broke; what is known can no longer be trusted.
            sink.add(Changes::ALL);
        });
        Ok(Self {
            shared,
            tasks: [tokio::spawn(connection), reader],
        })
    }

    /// Waits until something has changed, and says what has since the last call.
    pub async fn changed(&mut self) -> Changes {
        loop {
            // Pairs with the fetch_or in `Shared::add`.
            let changes = Changes(self.shared.pending.swap(0, Ordering::Acquire));
            if !changes.is_empty() {
                return changes;
            }
            self.shared.notify.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn changes_of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Changes {
    match &message.payload {
        NetlinkPayload::InnerMessage(inner) => match inner {
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Changes::LINKS,
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                Changes::ADDRESSES
            }
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Changes::ROUTES,
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => {
                Changes::NEIGHBOURS
            }
            _ => Changes::default(),
        },
        NetlinkPayload::Overrun(_) => Changes::ALL,
        _ => Changes::default(),
    }
}
