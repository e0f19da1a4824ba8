//! Times of IGMP and MLD, as RFC 2236 section 8, RFC 2710 section 7 and the kernel's bridge have
//! them.

use crate::time::Duration;

/// How many queries a querier begins with, and how many ask a group for its last listener; the
/// robustness variable.
pub(super) const STARTUP_COUNT: u8 = 2;
pub(super) const LAST_MEMBER_COUNT: u8 = 2;

/// Time between two general queries.
pub(super) const QUERY_INTERVAL: Duration = Duration::from_secs(125);
/// Listeners answer a general query within this time.
pub(super) const RESPONSE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between those of the beginning: as soon as the first has had its answers. By default it is a
/// quarter of the query interval (RFC 2236 section 8.6), for which everything would have to be flooded.
pub(super) const STARTUP_INTERVAL: Duration = RESPONSE_INTERVAL;
/// How long what our own queries have brought is not yet all there is: a report to the first may be
/// lost, as while a port comes up, and the next query comes too late for who waits for a group.
pub(super) const STARTUP_TIME: Duration = Duration::from_secs(20);
/// Listeners answer a query about their group within this time; also the pause between two of them.
pub(super) const LAST_MEMBER_INTERVAL: Duration = Duration::from_secs(1);
/// How long a listener is remembered: robustness × query interval + response interval.
pub(super) const MEMBERSHIP_INTERVAL: Duration = Duration::from_secs(260);
/// How long another querier is, and the port that it was heard on leads to a router: robustness ×
/// query interval + half of a response interval.
pub(super) const QUERIER_INTERVAL: Duration = Duration::from_secs(255);
