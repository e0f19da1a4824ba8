//! Stories of multicast.

use dataplane_core::topology::Multicast;
use tests::world::groups::{
    QUERY, TO_EX, data, group_query, igmp, ipv4, leave, query, report, report_v3, v4,
};
use tests::world::{RED, ip, mac};

use super::super::Story;

const GROUP: &str = "239.1.2.3";

/// Who listens to a group, as hosts say it and a querier asks for it.
pub fn snooping(s: &mut Story) {
    s.world
        .edit(|t| t.domains[RED.index()].as_mut().unwrap().multicast = Multicast::Snooped);
    let group = ip(GROUP);
    s.say("nobody asks for listeners, so a group is flooded whoever has joined it");
    s.send(1, &report(mac(1), group));
    s.send(2, &data(mac(2), group));
    s.say("a querier appears behind p3, and hosts are given a second to answer it");
    s.send(3, &query(mac(3), v4("10.1.0.4"), 10));
    s.wait(1);
    s.send(2, &data(mac(2), group));
    s.say("a group that nobody has joined goes to the router alone");
    s.send(2, &data(mac(2), ip("239.9.9.9")));
    s.say("b joins by IGMPv3, for some sources; a leaves, and the querier asks for others");
    s.send(2, &report_v3(mac(2), &[(TO_EX, group, 1)]));
    s.send(1, &leave(mac(1), group));
    s.send(3, &group_query(mac(3), v4("10.1.0.4"), 10, v4(GROUP)));
    s.send(2, &report(mac(2), group));
    s.wait(2);
    s.send(3, &data(mac(3), group));
    s.say("from b there is nobody else to send it to once the router is gone");
    s.world.mdb.forget_port(
        dataplane_core::addr::PortId(3),
        dataplane_core::multicast::Forget::All,
    );
    s.send(2, &data(mac(2), group));
    s.say("a general query to a group is none");
    let forged = igmp(QUERY, 10, v4("0.0.0.0"));
    s.send(1, &ipv4(mac(1), v4("10.1.0.2"), v4(GROUP), 2, &forged));
}
