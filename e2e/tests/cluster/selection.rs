//! Which pods a policy captures, and when it stops: scenarios of selection, each of them between two other
//! policies for the same pods.

use egressnat_e2e::{cluster::Cluster, site::NodeSpec, wait};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test,
    pod::{self, Pod},
    reuse,
    scene::{CHOSEN, DEADLINE, GATEWAY, Scene, WORKER, egress, own},
};

pub const TESTS: &[Test] = &[
    (
        "selection::unselected_pods_keep_their_nodes_address",
        unselected_pods_keep_their_nodes_address,
    ),
    (
        "selection::a_pods_label_switches_its_address_both_ways",
        a_pods_label_switches_its_address_both_ways,
    ),
    (
        "selection::a_namespaces_label_switches_its_pods_both_ways",
        a_namespaces_label_switches_its_pods_both_ways,
    ),
    (
        "selection::a_nodes_label_switches_its_pods_both_ways_in_its_own_entry_alone",
        a_nodes_label_switches_its_pods_both_ways_in_its_own_entry_alone,
    ),
    (
        "selection::a_host_network_pod_is_never_captured",
        a_host_network_pod_is_never_captured,
    ),
    (
        "selection::a_completed_pod_releases_its_entry_and_its_address",
        a_completed_pod_releases_its_entry_and_its_address,
    ),
];

/// In the same namespace, beside a selected pod and elsewhere, and in another namespace.
fn unselected_pods_keep_their_nodes_address(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let [unselected, selected, on_gateway] = scene.tshoot()?;
    let beside = Pod::run(scene.kubectl, "beside", WORKER, json!({}), json!({}))?;
    let others = scene.peers()?;
    for pod in [&selected, &on_gateway] {
        scene.label(pod, CHOSEN)?;
    }
    scene.apply_policy(json!({}))?;
    let mut expected = vec![(&selected, egress()), (&on_gateway, egress())];
    let keep = [&unselected, &beside].into_iter().chain(&others);
    expected.extend(keep.map(|pod| (pod, own(pod))));
    scene.expect("the selected pods alone with the policy's address", &expected)?;
    pod::delete(scene.kubectl, "beside")?;
    Ok(())
}

fn a_pods_label_switches_its_address_both_ways(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let pods = scene.tshoot()?;
    scene.apply_policy(json!({}))?;
    scene.expect(
        "no pod has the label",
        &pods.each_ref().map(|pod| (pod, own(pod))),
    )?;
    for pod in &pods {
        scene.label(pod, CHOSEN)?;
    }
    scene.expect("every pod has it", &pods.each_ref().map(|pod| (pod, egress())))?;
    for pod in &pods {
        scene.label(pod, "egress-")?;
    }
    scene.expect(
        "no pod has it any more",
        &pods.each_ref().map(|pod| (pod, own(pod))),
    )?;
    Ok(())
}

fn a_namespaces_label_switches_its_pods_both_ways(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let peers = scene.peers()?;
    let label = |label: &str| scene.kubectl.run(["label", "namespace", "other", label]);
    scene.apply_policy(json!({
        "selectors": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
    }))?;
    scene.expect(
        "no namespace has the label",
        &peers.each_ref().map(|pod| (pod, own(pod))),
    )?;
    label("team=a")?;
    scene.expect(
        "the other one has it",
        &peers.each_ref().map(|pod| (pod, egress())),
    )?;
    label("team-")?;
    scene.expect("it has it no more", &peers.each_ref().map(|pod| (pod, own(pod))))?;
    Ok(())
}

/// The pod of the gateway is selected by the other entry, which asks for no label of its node.
fn a_nodes_label_switches_its_pods_both_ways_in_its_own_entry_alone(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let [control, worker, gateway] = scene.tshoot()?;
    let label = |label: &str| scene.kubectl.run(["label", "node", WORKER.name, label]);
    scene.label(&gateway, CHOSEN)?;
    scene.apply_policy(json!({"selectors": [
        {
            "podSelector": {"matchLabels": {"name": "net-tshoot"}},
            "nodeSelector": {"matchLabels": {"rack": "a"}},
        },
        {"podSelector": {"matchLabels": {"egress": "chosen"}}},
    ]}))?;
    let without = [
        (&control, own(&control)),
        (&worker, own(&worker)),
        (&gateway, egress()),
    ];
    scene.expect("no node has the label", &without)?;
    label("rack=a")?;
    let with = [
        (&control, own(&control)),
        (&worker, egress()),
        (&gateway, egress()),
    ];
    scene.expect("one has it", &with)?;
    label("rack-")?;
    scene.expect("it has it no more", &without)?;
    Ok(())
}

fn a_host_network_pod_is_never_captured(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let labels = json!({"egress": "chosen"});
    let [host, pod] = [true, false].map(|host| {
        let name = if host { "on-host" } else { "on-its-own" };
        Pod::run(
            scene.kubectl,
            name,
            WORKER,
            labels.clone(),
            json!({"hostNetwork": host}),
        )
    });
    let (host, pod) = (host?, pod?);
    scene.apply_policy(json!({"destinationCIDRs": ["0.0.0.0/0", "::/0"]}))?;
    scene.expect(
        "of two pods with the label, the one with an address of its own alone",
        &[(&pod, egress()), (&host, own(&host))],
    )?;
    for pod in [&host, &pod] {
        pod::delete(scene.kubectl, &pod.name)?;
    }
    Ok(())
}

/// On a source node and on the gateway, whether its command succeeds or fails. The completed pod's object keeps
/// its address in its status, and the next pod on the node has the same.
fn a_completed_pod_releases_its_entry_and_its_address(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    scene.apply_policy(json!({}))?;
    for node in [WORKER, GATEWAY] {
        for (exit, phase) in [(0, "Succeeded"), (1, "Failed")] {
            completes(&scene, node, exit, phase)?;
        }
    }
    Ok(())
}

fn completes(scene: &Scene, node: NodeSpec, exit: u8, phase: &str) -> Result<(), Failed> {
    let until_told = json!({
        "restartPolicy": "Never",
        "containers": [{
            "name": "toolbox",
            "image": "docker.io/egressnat-lab/toolbox:1",
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", format!("until [ -e /done ]; do usleep 50000; done; exit {exit}")],
        }],
    });
    let chosen = json!({"egress": "chosen"});
    let job = Pod::run(scene.kubectl, "job", node, chosen, until_told)?;
    scene.expect("the job with the policy's address", &[(&job, egress())])?;
    assert!(reuse::is_held(scene, &job)?, "the probe sees what is there");

    job.sh(scene.kubectl, "touch /done")?;
    let completed = format!("--for=jsonpath={{.status.phase}}={phase}");
    let wait = ["wait", &completed, "--timeout=30s", "pod/job"];
    scene.kubectl.run(["-n", "default"].into_iter().chain(wait))?;
    wait::until("the job's entry to go", DEADLINE, || {
        match reuse::is_held(scene, &job) {
            Ok(false) => Ok(()),
            Ok(true) => Err("it is still there".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })?;

    let next = reuse::run_with_address_of(scene, &job, "next")?;
    assert_eq!(next.addresses, job.addresses, "the test's own premise");
    scene.expect("another pod at the job's address", &[(&next, own(&next))])?;
    for name in ["job", "next"] {
        pod::delete(scene.kubectl, name)?;
    }
    Ok(())
}
