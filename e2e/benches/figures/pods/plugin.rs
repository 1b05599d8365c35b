//! How long each run of `egressnat-cni` takes, as the kernel's scheduler saw it (tracefs, events `sched_process_exec`
//! and `sched_process_exit`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

const TRACING: &str = "/sys/kernel/tracing";
const INSTANCE: &str = "instances/egressnat-bench";
const PLUGIN: &str = "egressnat-cni";

/// A trace of its own, gone with this value.
pub struct Runs {
    folder: PathBuf,
}

impl Runs {
    /// Notes runs from now on.
    pub fn watch() -> Result<Self> {
        if !Path::new(TRACING).join("instances").exists() {
            mount(
                Some("tracefs"),
                TRACING,
                Some("tracefs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .context("failed to mount tracefs")?;
        }
        let folder = Path::new(TRACING).join(INSTANCE);
        // A run that was killed may have left it.
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let runs = Self { folder };
        for (event, filter) in [
            ("sched_process_exec", format!("filename ~ \"*/{PLUGIN}\"")),
            ("sched_process_exit", format!("comm == \"{PLUGIN}\"")),
        ] {
            runs.write(&format!("events/sched/{event}/filter"), &filter)?;
            runs.write(&format!("events/sched/{event}/enable"), "1")?;
        }
        Ok(runs)
    }

    /// Of each run that has ended, how many milliseconds it took.
    pub fn took(&self) -> Result<Vec<f64>> {
        let file = self.folder.join("trace");
        let text = fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        Ok(milliseconds(&text))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.folder.join(file);
        fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Lines like `egressnat-cni-77 [001] d..2. 12.345678: sched_process_exec: filename=... pid=77 old_pid=77`.
fn milliseconds(trace: &str) -> Vec<f64> {
    let mut begun = BTreeMap::new();
    let mut took = Vec::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((before, event)) = line.split_once(": sched_process_") else {
            continue;
        };
        let at = before.rsplit(' ').next().and_then(|at| at.parse::<f64>().ok());
        let pid = event
            .split(" pid=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let (Some(at), Some(pid)) = (at, pid) else {
            continue;
        };
        if event.starts_with("exec") {
            begun.insert(pid, at);
        } else if let Some(begin) = begun.remove(pid) {
            took.push((at - begin) * 1e3);
        }
    }
    took
}
