//! Network namespaces: made, entered, configured, deleted.
//!
//! A namespace is entered by a thread of its own, because `setns(2)` changes the calling thread only;
//! a process started by that thread is born inside. Nothing here needs `unsafe` or an `ip netns` process.
//!
//! ```no_run
//! # fn main() -> egressnat_e2e::error::Result<()> {
//! use egressnat_e2e::netns::Netns;
//! let (a, b) = (Netns::anonymous()?, Netns::anonymous()?);
//! a.ip(&format!("link add left type veth peer name right netns {}", b.path().display()))?;
//! a.ip("link set left up\naddr add 192.0.2.1/24 dev left")?;
//! b.sysctl("net.ipv4.ip_forward", "1")?;
//! # Ok(()) }
//! ```

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    command,
    error::{Context, Result},
};

/// Where `ip netns` keeps its names; a namespace made here is visible to it.
pub const RUN_DIR: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// A handle on a network namespace.
///
/// Dropping it never deletes anything: an [anonymous](Netns::anonymous) namespace goes by itself with
/// its last handle, process and device; a [named](Netns::create) one stays until [`Netns::delete`].
#[derive(Debug)]
pub struct Netns {
    file: File,
    name: Option<String>,
}

impl Netns {
    /// Makes a namespace without a name, with `lo` up. It cannot outlive this process (unless a process
    /// started in it does), so a test that is killed leaves nothing behind.
    ///
    /// # Errors
    /// When the kernel refuses, or `lo` cannot be brought up.
    pub fn anonymous() -> Result<Self> {
        let file = in_new_netns(|| File::open(OWN).context(|| format!("open {OWN}")))?;
        let netns = Self { file, name: None };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Makes a namespace that outlives this process, as `ip netns add` does, with `lo` up.
    ///
    /// # Errors
    /// When the name is taken, the kernel refuses, or `lo` cannot be brought up.
    pub fn create(name: &str) -> Result<Self> {
        let path = Path::new(RUN_DIR).join(name);
        fs::create_dir_all(RUN_DIR).context(|| format!("create {RUN_DIR}"))?;
        File::create_new(&path).context(|| format!("create {}", path.display()))?;
        in_new_netns(|| {
            mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context(|| format!("bind the network namespace to {}", path.display()))
        })?;
        let netns = Self::open(name)?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Opens a namespace by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(RUN_DIR).join(name);
        let file = File::open(&path).context(|| format!("open network namespace {}", path.display()))?;
        Ok(Self {
            file,
            name: Some(name.to_owned()),
        })
    }

    /// Removes a name. The namespace itself ends when no process is left in it. A name that is not
    /// there is no error.
    ///
    /// # Errors
    /// When the name's file cannot be removed.
    pub fn delete(name: &str) -> Result<()> {
        let path = Path::new(RUN_DIR).join(name);
        // Not mounted when its maker was killed between the file and the mount: the file is all there is.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("remove {}", path.display())),
        }
    }

    /// Names of all named namespaces that begin with `prefix`, sorted.
    #[must_use]
    pub fn names(prefix: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(RUN_DIR)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names
    }

    /// The name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// A path by which other programs (`ip link set ... netns PATH`, `nsenter --net=PATH`) find it,
    /// valid as long as this handle lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        match &self.name {
            Some(name) => Path::new(RUN_DIR).join(name),
            None => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context(|| "enter a network namespace".into())
    }

    /// Runs `work` inside: sockets that it opens and processes that it starts belong to the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| self.enter().map(|()| work()))
    }

    /// Runs a command inside to its end; returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| command::output(command))?
    }

    /// Starts a command inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let action = format!("start `{}`", command::line(command));
        self.run(|| command.spawn())?.context(|| action)
    }

    /// Runs `ip` commands inside, one a line (`link set eth0 up`), stopping at the first that fails.
    ///
    /// # Errors
    /// When a command fails; the message names its line.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.run(|| command::output_with_input(Command::new("ip").args(["-batch", "-"]), batch))??;
        Ok(())
    }

    /// Loads a ruleset inside, in nft's own syntax.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.run(|| command::output_with_input(Command::new("nft").args(["-f", "-"]), ruleset))??;
        Ok(())
    }

    /// Sets a sysctl inside; `key` in dotted form, an interface name with a dot written with a slash.
    ///
    /// # Errors
    /// When the kernel does not know the key or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let swapped: String = key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect();
        let path = Path::new("/proc/sys").join(swapped);
        self.run(|| fs::write(&path, value))?
            .context(|| format!("set sysctl {key}={value}"))
    }
}

fn in_new_netns<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context(|| "make a network namespace".into())?;
        work()
    })
}

/// Runs `work` in a thread that ends with it, so that the namespaces it enters stay its own affair.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
