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

/// Processes in the cluster's control groups, and any other that names the cluster's folder or namespaces
/// in its command line: a service that was being started when its starter was killed.
fn processes(site: &Site) -> Vec<String> {
    let folder = format!("{}/", site.folder().display());
    let control_group = format!("/{}/", site.cluster());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        if command.is_empty() {
            continue; // ended, and waiting only for its parent to take notice
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let is_launch = command.contains(" launch {") && command.contains(&folder);
        if groups.contains(&control_group) || is_launch {
            found.push(format!(
                "process {} {}",
                entry.file_name().display(),
                command.trim()
            ));
        }
    }
    found
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
