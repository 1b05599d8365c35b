//! Several gateways and several addresses of one policy, and an address that moves, as the echo server sees them.

use egressnat_e2e::{
    cluster::Cluster,
    error::Result,
    netns::Netns,
    site::{NODES, NodeSpec},
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test,
    pod::{self, Pod},
    requests::Requests,
    scene::{
        self, CHOSEN, DEADLINE, EGRESS, GATEWAY, POLICY, Scene, Seen, WORKER, condition, egress, of, own,
        policy,
    },
};

pub const TESTS: &[Test] = &[
    (
        "gateways::a_pod_keeps_one_of_two_gateways",
        a_pod_keeps_one_of_two_gateways,
    ),
    (
        "gateways::a_pod_keeps_one_of_two_pairs_of_addresses",
        a_pod_keeps_one_of_two_pairs_of_addresses,
    ),
    (
        "gateways::an_address_that_comes_moves_and_goes_is_followed",
        an_address_that_comes_moves_and_goes_is_followed,
    ),
];

/// A second pair of addresses for [`GATEWAY`].
const SECOND: [&str; 2] = ["172.18.0.41", "fd00:172:18::41"];

/// With so many pods, one time in 32768 all of them use the same gateway.
const MOST_PODS: usize = 16;

fn a_pod_keeps_one_of_two_gateways(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let entries = [
        entry(GATEWAY, json!({"egressIPs": EGRESS})),
        entry(WORKER, json!({})),
    ];
    each_pod_keeps_its_own(&scene, &[egress(), of(WORKER)], |used| {
        let entries: Vec<&Value> = used.iter().map(|i| &entries[*i]).collect();
        apply(&scene, &json!({"egressGateways": entries}))
    })
}

/// Both held by the same node.
fn a_pod_keeps_one_of_two_pairs_of_addresses(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.give(GATEWAY, SECOND)?;
    let pairs = [EGRESS, SECOND];
    let seen = pairs.map(|pair| pair.map(|address| Some(address.to_owned())));
    let result = each_pod_keeps_its_own(&scene, &seen, |used| {
        let addresses: Vec<&str> = used.iter().flat_map(|i| pairs[*i]).collect();
        apply(&scene, &json!({"egressSourceIPs": addresses}))
    });
    scene.take(GATEWAY, SECOND)?;
    result
}

/// Of two choices, each seen as one of `both`; `apply` makes the policy of some of them, in this order.
fn each_pod_keeps_its_own(
    scene: &Scene,
    both: &[Seen; 2],
    apply: impl Fn(&[usize]) -> Result<()>,
) -> std::result::Result<(), Failed> {
    apply(&[0, 1])?;
    let pods = run_until_both_are_used(scene)?;
    let result = keep_their_own(scene, &pods, both, apply);
    for pod in &pods {
        pod::delete(scene.kubectl, &pod.name)?;
    }
    scene.delete_policy()?;
    result
}

fn keep_their_own(
    scene: &Scene,
    pods: &[Pod],
    both: &[Seen; 2],
    apply: impl Fn(&[usize]) -> Result<()>,
) -> std::result::Result<(), Failed> {
    let mut expected: Vec<(&Pod, Seen)> = Vec::new();
    for pod in pods {
        let seen = wait::until("one of the two", DEADLINE, || {
            let seen = pod.seen(scene.kubectl);
            let one = both.contains(&seen).then(|| seen.clone());
            one.ok_or_else(|| format!("{pod} is seen as {seen:?}"))
        })?;
        expected.push((pod, seen));
    }
    let users = both
        .each_ref()
        .map(|one| expected.iter().filter(|(_, seen)| seen == one).count());
    assert_eq!(users, used(scene)?, "the status counts them");
    assert!(users.iter().all(|count| *count > 0), "{users:?}");
    for look in 1..=5 {
        for (pod, seen) in &expected {
            assert_eq!(pod.seen(scene.kubectl), *seen, "{pod}, look {look}");
        }
    }

    let stays = expected.iter().find(|(_, seen)| *seen == both[0]);
    let requests = Requests::start(scene, stays.ok_or("no pod uses the first")?.0)?;
    apply(&[0])?;
    let all_by_first: Vec<(&Pod, Seen)> = pods.iter().map(|pod| (pod, both[0].clone())).collect();
    scene.expect("all pods by the one that is left", &all_by_first)?;
    apply(&[1, 0])?;
    scene.expect("each pod by its own again", &expected)?;
    requests.end(&both[0])?;
    Ok(())
}

/// Nobody touches the policy: the address moves to another node, goes, and comes back.
fn an_address_that_comes_moves_and_goes_is_followed(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let result = follow(&scene);
    // It is there only if the test failed half-way.
    let _ = scene.take(WORKER, EGRESS);
    scene.delete_policy()?;
    result
}

fn follow(scene: &Scene) -> std::result::Result<(), Failed> {
    let pods = scene.tshoot()?;
    for pod in &pods {
        scene.label(pod, CHOSEN)?;
    }
    let expect =
        |what: &str, seen: fn(&Pod) -> Seen| scene.expect(what, &pods.each_ref().map(|pod| (pod, seen(pod))));
    scene.apply_policy(json!({}))?;
    expect("the address at its first node", |_| egress())?;
    expect_gateway(scene, GATEWAY.name, "True")?;
    let generation = scene.shown(POLICY)?["metadata"]["generation"].clone();

    scene.take(GATEWAY, EGRESS)?;
    scene.give(WORKER, EGRESS)?;
    forget_the_neighbours(scene)?;
    expect_gateway(scene, WORKER.name, "True")?;
    expect("the address at another node", |_| egress())?;
    scene.take(WORKER, EGRESS)?;
    expect_gateway(scene, "", "AddressNotFound")?;
    expect("the address nowhere", |_| [None, None])?;
    assert_eq!(scene.shown(POLICY)?["metadata"]["generation"], generation);

    let node_ip = policy(json!({"noGateway": "NodeIP"}));
    scene.kubectl.apply(&node_ip.to_string())?;
    expect("the address nowhere, with NodeIP", own)?;
    let generation = scene.shown(POLICY)?["metadata"]["generation"].clone();
    scene.give(GATEWAY, EGRESS)?;
    forget_the_neighbours(scene)?;
    expect("the address at its first node again", |_| egress())?;
    expect_gateway(scene, GATEWAY.name, "True")?;
    assert_eq!(scene.shown(POLICY)?["metadata"]["generation"], generation);
    Ok(())
}

/// Who moves an address announces it; `ip` does not, and the echo server would go on asking the former node.
fn forget_the_neighbours(scene: &Scene) -> Result<()> {
    Netns::open(&scene.cluster.site().netns("echo"))?.ip("neigh flush dev eth0")
}

/// Waits until the status names this gateway, and `GatewayReady` is True, or False with this reason.
fn expect_gateway(scene: &Scene, node: &str, ready: &str) -> Result<()> {
    wait::until("the status to follow the address", DEADLINE, || {
        let policy = scene.shown(POLICY).map_err(|error| error.to_string())?;
        let condition = condition(&policy, "GatewayReady");
        let says = match condition["status"].as_str() {
            Some("False") => condition["reason"].as_str(),
            status => status,
        };
        let named = policy["status"]["gateways"][0]["node"]
            .as_str()
            .unwrap_or_default();
        match says == Some(ready) && named == node {
            true => Ok(()),
            false => Err(policy["status"].to_string()),
        }
    })
}

/// Pods on the third node, until each of the two has some.
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

/// How many pods use each of the two, as the policy's status says.
fn used(scene: &Scene) -> Result<[usize; 2]> {
    let policy = scene.shown(POLICY)?;
    let gateways = &policy["status"]["gateways"];
    Ok([0, 1].map(|i| count(&gateways[i]["pods"])))
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

/// Applies the scenarios' policy with these gateways, and waits until every node concerned has it.
fn apply(scene: &Scene, gateways: &Value) -> Result<()> {
    let mut policy = policy(gateways.clone());
    if let Some(spec) = policy["spec"].as_object_mut()
        && gateways["egressSourceIPs"].is_null()
    {
        spec.remove("egressSourceIPs");
    }
    scene::apply(scene.kubectl, &policy)
}
