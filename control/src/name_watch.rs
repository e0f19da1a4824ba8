//! Tells that a name of `ip netns` was removed.
//!
//! Our TAP keeps the namespace that it is in, and so may a process: nothing happens to the device when the name
//! goes. Only the directory of the names says that the namespace is not to be reached any more.
//!
//! A thread of its own waits for the kernel's notifications, and ends when nobody listens any more.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

use crate::netns::NAMED_DIR;

/// How often it is looked whether somebody listens still, and whether there are names by now.
const LOOK_EVERY_MS: u16 = 1_000;

/// Subscribes to the removals in [`NAMED_DIR`]. A burst of them is told of once or twice.
///
/// # Errors
/// When no thread can be started.
pub fn watch() -> io::Result<mpsc::Receiver<()>> {
    let (told, removals) = mpsc::channel(1);
    thread::Builder::new()
        .name("names".to_owned())
        .spawn(move || {
            while !told.is_closed() {
                let followed = match follow(&told) {
                    // Nobody has named a namespace yet, or the directory was removed with all names.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => await_names(),
                    followed => followed,
                };
                if let Err(error) = followed {
                    tracing::warn!(%error, "names of namespaces are not watched; a sweep sees their end");
                    return;
                }
            }
        })?;
    Ok(removals)
}

/// Returns when there may be names: something came to be beside their directory, or a moment has passed.
fn await_names() -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let beside = Path::new(NAMED_DIR).parent().unwrap_or(Path::new("/"));
    let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(beside, made | AddWatchFlags::IN_ONLYDIR)?;
    let mut waiting = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waiting, PollTimeout::from(LOOK_EVERY_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn follow(told: &mpsc::Sender<()>) -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let removed = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(NAMED_DIR, removed | AddWatchFlags::IN_ONLYDIR)?;
    let mut waiting = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    while !told.is_closed() {
        match poll(&mut waiting, PollTimeout::from(LOOK_EVERY_MS)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = inotify.read_events()?;
        // When it is full, a look is due that will see this as well.
        let _ = told.try_send(());
        let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_UNMOUNT;
        if events.iter().any(|event| event.mask.intersects(gone)) {
            return Err(io::ErrorKind::NotFound.into());
        }
    }
    Ok(())
}
