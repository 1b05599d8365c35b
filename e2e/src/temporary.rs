//! A cluster that lives as long as a test's process, however that ends.

use std::{
    ops::Deref,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use crate::{
    cluster::{self, Cluster},
    command,
    error::{Context, Error, Result},
    kube_proxy::KubeProxyMode,
    lock::Lock,
    network::Network,
    progress::Progress,
    site::Site,
};

/// A fresh cluster for tests. A guard process takes it down when this value, or the process that holds
/// it, is gone.
#[derive(Debug)]
pub struct Temporary {
    cluster: Cluster,
    lock: Option<Lock>,
    guard: Child,
}

impl Temporary {
    /// Brings up a cluster, after removing what is left of an older one of the same name.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up(site: &Site, mode: KubeProxyMode, network: Network, progress: &Progress) -> Result<Self> {
        let lock = Lock::take(site, progress)?;
        cluster::down(site)?;
        let mut guard = Command::new(site.lab());
        guard.args(["--cluster", site.cluster(), "down", "--at-end-of-input"]);
        // In a group of its own: an interrupt from the keyboard ends the test, not its guard.
        guard
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let action = format!("start `{}`", command::line(&guard));
        let mut guard = guard.spawn().context(|| action)?;
        match Cluster::up(site, mode, network, progress) {
            Ok(cluster) => Ok(Self {
                cluster,
                lock: Some(lock),
                guard,
            }),
            Err(error) => {
                drop(lock);
                finish(&mut guard)?;
                Err(error)
            }
        }
    }

    /// Takes it down and checks that nothing of it is left.
    ///
    /// # Errors
    /// When something is.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // The guard takes the lock itself.
        drop(self.lock.take());
        finish(&mut self.guard)
    }
}

impl Deref for Temporary {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `down` there is nothing left to do; on a panic there is nobody to tell.
        let _ = self.end();
    }
}

fn finish(guard: &mut Child) -> Result<()> {
    drop(guard.stdin.take());
    let said = guard.stderr.take().map(std::io::read_to_string);
    let status = guard.wait().context(|| "wait for the cluster's guard".into())?;
    if status.success() {
        return Ok(());
    }
    let said = said.and_then(std::result::Result::ok).unwrap_or_default();
    Err(Error::State(format!(
        "failed to take the cluster down: {}",
        said.trim()
    )))
}
