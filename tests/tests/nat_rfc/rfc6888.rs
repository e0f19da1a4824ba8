//! RFC 6888: what carriers ask, as far as it concerns a host with many guests.

use crate::lab::Kind;
use crate::{Claim, rows};
use dataplane_core::verdict::DropReason;

use Claim::Meets;
use Kind::Udp;

const DNS: &str = "198.51.100.9:53";

rows!(
    rfc6888_req3_no_limit_of_its_own_on_flows(
        "6888 REQ-3",
        "limits on ports and sessions of a subscriber are configurable",
        "`sessions_per_endpoint_max`",
        Meets,
        |lab| {
            lab.set(|nat| nat.sessions_per_endpoint_max = 10);
            for port in 50_000..50_010 {
                lab.out(Udp, &format!("10.1.0.2:{port}"), DNS).unwrap();
            }
            assert_eq!(lab.sessions(), 10);
            let more = lab
                .world
                .tables
                .nat
                .session_count_of(tests::world::RED, tests::world::ip("10.1.0.2"));
            assert_eq!(more, 10);
            let neighbour = lab.out(Udp, "10.1.0.3:50000", DNS);
            assert!(neighbour.is_ok());
        }
    ),
    rfc6888_req4_one_guest_cannot_starve_the_others(
        "6888 REQ-4",
        "resources are shared fairly between subscribers",
        "a guest at its quota is refused, what is there stays, and the others go on",
        Meets,
        |lab| {
            lab.set(|nat| {
                nat.sessions_per_endpoint_max = 100;
                nat.port_range = 50_000..=51_023;
            });
            for port in 40_000..40_100u16 {
                lab.out(Udp, &format!("10.1.0.2:{port}"), DNS).unwrap();
            }
            for port in 40_100..40_200u16 {
                let host = format!("10.1.0.2:{port}");
                assert_eq!(lab.refused(Udp, &host, DNS), DropReason::NatQuota);
            }
            assert_eq!(lab.sessions(), 100);
            for port in 40_000..40_100u16 {
                lab.out(Udp, &format!("10.1.0.3:{port}"), DNS).unwrap();
            }
        }
    ),
);
