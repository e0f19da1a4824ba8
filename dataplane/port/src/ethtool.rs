//! What a driver tells of an interface and does for it (`SIOCETHTOOL`, linux/ethtool.h), as far as
//! ports need it.
//!
//! Limits: interfaces of the calling thread's network namespace; `FEATURES_MAX` features.

use std::io;
use std::os::fd::AsRawFd;

use crate::sys::{self, INTERFACE_NAME_SIZE};

// linux/ethtool.h.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_FEATURES: u32 = 4;
/// Words of `struct ethtool_channels`.
const CHANNELS_WORDS: usize = 9;
const RECEIVE_COUNT: usize = 5;
const COMBINED_COUNT: usize = 8;
/// Bytes of a name, in words (`ETH_GSTRING_LEN`).
const NAME_WORDS: usize = 32 / 4;

/// Features that a kernel may have; Linux 6.18 has 64.
const FEATURES_MAX: usize = 512;

/// How many queues the interface `name` receives by now; `None` when its driver does not tell.
///
/// # Errors
/// `NotFound` when there is no such interface, or the name cannot be one.
pub fn receive_queues(name: &str) -> io::Result<Option<usize>> {
    let mut channels = [0; CHANNELS_WORDS];
    channels[0] = ETHTOOL_GCHANNELS;
    match ioctl(name, &mut channels) {
        Ok(()) => {
            let count = channels[RECEIVE_COUNT] + channels[COMBINED_COUNT];
            Ok(Some(count as usize))
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has the interface `name` do without features, by the names that `ethtool -k` has for them. One
/// that the kernel does not know is off.
///
/// # Errors
/// `NotFound` when there is no such interface; else what the kernel said.
pub fn switch_off(name: &str, features: &[&str]) -> io::Result<()> {
    switch(name, features, Switch::Off)
}

/// Has the interface `name` do with features again. One that the kernel does not know stays off.
///
/// # Errors
/// As [`switch_off`].
pub fn switch_on(name: &str, features: &[&str]) -> io::Result<()> {
    if features.is_empty() {
        return Ok(());
    }
    switch(name, features, Switch::On)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

fn switch(name: &str, features: &[&str], to: Switch) -> io::Result<()> {
    let known = feature_names(name)?;
    let blocks = known.len().div_ceil(32);
    // For each block of 32: which bits are meant, and what they are to be.
    let mut request = vec![0; 2 + 2 * blocks];
    request[0] = ETHTOOL_SFEATURES;
    request[1] = blocks as u32;
    for (bit, known) in known.iter().enumerate() {
        if features.contains(&known.as_str()) {
            request[2 + 2 * (bit / 32)] |= 1 << (bit % 32);
            if to == Switch::On {
                request[3 + 2 * (bit / 32)] |= 1 << (bit % 32);
            }
        }
    }
    ioctl(name, &mut request)
}

/// The features of the interface `name` that are on, by the names that `ethtool -k` has for them.
///
/// # Errors
/// As [`switch_off`].
pub fn features(name: &str) -> io::Result<Vec<String>> {
    let known = feature_names(name)?;
    let blocks = known.len().div_ceil(32);
    // For each block of 32: which bits are there, which were asked for, which are on, which are fixed.
    let mut answer = vec![0; 2 + 4 * blocks];
    answer[0] = ETHTOOL_GFEATURES;
    answer[1] = blocks as u32;
    ioctl(name, &mut answer)?;
    let is_on = |bit: usize| answer[2 + 4 * (bit / 32) + 2] & 1 << (bit % 32) != 0;
    let on = known.into_iter().enumerate().filter(|(bit, _)| is_on(*bit));
    Ok(on.map(|(_, name)| name).collect())
}

/// The names of all features, in the order of their bits.
fn feature_names(name: &str) -> io::Result<Vec<String>> {
    let [set_0, set_1, set_2, set_3, set_4, set_5, set_6, set_7] =
        (1_u64 << ETH_SS_FEATURES).to_ne_bytes();
    let mut info = [
        ETHTOOL_GSSET_INFO,
        0,
        u32::from_ne_bytes([set_0, set_1, set_2, set_3]),
        u32::from_ne_bytes([set_4, set_5, set_6, set_7]),
        0,
    ];
    ioctl(name, &mut info)?;
    let count = info[4] as usize;
    if count > FEATURES_MAX {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let mut strings = vec![0; 3 + count * NAME_WORDS];
    strings[0] = ETHTOOL_GSTRINGS;
    strings[1] = ETH_SS_FEATURES;
    strings[2] = count as u32;
    ioctl(name, &mut strings)?;
    Ok(strings[3..].chunks(NAME_WORDS).map(text).collect())
}

/// A zero-terminated name in words.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    let bytes: Vec<u8> = bytes.take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `struct ifreq` of linux/if.h, as `SIOCETHTOOL` reads it.
#[repr(C)]
struct Request {
    name: [libc::c_char; INTERFACE_NAME_SIZE],
    data: *mut u32,
    padding: [u8; 16],
}

const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());

/// One command, whose struct begins with its number and says how long it is where that varies.
fn ioctl(name: &str, command: &mut [u32]) -> io::Result<()> {
    let mut request = Request {
        name: sys::interface_name(name).ok_or(io::ErrorKind::NotFound)?,
        data: command.as_mut_ptr(),
        padding: [0; 16],
    };
    let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: the request is a live `ifreq`, and points at a live, exclusive struct as long as its
    // command's; the callers above leave room for all that they ask for.
    // JUSTIFICATION: std has no ioctl.
    let returned =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    sys::check(returned)
        .map(drop)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => io::ErrorKind::NotFound.into(),
            Some(_) | None => error,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_not_found() {
        let error = receive_queues("cw-port-none").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = switch_off("cw-port-none", &["rx-gro"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn loopback_tells_its_features_by_their_names() {
        let names = feature_names("lo").unwrap();
        assert!(names.len() > 30, "{names:?}");
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        assert!(has("tx-checksum-sctp"), "{names:?}");
        assert!(has("tx-vlan-hw-insert"), "{names:?}");
    }
}
