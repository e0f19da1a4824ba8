//! A state directory that cannot be written: the change is refused, and frames go on.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::daemon::{Daemon, binary, path_text};
use tests::footprint::footprint;
use tests::lab::{Lab, ip, require_root};
use tests::talk::{ask_tcp, serve_tcp};

/// Room for a state and for little besides.
const SIZE: &str = "size=2m";

/// A small disk at a path, which is gone with this.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("cw-disk"), &path, Some("tmpfs"), flags, Some(SIZE)).unwrap();
        Self(path)
    }

    /// Writes until nothing more fits; the file has to go for the disk to have room again.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [4_096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        path
    }

    fn set_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

#[test]
fn a_full_disk_refuses_every_change_and_loses_no_frame() {
    if !require_root("a_full_disk_refuses_every_change_and_loses_no_frame") {
        return;
    }
    let lab = Lab::new("full");
    let (host, outside) = lab.host_and_outside();
    let [a, b, c] = lab.namespaces(["a", "b", "c"]);
    let disk = Disk::new(lab.dir().join("state"));
    let mut daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
    daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
    daemon.attach(&a, "n", "a", &[]);
    daemon.attach(&b, "n", "b", &[]);
    daemon.run(&["publish", "add", "8080:80", "a"]);
    serve_tcp(&a, "0.0.0.0:80");
    let listed = |daemon: &Daemon| {
        let words = [&["export"][..], &["network", "ls"], &["mirror", "ls"]];
        let mut groups = daemon.json(&["mdb", "show"]);
        // What is heard comes and goes by itself.
        let groups = groups[0]["groups"].as_array_mut().unwrap();
        groups.retain(|group| group["state"] != "temp");
        (words.map(|words| daemon.json(words)), groups.clone())
    };
    let (before, marks) = (listed(&daemon), [&host, &a, &b, &c].map(footprint));
    let filler = disk.fill();
    let path = c.path();
    let attach = [
        "attach",
        "--network",
        "n",
        "--name",
        "c",
        "--netns",
        path_text(&path),
    ];
    let mut refusals = 0;
    for words in [
        &["network", "create", "m", "--subnet", "10.89.0.0/24"][..],
        &["network", "set", "n", "--ageing", "60"],
        &["network", "reserve", "n", "10.88.0.9"],
        &attach,
        &["detach", "b"],
        &["publish", "add", "8081:80", "b"],
        &["publish", "add", "8080:80", "b", "--join"],
        &["publish", "rm", "8080:80"],
        &["port", "set", "a", "isolated", "on"],
        &["vlan", "add", "a", "10"],
        &["fdb", "add", "n", "02:00:00:00:00:01", "--port", "a"],
        &["mdb", "add", "n", "239.1.2.3", "--port", "a"],
        &["mirror", "add", "m", "--from", "a", "--to", "b"],
        &["network", "rm", "n"],
    ] {
        let output = daemon.output(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if words[1] != "rm" || words[0] != "network" {
            assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
            assert!(
                said.contains("full") && said.contains("make room there"),
                "{words:?}: {said}"
            );
            refusals += 1;
        }
        assert_eq!(listed(&daemon), before, "{words:?}");
        assert_eq!([&host, &a, &b, &c].map(footprint), marks, "{words:?}");
    }
    assert_eq!(refusals, 13);
    assert_eq!(ask_tcp(&outside, "192.0.2.1:8080", 1_000), ip("192.0.2.2"));
    assert_eq!(ask_tcp(&b, "10.88.0.2:80", 1_000), ip("10.88.0.3"));
    std::fs::remove_file(filler).unwrap();
    daemon.run(&["network", "set", "n", "--ageing", "60"]);
    assert_eq!(daemon.attach(&c, "n", "c", &[]), "10.88.0.4");
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.json(&["network", "ls"])[0]["ageing_seconds"], 60);
    daemon.run(&["down", "--all"]);
}

#[test]
fn what_is_there_is_taken_off_the_host_though_the_disk_is_full() {
    if !require_root("what_is_there_is_taken_off_the_host_though_the_disk_is_full") {
        return;
    }
    for ended in ["killed", "stopped"] {
        let lab = Lab::new("full-clean");
        let (host, _outside) = lab.host_and_outside();
        let [a, b] = lab.namespaces(["a", "b"]);
        let marks = [&host, &a, &b].map(footprint);
        let state = lab.dir().join("state");
        let disk = Disk::new(state.clone());
        let mut daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
        daemon.run(&["network", "create", "n", "--subnet", "10.88.0.0/24"]);
        daemon.attach(&a, "n", "a", &[]);
        daemon.attach(&b, "n", "b", &["--backend", "packet"]);
        daemon.run(&["publish", "add", "8080-9000:8080-9000", "a"]);
        // A state that nobody has open has files to make before it can be read.
        match ended {
            "killed" => {
                disk.fill();
                daemon.kill();
            }
            _ => {
                daemon.stop();
                disk.fill();
            }
        }
        let output = daemon.output(&["clean", "--state-dir", path_text(&state)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // The directory itself is where the disk is, and stays.
        assert!(said.contains("busy"), "{ended}: {said}");
        assert_eq!(said.lines().count(), 1, "{ended}: {said}");
        assert_eq!([&host, &a, &b].map(footprint), marks, "{ended}");
        let left = std::fs::read_dir(&disk.0).unwrap().count();
        assert_eq!(left, 0, "{ended}");
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused_by_its_name() {
    if !require_root("a_state_directory_that_cannot_be_written_is_refused_by_its_name") {
        return;
    }
    let lab = Lab::new("readonly");
    let host = lab.namespace("host");
    let clean = footprint(&host);
    let start = |state: &Path| {
        let mut command = Command::new(binary());
        command.arg("--socket").arg(lab.dir().join("socket"));
        command.args(["daemon", "--uplink", "none", "--state-dir"]);
        command.arg(state);
        let output = host.run(|| command.output()).unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let disk = Disk::new(lab.dir().join("disk"));
    disk.set_read_only();
    for state in [disk.0.clone(), disk.0.join("below")] {
        let said = start(&state);
        assert!(said.contains("Read-only file system"), "{said}");
        assert!(said.contains(path_text(&state)), "{said}");
    }
    let file = lab.dir().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let said = start(&file);
    assert!(said.contains("cannot use the state directory"), "{said}");
    assert!(!lab.dir().join("socket").exists());
    assert_eq!(footprint(&host), clean);
}
