//! Several policies at once, and what changes when they and their pods do.

use egressnat_e2e::{cluster::Cluster, error::Result, site::CONTROL_PLANE, wait};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test,
    pod::{self, Pod},
    reuse,
    scene::{
        self, DEADLINE, ELSEWHERE, GATEWAY, OUTSIDE, POLICY, Scene, Seen, WORKER, egress, hosts, of, own,
        policy,
    },
    traces,
};

pub const TESTS: &[Test] = &[
    (
        "several_policies::the_first_of_a_pods_policies_wins_and_the_next_takes_over",
        the_first_of_a_pods_policies_wins_and_the_next_takes_over,
    ),
    (
        "several_policies::an_edited_selector_releases_and_captures_by_every_operator",
        an_edited_selector_releases_and_captures_by_every_operator,
    ),
    (
        "several_policies::a_pod_that_moves_to_the_gateway_and_away_keeps_its_address",
        a_pod_that_moves_to_the_gateway_and_away_keeps_its_address,
    ),
    (
        "several_policies::a_load_balancers_address_is_reached_as_without_a_policy",
        a_load_balancers_address_is_reached_as_without_a_policy,
    ),
];

/// The policy that comes first: for one destination, by another gateway.
const FIRST: &str = "scenario-first";

/// A low policy for all of the outside, a high one for one destination of one pod: priorities, the loser's
/// status, an exclusion, an edit, and each policy's end.
fn the_first_of_a_pods_policies_wins_and_the_next_takes_over(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let result = overlap(&scene);
    scene.kubectl.run(["delete", "egressnatpolicies", "--all"])?;
    result?;
    traces::expect_ends_at_most(&scene)?;
    Ok(())
}

fn overlap(scene: &Scene) -> std::result::Result<(), Failed> {
    scene.serve_elsewhere()?;
    let pods = scene.tshoot()?;
    let [both, none, low] = &pods;
    scene.label(both, "egress=chosen")?;
    scene.label(both, "tier=web")?;
    scene.label(low, "egress=chosen")?;
    let high = |fields: Value| apply(scene, FIRST, &first(fields));

    scene.apply_policy(json!({}))?;
    let expect = |what: &str, here: [Seen; 3], there: [Seen; 3]| {
        let pods = [both, none, low];
        let here: Vec<_> = pods.into_iter().zip(here).collect();
        scene.expect(what, &here)?;
        scene.expect_elsewhere(what, &pods.into_iter().zip(there).collect::<Vec<_>>())
    };
    let all_low = || [egress(), own(none), egress()];
    expect("the low policy alone", all_low(), all_low())?;
    high(json!({}))?;
    let split = || [of(WORKER), own(none), egress()];
    expect("the high one where it applies", all_low(), split())?;
    expect_lost(scene, &json!({"policy": FIRST, "pods": 1}))?;
    high(json!({"destinationCIDRs": OUTSIDE, "excludedCIDRs": hosts(ELSEWHERE)}))?;
    let around = [of(WORKER), own(none), egress()];
    expect("the next one where the first excludes itself", around, all_low())?;
    high(json!({"priority": 50}))?;
    expect("and not when it comes after the other", all_low(), all_low())?;
    expect_lost(scene, &Value::Null)?;
    high(json!({}))?;
    expect("it comes first again", all_low(), split())?;
    scene.kubectl.run(["delete", "egressnatpolicy", FIRST])?;
    expect("without it the low one takes over", all_low(), all_low())?;
    expect_lost(scene, &Value::Null)?;
    high(json!({}))?;
    expect("a new one of its name", all_low(), split())?;
    expect_lost(scene, &json!({"policy": FIRST, "pods": 1}))?;
    scene.delete_policy()?;
    expect(
        "alone, it leaves the rest to the nodes",
        pods.each_ref().map(own),
        [of(WORKER), own(none), own(low)],
    )?;
    Ok(())
}

/// Of three pods, with the label's value `a`, with `b`, and without it.
fn an_edited_selector_releases_and_captures_by_every_operator(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = scene.tshoot()?;
    scene.label(&pods[0], "team=a")?;
    scene.label(&pods[1], "team=b")?;
    let requirement = |operator: &str, values: &[&str]| match values {
        [] => json!({"key": "team", "operator": operator}),
        _ => json!({"key": "team", "operator": operator, "values": values}),
    };
    for (requirement, selected) in [
        (requirement("In", &["a"]), [true, false, false]),
        (requirement("NotIn", &["a"]), [false, true, true]),
        (requirement("Exists", &[]), [true, true, false]),
        (requirement("DoesNotExist", &[]), [false, false, true]),
        (requirement("In", &["b", "c"]), [false, true, false]),
    ] {
        scene.apply_policy(json!({"selectors": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "podSelector": {"matchLabels": {"name": "net-tshoot"}, "matchExpressions": [requirement]},
        }]}))?;
        let expected = pods.each_ref().map(|pod| pod).into_iter().zip(selected);
        let expected: Vec<_> = expected
            .map(|(pod, selected)| (pod, if selected { egress() } else { own(pod) }))
            .collect();
        scene.expect(&requirement.to_string(), &expected)?;
    }
    scene.delete_policy()?;
    traces::expect_ends_at_most(&scene)?;
    Ok(())
}

/// A pod of the same name and labels on one node after the other; what it leaves behind is nothing.
fn a_pod_that_moves_to_the_gateway_and_away_keeps_its_address(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.apply_policy(json!({}))?;
    let mut before: Option<Pod> = None;
    for node in [WORKER, GATEWAY, CONTROL_PLANE, GATEWAY] {
        let labels = json!({"egress": "chosen"});
        let pod = Pod::run(scene.kubectl, "mover", node, labels, json!({}))?;
        scene.expect(node.name, &[(&pod, egress())])?;
        if let Some(before) = before.replace(pod) {
            wait::until("nothing of the former pod", DEADLINE, || {
                match held_elsewhere(&scene, &before, node.name) {
                    Ok(false) => Ok(()),
                    other => Err(format!("{before}: {other:?}")),
                }
            })?;
        }
    }
    pod::delete(scene.kubectl, "mover")?;
    scene.delete_policy()?;
    traces::expect_ends_at_most(&scene)?;
    Ok(())
}

/// Whether the node of a pod still holds it, unless its successor of the same name is there.
fn held_elsewhere(scene: &Scene, pod: &Pod, successor: &str) -> Result<bool> {
    Ok(pod.node.name != successor && reuse::is_held(scene, pod)?)
}

/// A Service's ingress address lies in the policy's destinations, and on no interface: the nodes translate it
/// before the policy is asked.
fn a_load_balancers_address_is_reached_as_without_a_policy(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    const INGRESS: [&str; 2] = ["172.18.0.60", "fd00:172:18::60"];
    let scene = Scene::new(cluster)?;
    cluster.set_kube_proxy(egressnat_e2e::kube_proxy::KubeProxyMode::Nftables)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ingress", "namespace": "other"},
        "spec": {
            "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "selector": {"name": "peer"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    });
    scene.kubectl.apply(&service.to_string())?;
    let status = json!({"status": {"loadBalancer": {"ingress": INGRESS.map(|ip| json!({"ip": ip}))}}});
    let patch = [
        "-n",
        "other",
        "patch",
        "service",
        "ingress",
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    scene
        .kubectl
        .run(patch.into_iter().chain([status.to_string().as_str()]))?;
    let pods = scene.tshoot()?;
    for pod in &pods {
        scene.label(pod, "egress=chosen")?;
    }
    let [v4, v6] = INGRESS;
    let urls = [
        format!("http://{v4}/cgi-bin/source"),
        format!("http://[{v6}]/cgi-bin/source"),
    ];
    for pod in &pods {
        answers(&scene, pod, &urls)?;
    }
    scene.apply_policy(json!({"destinationCIDRs": OUTSIDE}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    // Which of the Service's pods answers, and so which node masquerades on the way there, is kube-proxy's choice.
    for pod in pods.iter().cycle().take(4 * pods.len()) {
        let seen = answers(&scene, pod, &urls)?;
        assert!(
            egress().iter().all(|address| !seen.contains(address)),
            "{pod}: {seen:?}"
        );
    }
    scene
        .kubectl
        .run(["-n", "other", "delete", "service", "ingress"])?;
    Ok(())
}

/// What the Service's pods see of the pod, as soon as both families are answered.
fn answers(scene: &Scene, pod: &Pod, urls: &[String]) -> Result<Vec<Option<String>>> {
    wait::until("the Service to answer", DEADLINE, || {
        let seen = pod.ask(scene.kubectl, urls).map_err(|error| error.to_string())?;
        match seen.len() == 2 && seen.iter().all(Option::is_some) {
            true => Ok(seen),
            false => Err(format!("{pod}: {seen:?}")),
        }
    })
}

/// The policy that comes first, with these fields instead.
fn first(fields: Value) -> Value {
    let mut spec = json!({
        "priority": 200,
        "selectors": [{"podSelector": {"matchLabels": {"tier": "web"}}}],
        "destinationCIDRs": hosts(ELSEWHERE),
        "egressGateway": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": WORKER.name}}},
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    spec
}

/// Applies a policy of this name and waits until every node concerned has it.
fn apply(scene: &Scene, name: &str, spec: &Value) -> Result<()> {
    let mut whole = policy(json!({}));
    whole["metadata"]["name"] = name.into();
    whole["spec"] = spec.clone();
    scene::apply(scene.kubectl, &whole)
}

/// Waits until the status of the scenarios' policy says that it loses this to the other one.
fn expect_lost(scene: &Scene, expected: &Value) -> Result<()> {
    wait::until("the status to say what is lost", DEADLINE, || {
        let policy = scene.shown(POLICY).map_err(|error| error.to_string())?;
        let lost = match &policy["status"]["lost"][0] {
            Value::Null => Value::Null,
            lost => json!({"policy": lost["policy"], "pods": lost["pods"]}),
        };
        if lost == *expected {
            Ok(())
        } else {
            Err(lost.to_string())
        }
    })
}
