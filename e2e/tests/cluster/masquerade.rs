//! The default local egress, on nodes whose network does none.

use egressnat_e2e::{
    cluster::Cluster,
    error::Result,
    network::{self, MASQUERADE},
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test,
    pod::Pod,
    scene::{CHOSEN, DEADLINE, GATEWAY, Scene, condition, egress, own},
};

pub const TESTS: &[Test] = &[(
    "masquerade::the_agents_do_what_the_network_does_not",
    the_agents_do_what_the_network_does_not,
)];

/// Without any masquerade the outside knows no way back to a pod; with the agents' it sees each pod's node, beside a
/// policy and after it. Where the network does it again, the agents leave it to the network.
fn the_agents_do_what_the_network_does_not(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = scene.tshoot()?;
    let own = pods.each_ref().map(|pod| (pod, own(pod)));
    scene.expect("the network's masquerade", &own)?;
    on_every_node(cluster, &format!("delete table {MASQUERADE}"))?;
    let result = instead_of_the_network(&scene, &pods);
    on_every_node(cluster, &network::masquerade())?;
    result?;
    scene.expect("both", &own)?;
    expect_refused(&scene, true)?;
    cluster.install_chart()?;
    scene.expect("the network's masquerade again", &own)?;
    Ok(())
}

fn instead_of_the_network(scene: &Scene, pods: &[Pod; 3]) -> std::result::Result<(), Failed> {
    let own = pods.each_ref().map(|pod| (pod, own(pod)));
    let silent = pods.each_ref().map(|pod| (pod, [None, None]));
    scene.expect("no masquerade", &silent)?;
    scene.cluster.install_chart_with(&["masquerade.enabled=true"])?;
    scene.expect("the agents' masquerade", &own)?;
    expect_refused(scene, false)?;
    let [selected, beside, on_gateway] = pods;
    assert_eq!(on_gateway.node, GATEWAY);
    for pod in [selected, on_gateway] {
        scene.label(pod, CHOSEN)?;
    }
    scene.apply_policy(json!({}))?;
    let expected = [
        (selected, egress()),
        (beside, crate::scene::own(beside)),
        (on_gateway, egress()),
    ];
    scene.expect("a policy beside it", &expected)?;
    scene.delete_policy()?;
    scene.expect("the agents' masquerade alone again", &own)?;
    Ok(())
}

pub fn on_every_node(cluster: &Cluster, ruleset: &str) -> Result<()> {
    for node in cluster.nodes() {
        node.netns()?.nft(ruleset)?;
    }
    Ok(())
}

/// Waits until every node's plan says that the masquerade is left to the network, or that none does.
fn expect_refused(scene: &Scene, refused: bool) -> Result<()> {
    wait::until("the plans to say who masquerades", DEADLINE, || {
        let get = ["get", "egressplans", "-o", "json"];
        let text = scene.kubectl.run(get).map_err(|error| error.to_string())?;
        let plans: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let plans = plans["items"].as_array().into_iter().flatten();
        let said: Vec<bool> = plans.map(is_left_to_the_network).collect();
        match said == [refused; 3] {
            true => Ok(()),
            false => Err(format!("{said:?}\n{text}")),
        }
    })
}

fn is_left_to_the_network(plan: &Value) -> bool {
    let masquerade = condition(plan, "Masquerade");
    masquerade["status"] == "False" && masquerade["reason"] == "CniMasquerades"
}
