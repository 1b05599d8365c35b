//! No operator, while pods come, go, change their labels, and are given each other's addresses.
//!
//! For 15 s, or as many as `OPERATOR_AWAY` says.

use std::{
    env,
    time::{Duration, Instant},
};

use egressnat_e2e::{cluster::Cluster, error::Result, wait};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test, knock, lifecycle,
    pod::{self, Pod},
    requests::Requests,
    reuse,
    scene::{CHOSEN, DEADLINE, EGRESS, GATEWAY, Scene, WORKER, egress, own},
    start_gate,
};

pub const TESTS: &[Test] = &[(
    "operator_away::pods_that_start_wait_and_the_rest_goes_on",
    pods_that_start_wait_and_the_rest_goes_on,
)];

/// Where a selected pod knocks that starts meanwhile.
const LATE: usize = knock::FIRST_PORT;
/// Where the heir of a selected pod's address knocks.
const HEIR: usize = knock::FIRST_PORT + 1;
/// Where selected pods knock that come meanwhile, and go again.
const IN_VAIN: usize = knock::FIRST_PORT + 2;
/// Where pods knock, each at one of these, that no policy may select, and that come and go.
const PASSING: std::ops::RangeInclusive<usize> = knock::FIRST_PORT + 3..=knock::LAST_PORT;

/// What was in force stays, also for pods whose labels say otherwise by now. A pod of a namespace that no policy selects
/// from starts, with the address of a selected pod that is gone, and leaves as its like; one that a policy may select waits.
fn pods_that_start_wait_and_the_rest_goes_on(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let run = |name: &str, node, labels| Pod::run(scene.kubectl, name, node, labels, json!({}));
    let pods = lifecycle::choose_all(&scene)?;
    let leaves = run("leaves", GATEWAY, chosen())?;
    let joins = run("joins", WORKER, json!({}))?;
    let gone = run("gone", WORKER, chosen())?;
    scene.apply_policy(json!({}))?;
    let in_force = [(&leaves, egress()), (&joins, own(&joins))];
    scene.expect("the policy", &in_force)?;
    scene.expect("of one that goes", &[(&gone, egress())])?;

    lifecycle::stop_operator(&scene)?;
    let since = Instant::now();
    // Not with a capture of all others: those whose labels change ask as well.
    let requests: Vec<Requests> = pods
        .iter()
        .map(|pod| Requests::start(&scene, pod))
        .collect::<Result<_>>()?;
    let capture = knock::capture(&scene)?;
    bequeath(&scene, &gone)?;
    knock::expect_seen(&capture, 0, HEIR, &WORKER.v4.to_string())?;
    let late = knock::pod("default", "late", WORKER, chosen(), LATE);
    scene.kubectl.apply(&late.to_string())?;
    let why = start_gate::why_it_waits(&scene, "late")?;
    assert!(
        why.contains("default/late waits until its egress address is in force"),
        "{why}"
    );
    scene.label(&leaves, "egress-")?;
    scene.label(&joins, CHOSEN)?;
    let mut passed = 0;
    while since.elapsed() < away()? {
        come_and_go(&scene, passed)?;
        passed += 1;
        requests.iter().try_for_each(Requests::wait_for_more)?;
    }
    scene.expect("what was in force", &in_force)?;
    let without = since.elapsed().as_secs();

    lifecycle::start_operator(&scene)?;
    let now = [(&leaves, own(&leaves)), (&joins, egress())];
    scene.expect("what the labels say", &now)?;
    knock::expect_seen(&capture, 0, LATE, EGRESS[0])?;
    let mut answers = 0;
    for requests in requests {
        answers += requests.end(&egress())?;
    }
    println!(
        "{without} s without an operator: {passed} pods of each kind came and went, {answers} right answers"
    );
    let lines = capture.stop()?;
    let worker = WORKER.v4.to_string();
    for (port, from) in [(LATE, EGRESS[0]), (HEIR, &worker)] {
        assert_eq!(knock::sources(&lines, port), [from.to_owned()].into());
    }
    assert_eq!(knock::sources(&lines, IN_VAIN), [].into());
    for port in PASSING.take(passed) {
        assert_eq!(knock::sources(&lines, port), [worker.clone()].into());
    }
    for (namespace, pod) in [
        ("other", "heir"),
        ("default", "late"),
        ("default", "leaves"),
        ("default", "joins"),
    ] {
        scene.kubectl.run(["-n", namespace, "delete", "pod", pod])?;
    }
    scene.delete_policy()?;
    Ok(())
}

/// How long there is no operator, at least.
fn away() -> std::result::Result<Duration, Failed> {
    match env::var("OPERATOR_AWAY") {
        Ok(seconds) => Ok(Duration::from_secs(seconds.parse()?)),
        Err(_) => Ok(Duration::from_secs(15)),
    }
}

fn chosen() -> serde_json::Value {
    json!({"egress": "chosen"})
}

/// A pod goes, and one that no policy may select has its address.
fn bequeath(scene: &Scene, gone: &Pod) -> Result<()> {
    pod::delete(scene.kubectl, &gone.name)?;
    reuse::give_next(scene, gone)?;
    let heir = knock::pod("other", "heir", WORKER, chosen(), HEIR);
    scene.kubectl.apply(&heir.to_string())?;
    wait::until("the heir to have the address", DEADLINE, || {
        let path = "jsonpath={.status.podIP}";
        let get = ["-n", "other", "get", "pod", "heir", "-o", path];
        let address = scene.kubectl.run(get).map_err(|error| error.to_string())?;
        match address == gone.addresses[0].to_string() {
            true => Ok(()),
            false => Err(address),
        }
    })
}

/// A pod that no policy may select comes, sends as its like, and goes; one that a policy may select comes, waits, and goes.
fn come_and_go(scene: &Scene, number: usize) -> Result<()> {
    let [passes, waits] = ["passes", "waits"].map(|kind| format!("{kind}-{number}"));
    let port = PASSING.start() + number % PASSING.count();
    let capture = knock::capture(scene)?;
    for pod in [
        knock::pod("default", &waits, WORKER, chosen(), IN_VAIN),
        knock::pod("other", &passes, WORKER, chosen(), port),
    ] {
        scene.kubectl.apply(&pod.to_string())?;
    }
    knock::expect_seen(&capture, 0, port, &WORKER.v4.to_string())?;
    capture.stop()?;
    scene.kubectl.run(["-n", "other", "delete", "pod", &passes])?;
    // The kubelet ends it when the runtime has given it up: others come meanwhile.
    scene
        .kubectl
        .run(["-n", "default", "delete", "pod", &waits, "--wait=false"])?;
    Ok(())
}
