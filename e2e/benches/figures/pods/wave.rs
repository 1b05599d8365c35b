//! A wave of pods.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use egressnat_e2e::{
    cluster::Cluster,
    images::SENDER,
    netns::Netns,
    site::{CONTROL_PLANE, ECHO, NODES},
    wait,
};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    DEADLINE, LABEL,
    plugin::Runs,
    seen::{Line, Watch, now},
};

/// Pods that are created each second: what two cores with three kubelets and their runtimes carry.
pub const RATE: u32 = 2;
const FIRST_PORT: u16 = 21_000;
const NAMESPACE: &str = "default";

/// What was seen of a wave.
pub struct Wave {
    /// Of each pod.
    pub starts: Vec<Start>,
    /// How many milliseconds each run of the gate's plugin took.
    pub plugin: Vec<f64>,
    /// First packets a second, from the first pod's to the last one's.
    pub rate: f64,
}

/// What was seen of a pod, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// From the route to its address, the last that the CNI does for it, to its element in the kernel.
    pub programmed: f64,
    /// From the request to create it to its first packet outside.
    pub start: f64,
    /// From its first packet to its last with another address than the policy's.
    pub wrong: f64,
}

/// Who watches what.
struct Watches {
    outside: Watch,
    nodes: Vec<[Watch; 2]>,
    plugin: Runs,
}

/// A pod's packets, in seconds since 1970.
#[derive(Default)]
struct Packets {
    first: Option<f64>,
    last_wrong: Option<f64>,
    right: bool,
}

impl Wave {
    /// Creates the pods, watches them until each has sent with the right address, and deletes them.
    pub fn run(cluster: &Cluster, pods: usize) -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let api = Api::namespaced(runtime.block_on(cluster.client())?, NAMESPACE);
        let watches = Watches::start(cluster, pods)?;
        let created = runtime.block_on(create(&api, pods))?;
        let packets = wait::until("each pod's packets with the policy's address", DEADLINE, || {
            let packets = packets(&watches.outside.lines());
            let right = packets.values().filter(|packets| packets.right).count();
            match right == pods {
                true => Ok(packets),
                false => Err(format!("{right} of {pods}")),
            }
        })?;
        let plugin = watches.plugin.took()?;
        // With the gate, pods send before the API server knows their addresses.
        let addresses = wait::until("each pod's address", DEADLINE, || {
            runtime.block_on(addresses(&api))
        })?;
        let starts = created
            .iter()
            .map(|(port, at)| watches.start_of(*at, &packets[port], addresses[port]))
            .collect::<Result<_>>()?;
        runtime.block_on(delete(&api))?;
        let firsts = || packets.values().filter_map(|packets| packets.first);
        let took = firsts().fold(f64::MIN, f64::max) - firsts().fold(f64::MAX, f64::min);
        Ok(Self {
            starts,
            plugin,
            rate: pods as f64 / took,
        })
    }
}

impl Watches {
    fn start(cluster: &Cluster, pods: usize) -> Result<Self> {
        let echo = Netns::open(&cluster.site().netns("echo"))?;
        let last = FIRST_PORT + u16::try_from(pods)? - 1;
        // An answer, be it that nobody listens, is work for both ends that is none of a pod's start.
        echo.nft(&format!(
            "table inet bench
            delete table inet bench
            table inet bench {{
                chain input {{
                    type filter hook input priority 0;
                    meta l4proto {{ tcp, udp }} th dport {FIRST_PORT}-{last} drop
                }}
            }}"
        ))?;
        // Of the right ones every tenth, the first among them: those whose payload ends with a 0.
        let filter = format!(
            "udp dst portrange {FIRST_PORT}-{last} and (not src host {} or udp[udp[4:2]-1:1] = 48)",
            CONTROL_PLANE.v4
        );
        let tcpdump = ["tcpdump", "-i", "eth0", "-nttl", "--immediate-mode", &filter];
        let outside = Watch::start(&echo, &tcpdump)?;
        let nodes = cluster.nodes().into_iter().map(|node| {
            let netns = node.netns()?;
            Ok([
                Watch::start(&netns, &["ip", "-4", "monitor", "route"])?,
                Watch::start(&netns, &["nft", "monitor", "new", "elements"])?,
            ])
        });
        Ok(Self {
            outside,
            nodes: nodes.collect::<Result<_>>()?,
            plugin: Runs::watch()?,
        })
    }

    fn start_of(&self, created: f64, packets: &Packets, address: IpAddr) -> Result<Start> {
        let first = packets.first.context("no packet")?;
        let (assigned, programmed) = wait::until("a pod's route and element", DEADLINE, || {
            let words = [format!("{address} dev "), format!("pods4 {{ {address} :")];
            let at = |watch: usize| {
                let lines = self.nodes.iter().flat_map(|node| node[watch].lines());
                let mut lines =
                    lines.filter(|(_, line)| line.contains(&words[watch]) && !line.starts_with("Deleted"));
                lines.next().map(|(at, _)| at)
            };
            at(0).zip(at(1)).ok_or_else(|| format!("{address}"))
        })?;
        let wrong = packets.last_wrong.map_or(0.0, |last| last - first);
        ensure!(wrong >= 0.0, "time runs backwards");
        Ok(Start {
            programmed: (programmed - assigned) * 1e3,
            start: (first - created) * 1e3,
            // A single wrong packet took a moment, too.
            wrong: if packets.last_wrong.is_some() {
                (wrong * 1e3).max(1.0)
            } else {
                0.0
            },
        })
    }
}

/// What was seen of each port, of lines like `1.5 IP 172.18.0.4.40000 > 172.18.0.5.21000: UDP, length 9`.
fn packets(lines: &[Line]) -> BTreeMap<u16, Packets> {
    let mut packets: BTreeMap<u16, Packets> = BTreeMap::new();
    for (_, line) in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [at, "IP", from, ">", to, ..] = words.as_slice() else {
            continue;
        };
        let from = from
            .rsplit_once('.')
            .and_then(|(host, _)| host.parse::<Ipv4Addr>().ok());
        let port = to
            .trim_end_matches(':')
            .rsplit('.')
            .next()
            .and_then(|port| port.parse().ok());
        let (Ok(at), Some(from), Some(port)) = (at.parse(), from, port) else {
            continue;
        };
        let pod = packets.entry(port).or_default();
        pod.first.get_or_insert(at);
        if from == CONTROL_PLANE.v4 {
            pod.right = true;
        } else {
            pod.last_wrong = Some(at);
        }
    }
    packets
}

/// Creates them one after the other at [`RATE`], whatever the kubelets do; returns when, by port.
async fn create(api: &Api<Pod>, pods: usize) -> Result<BTreeMap<u16, f64>> {
    let mut clock = interval(Duration::from_secs(1) / RATE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = Vec::new();
    let mut created = BTreeMap::new();
    for port in (FIRST_PORT..).take(pods) {
        clock.tick().await;
        created.insert(port, now());
        let (api, pod) = (api.clone(), pod(port)?);
        requests.push(tokio::spawn(async move {
            api.create(&PostParams::default(), &pod).await
        }));
    }
    for created in try_join_all(requests).await? {
        created?;
    }
    Ok(created)
}

/// On one of the nodes that are not the gateway.
fn pod(port: u16) -> Result<Pod> {
    let node = NODES[1 + usize::from(port) % 2].name;
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("bench-{port}"), "labels": {LABEL.0: LABEL.1}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "sender",
                "image": SENDER,
                "imagePullPolicy": "Never",
                "args": [format!("bench-{port}"), port.to_string(), "obey", ECHO.0.to_string()],
            }],
        },
    }))?)
}

fn labelled() -> ListParams {
    ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1))
}

/// Each pod's address, by its port.
async fn addresses(api: &Api<Pod>) -> Result<BTreeMap<u16, IpAddr>> {
    let pods = api.list(&labelled()).await?;
    let address = |pod: &Pod| {
        let port = pod
            .metadata
            .name
            .as_deref()?
            .strip_prefix("bench-")?
            .parse()
            .ok()?;
        Some((port, pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?))
    };
    pods.iter()
        .map(|pod| address(pod).with_context(|| format!("{:?} has no address", pod.metadata.name)))
        .collect()
}

/// Deletes them all, and waits until the kubelets have done so.
async fn delete(api: &Api<Pod>) -> Result<()> {
    api.delete_collection(&DeleteParams::default(), &labelled())
        .await?;
    let mut clock = interval(Duration::from_millis(100));
    let begin = now();
    while !api.list(&labelled()).await?.items.is_empty() {
        ensure!(now() - begin < DEADLINE.as_secs_f64(), "the pods do not go");
        clock.tick().await;
    }
    Ok(())
}
