//! Open vSwitch in userspace: a database and a switch of our own, with every file in our
//! directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::lab::Namespace;

use super::host::{self, Host};
use super::process::Process;
use super::{
    Held, Refusal, Setup, Shape, System, SystemName, Work, offload, packages, refuse_shape,
};

/// The schema that the package brings.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Seconds that a command waits for the switch to have done what it says.
const TIMEOUT: &str = "--timeout=20";

/// What its ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// AF_PACKET sockets.
    Packet,
    /// AF_XDP sockets, in the best mode that the interface has.
    Xdp,
}

/// Starts it.
pub fn start(setup: &Setup, ports: Ports) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::Pair, Shape::Star, Shape::Mesh])?;
    let name = match ports {
        Ports::Packet => SystemName::OvsPacket,
        Ports::Xdp => SystemName::OvsXdp,
    };
    let host = Host::new(&name.to_string());
    let dir = host.lab.dir().to_owned();
    let switch = Switch {
        ns: &host.ns,
        dir: &dir,
    };
    let mut held = Held::default();
    switch.start(&mut held.processes).map_err(Refusal::Failed)?;
    let sandboxes: Vec<Namespace> = (0..host::sandboxes(setup))
        .map(|index| {
            let ns = host.sandbox(index, setup);
            // Without virtio headers nobody would complete these.
            let left_to_device = [&offload::SEGMENTATION[..], &offload::CHECKSUM].concat();
            offload::turn_off(&ns, "eth0", &left_to_device);
            ns
        })
        .collect();
    let facts = switch
        .plug(sandboxes.len() as u16, ports)
        .map_err(Refusal::Failed)?;
    let pid = held.processes.last().map_or(0, Process::pid);
    let paths = host::paths(&sandboxes, setup);
    held.namespaces = vec![host.ns];
    held.lab = Some(host.lab);
    Ok(System {
        name,
        paths,
        work: vec![Work::Process {
            name: "ovs-vswitchd".to_owned(),
            pid,
        }],
        facts,
        _held: held,
    })
}

struct Switch<'a> {
    ns: &'a Namespace,
    dir: &'a Path,
}

impl Switch<'_> {
    fn start(&self, processes: &mut Vec<Process>) -> Result<(), String> {
        let database = self.dir.join("conf.db");
        let mut create = self.command("ovsdb-tool");
        create.arg("create").arg(&database).arg(SCHEMA);
        self.finish("ovsdb-tool", &mut create)?;
        let mut server = self.command("ovsdb-server");
        server
            .arg(&database)
            .arg(format!("--remote=punix:{}", self.socket().display()))
            .arg(self.unixctl("ovsdb"));
        let mut server = Process::start("ovsdb-server", self.ns, self.dir, &mut server)?;
        let listens = server.wait_until("its socket", || self.socket().exists());
        processes.push(server);
        listens?;
        self.vsctl(&["--no-wait", "init"])?;
        let mut switch = self.command("ovs-vswitchd");
        switch.arg(self.remote()).arg(self.unixctl("switch"));
        let mut switch = Process::start("ovs-vswitchd", self.ns, self.dir, &mut switch)?;
        let control = self.dir.join("switch.ctl");
        let listens = switch.wait_until("its control socket", || control.exists());
        processes.push(switch);
        listens
    }

    /// Makes the bridge with its ports; what the switch says of the first one.
    fn plug(&self, ports: u16, kind: Ports) -> Result<BTreeMap<String, String>, String> {
        let bridge = [
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
        ];
        self.vsctl(&bridge)?;
        for index in 0..ports {
            let end = host::host_end(index);
            let mut add = vec!["add-port", "br0", &end];
            if kind == Ports::Xdp {
                add.extend([
                    "--",
                    "set",
                    "interface",
                    &end,
                    "type=afxdp",
                    "options:n_rxq=1",
                ]);
            }
            self.vsctl(&add)?;
            let error = self.vsctl(&["get", "interface", &end, "error"])?;
            if error != "[]" {
                return Err(format!("ovs-vswitchd: port {end}: {error}"));
            }
        }
        let mut facts = BTreeMap::from([("datapath".to_owned(), "netdev".to_owned())]);
        if kind == Ports::Xdp {
            let first = host::host_end(0);
            let status = self.vsctl(&["get", "interface", &first, "status"])?;
            facts.insert("port".to_owned(), status);
        }
        Ok(facts)
    }

    fn vsctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command("ovs-vsctl");
        command
            .arg(format!("--db=unix:{}", self.socket().display()))
            .arg(TIMEOUT)
            .args(arguments);
        self.finish("ovs-vsctl", &mut command)
    }

    fn finish(&self, name: &str, command: &mut Command) -> Result<String, String> {
        Process::start(name, self.ns, self.dir, command)?.finish()
    }

    /// A program of the package with none of its usual places.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(packages::path(program));
        for place in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(place, self.dir);
        }
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    fn remote(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn unixctl(&self, name: &str) -> String {
        format!(
            "--unixctl={}",
            self.dir.join(format!("{name}.ctl")).display()
        )
    }
}
