//! No operator, while pods come, go, change their labels, and are given each other's addresses.

use std::time::{Duration, Instant};

use egressnat_e2e::{cluster::Cluster, wait};
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

/// Where a selected pod knocks that starts meanwhile, and the heir of a selected pod's address.
const PORTS: [usize; 2] = [knock::FIRST_PORT, knock::FIRST_PORT + 1];
/// How long there is none, at least.
const AWAY: Duration = Duration::from_secs(15);

/// What was in force stays, also for pods whose labels say otherwise by now. A pod of a namespace that no policy selects
/// from starts, with the address of a selected pod that is gone, and leaves as its like; one that a policy may select waits.
fn pods_that_start_wait_and_the_rest_goes_on(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let run = |name: &str, node, labels| Pod::run(scene.kubectl, name, node, labels, json!({}));
    let chosen = || json!({"egress": "chosen"});
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
        .collect::<Result<_, _>>()?;
    let capture = knock::capture(&scene)?;
    pod::delete(scene.kubectl, &gone.name)?;
    reuse::give_next(&scene, &gone)?;
    let heir = knock::pod("other", "heir", WORKER, chosen(), PORTS[1]);
    scene.kubectl.apply(&heir.to_string())?;
    knock::expect_seen(&capture, 0, PORTS[1], &WORKER.v4.to_string())?;
    wait::until("the heir to have the address", DEADLINE, || {
        let get = [
            "-n",
            "other",
            "get",
            "pod",
            "heir",
            "-o",
            "jsonpath={.status.podIP}",
        ];
        let address = scene.kubectl.run(get).map_err(|error| error.to_string())?;
        match address == gone.addresses[0].to_string() {
            true => Ok(()),
            false => Err(address),
        }
    })?;
    let late = knock::pod("default", "late", WORKER, chosen(), PORTS[0]);
    scene.kubectl.apply(&late.to_string())?;
    let why = start_gate::why_it_waits(&scene, "late")?;
    assert!(
        why.contains("default/late waits until its egress address is in force"),
        "{why}"
    );
    scene.label(&leaves, "egress-")?;
    scene.label(&joins, CHOSEN)?;
    while since.elapsed() < AWAY {
        requests.iter().try_for_each(Requests::wait_for_more)?;
    }
    scene.expect("what was in force", &in_force)?;

    lifecycle::start_operator(&scene)?;
    let now = [(&leaves, own(&leaves)), (&joins, egress())];
    scene.expect("what the labels say", &now)?;
    knock::expect_seen(&capture, 0, PORTS[0], EGRESS[0])?;
    for requests in requests {
        requests.end(&egress())?;
    }
    let lines = capture.stop()?;
    for (port, from) in PORTS.into_iter().zip([EGRESS[0], &WORKER.v4.to_string()]) {
        assert_eq!(knock::sources(&lines, port), [from.to_owned()].into());
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
