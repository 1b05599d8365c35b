//! What a container runtime has on its node, for a node without one.

use std::{fs, net::IpAddr, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::{Context, Result};

/// The flag of the agent that names each folder, and the folder below [`RuntimeFolders`].
const FLAGS: [(&str, &str); 6] = [
    ("run-folder", "run"),
    ("state-folder", "state"),
    ("cni-programs", "bin"),
    ("cni-configurations", "net.d"),
    ("cni-cache", "cache"),
    ("kubelet-pods", "pods"),
];

/// A pod as the runtime knows it.
#[derive(Clone, Copy, Debug)]
pub struct RuntimePod<'a> {
    /// Its container, of the sandbox.
    pub container: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Its name, in the namespace `default`.
    pub name: &'a str,
    /// What its interface has been given.
    pub addresses: &'a [IpAddr],
}

/// The folders that an agent shares with its node's runtime and kubelet. They end with this value.
#[derive(Debug)]
pub struct RuntimeFolders(TempDir);

impl RuntimeFolders {
    /// Empty ones. libcni's cache is made with the first result.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new() -> Result<Self> {
        let folders = Self(tempfile::tempdir().context(|| "make a folder".into())?);
        for name in ["run", "bin", "net.d"] {
            let folder = folders.path(name);
            fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
        }
        Ok(folders)
    }

    /// One of them, by the last part of its name.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// By which an agent finds them.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let folder = |(flag, name): (&str, &str)| format!("--gate-{flag}={}", self.path(name).display());
        let folders = FLAGS.into_iter().map(folder);
        ["--gate".to_owned()].into_iter().chain(folders).collect()
    }

    /// Where libcni keeps the result of a container's ADD.
    #[must_use]
    pub fn cached(&self, container: &str) -> PathBuf {
        self.path("cache/results").join(format!("lab-{container}-eth0"))
    }

    /// Keeps a pod's addresses as libcni does after the last plugin's ADD.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn cache(&self, pod: RuntimePod<'_>) -> Result<()> {
        let results = self.path("cache/results");
        fs::create_dir_all(&results).context(|| format!("make {}", results.display()))?;
        let file = self.cached(pod.container);
        fs::write(&file, pod.cached()).context(|| format!("write {}", file.display()))
    }
}

impl RuntimePod<'_> {
    /// The text of its cached result.
    #[must_use]
    pub fn cached(&self) -> String {
        let cached = json!({
            "kind": "cniCacheV1",
            "containerId": self.container,
            "ifName": "eth0",
            "networkName": "lab",
            "cniArgs": self.arguments(),
            "result": self.result(),
        });
        cached.to_string()
    }

    /// The arguments of its ADD, with their values.
    #[must_use]
    pub fn arguments(&self) -> [(&str, &str); 3] {
        [
            ("K8S_POD_NAMESPACE", "default"),
            ("K8S_POD_NAME", self.name),
            ("K8S_POD_UID", self.uid),
        ]
    }

    /// What the plugin that made its interface says of it.
    #[must_use]
    pub fn result(&self) -> Value {
        let prefix = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        let address = |ip: &IpAddr| json!({"address": format!("{ip}/{}", prefix(ip))});
        let ips: Vec<Value> = self.addresses.iter().map(address).collect();
        json!({"cniVersion": "1.0.0", "ips": ips})
    }
}
