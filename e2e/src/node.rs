//! One node: a containerd and a kubelet in the node's network namespace and in a mount namespace of its own.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    command,
    error::{Context, Error, Result},
    images::TOOLBOX,
    launch::{Mounts, join_mounts},
    netns::{Netns, in_thread},
    pki,
    site::{NODE_LOCAL_DNS, NodeSpec, Service, Site},
    wait,
};

const CONTAINERD: &str = "/usr/bin/containerd";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CONTAINERD_DEADLINE: Duration = Duration::from_secs(30);
const CNI_PROGRAMS: &str = "/usr/lib/cni";

/// The lab's own network configuration.
const CNI_CONFIGURATION: &str = "/etc/cni/net.d/10-lab.conflist";

/// The bridge that [`Plugin::Bridge`] makes on a node.
pub const BRIDGE: &str = "cni0";

/// Which of the standard plugins makes pods' links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// A link of its own for each pod.
    Ptp,
    /// All of a node's pods on one bridge.
    Bridge,
}

/// A node of a cluster.
#[derive(Debug, Clone)]
pub struct Node {
    site: Site,
    spec: NodeSpec,
}

impl Node {
    /// A node of this site; starts nothing.
    #[must_use]
    pub fn new(site: &Site, spec: NodeSpec) -> Self {
        Self {
            site: site.clone(),
            spec,
        }
    }

    /// What is fixed about it.
    #[must_use]
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// When the node is not up.
    pub fn netns(&self) -> Result<Netns> {
        Netns::open(&self.site.netns(self.spec.name))
    }

    /// Runs a command as on the node itself: in its network and its mount namespace.
    ///
    /// # Errors
    /// When the node is not up, or the command fails.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        let pid = self.containerd_pid()?;
        let netns = self.netns()?;
        in_thread(|| {
            netns.enter()?;
            join_mounts(pid)?;
            command::output(command)
        })
    }

    /// Writes the network configuration of the lab's own [network](crate::network::Network::Ptp), before containerd is
    /// up.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_ptp(&self) -> Result<()> {
        let folder = self.site.path("nodes").join(self.spec.name);
        let path = folder.join(CNI_CONFIGURATION.trim_start_matches('/'));
        write(&path, &self.cni_config(Plugin::Ptp, false))
    }

    /// Writes another network configuration over the lab's own: for pods that start from now on. containerd must be up.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, plugin: Plugin, masquerades: bool) -> Result<()> {
        let text = format!("{:#}\n", self.cni_config(plugin, masquerades));
        let script = format!("printf %s \"$0\" > {CNI_CONFIGURATION}");
        self.output(Command::new("sh").args(["-c", &script, &text]))?;
        Ok(())
    }

    /// Starts containerd, and returns when it answers.
    ///
    /// # Errors
    /// When it cannot be started, or does not answer within half a minute.
    pub fn start_containerd(&self) -> Result<()> {
        let folder = self.site.path("nodes").join(self.spec.name);
        fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("containerd.toml"), containerd_config())
            .context(|| format!("write the containerd configuration of {}", self.spec.name))?;
        let config = folder.join("containerd.toml").display().to_string();
        let service = self.containerd();
        service.start(
            Some(self.site.netns(self.spec.name)),
            Mounts::Node(folder),
            Path::new(CONTAINERD),
            vec!["--config".into(), config],
        )?;
        let what = format!(
            "containerd on {} (see {})",
            self.spec.name,
            service.log().display()
        );
        wait::until(&what, CONTAINERD_DEADLINE, || self.ctr(&["version"]))?;
        Ok(())
    }

    /// Imports image archives into containerd.
    ///
    /// # Errors
    /// When containerd refuses one.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&[
            "--namespace",
            "k8s.io",
            "images",
            "import",
            &archive.display().to_string(),
        ])?;
        Ok(())
    }

    /// Starts the kubelet; containerd must be up and the Node object be there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_kubelet(&self) -> Result<()> {
        let cgroup = self.site.node_cgroup(&self.spec);
        cgroup.create_for_kubelet()?;
        let config = self.site.path("nodes").join(self.spec.name).join("kubelet.json");
        write(
            &config,
            &self.kubelet_config(&format!("/{}", cgroup.path().display())),
        )?;
        let args = vec![
            format!("--config={}", config.display()),
            format!(
                "--kubeconfig={}",
                pki::kubeconfig_path(&self.site, self.spec.name).display()
            ),
            format!("--hostname-override={}", self.spec.name),
            format!("--node-ip={},{}", self.spec.v4, self.spec.v6),
        ];
        self.start_inside(&self.kubelet(), "kubelet", args)
    }

    /// Starts one more of the Kubernetes programs on the node.
    ///
    /// # Errors
    /// When the node is not up or the program cannot be started.
    pub fn start_inside(&self, service: &Service, program: &str, args: Vec<String>) -> Result<()> {
        let mounts = Mounts::Of(self.containerd_pid()?);
        service.start(
            Some(self.site.netns(self.spec.name)),
            mounts,
            &Site::program(program),
            args,
        )
    }

    /// Its containerd.
    #[must_use]
    pub fn containerd(&self) -> Service {
        self.site.node_service("containerd", &self.spec)
    }

    /// Its kubelet.
    #[must_use]
    pub fn kubelet(&self) -> Service {
        self.site.node_service("kubelet", &self.spec)
    }

    /// The Node object with what the kubelet may not set itself: its role, its taint, its pod ranges.
    #[must_use]
    pub fn object(&self) -> Value {
        let (pods_v4, pods_v6) = self.spec.pod_ranges;
        let mut node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.spec.name, "labels": {}},
            "spec": {"podCIDR": pods_v4, "podCIDRs": [pods_v4, pods_v6]},
        });
        if self.spec.is_control_plane() {
            node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = "".into();
            node["spec"]["taints"] =
                json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
        }
        node
    }

    fn containerd_pid(&self) -> Result<i32> {
        let down = || {
            Error::State(format!(
                "containerd does not run on {}: is the cluster up?",
                self.spec.name
            ))
        };
        self.containerd().pid().ok_or_else(down)
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        // The socket is in the node's own /run; its process' root folder leads there.
        let socket = format!("/proc/{}/root{CONTAINERD_SOCKET}", self.containerd_pid()?);
        command::output(Command::new("ctr").args(["--address", &socket]).args(args))
    }

    fn cni_config(&self, plugin: Plugin, masquerades: bool) -> Value {
        let (pods_v4, pods_v6) = self.spec.pod_ranges;
        let mut link = match plugin {
            Plugin::Ptp => json!({"type": "ptp"}),
            Plugin::Bridge => {
                json!({"type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true})
            }
        };
        link["ipMasq"] = masquerades.into();
        link["ipam"] = json!({
            "type": "host-local",
            "ranges": [[{"subnet": pods_v4}], [{"subnet": pods_v6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        json!({"cniVersion": "0.4.0", "name": "lab", "plugins": [link]})
    }

    fn kubelet_config(&self, cgroup_root: &str) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": false},
                "x509": {"clientCAFile": pki::path(&self.site, "ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "clusterDomain": "cluster.local",
            "clusterDNS": [NODE_LOCAL_DNS.to_string()],
            // The machine's resolver is out of reach from the node network.
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup_root,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "failCgroupV1": false,
            "localStorageCapacityIsolation": false,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "maxPods": 250,
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "10s",
            "registerNode": true,
        })
    }
}

/// `restrict_oom_score_adj`: without `CAP_SYS_RESOURCE` runc cannot lower the score and dies without a word.
fn containerd_config() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{TOOLBOX}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

fn write(path: &Path, value: &Value) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, format!("{value:#}\n")).context(|| format!("write {}", path.display()))
}
