//! A whole cluster: up, down, and what a test asks of it in between.

use std::{fmt::Display, fs, path::PathBuf, thread, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use crate::{
    control_plane,
    error::{Context, Error, Result},
    flannel::{self, Rules},
    images,
    kube_proxy::{self, KubeProxyMode},
    kubectl::Kubectl,
    launch::Mounts,
    netns::Netns,
    network::{self, Network},
    node::Node,
    pki,
    progress::Progress,
    residue,
    site::{API_PORT, CONTROL_PLANE, ECHO_PORT, NODES, Site},
    wait,
};

/// Chart values without all that tells a node of a pod before the API server knows the pod's address: the start gate, and
/// the container runtime's cached results.
pub const UNAWARE: [&str; 2] = [
    "startGate.enabled=false",
    "startGate.cniCacheDir=/var/lib/cni/nothing",
];

const PROXY_DEADLINE: Duration = Duration::from_secs(10);
const LAUNCH_DEADLINE: Duration = Duration::from_secs(10);
const GATE_DEADLINE: Duration = Duration::from_secs(120);
const CHART_NAMESPACE: &str = "egressnat-system";
const COREDNS_MANIFEST: &str = include_str!("../manifests/coredns.yaml");
const TSHOOT_MANIFEST: &str = include_str!("../manifests/net-tshoot.yaml");
const ECHO_MANIFEST: &str = include_str!("../manifests/echo.yaml");

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    site: Site,
    kubectl: Kubectl,
}

impl Cluster {
    /// Brings a cluster up. One that is up is checked and left alone; one that is half up, or of which a
    /// service has ended, is replaced.
    ///
    /// # Errors
    /// When a part does not come up, or the cluster that is there does not become ready.
    pub fn up(site: &Site, mode: KubeProxyMode, network: Network, progress: &Progress) -> Result<Self> {
        match Self::attach(site) {
            Ok(cluster) => {
                progress.step(&format!("{} is up already: checking", site.cluster()));
                return cluster.wait_ready().map(|()| cluster);
            }
            Err(_) if residue::find(site).is_empty() => {}
            Err(error) => progress.step(&format!("removing what an earlier run left: {error}")),
        }
        down(site)?;
        Self::create(site, mode, network, progress)
    }

    /// Takes hold of a cluster that is up.
    ///
    /// # Errors
    /// When it is not, or one of its services has ended.
    pub fn attach(site: &Site) -> Result<Self> {
        let kubeconfig = site.path("kubeconfig");
        if !kubeconfig.exists() {
            return Err(Error::State(format!(
                "the cluster {} is not up: run `make up`",
                site.cluster()
            )));
        }
        let cluster = Self {
            site: site.clone(),
            kubectl: Kubectl::with_kubeconfig(&kubeconfig),
        };
        for name in control_plane::SERVICES.into_iter().chain(["proxy"]) {
            expect_running(&site.service(name), name)?;
        }
        for node in cluster.nodes() {
            expect_running(&node.containerd(), "containerd")?;
            expect_running(&node.kubelet(), "kubelet")?;
        }
        Ok(cluster)
    }

    /// Its places and names.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// `kubectl` and `helm` for it.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The administrator's kubeconfig, for use on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.site.path("kubeconfig")
    }

    /// A client of its API server, as the administrator.
    ///
    /// # Errors
    /// When the kubeconfig does not lead to one.
    pub async fn client(&self) -> Result<Client> {
        let failed = |error: &dyn Display| {
            Error::State(format!(
                "failed to make a client of {}: {error}",
                self.site.cluster()
            ))
        };
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).map_err(|error| failed(&error))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| failed(&error))?;
        Client::try_from(config).map_err(|error| failed(&error))
    }

    /// Its nodes, the control plane first.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        NODES
            .into_iter()
            .map(|spec| Node::new(&self.site, spec))
            .collect()
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<Node> {
        let node = self.nodes().into_iter().find(|node| node.spec().name == name);
        node.ok_or_else(|| Error::State(format!("no node is called {name}")))
    }

    /// Imports image archives into every node.
    ///
    /// # Errors
    /// When one is refused.
    pub fn load_images(&self, archives: &[PathBuf]) -> Result<()> {
        on_every_node(&self.site, |node| {
            archives.iter().try_for_each(|archive| node.import(archive))
        })
    }

    /// Installs the chart with the project's images, or upgrades it, and waits until the operator and every
    /// agent are ready. The release programs must be built.
    ///
    /// # Errors
    /// When helm refuses, or something is not ready within two minutes.
    pub fn install_chart(&self) -> Result<()> {
        self.install_chart_with(&[])
    }

    /// As [`Cluster::install_chart`], with values of its own, each as `--set` takes it.
    ///
    /// # Errors
    /// As there.
    pub fn install_chart_with(&self, settings: &[&str]) -> Result<()> {
        self.load_images(&images::build_project()?)?;
        let file = |path: &str| Site::root().join(path).display().to_string();
        let values = [
            file("e2e/manifests/values.yaml"),
            file("target/images/values.yaml"),
        ];
        let mut args = vec![
            "upgrade",
            "--install",
            "egressnat",
            "--namespace",
            CHART_NAMESPACE,
        ];
        args.extend(["--create-namespace", "-f", &values[0], "-f", &values[1]]);
        let chart = file("charts/egressnat");
        args.push(&chart);
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.kubectl.helm(args)?;
        for workload in ["deployment/egressnat-operator", "daemonset/egressnat-agent"] {
            self.kubectl.run([
                "-n",
                CHART_NAMESPACE,
                "rollout",
                "status",
                workload,
                "--timeout=120s",
            ])?;
        }
        Ok(())
    }

    /// Waits until pods wait for their verdict on every node, or on none.
    ///
    /// # Errors
    /// After two minutes, with what the plans say instead.
    pub fn wait_for_gate(&self, armed: bool) -> Result<()> {
        wait::until("the plans to say whether pods wait", GATE_DEADLINE, || {
            let get = ["get", "egressplans", "-o", "json"];
            let text = self.kubectl.run(get).map_err(|error| error.to_string())?;
            let plans: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let plans = plans["items"].as_array().into_iter().flatten();
            let said: Vec<bool> = plans.map(is_armed).collect();
            match said == [armed; NODES.len()] {
                true => Ok(()),
                false => Err(format!("{said:?}\n{text}")),
            }
        })
    }

    /// Runs kube-proxy in `mode` on every node, and returns when its rules are written (or gone).
    ///
    /// # Errors
    /// When it does not start.
    pub fn set_kube_proxy(&self, mode: KubeProxyMode) -> Result<()> {
        on_every_node(&self.site, |node| {
            kube_proxy::set(&self.site, node, mode)?;
            if mode == KubeProxyMode::None {
                Ok(())
            } else {
                kube_proxy::wait_healthy(&self.site, node)
            }
        })
    }

    /// Starts the external echo server and gives it its names inside the cluster: `echo`, `echo4`, `echo6`.
    /// Does nothing where it runs already.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_echo(&self) -> Result<()> {
        let service = self.site.service("echo");
        if service.pid().is_none() {
            let name = self.site.netns("echo");
            Netns::delete(&name)?;
            network::create_echo(&self.site)?;
            let args = vec!["echo-server".into(), "--port".into(), ECHO_PORT.to_string()];
            service.start(Some(name), Mounts::Shared, self.site.lab(), args)?;
        }
        self.kubectl.apply(ECHO_MANIFEST)?;
        Ok(())
    }

    /// Waits until every node is Ready and every DaemonSet and Deployment is rolled out.
    ///
    /// # Errors
    /// When that takes more than two minutes.
    pub fn wait_ready(&self) -> Result<()> {
        self.kubectl
            .run(["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])?;
        self.kubectl.run([
            "-n",
            "kube-system",
            "rollout",
            "status",
            "daemonset/coredns",
            "--timeout=60s",
        ])?;
        self.kubectl.run([
            "-n",
            "default",
            "rollout",
            "status",
            "daemonset/net-tshoot",
            "--timeout=60s",
        ])?;
        Ok(())
    }

    fn create(site: &Site, mode: KubeProxyMode, network: Network, progress: &Progress) -> Result<Self> {
        for folder in ["logs", "run", "pki", "nodes"] {
            let path = site.path(folder);
            fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
        }
        progress.step("network: a bridge and three nodes, in namespaces of their own");
        network::create(site, network)?;
        pki::create(site)?;
        progress.step("control plane, container runtimes and images");
        let cluster = Self {
            site: site.clone(),
            kubectl: Kubectl::with_kubeconfig(&site.path("kubeconfig")),
        };
        thread::scope(|scope| {
            let runtimes = scope.spawn(|| start_runtimes(site, network));
            cluster.start_control_plane()?;
            join(runtimes)
        })?;
        if network == Network::Flannel {
            flannel::apply(&cluster.kubectl, Rules::Iptables)?;
        }
        progress.step("kubelets, kube-proxy, DNS and the net-tshoot pods");
        on_every_node(site, |node| {
            node.start_kubelet()?;
            kube_proxy::set(site, node, mode)
        })?;
        cluster.wait_ready()?;
        progress.step("three nodes are Ready");
        Ok(cluster)
    }

    fn start_control_plane(&self) -> Result<()> {
        control_plane::start_api_server(&self.site)?;
        start_proxy(&self.site)?;
        control_plane::wait_ready(&self.site, &self.kubectl)?;
        control_plane::start_controllers(&self.site)?;
        self.register_nodes()?;
        self.kubectl
            .apply(&format!("{COREDNS_MANIFEST}\n---\n{TSHOOT_MANIFEST}"))?;
        Ok(())
    }

    fn register_nodes(&self) -> Result<()> {
        let items: Vec<_> = self.nodes().iter().map(Node::object).collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.kubectl.apply(&list.to_string())?;
        Ok(())
    }
}

/// Ends and removes everything of a cluster, in whatever state it is. What is not there is no error.
///
/// # Errors
/// When something does not go away; the message names it.
pub fn down(site: &Site) -> Result<()> {
    // Left by an `up` that was killed: in a moment it is in the control group, and can be ended with it.
    wait::until("the end of launches under way", LAUNCH_DEADLINE, || {
        if residue::is_launching(site) {
            Err("one is still there")
        } else {
            Ok(())
        }
    })?;
    let cgroup = site.cgroup();
    if !cgroup.folders().is_empty() {
        cgroup.kill()?;
        cgroup.remove()?;
    }
    for name in site.all_netns() {
        Netns::delete(&name)?;
    }
    let folder = site.folder();
    if folder.exists() {
        fs::remove_dir_all(&folder).context(|| format!("remove {}", folder.display()))?;
    }
    match residue::find(site).as_slice() {
        [] => Ok(()),
        left => Err(Error::State(format!(
            "failed to remove all of {}:\n{}",
            site.cluster(),
            left.join("\n")
        ))),
    }
}

/// By what a plan's status says of the start gate.
fn is_armed(plan: &Value) -> bool {
    let mut conditions = plan["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Gate" && condition["status"] == "True")
}

fn start_proxy(site: &Site) -> Result<()> {
    let port_file = site.path("run").join("proxy.port");
    let args = vec![
        "proxy".into(),
        format!("--netns={}", site.netns(CONTROL_PLANE.name)),
        format!("--target={}:{API_PORT}", CONTROL_PLANE.v4),
        format!("--port-file={}", port_file.display()),
    ];
    site.service("proxy")
        .start(None, Mounts::Shared, site.lab(), args)?;
    let port = wait::until("the proxy's port", PROXY_DEADLINE, || {
        let text = fs::read_to_string(&port_file).map_err(|error| error.to_string())?;
        text.parse()
            .map_err(|_| format!("{} holds {text:?}", port_file.display()))
    })?;
    pki::write_host_kubeconfig(site, port)
}

fn expect_running(service: &crate::site::Service, name: &str) -> Result<()> {
    let ended = || Error::State(format!("{name} has ended (see {})", service.log().display()));
    service.pid().map(|_| ()).ok_or_else(ended)
}

fn start_runtimes(site: &Site, network: Network) -> Result<()> {
    let mut images = images::build_lab(&site.path("images"))?;
    if network == Network::Flannel {
        images.push(images::build_flannel(&site.path("images"))?);
    }
    on_every_node(site, |node| {
        if network == Network::Ptp {
            node.configure_ptp()?;
        }
        node.start_containerd()?;
        images.iter().try_for_each(|image| node.import(image))
    })
}

/// Does the same on every node at once; the first error wins.
fn on_every_node(site: &Site, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads = NODES.map(|spec| scope.spawn(move || work(&Node::new(site, spec))));
        threads.map(join).into_iter().collect()
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
