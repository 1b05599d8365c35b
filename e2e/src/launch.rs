//! Starting a service that outlives the program that starts it.
//!
//! The caller runs `lab launch SPEC`. That process, which has one thread and can therefore change its own
//! namespaces in safe code, moves itself into a session, a control group, a network and a mount
//! namespace, starts the service there, and ends. The service is then an orphan in the right place,
//! and the group is there before the service is: at no moment is there a process that
//! [`Cgroup::kill`](crate::cgroup::Cgroup::kill) would miss.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Cgroup,
    command,
    error::{Context, Error, Result},
    netns::Netns,
};

/// Where Debian's CNI plugins are; every node may add its own.
const CNI_PROGRAMS: &str = "usr/lib/cni";

/// The mount namespace that a service lives in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mounts {
    /// The caller's.
    Shared,
    /// A new one, in which everything that a Kubernetes node writes to the file system lands in this folder.
    Node(PathBuf),
    /// That of a running process.
    Of(i32),
}

/// A service to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its control group's path, see [`Cgroup`].
    pub cgroup: PathBuf,
    /// Name of the network namespace; `None` for the caller's.
    pub netns: Option<String>,
    /// Its mount namespace.
    pub mounts: Mounts,
    /// Where its output goes; an older file is replaced.
    pub log: PathBuf,
    /// Where its process id is written.
    pub pid_file: PathBuf,
}

impl Launch {
    /// Starts the service through `lab`, the lab's own program; returns once its program is running.
    ///
    /// # Errors
    /// When any part of the place, or the program itself, cannot be had.
    pub fn start(&self, lab: &Path) -> Result<()> {
        let spec = serde_json::to_string(self).context(|| "encode a launch".into())?;
        command::output(Command::new(lab).arg("launch").arg(spec)).map_err(|error| match error {
            Error::Command { status, output, .. } => Error::Command {
                command: self.program.display().to_string(),
                status,
                output,
            },
            other => other,
        })?;
        Ok(())
    }
}

/// The body of `lab launch SPEC`. Call it from a process with one thread.
///
/// # Errors
/// When any part of the place, or the program itself, cannot be had.
pub fn run(spec: &str) -> Result<()> {
    let launch: Launch = serde_json::from_str(spec).context(|| "read the launch".into())?;
    nix::unistd::setsid().context(|| "start a session".into())?;
    let cgroup = Cgroup::new(&launch.cgroup);
    cgroup.create()?;
    cgroup.enter()?;
    let log = File::create(&launch.log).context(|| format!("create {}", launch.log.display()))?;
    if let Some(name) = &launch.netns {
        Netns::open(name)?.enter()?;
    }
    match &launch.mounts {
        Mounts::Shared => {}
        Mounts::Node(folder) => enter_node_mounts(folder)?,
        Mounts::Of(pid) => join_mounts(*pid)?,
    }
    let child = Command::new(&launch.program)
        .args(&launch.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context(|| "share the log".into())?)
        .stderr(log)
        .spawn()
        .context(|| format!("start {}", launch.program.display()))?;
    fs::write(&launch.pid_file, child.id().to_string())
        .context(|| format!("write {}", launch.pid_file.display()))
}

/// Moves the calling thread into the mount namespace of a process.
///
/// # Errors
/// When the process is gone.
pub fn join_mounts(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/mnt");
    let file = File::open(&path).context(|| format!("open {path}"))?;
    // setns(2) asks that the working directory be this thread's own affair.
    unshare(CloneFlags::CLONE_FS).context(|| "leave the shared working directory".into())?;
    setns(file, CloneFlags::CLONE_NEWNS).context(|| format!("enter {path}"))
}

/// A mount namespace in which `/etc`, `/var` and the CNI's programs are overlays whose changes land in `folder`, `/run` is
/// empty and in memory, and containerd's images live in `folder` directly (an overlay cannot hold the
/// overlays of its containers). Whatever a node, a CNI plugin or a host-path volume writes there never
/// reaches the machine, and the mounts end with the node's last process.
fn enter_node_mounts(folder: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context(|| "make a mount namespace".into())?;
    remount("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    forget_namespace_mounts()?;
    for top in ["etc", "var", CNI_PROGRAMS] {
        overlay(folder, top)?;
    }
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context(|| "mount a tmpfs over /run".into())?;
    let images = folder.join("containerd");
    for path in [images.as_path(), Path::new("/var/lib/containerd")] {
        fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
    }
    mount(
        Some(&images),
        "/var/lib/containerd",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context(|| format!("bind {} over /var/lib/containerd", images.display()))?;
    // Containers with mount propagation see the node's mounts as peers, as on any systemd machine.
    remount("/", MsFlags::MS_REC | MsFlags::MS_SHARED)
}

fn remount(path: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .context(|| format!("change the propagation of {path}"))
}

/// The copies of other namespaces' names would keep those namespaces alive as long as this node lives.
fn forget_namespace_mounts() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context(|| "read /proc/self/mounts".into())?;
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        if let (Some("nsfs"), Some(point)) = (fields.next(), fields.next()) {
            umount2(point, MntFlags::MNT_DETACH).context(|| format!("unmount {point}"))?;
        }
    }
    Ok(())
}

fn overlay(folder: &Path, top: &str) -> Result<()> {
    let (upper, work) = (folder.join(top), folder.join(format!(".{top}-work")));
    for path in [&upper, &work] {
        fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
    }
    let target = Path::new("/").join(top);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        target.display(),
        upper.display(),
        work.display()
    );
    let mounted = mount(
        Some("overlay"),
        &target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    mounted
        .map_err(io::Error::from)
        .context(|| format!("mount an overlay over {}", target.display()))
}
