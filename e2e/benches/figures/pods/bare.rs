//! Pods of a node without a kubelet, [`wave::RATE`](super::wave::RATE) a second: how soon the kernel knows a pod after the
//! container runtime has cached its addresses, and after the API server was told them where nothing is cached.
//!
//! API server, operator and agent are real. This stands in for scheduler, runtime and kubelet: it makes each pod on its
//! node, writes the cached result when a runtime could have made the network, and tells the API server.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use egressnat_e2e::{
    api_server::ApiServer,
    command,
    site::Site,
    topology::{Node, Options, SERVER, Topology},
    wait,
};
use egressnat_operator::{election::LeaseConfig, run, world::ClusterConfig};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    DEADLINE, LABEL, POLICY, both,
    seen::{Watch, now},
    wave::RATE,
};
use crate::{
    agent::Agent,
    results::{Record, Target},
};

const NAMESPACE: &str = "default";
/// The range of the node's pods, and the first of them.
const PODS: &str = "10.241.200.0/22";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 241, 200, 2);
/// Between the API server's word that a pod is bound and the end of its network's ADD: less than any runtime takes to make
/// a sandbox.
const NETWORK: Duration = Duration::from_millis(100);
/// From then to the kubelet's report, where the agent does not wait for it.
const REPORT: Duration = Duration::from_millis(500);

/// Every figure, of so many pods each.
pub fn records(pods: usize) -> Result<Vec<Record>> {
    let topology = Topology::new(Options::default())?;
    topology.source.netns.run(|| {
        let world = World::new(&topology)?;
        let cached = world.wave(pods, true)?;
        let reported = world.wave(pods, false)?;
        let mut records = Vec::new();
        records.extend(both("cached_pod_programmed", cached, Some(Target::Below(250.0))));
        records.extend(both("reported_pod_programmed", reported, None));
        let with_rate = |record: Record| record.label("rate", RATE);
        Ok(records.into_iter().map(with_rate).collect())
    })?
}

/// All of it in the source node's namespace, but its packets' gateway, which has no agent: what is measured is when the
/// node captures them.
struct World<'a> {
    node: &'a Node,
    runtime: Runtime,
    client: Client,
    stop: CancellationToken,
    server: ApiServer,
}

impl<'a> World<'a> {
    fn new(topology: &'a Topology) -> Result<Self> {
        let server = ApiServer::start()?;
        let apply =
            |path: &Path| command::output(server.kubectl().args(["apply", "--server-side", "-f"]).arg(path));
        apply(&Site::root().join("charts/egressnat/crds"))?;
        let established = ["wait", "--for=condition=Established", "crd", "--all"];
        command::output(server.kubectl().args(established))?;
        let runtime = Runtime::new()?;
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = runtime.block_on(Config::from_custom_kubeconfig(kubeconfig, &options))?;
        // Clients put their tasks on it.
        let inside = runtime.enter();
        let client = Client::try_from(config.clone())?;
        drop(inside);
        let world = Self {
            node: &topology.source,
            runtime,
            client,
            stop: CancellationToken::new(),
            server,
        };
        world.run_node(&topology.source, PODS)?;
        world.run_node(&topology.gateway, "10.241.204.0/22")?;
        world.create(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
        }))?;
        world.create(&policy(topology.gateway.address.v4))?;
        world.operate(config)?;
        Ok(world)
    }

    fn create(&self, object: &Value) -> Result<String> {
        let apply = ["apply", "--server-side", "--namespace", NAMESPACE, "-f", "-"];
        let output = command::output_with_input(self.server.kubectl().args(apply), &object.to_string());
        Ok(output?)
    }

    /// A Node as its kubelet shows it.
    fn run_node(&self, node: &Node, pods: &str) -> Result<()> {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
            "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        }))?;
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": node.address.v4}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        let (params, patch) = (PatchParams::default(), Patch::Merge(status));
        let patched = nodes.patch_status(node.name, &params, &patch);
        self.runtime.block_on(patched)?;
        Ok(())
    }

    /// Starts the operator.
    fn operate(&self, config: Config) -> Result<()> {
        let operator = run::Config {
            http_address: "127.0.0.1:0".parse()?,
            cluster: ClusterConfig::default(),
            lease: LeaseConfig {
                namespace: NAMESPACE.into(),
                identity: "bench".into(),
                duration: Duration::from_secs(15),
                renew_deadline: Duration::from_secs(10),
                retry_period: Duration::from_secs(2),
            },
        };
        let _inside = self.runtime.enter();
        let client = egressnat_api_client::client(config)?;
        self.runtime.spawn(run::run(operator, client, self.stop.clone()));
        Ok(())
    }

    /// How long each of these pods took, in milliseconds.
    fn wave(&self, pods: usize, cached: bool) -> Result<Vec<f64>> {
        let folders = Folders::new()?;
        let _agent = Agent::start(self.node, &self.server, &folders.flags())?;
        let elements = Watch::start(&self.node.netns, &["nft", "monitor", "new", "elements"])?;
        let results = cached.then(|| folders.path("cache/results"));
        let known = self.runtime.block_on(self.start(pods, results))?;
        let took = wait::until("each pod's element", DEADLINE, || {
            took(&known, &elements).ok_or("some are missing")
        })?;
        self.runtime.block_on(self.end())?;
        Ok(took)
    }

    /// Makes the pods one after the other at [`RATE`]; returns by address when its node, or the API server, was told it.
    async fn start(&self, pods: usize, results: Option<PathBuf>) -> Result<BTreeMap<Ipv4Addr, f64>> {
        if let Some(results) = &results {
            fs::create_dir_all(results)?;
        }
        let mut clock = interval(Duration::from_secs(1) / RATE);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut started = Vec::new();
        for number in 0..pods {
            clock.tick().await;
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
            let (node, results) = (self.node, results.clone());
            let address = address(number)?;
            let pod = pod(node, number)?;
            started.push(tokio::spawn(
                async move { start(&pods, &pod, address, results).await },
            ));
        }
        let known = try_join_all(started).await?;
        known.into_iter().collect()
    }

    /// Deletes all pods at once: there is no kubelet to wait for.
    async fn end(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
            .await?;
        Ok(())
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Makes a pod, and is the runtime that makes its network and the kubelet that reports its address. Returns the address, and
/// when the first of these that is to be measured began to say it.
async fn start(
    pods: &Api<Pod>,
    pod: &Pod,
    address: Ipv4Addr,
    results: Option<PathBuf>,
) -> Result<(Ipv4Addr, f64)> {
    let pod = pods.create(&PostParams::default(), pod).await?;
    let (uid, name) = (
        pod.metadata.uid.unwrap_or_default(),
        pod.metadata.name.unwrap_or_default(),
    );
    sleep(NETWORK).await;
    let mut told = now();
    let report = async || {
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        }});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await
    };
    match results {
        Some(results) => {
            fs::write(
                results.join(format!("bench-{uid}-eth0")),
                cached(&uid, &name, address),
            )?;
            sleep(REPORT).await;
            report().await?;
        }
        None => {
            told = now();
            report().await?;
        }
    }
    Ok((address, told))
}

/// When each pod's element came after it was told, in milliseconds. `None` as long as one has not come.
fn took(known: &BTreeMap<Ipv4Addr, f64>, elements: &Watch) -> Option<Vec<f64>> {
    let lines = elements.lines();
    let of = |(address, told): (&Ipv4Addr, &f64)| {
        let element = format!("pods4 {{ {address} :");
        let (at, _) = lines.iter().find(|(_, line)| line.contains(&element))?;
        Some((at - told) * 1e3)
    };
    known.iter().map(of).collect()
}

fn address(number: usize) -> Result<Ipv4Addr> {
    Ok((u32::from(FIRST) + u32::try_from(number)?).into())
}

fn pod(node: &Node, number: usize) -> Result<Pod> {
    let pod = json!({
        "metadata": {"name": format!("bench-{number}"), "labels": {LABEL.0: LABEL.1}},
        "spec": {"nodeName": node.name, "containers": [{"name": "app", "image": "app"}]},
    });
    serde_json::from_value(pod).context("no pod")
}

fn policy(address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "selectors": [{"podSelector": {"matchLabels": {LABEL.0: LABEL.1}}}],
            "destinationCIDRs": [format!("{}/32", SERVER.v4)],
            "egressSourceIP": address,
        },
    })
}

fn cached(uid: &str, name: &str, address: Ipv4Addr) -> String {
    let cached = json!({
        "kind": "cniCacheV1",
        "containerId": uid,
        "ifName": "eth0",
        "networkName": "bench",
        "cniArgs": [["K8S_POD_NAMESPACE", NAMESPACE], ["K8S_POD_NAME", name], ["K8S_POD_UID", uid]],
        "result": {"cniVersion": "1.0.0", "ips": [{"address": format!("{address}/32")}]},
    });
    cached.to_string()
}

/// The agent's own.
struct Folders(TempDir);

impl Folders {
    fn new() -> Result<Self> {
        let folders = Self(tempfile::tempdir()?);
        fs::create_dir(folders.path("run"))?;
        Ok(folders)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self) -> Vec<String> {
        let folder = |(flag, name): (&str, &str)| format!("--gate-{flag}={}", self.path(name).display());
        let folders = [
            ("run-folder", "run"),
            ("state-folder", "state"),
            ("cni-programs", "bin"),
            ("cni-configurations", "net.d"),
            ("cni-cache", "cache"),
        ];
        let folders = folders.into_iter().map(folder);
        ["--gate".to_owned()].into_iter().chain(folders).collect()
    }
}
