//! The names, addresses and places of one lab cluster: the constants of the lab, all in this file.

use std::{
    env,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use crate::{
    cgroup::Cgroup,
    error::{Context, Result},
    launch::{Launch, Mounts},
};

/// The cluster that `make lab` makes.
pub const LAB: &str = "egressnat-lab";
/// The cluster that the tests make; both can be up at once.
pub const TEST: &str = "egressnat-test";

/// Prefix length of the node network, IPv4 and IPv6.
pub const NODE_PREFIX: (u8, u8) = (16, 64);
/// The node network's router: the bridge itself.
pub const ROUTER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(172, 18, 0, 1), node_v6(1));
/// All pods.
pub const POD_RANGES: (&str, &str) = ("10.244.0.0/16", "fd00:10:244::/56");
/// All Services.
pub const SERVICE_RANGES: (&str, &str) = ("10.96.0.0/16", "fd00:10:96::/112");
/// First addresses of [`SERVICE_RANGES`]: the API server's Service.
pub const API_SERVICE: (&str, &str) = ("10.96.0.1", "fd00:10:96::1");
/// Where every node answers DNS, with and without kube-proxy.
pub const NODE_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// The API server's port, on the control plane's address.
pub const API_PORT: u16 = 6443;
/// The external echo server, on [`ECHO_PORT`] of both.
pub const ECHO: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(172, 18, 0, 5), node_v6(5));
/// TCP (HTTP) and UDP.
pub const ECHO_PORT: u16 = 80;

/// What is fixed about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    /// Kubernetes name.
    pub name: &'static str,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// Its pods, IPv4 and IPv6.
    pub pod_ranges: (&'static str, &'static str),
}

/// The nodes; the first is the control plane.
pub const NODES: [NodeSpec; 3] = [
    NodeSpec {
        name: "k8s-guide-control-plane",
        v4: Ipv4Addr::new(172, 18, 0, 3),
        v6: node_v6(3),
        pod_ranges: ("10.244.0.0/24", "fd00:10:244::/64"),
    },
    NodeSpec {
        name: "k8s-guide-worker",
        v4: Ipv4Addr::new(172, 18, 0, 2),
        v6: node_v6(2),
        pod_ranges: ("10.244.1.0/24", "fd00:10:244:1::/64"),
    },
    NodeSpec {
        name: "k8s-guide-worker2",
        v4: Ipv4Addr::new(172, 18, 0, 4),
        v6: node_v6(4),
        pod_ranges: ("10.244.2.0/24", "fd00:10:244:2::/64"),
    },
];

/// The control plane's node.
pub const CONTROL_PLANE: NodeSpec = NODES[0];

const fn node_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, host)
}

impl NodeSpec {
    /// Whether it runs the control plane, and is tainted for it.
    #[must_use]
    pub fn is_control_plane(&self) -> bool {
        self.name == CONTROL_PLANE.name
    }
}

/// The places of one cluster: its folder, its programs, its names in the kernel.
#[derive(Debug, Clone)]
pub struct Site {
    cluster: String,
    lab: PathBuf,
}

impl Site {
    /// The site of a cluster; `lab` is the lab's own program, which starts the services.
    #[must_use]
    pub fn new(cluster: &str, lab: &Path) -> Self {
        Self {
            cluster: cluster.to_owned(),
            lab: lab.to_owned(),
        }
    }

    /// The site of a cluster, for the lab's program itself.
    ///
    /// # Errors
    /// When the running program cannot be named.
    pub fn of_this_program(cluster: &str) -> Result<Self> {
        Ok(Self::new(
            cluster,
            &env::current_exe().context(|| "find this program's path".into())?,
        ))
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The lab's own program.
    #[must_use]
    pub fn lab(&self) -> &Path {
        &self.lab
    }

    /// The checkout.
    #[must_use]
    pub fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("/"))
    }

    /// Everything that is built or run.
    #[must_use]
    pub fn target() -> PathBuf {
        Self::root().join("target")
    }

    /// What all clusters share: programs and images.
    #[must_use]
    pub fn shared() -> PathBuf {
        Self::target().join("lab")
    }

    /// A program that `setup.sh` built (`kube-apiserver`, `kubectl`, `helm`, ...).
    #[must_use]
    pub fn program(name: &str) -> PathBuf {
        Self::shared().join("bin").join(name)
    }

    /// All that the cluster keeps on disk.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Self::shared().join("clusters").join(&self.cluster)
    }

    /// A file or folder of the cluster.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The cluster's control group; everything it runs is below.
    #[must_use]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::new(&self.cluster)
    }

    /// The kubelet's `cgroupRoot` of a node.
    #[must_use]
    pub fn node_cgroup(&self, node: &NodeSpec) -> Cgroup {
        self.cgroup().child(node.name)
    }

    /// Name of the network namespace of a node, of `echo`, or of the `fabric` that joins them.
    #[must_use]
    pub fn netns(&self, member: &str) -> String {
        format!("{}-{member}", self.cluster)
    }

    /// Every network namespace that the cluster names.
    #[must_use]
    pub fn all_netns(&self) -> Vec<String> {
        let nodes = NODES.iter().map(|node| node.name);
        ["fabric", "echo"]
            .into_iter()
            .chain(nodes)
            .map(|member| self.netns(member))
            .collect()
    }

    /// A service by name; names are unique in the cluster.
    #[must_use]
    pub fn service(&self, name: &str) -> Service {
        Service {
            cgroup: self.cgroup().child("services").child(name),
            log: self.path("logs").join(format!("{name}.log")),
            pid_file: self.path("run").join(format!("{name}.pid")),
            lab: self.lab.clone(),
        }
    }

    /// A service that exists once a node.
    #[must_use]
    pub fn node_service(&self, name: &str, node: &NodeSpec) -> Service {
        self.service(&format!("{name}-{}", node.name))
    }
}

/// A long-running program of the cluster.
#[derive(Debug, Clone)]
pub struct Service {
    cgroup: Cgroup,
    log: PathBuf,
    pid_file: PathBuf,
    lab: PathBuf,
}

impl Service {
    /// Starts it. `netns` by full name, `None` for the caller's own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        netns: Option<String>,
        mounts: Mounts,
        program: &Path,
        args: Vec<String>,
    ) -> Result<()> {
        let launch = Launch {
            program: program.to_owned(),
            args,
            cgroup: self.cgroup.path().to_owned(),
            netns,
            mounts,
            log: self.log.clone(),
            pid_file: self.pid_file.clone(),
        };
        launch.start(&self.lab)
    }

    /// The process that was started, while it lives. An id that the system has given to somebody else
    /// since is not taken for it.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        let pid = std::fs::read_to_string(&self.pid_file)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        self.cgroup.pids().contains(&pid).then_some(pid)
    }

    /// Ends it and all that it started, at once.
    ///
    /// # Errors
    /// When something does not end.
    pub fn kill(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// Its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}
