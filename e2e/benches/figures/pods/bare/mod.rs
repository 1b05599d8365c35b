//! Pods of a node without a kubelet, [`RATE`] a second: what the start gate adds to a pod's start, how soon the kernel knows a
//! pod after the container runtime has cached its addresses, and after the API server was told them where nothing is cached.
//!
//! API server, operator, agent and plugin are real. This stands in for scheduler, runtime and kubelet: it makes each pod on
//! its node, calls the plugin or writes the cached result when a runtime could have made the network, and tells the API
//! server.

mod gate;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use egressnat_e2e::{
    api_server::ApiServer,
    command,
    runtime_folders::{RuntimeFolders, RuntimePod},
    site::Site,
    topology::{Node, Options, SERVER, Topology},
    wait,
};
use egressnat_operator::{election::LeaseConfig, run, world::ClusterConfig};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::gate::Gate;
use super::{
    DEADLINE, LABEL, Way, both, policy,
    seen::{Watch, now},
};
use crate::{
    agent::Agent,
    results::{Record, Target},
};

/// Pods that are made each second.
const RATE: u32 = 20;
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
    let mut records = Vec::new();
    for (way, name, target) in [
        (Way::Gated, "gate_added", Some(50.0)),
        (Way::Ungated, "cached_pod_programmed", Some(250.0)),
        (Way::Unaware, "reported_pod_programmed", None),
    ] {
        let topology = Topology::new(Options::default())?;
        let took = topology
            .source
            .netns
            .run(|| World::new(&topology, way)?.wave(pods))??;
        records.extend(both(name, took, target.map(Target::Below)));
    }
    let with_rate = |record: Record| record.label("rate", RATE);
    Ok(records.into_iter().map(with_rate).collect())
}

/// All of it in the source node's namespace, but its packets' gateway, which has no agent: what is measured is when the
/// node captures them.
struct World<'a> {
    node: &'a Node,
    way: Way,
    runtime: Runtime,
    client: Client,
    stop: CancellationToken,
    server: ApiServer,
}

impl<'a> World<'a> {
    fn new(topology: &'a Topology, way: Way) -> Result<Self> {
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
            way,
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
        let address = json!(topology.gateway.address.v4);
        world.create(&policy(&format!("{}/32", SERVER.v4), ("egressSourceIP", address)))?;
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
            cluster: ClusterConfig {
                start_gate: self.way == Way::Gated,
                ..ClusterConfig::default()
            },
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
    fn wave(&self, pods: usize) -> Result<Vec<f64>> {
        let folders = RuntimeFolders::new()?;
        gate::configure(&folders)?;
        let flags = [folders.flags(), vec![gate::flag()]].concat();
        let _agent = Agent::start(self.node, &self.server, &flags)?;
        let elements = Watch::start(&self.node.netns, &["nft", "monitor", "new", "elements"])?;
        let told = match self.way {
            Way::Unaware => Told::Reported,
            Way::Ungated => Told::Cached(&folders),
            Way::Gated => Told::Asked(Gate::wait(&folders)?),
        };
        let started = self.runtime.block_on(self.start(pods, &told))?;
        Ok(wait::until("each pod's element", DEADLINE, || {
            took(&started, &elements).ok_or("some are missing")
        })?)
    }

    /// Makes the pods one after the other at [`RATE`].
    async fn start(&self, pods: usize, told: &Told<'_>) -> Result<BTreeMap<Ipv4Addr, Started>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let (api, begin) = (&api, Instant::now());
        let pods = (0..pods).map(async |number| {
            let after = Duration::from_secs(1) * u32::try_from(number)? / RATE;
            sleep_until(begin + after).await;
            let address = address(number)?;
            let started = start(api, &pod(self.node, number)?, address, told).await?;
            anyhow::Ok((address, started))
        });
        Ok(try_join_all(pods).await?.into_iter().collect())
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Who tells the node of a pod's address.
enum Told<'a> {
    /// The API server.
    Reported,
    /// The runtime's cached result.
    Cached(&'a RuntimeFolders),
    /// The plugin.
    Asked(Gate),
}

/// When the first began to say a pod's address that says it this way, or how long the pod waited for the plugin.
#[derive(Clone, Copy)]
enum Started {
    Told(f64),
    Waited(Duration),
}

/// Makes a pod, and is the runtime that makes its network and the kubelet that reports its address.
async fn start(pods: &Api<Pod>, pod: &Pod, address: Ipv4Addr, told: &Told<'_>) -> Result<Started> {
    let pod = pods.create(&PostParams::default(), pod).await?;
    let (uid, name) = (
        pod.metadata.uid.unwrap_or_default(),
        pod.metadata.name.unwrap_or_default(),
    );
    let known = RuntimePod {
        container: &uid,
        uid: &uid,
        name: &name,
        addresses: &[IpAddr::V4(address)],
    };
    sleep(NETWORK).await;
    let begin = now();
    let started = match told {
        Told::Reported => Started::Told(begin),
        Told::Cached(folders) => {
            folders.cache(known)?;
            sleep(REPORT).await;
            Started::Told(begin)
        }
        Told::Asked(gate) => {
            let waited = gate.add(known).await?;
            sleep(REPORT).await;
            Started::Waited(waited)
        }
    };
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
    }});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(started)
}

/// When each pod's element came after it was told, or for how long it waited, in milliseconds. `None` as long as an element
/// has not come.
fn took(started: &BTreeMap<Ipv4Addr, Started>, elements: &Watch) -> Option<Vec<f64>> {
    let lines = elements.lines();
    let of = |(address, started): (&Ipv4Addr, &Started)| {
        let element = format!("pods4 {{ {address} :");
        let (at, _) = lines.iter().find(|(_, line)| line.contains(&element))?;
        Some(match started {
            Started::Told(told) => (at - told) * 1e3,
            Started::Waited(waited) => waited.as_secs_f64() * 1e3,
        })
    };
    started.iter().map(of).collect()
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
