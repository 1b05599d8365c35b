//! `kubectl` and `helm`, pointed at one cluster.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{command, error::Result, site::Site};

/// How to reach a cluster: the lab's own, or any other by the user's environment.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubectl: PathBuf,
    helm: PathBuf,
    kubeconfig: Option<PathBuf>,
}

impl Kubectl {
    /// The lab's programs with this kubeconfig.
    #[must_use]
    pub fn with_kubeconfig(kubeconfig: &Path) -> Self {
        Self {
            kubectl: Site::program("kubectl"),
            helm: Site::program("helm"),
            kubeconfig: Some(kubeconfig.to_owned()),
        }
    }

    /// `kubectl` and `helm` of the user's `PATH`, with the user's `KUBECONFIG`.
    #[must_use]
    pub fn external() -> Self {
        Self {
            kubectl: "kubectl".into(),
            helm: "helm".into(),
            kubeconfig: None,
        }
    }

    /// A `kubectl` command to be run by the caller.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        self.prepare(&self.kubectl, args)
    }

    /// Runs `kubectl`; returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error holds what it said.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        command::output(&mut self.command(args))
    }

    /// Runs `kubectl apply -f -` on a manifest; returns what changed, one object a line.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        command::output_with_input(&mut self.command(["apply", "-f", "-"]), manifest)
    }

    /// Runs `helm`; returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error holds what it said.
    pub fn helm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        command::output(&mut self.prepare(&self.helm, args))
    }

    fn prepare<A: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(program);
        command.args(args);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
            // helm looks for the user's kubectl settings and plugins; the lab's cluster needs none of them.
            command.env("PATH", path_with_programs());
        }
        command
    }
}

fn path_with_programs() -> std::ffi::OsString {
    let own = Site::shared().join("bin");
    let inherited = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(own).chain(env::split_paths(&inherited))).unwrap_or(inherited)
}
