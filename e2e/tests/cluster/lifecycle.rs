//! Policies that go and come back, and a datapath whose agents and operator do: scenarios of lifetimes.

use std::process::Command;

use egressnat_e2e::{cluster::Cluster, wait};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test,
    pod::Pod,
    requests::Served,
    scene::{CHOSEN, DEADLINE, GATEWAY, POLICY, Scene, WORKER, egress, own},
    traces,
};

pub const TESTS: &[Test] = &[
    (
        "lifecycle::a_deleted_policy_leaves_nothing_and_can_come_back_twice",
        a_deleted_policy_leaves_nothing_and_can_come_back_twice,
    ),
    (
        "lifecycle::a_deleted_plan_changes_nothing_until_it_is_written_again",
        a_deleted_plan_changes_nothing_until_it_is_written_again,
    ),
    (
        "lifecycle::agents_and_operator_restart_without_a_failed_or_wrong_request",
        agents_and_operator_restart_without_a_failed_or_wrong_request,
    ),
    (
        "lifecycle::uninstalled_without_its_hook_the_datapath_stays_in_force_and_is_adopted_again",
        uninstalled_without_its_hook_the_datapath_stays_in_force_and_is_adopted_again,
    ),
    (
        "lifecycle::upgraded_all_stays_and_uninstalled_nothing_is_left",
        upgraded_all_stays_and_uninstalled_nothing_is_left,
    ),
];

const SYSTEM: [&str; 2] = ["-n", "egressnat-system"];
const OPERATOR: &str = "deployment/egressnat-operator";

fn a_deleted_policy_leaves_nothing_and_can_come_back_twice(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = choose_all(&scene)?;
    for _ in 0..3 {
        scene.apply_policy(json!({}))?;
        scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
        expect_traces(&scene)?;
        scene.delete_policy()?;
        scene.expect("no policy", &pods.each_ref().map(|pod| (pod, own(pod))))?;
        traces::expect_ends_at_most(&scene)?;
    }
    Ok(())
}

/// The operator would write it again at once; it is not there to do so.
fn a_deleted_plan_changes_nothing_until_it_is_written_again(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    expect_traces(&scene)?;
    let served = serve(&scene, &pods)?;
    stop_operator(&scene)?;
    scene.kubectl.run(["delete", "egressplans", "--all"])?;
    scene.expect("no plan", &pods.each_ref().map(|pod| (pod, egress())))?;
    expect_traces(&scene)?;
    start_operator(&scene)?;
    scene.expect("plans again", &pods.each_ref().map(|pod| (pod, egress())))?;
    served.end(&scene)?;
    Ok(())
}

/// On a source node and on the gateway; every agent, then the operator.
fn agents_and_operator_restart_without_a_failed_or_wrong_request(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    let served = serve(&scene, &pods)?;
    for (component, workload) in [("agent", "daemonset/egressnat-agent"), ("operator", OPERATOR)] {
        let label = format!("app.kubernetes.io/component={component}");
        system(&scene, &["delete", "pod", "-l", &label])?;
        system(&scene, &["rollout", "status", workload, "--timeout=60s"])?;
    }
    served.end(&scene)?;
    // The new ones do their work.
    scene.delete_policy()?;
    scene.expect("no policy", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    traces::expect_ends_at_most(&scene)?;
    Ok(())
}

/// First without the agents, then without anything but the CRDs and their objects: what the kernels hold stays in
/// force, until an agent comes that finds the policy gone.
fn uninstalled_without_its_hook_the_datapath_stays_in_force_and_is_adopted_again(
    cluster: &Cluster,
) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    let served = serve(&scene, &pods)?;
    system(
        &scene,
        &["delete", "daemonset", "egressnat-agent", "--cascade=foreground"],
    )?;
    scene.expect("no agent", &pods.each_ref().map(|pod| (pod, egress())))?;
    uninstall(&scene, &["--no-hooks"])?;
    scene.expect("no operator", &pods.each_ref().map(|pod| (pod, egress())))?;
    expect_traces(&scene)?;
    cluster.install_chart()?;
    served.end(&scene)?;
    scene.delete_policy()?;
    scene.expect("no policy", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    traces::expect_ends_at_most(&scene)?;
    Ok(())
}

/// With a live policy. Through an upgrade that restarts everything no request fails, and the plugin stays where it is;
/// `helm uninstall` leaves the CRDs and the policy, and pods go on with their nodes' addresses.
fn upgraded_all_stays_and_uninstalled_nothing_is_left(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    expect_traces(&scene)?;
    expect_plugin(&scene, true)?;
    let served = serve(&scene, &pods)?;
    cluster.install_chart_with(&["logLevel=debug"])?;
    served.end(&scene)?;
    expect_plugin(&scene, true)?;
    assert!(objects(&scene)?.len() > 10, "the release's objects are found");

    uninstall(&scene, &[])?;
    traces::expect_none(&scene)?;
    expect_plugin(&scene, false)?;
    // The garbage collector takes the agents' pods a little after their DaemonSet.
    wait::until("nothing of the release", DEADLINE, || {
        let left = objects(&scene).map_err(|failed| failed.message().unwrap_or("failed").to_owned())?;
        match left.is_empty() {
            true => Ok(()),
            false => Err(left.join(", ")),
        }
    })?;
    scene.expect("uninstalled", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    assert!(scene.shown(POLICY).is_ok(), "policies are their users'");

    cluster.install_chart()?;
    scene.expect("installed again", &pods.each_ref().map(|pod| (pod, egress())))?;
    scene.delete_policy()?;
    Ok(())
}

pub fn uninstall(scene: &Scene, flags: &[&str]) -> Result<(), Failed> {
    let command = ["uninstall", "egressnat", SYSTEM[0], SYSTEM[1], "--wait"];
    scene.kubectl.helm(command.iter().chain(flags))?;
    Ok(())
}

/// On every node, the start gate's plugin and its place in the network configuration are there, or nothing of it.
pub fn expect_plugin(scene: &Scene, expected: bool) -> Result<(), Failed> {
    for node in scene.cluster.nodes() {
        let look = "ls /usr/lib/cni /etc/cni/net.d; cat /etc/cni/net.d/*";
        let found = node.output(Command::new("sh").args(["-c", look]))?;
        let lines = found.lines().filter(|line| line.contains("egressnat"));
        let lines: Vec<&str> = lines.collect();
        assert_eq!(!lines.is_empty(), expected, "{}: {lines:#?}", node.spec().name);
    }
    Ok(())
}

/// The release's objects, and what the operator has made, but for CRDs, policies and Events.
fn objects(scene: &Scene) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    for (kinds, scope) in [
        (
            "all,leases,roles,rolebindings,poddisruptionbudgets,configmaps",
            SYSTEM.as_slice(),
        ),
        ("roles,rolebindings", &["-n", "default"]),
        (
            "egressplans,clusterroles,clusterrolebindings,validatingadmissionpolicies,\
             validatingadmissionpolicybindings",
            &[],
        ),
    ] {
        let get = ["get", kinds, "-o", "name"];
        let names = scene.kubectl.run(scope.iter().chain(&get))?;
        let ours = |line: &&str| line.contains("egressnat") || line.starts_with("egressplan");
        found.extend(names.lines().filter(ours).map(str::to_owned));
    }
    Ok(found)
}

pub fn choose_all(scene: &Scene) -> Result<[Pod; 3], Failed> {
    let pods = scene.tshoot()?;
    for pod in &pods {
        scene.label(pod, CHOSEN)?;
    }
    Ok(pods)
}

/// One pod on the gateway and one off it.
pub fn serve(scene: &Scene, pods: &[Pod; 3]) -> Result<Served, Failed> {
    let served = pods.iter().filter(|pod| [WORKER, GATEWAY].contains(&pod.node));
    Ok(Served::start(scene, served)?)
}

/// The probe of absence sees presence: each kind of thing, on a source node and on the gateway.
fn expect_traces(scene: &Scene) -> Result<(), Failed> {
    for name in [WORKER.name, GATEWAY.name] {
        let traces = traces::of(&scene.cluster.node(name)?)?.join("\n");
        for kind in [
            "nft",
            "ip -o link",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route",
            "ip -6 route",
            "conntrack -L -f ipv4",
            "conntrack -L -f ipv6",
        ] {
            assert!(traces.contains(kind), "{name}: no {kind} in\n{traces}");
        }
    }
    Ok(())
}

/// Returns when no operator is there.
pub fn stop_operator(scene: &Scene) -> Result<(), Failed> {
    let pods = ["pod", "-l", "app.kubernetes.io/component=operator"];
    system(scene, &["scale", OPERATOR, "--replicas=0"])?;
    let gone = ["wait", "--for=delete", "--timeout=30s"];
    system(scene, &[gone, pods].concat())
}

/// Returns when an operator is ready.
pub fn start_operator(scene: &Scene) -> Result<(), Failed> {
    system(scene, &["scale", OPERATOR, "--replicas=1"])?;
    system(scene, &["rollout", "status", OPERATOR, "--timeout=60s"])
}

pub fn system(scene: &Scene, args: &[&str]) -> Result<(), Failed> {
    scene.kubectl.run(SYSTEM.iter().chain(args))?;
    Ok(())
}
