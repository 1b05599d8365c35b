//! Control groups: how the lab knows, and ends, everything that it started.
//!
//! Each cluster has one folder in the cgroup2 tree and each of its services a folder below. A process
//! cannot leave by forking, and runc moves containers to groups below, so the folder is a truer list than any
//! file of process ids, and `cgroup.kill` ends it whole. The kubelets need their `cgroupRoot` in every
//! version-1 hierarchy as well, where the machine still has those.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Context, Error, Result},
    wait,
};

const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// A control group, by its path below the root of each hierarchy ("egressnat-lab/services/etcd").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Names a group; makes nothing.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A group below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self {
            path: self.path.join(name),
        }
    }

    /// Its path below the root of each hierarchy.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it in the cgroup2 tree, where processes are tracked.
    ///
    /// # Errors
    /// When there is no cgroup2 tree, or the kernel refuses.
    pub fn create(&self) -> Result<()> {
        let path = self.tracked()?;
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))
    }

    /// Makes it in every hierarchy with every controller in reach, as a kubelet's `cgroupRoot` must be.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_for_kubelet(&self) -> Result<()> {
        self.create()?;
        let root = unified()?;
        if root.join("cgroup.controllers").exists() {
            delegate_controllers(&root, &self.path)?;
        }
        for hierarchy in version_1() {
            create_version_1(&hierarchy, &self.path)?;
        }
        Ok(())
    }

    /// Puts this process, and with it all that it starts from now on, into the group.
    ///
    /// # Errors
    /// When the group is not there.
    pub fn enter(&self) -> Result<()> {
        let path = self.tracked()?.join("cgroup.procs");
        fs::write(&path, "0").context(|| format!("write {}", path.display()))
    }

    /// The processes of the group itself, groups below not counted.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let procs = self
            .tracked()
            .map(|path| fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default());
        procs
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Whether a process lives in the group or below it.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        let events = self
            .tracked()
            .map(|path| fs::read_to_string(path.join("cgroup.events")).unwrap_or_default());
        events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Ends every process of the group and of the groups below, and waits until they are gone.
    ///
    /// # Errors
    /// When one of them does not go.
    pub fn kill(&self) -> Result<()> {
        let path = self.tracked()?.join("cgroup.kill");
        if path.exists() {
            fs::write(&path, "1").context(|| format!("write {}", path.display()))?;
        }
        wait::until(
            &format!("the end of every process in {}", self.path.display()),
            KILL_DEADLINE,
            || {
                if self.is_populated() {
                    Err("some are still there")
                } else {
                    Ok(())
                }
            },
        )
    }

    /// Removes the group and those below, in every hierarchy. They must be empty.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for path in self.folders() {
            wait::until(
                &format!("the removal of {}", path.display()),
                KILL_DEADLINE,
                || remove_tree(&path),
            )?;
        }
        Ok(())
    }

    /// Its folder in each hierarchy that has one.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = version_1();
        folders.extend(unified());
        folders
            .into_iter()
            .map(|root| root.join(&self.path))
            .filter(|path| path.exists())
            .collect()
    }

    fn tracked(&self) -> Result<PathBuf> {
        Ok(unified()?.join(&self.path))
    }
}

/// Mount point of the cgroup2 tree.
fn unified() -> Result<PathBuf> {
    mount_points("cgroup2").into_iter().next().ok_or_else(|| {
        Error::State("no cgroup2 file system is mounted: mount one at /sys/fs/cgroup/unified".into())
    })
}

/// Mount points of the version-1 hierarchies, if any.
fn version_1() -> Vec<PathBuf> {
    mount_points("cgroup")
}

fn mount_points(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == kind).then(|| PathBuf::from(point))
        })
        .collect();
    points.dedup();
    points
}

/// Version 2: a controller is in reach of a group only when every group above hands it down.
fn delegate_controllers(root: &Path, path: &Path) -> Result<()> {
    let file = root.join("cgroup.controllers");
    let controllers = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
    let wanted: String = controllers
        .split_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    let mut level = root.to_owned();
    for part in std::iter::once(Path::new("")).chain(path.iter().map(Path::new)) {
        level.push(part);
        let file = level.join("cgroup.subtree_control");
        fs::write(&file, wanted.trim()).context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Version 1: a new `cpuset` group has no processor and takes no process until it is given some.
fn create_version_1(root: &Path, path: &Path) -> Result<()> {
    let mut level = root.to_owned();
    for part in path {
        let parent = level.clone();
        level.push(part);
        fs::create_dir_all(&level).context(|| format!("create {}", level.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(parent.join(file)) {
                let target = level.join(file);
                fs::write(&target, value.trim()).context(|| format!("write {}", target.display()))?;
            }
        }
    }
    Ok(())
}

fn sub_folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for folder in sub_folders(path) {
        remove_tree(&folder)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
