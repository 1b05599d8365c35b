//! What a cluster left behind, if anything.

use std::fs;

use crate::{netns::Netns, site::Site};

/// Everything of the cluster that is still on the machine: processes, control groups, namespaces,
/// mounts, files. Empty after a `down` that did its work.
#[must_use]
pub fn find(site: &Site) -> Vec<String> {
    let mut found = processes(site);
    found.extend(
        site.cgroup()
            .folders()
            .iter()
            .map(|path| format!("control group {}", path.display())),
    );
    let ours = site.all_netns();
    let names = Netns::names(site.cluster())
        .into_iter()
        .filter(|name| ours.contains(name));
    found.extend(names.map(|name| format!("network namespace {name}")));
    found.extend(mounts(site));
    if site.folder().exists() {
        found.push(format!("folder {}", site.folder().display()));
    }
    found
}

/// Whether a service is being started right now, and is not yet in the cluster's control group.
#[must_use]
pub fn is_launching(site: &Site) -> bool {
    running().any(|process| process.launches_for(site))
}

struct Process {
    pid: String,
    groups: String,
    command: String,
}

impl Process {
    fn launches_for(&self, site: &Site) -> bool {
        self.command.contains(" launch {") && self.command.contains(&format!("{}/", site.folder().display()))
    }
}

/// Everything that runs. What has ended and waits only for its parent to take notice has no command line.
fn running() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline"))
            .ok()
            .filter(|command| !command.is_empty())?;
        Some(Process {
            pid: entry.file_name().to_string_lossy().into_owned(),
            groups: fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default(),
            command: String::from_utf8_lossy(&command).replace('\0', " "),
        })
    })
}

fn processes(site: &Site) -> Vec<String> {
    let group = format!("/{}/", site.cluster());
    let ours = running().filter(|process| process.groups.contains(&group) || process.launches_for(site));
    ours.map(|process| format!("process {} {}", process.pid, process.command.trim()))
        .collect()
}

/// Mounts in this mount namespace. Those of the nodes live in namespaces that end with their processes.
fn mounts(site: &Site) -> Vec<String> {
    let folder = site.folder().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_cluster = |line: &&str| {
        let point = line.split(' ').nth(1).unwrap_or_default();
        point.starts_with(&folder)
            || site
                .all_netns()
                .iter()
                .any(|name| point.ends_with(&format!("/{name}")))
    };
    mounts
        .lines()
        .filter(of_cluster)
        .map(|line| format!("mount {line}"))
        .collect()
}
