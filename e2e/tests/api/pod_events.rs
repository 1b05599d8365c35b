//! Events on pods that do not get what a policy promises them, for a reason of their own: sent by the real operator
//! with its own rights, and counted up by the API server's own object.

use egressnat_crds::OPERATOR_MANAGER;
use egressnat_operator::{convert, events::Events, plan::Planner, store::Store};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, Client};
use serde_json::json;

use super::{support::*, world::*};

/// The operator's Events of this reason on a pod.
async fn events_on(client: &Client, namespace: &str, pod: &str, reason: &str) -> Vec<Event> {
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let events = events.list(&Default::default()).await.unwrap().into_iter();
    let is_on = |event: &Event| {
        let regarding = event.regarding.as_ref();
        regarding.is_some_and(|o| o.kind.as_deref() == Some("Pod") && o.name.as_deref() == Some(pod))
    };
    events
        .filter(|event| is_on(event) && event.reason.as_deref() == Some(reason))
        .filter(|event| event.reporting_controller.as_deref() == Some(OPERATOR_MANAGER))
        .collect()
}

#[tokio::test]
async fn a_pod_is_told_why_it_does_not_get_what_a_policy_promises() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let on_host = json!({"nodeName": WORKER, "hostNetwork": true});
    run_pod_of(&client, "on-host", on_host, WORKER_IP).await;
    run_pod(&client, "only-ipv6", WORKER, "fd00:10:1:2::5").await;
    // Which of these is the newer one is up to the clock.
    for name in ["one", "two"] {
        run_pod(&client, name, WORKER, "10.1.2.7").await;
    }
    let _operator = Operator::start(&cluster, "only").await;

    let told = |pod: &'static str, reason: &'static str| {
        let client = client.clone();
        async move { events_on(&client, "apps", pod, reason).await.pop() }
    };
    let on_host = eventually("an Event on the pod on the host's network", async || {
        told("on-host", "OnHostNetwork").await
    });
    let on_host = on_host.await;
    assert_eq!(on_host.type_.as_deref(), Some("Normal"));
    let note = on_host.note.unwrap();
    assert!(
        note.starts_with("EgressNATPolicy walk selects the pod, but"),
        "{note}"
    );
    let only_ipv6 = eventually("an Event on the pod of the other family", async || {
        told("only-ipv6", "NoFamilyServed").await
    });
    assert_eq!(only_ipv6.await.type_.as_deref(), Some("Warning"));
    eventually("an Event on the pod whose address is another's", async || {
        let of_one = told("one", "AddressTakenOver").await;
        of_one.or(told("two", "AddressTakenOver").await)
    })
    .await;
    // All were sent after the same look: what is not there now is not on its way.
    for reason in ["OnHostNetwork", "NoFamilyServed", "AddressTakenOver"] {
        assert!(events_on(&client, "apps", "on-worker", reason).await.is_empty());
    }
}

#[tokio::test]
async fn the_same_fault_of_a_pod_is_one_event_that_is_counted_up() {
    let mut store = Store::default();
    for object in [
        json!({"kind": "Node", "metadata": {"name": "n", "uid": "n"}}),
        json!({"apiVersion": "egressnat.io/v1alpha1", "kind": "EgressNATPolicy", "metadata": {"name": "p", "uid": "p"},
               "spec": {"selectors": [{"podSelector": {}}], "egressSourceIP": "192.0.2.1"}}),
        json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "counted", "uid": "counted"},
               "spec": {"nodeName": "n", "hostNetwork": true}, "status": {"phase": "Running"}}),
    ] {
        store.apply(convert::change(object).unwrap().unwrap());
    }
    let planner = Planner::new(store.world());
    let faults = planner.faults(store.world());
    let [fault] = faults.as_slice() else {
        panic!("{faults:?}")
    };
    let events = Events::new(shared().client_of(OPERATOR).await, "test");
    let admin = shared().admin().await;
    for count in [None, Some(2), Some(3)] {
        events.send_on_pod(fault).await.unwrap();
        let sent = events_on(&admin, "default", "counted", "OnHostNetwork").await;
        let [event] = sent.as_slice() else {
            panic!("one Event, not {sent:#?}")
        };
        assert_eq!(event.series.as_ref().map(|series| series.count), count);
    }
}
