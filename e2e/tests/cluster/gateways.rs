//! Several gateways of one policy, as the echo server sees them.

use std::collections::BTreeMap;

use egressnat_e2e::{
    cluster::Cluster,
    error::{Context, Result},
    site::{NODES, NodeSpec},
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test,
    pod::{self, Pod},
    scene::{DEADLINE, EGRESS, GATEWAY, POLICY, Scene, Seen, WORKER, egress, of, policy},
};

pub const TESTS: &[Test] = &[(
    "gateways::a_pod_keeps_one_of_two_gateways",
    a_pod_keeps_one_of_two_gateways,
)];

/// With so many pods, one time in 32768 all of them use the same gateway.
const MOST_PODS: usize = 16;

fn a_pod_keeps_one_of_two_gateways(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let first = entry(GATEWAY, json!({"egressIPs": EGRESS}));
    let second = entry(WORKER, json!({}));
    apply(&scene, &[&first, &second])?;
    let pods = run_until_both_are_used(&scene)?;
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let result = keep_their_gateways(&scene, &pods, [&first, &second]);
    for name in names {
        pod::delete(scene.kubectl, name)?;
    }
    scene.delete_policy()?;
    result
}

fn keep_their_gateways(scene: &Scene, pods: &[Pod], entries: [&Value; 2]) -> std::result::Result<(), Failed> {
    let both = [egress(), of(WORKER)];
    let mut expected: Vec<(&Pod, Seen)> = Vec::new();
    for pod in pods {
        let seen = wait::until("one of two gateways", DEADLINE, || {
            let seen = pod.seen(scene.kubectl);
            let one = both.contains(&seen).then(|| seen.clone());
            one.ok_or_else(|| format!("{pod} is seen as {seen:?}"))
        })?;
        expected.push((pod, seen));
    }
    let users = [0, 1].map(|i| expected.iter().filter(|(_, seen)| *seen == both[i]).count());
    assert_eq!(users, used(scene)?, "the status counts them");
    assert!(users.iter().all(|count| *count > 0), "{users:?}");
    for look in 1..=5 {
        for (pod, seen) in &expected {
            assert_eq!(pod.seen(scene.kubectl), *seen, "{pod}, look {look}");
        }
    }

    apply(scene, &entries[..1])?;
    let all_by_first: Vec<(&Pod, Seen)> = pods.iter().map(|pod| (pod, egress())).collect();
    scene.expect("all pods by the gateway that is left", &all_by_first)?;
    apply(scene, &[entries[1], entries[0]])?;
    scene.expect("each pod by its own gateway again", &expected)?;
    Ok(())
}

/// Pods on the third node, until each gateway has some.
fn run_until_both_are_used(scene: &Scene) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    while pods.len() < MOST_PODS {
        let name = format!("gateways-{}", pods.len());
        let labels = json!({"egress": "chosen"});
        pods.push(Pod::run(scene.kubectl, &name, NODES[0], labels, json!({}))?);
        let counted = wait::until("the status to count the pods", DEADLINE, || {
            let counted = used(scene).map_err(|error| error.to_string())?;
            match counted.iter().sum::<usize>() == pods.len() {
                true => Ok(counted),
                false => Err(format!("{counted:?} of {}", pods.len())),
            }
        })?;
        if counted.iter().all(|count| *count > 0) {
            break;
        }
    }
    Ok(pods)
}

/// How many pods use each gateway, as the policy's status says.
fn used(scene: &Scene) -> Result<[usize; 2]> {
    let text = scene
        .kubectl
        .run(["get", "egressnatpolicy", POLICY, "-o", "json"])?;
    let policy: Value = serde_json::from_str(&text).context(|| "read the policy".into())?;
    let by_node: BTreeMap<&str, usize> = policy["status"]["gateways"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|g| (g["node"].as_str().unwrap_or_default(), count(&g["pods"])))
        .collect();
    Ok([GATEWAY, WORKER].map(|node| by_node.get(node.name).copied().unwrap_or_default()))
}

fn count(number: &Value) -> usize {
    number
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or_default()
}

/// An entry of `egressGateways` for one node.
fn entry(node: NodeSpec, fields: Value) -> Value {
    let mut entry = fields;
    entry["nodeSelector"] = json!({"matchLabels": {"kubernetes.io/hostname": node.name}});
    entry
}

fn apply(scene: &Scene, entries: &[&Value]) -> Result<()> {
    let mut policy = policy(json!({"egressGateways": entries}));
    if let Some(spec) = policy["spec"].as_object_mut() {
        spec.remove("egressSourceIPs");
    }
    scene.kubectl.apply(&policy.to_string())?;
    let name = format!("egressnatpolicy/{POLICY}");
    scene
        .kubectl
        .run(["wait", "--for=condition=Programmed", "--timeout=30s", &name])?;
    Ok(())
}
