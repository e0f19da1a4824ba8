//! What the suites of `run` share: a host, and programs that run has started on it.

#![allow(dead_code)]

use std::process::{Child, Output};
use std::sync::mpsc;

use control::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, wait_for};

/// What a program in a sandbox does while a test looks at it.
pub const WAIT: [&str; 3] = ["--", "sleep", "600"];

/// A host with an outside, a daemon and a network.
pub struct Site {
    pub lab: Lab,
    pub host: Namespace,
    pub outside: Namespace,
    pub daemon: Daemon,
}

/// A program that `run` has started, ended with the test.
pub struct Started<'s> {
    pub site: &'s Site,
    pub child: Option<Child>,
}

impl Site {
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (host, outside) = lab.host_and_outside();
        let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
        daemon.run(&["network", "create", "web", "--subnet", "10.88.0.0/24"]);
        Self {
            lab,
            host,
            outside,
            daemon,
        }
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.daemon.output(&[&["run"], words].concat())
    }

    #[track_caller]
    pub fn prints(&self, words: &[&str]) -> String {
        self.daemon.run(&[&["run"], words].concat())
    }

    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
        error
    }

    /// Starts a program that waits.
    pub fn start(&self, words: &[&str]) -> Started<'_> {
        let words = [&["run"], words, &WAIT[..]].concat();
        let child = self.host.start(&mut self.daemon.command(&words));
        Started {
            site: self,
            child: Some(child),
        }
    }

    /// The sandbox of an endpoint that is to come.
    pub fn sandbox(&self, name: &str) -> Namespace {
        let path = wait_for(DEADLINE, name, || {
            let listed = self.daemon.json(&["network", "ls"]);
            let networks = listed.as_array()?.iter();
            let mut endpoints = networks.flat_map(|one| one["endpoints"].as_array().unwrap());
            let found = endpoints.find(|one| one["name"] == name)?;
            Some(found["netns"].as_str()?.to_owned())
        });
        Namespace::new(name, Netns::from_path(path).unwrap())
    }

    pub fn published(&self, name: &str) -> Vec<Value> {
        let listed = self.daemon.json(&["port", name]);
        listed.as_array().unwrap().clone()
    }

    #[track_caller]
    pub fn assert_nothing_is_left(&self) {
        assert_eq!(self.daemon.json(&["publish", "ls"]), json!([]));
        assert_eq!(self.daemon.json(&["status"])["endpoints"], 0);
    }
}

impl Started<'_> {
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    /// Ends it and waits.
    pub fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.take().unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(128 + 15), "{}", self.site.daemon.log());
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(child.id().cast_signed());
            let _ = kill(pid, Signal::SIGTERM);
            // Killed before it has passed the signal on, it would leave its program behind.
            let (told, ended) = mpsc::channel();
            std::thread::spawn(move || told.send(child.wait()));
            if ended.recv_timeout(DEADLINE).is_err() {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}
