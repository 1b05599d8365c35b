//! `kubectl egressnat`, the built program, against the real API server with the real operator.

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use egressnat_crds::EgressNATPolicy;
use egressnat_e2e::site::Site;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{support::*, world::*};

mod explain;
mod lint;
mod migrate;
mod program;
mod status;

/// This machine's architecture, with a C library that is linked in.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};

/// What the program said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// The program, and the cluster that it asks.
struct Plugin {
    kubeconfig: PathBuf,
}

impl Plugin {
    /// As the administrator of the cluster.
    fn of(cluster: &Cluster) -> Self {
        let config = cluster.kubectl(&["config", "view", "--raw", "--flatten"], "");
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plugin-kubeconfig-{}-{number}", std::process::id());
        let kubeconfig = Site::target().join(name);
        fs::write(&kubeconfig, config).unwrap();
        Self { kubeconfig }
    }

    fn says(&self, args: &[&str]) -> Said {
        self.says_of(args, "")
    }

    fn says_of(&self, args: &[&str], input: &str) -> Said {
        let mut child = Command::new(program())
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self.says(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.kubeconfig);
    }
}

/// The program, built as it is released: static, and on its own, so that no feature of another crate reaches it.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "-p", "kubectl-egressnat", "--target", TARGET])
            .arg("--target-dir")
            .arg(Site::target())
            .current_dir(Site::root())
            .status()
            .unwrap();
        assert!(built.success());
        Site::target().join(TARGET).join("debug/kubectl-egressnat")
    })
}

/// As [`spec_from_gateway`], with other destinations too, and weaker.
fn weaker() -> Value {
    let mut spec = spec_from_gateway();
    spec["priority"] = json!(50);
    spec["destinationCIDRs"] = json!(["198.51.100.0/24", "203.0.113.0/24"]);
    spec["egressSourceIP"] = json!(WORKER_IP);
    spec
}
