//! The manifest: everything about the machine and the build that a figure may depend on.
//!
//! What cannot be read is left out, but for what every machine has, which then reads `unknown`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::plan::{Plan, word};
use crate::result::Manifest;

/// Sysctls that change what is measured.
const SYSCTLS: [&str; 17] = [
    "kernel/sched_autogroup_enabled",
    "kernel/timer_migration",
    "net/core/busy_poll",
    "net/core/busy_read",
    "net/core/default_qdisc",
    "net/core/dev_weight",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/optmem_max",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/rps_sock_flow_entries",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
];
/// Beginnings of boot parameters that change what is measured. The others may name what is nobody's
/// business.
const BOOT: [&str; 17] = [
    "amd_pstate=",
    "clocksource=",
    "cpuidle",
    "haltpoll.",
    "hugepages",
    "idle=",
    "intel_idle.",
    "intel_pstate=",
    "isolcpus=",
    "mitigations=",
    "nohz",
    "nosmt",
    "preempt=",
    "processor.max_cstate=",
    "rcu_nocbs=",
    "transparent_hugepage=",
    "tsc=",
];
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";
/// Longest file that is read, in bytes: all of them are a line, but /proc/cpuinfo.
const SIZE_MAX: u64 = 1 << 20;

/// Looks at this machine, about to run a plan or something else.
pub fn look(plan: Option<&Plan>) -> Manifest {
    Manifest {
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        seconds: 0.0,
        commit: commit(),
        kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
        cpu: cpu_model(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        seed: plan.map_or(0, |plan| plan.scenario.seed),
        facts: facts(plan),
        systems: BTreeMap::new(),
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn facts(plan: Option<&Plan>) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut note = |name: String, value: Option<String>| {
        if let Some(value) = value {
            facts.insert(name, value);
        }
    };
    note("rustc".into(), Some(env!("BENCH_RUSTC").to_owned()));
    note("profile".into(), Some(env!("BENCH_PROFILE").to_owned()));
    note(
        "placement".into(),
        plan.map(|plan| word(&plan.scenario.load.placement)),
    );
    note("load-average".into(), line("/proc/loadavg"));
    note(
        "boot-parameters".into(),
        line("/proc/cmdline").map(|l| boot(&l)),
    );
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    note("clocksource".into(), line(clock));
    let governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    note(
        "governor".into(),
        line(governor).or_else(|| Some("none".to_owned())),
    );
    note("cpu-dma-latency-us".into(), cpu_dma_latency());
    let huge = "/sys/kernel/mm/transparent_hugepage/enabled";
    note("transparent-hugepages".into(), line(huge));
    note("smt".into(), line("/sys/devices/system/cpu/smt/control"));
    for name in SYSCTLS {
        let path = format!("/proc/sys/{name}");
        note(format!("sysctl.{}", name.replace('/', ".")), line(&path));
    }
    for entry in fs::read_dir(VULNERABILITIES)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        note(format!("mitigation.{name}"), line(entry.path()));
    }
    facts
}

/// A small file's text without the white space around it.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(SIZE_MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The parameters that matter of a kernel's command line.
fn boot(line: &str) -> String {
    let kernel = line.split(" -- ").next().unwrap_or_default();
    let known = |word: &&str| BOOT.iter().any(|beginning| word.starts_with(beginning));
    let words: Vec<&str> = kernel.split_whitespace().filter(known).collect();
    words.join(" ")
}

/// The wake-up latency that somebody has asked the idle states to keep, in microseconds.
fn cpu_dma_latency() -> Option<String> {
    let mut bytes = [0; 4];
    let mut file = fs::File::open("/dev/cpu_dma_latency").ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(i32::from_ne_bytes(bytes).to_string())
}

fn cpu_model() -> String {
    let info = line("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name"));
    model.map_or_else(unknown, |rest| {
        rest.trim_start_matches([':', ' ', '\t']).to_owned()
    })
}

/// The commit of the tree that this program was built in, as it is now.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return unknown();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match changed {
        Some(text) if text.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_boot_parameters_that_matter_are_kept() {
        let line = "root=/dev/vda mitigations=auto,nosmt secret=1 isolcpus=1 -- idle=poll";
        assert_eq!(boot(line), "mitigations=auto,nosmt isolcpus=1");
    }

    #[test]
    fn a_manifest_says_what_machine_it_was() {
        let plan = crate::plan::read(
            "name = \"t\"\ntopology = \"pair\"\nmeasure = \"idle\"\nsystems = [\"bridge\"]\n",
        )
        .unwrap();
        let manifest = look(Some(&plan));
        assert!(manifest.kernel.contains('.'), "{}", manifest.kernel);
        assert!(manifest.started.ends_with('Z'), "{}", manifest.started);
        assert!(manifest.cpus >= 1);
        for name in ["rustc", "profile", "placement", "load-average", "governor"] {
            assert!(manifest.facts.contains_key(name), "{name}");
        }
    }
}
