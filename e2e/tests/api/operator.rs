//! The real operator against the real API server, with the rights that the chart gives it: from policies,
//! pods and nodes to plans and statuses. The test stands in for kubelets and agents.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use egressnat_crds::EgressPlan;
use egressnat_e2e::api_server::ADVERTISED;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{support::*, world::*};

#[tokio::test]
async fn a_policy_becomes_a_plan_for_each_node_concerned() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;

    let source = eventually("the worker's plan", async || {
        plan_with_policy(&client, WORKER).await
    })
    .await;
    let role = source.spec.policies[0].source.as_ref().unwrap();
    assert_eq!(role.gateway, None, "the gateway has not reported");
    let pods: Vec<_> = source.spec.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(pods, ["apps/on-worker"], "only the node's own pods");
    let owner = &source.owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Node", WORKER));

    let gateway = eventually("the gateway's plan", async || {
        plan_with_policy(&client, GATEWAY).await
    })
    .await;
    let role = gateway.spec.policies[0].gateway.as_ref().unwrap();
    assert_eq!(role.addresses, [ip(GATEWAY_IP)]);
    report(&cluster, GATEWAY).await;
    eventually("a way to the gateway", async || {
        (way_of(&client, WORKER).await? == GATEWAY).then_some(())
    })
    .await;
    let is_inside = |address: &str| {
        source
            .spec
            .cluster
            .iter()
            .any(|range| range.contains(ip(address)))
    };
    let api_server = ADVERTISED.to_string();
    for address in [
        GATEWAY_IP,
        WORKER_IP,
        &api_server,
        "10.96.0.1",
        "fd00:10:96::1",
        "10.1.2.3",
    ] {
        assert!(
            is_inside(address),
            "{address} is a node's, the API server's, a Service's or a pod's"
        );
    }
    assert!(!is_inside("198.51.100.1"));
}

#[tokio::test]
async fn a_policy_says_when_every_node_concerned_has_it() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;

    let found = eventually("a gateway", async || {
        status_when(&client, "walk", "GatewayReady", "True").await
    })
    .await;
    assert_eq!(condition_of(&found, "Accepted"), ("True", "Accepted"));
    assert_eq!(condition_of(&found, "Programmed"), ("False", "Progressing"));
    assert_eq!(found["matchedPods"], 2);
    assert_eq!(found["nodesConcerned"], 2);
    assert_eq!(
        found["gateways"],
        json!([{"node": GATEWAY, "addresses": [GATEWAY_IP], "ready": true, "pods": 2}])
    );

    report(&cluster, WORKER).await;
    assert_eq!(
        way_of(&client, WORKER).await,
        None,
        "the gateway has not reported"
    );
    report(&cluster, GATEWAY).await;
    let half = eventually("one node of two", async || {
        let status = status_of(&client, "walk").await;
        (status["nodesProgrammed"] == 1).then_some(status)
    });
    assert_eq!(condition_of(&half.await, "Programmed"), ("False", "Progressing"));
    eventually("a way to the gateway", async || {
        (way_of(&client, WORKER).await? == GATEWAY).then_some(())
    })
    .await;
    report(&cluster, WORKER).await;
    let done = eventually("all nodes", async || {
        status_when(&client, "walk", "Programmed", "True").await
    })
    .await;
    assert_eq!(done["nodesProgrammed"], 2);

    let told = eventually("an Event on the policy", async || {
        event_on(&client, "walk", "Programmed").await
    });
    assert_eq!(told.await.type_.as_deref(), Some("Normal"));
}

#[tokio::test]
async fn several_gateways_have_an_id_each_that_stays() {
    let (cluster, client) = world().await;
    let entry = |address: &str| json!({"nodeSelector": {}, "egressIP": address});
    let spec = |gateways: Value| {
        let mut spec = spec_from_gateway();
        spec.as_object_mut().unwrap().remove("egressSourceIP");
        spec["egressGateways"] = gateways;
        spec
    };
    let several = spec(json!([entry(GATEWAY_IP), entry("192.0.2.99"), entry(WORKER_IP)]));
    apply(&client, &policy("several", several)).await;
    let operator = Operator::start(&cluster, "first").await;

    let status = eventually("the gateways", async || {
        status_when(&client, "several", "GatewayReady", "True").await
    })
    .await;
    assert_eq!(condition_of(&status, "Degraded"), ("True", "GatewayMissing"));
    let nodes = [json!(GATEWAY), Value::Null, json!(WORKER)];
    assert_eq!([0, 1, 2].map(|i| status["gateways"][i]["node"].clone()), nodes);
    assert_eq!(status["gatewayNodes"], format!("{GATEWAY},{WORKER}"));
    let pods = [0, 1, 2].map(|i| status["gateways"][i]["pods"].as_u64().unwrap());
    assert_eq!((pods[1], pods.iter().sum()), (0, 2));
    let ids = |status: &Value| -> BTreeMap<String, u64> {
        let gateways = status["gateways"].as_array().unwrap().iter();
        gateways
            .map(|g| (g["key"].as_str().unwrap().into(), g["id"].as_u64().unwrap()))
            .collect()
    };
    let before = ids(&status);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
    let plan = plan_with_policy(&client, GATEWAY).await.unwrap();
    let served = plan.spec.policies.iter().find(|p| p.gateway.is_some()).unwrap();
    assert_eq!(u64::from(served.id), status["gateways"][0]["id"]);

    // Another process knows them from the status, in whatever order the entries are by then.
    operator.stop.cancel();
    let fewer = spec(json!([entry(WORKER_IP), entry(GATEWAY_IP)]));
    apply(&client, &policy("several", fewer)).await;
    let _operator = Operator::start(&cluster, "second").await;
    let status = eventually("both gateways", async || {
        status_when(&client, "several", "Degraded", "False").await
    })
    .await;
    assert_eq!(
        [0, 1].map(|i| status["gateways"][i]["node"].clone()),
        [WORKER, GATEWAY]
    );
    let after = ids(&status);
    assert_eq!(after.len(), 2);
    assert!(
        after.iter().all(|(key, id)| before[key] == *id),
        "{before:?}, {after:?}"
    );
}

#[tokio::test]
async fn a_bad_policy_is_told_so_and_the_others_go_on() {
    let (cluster, client) = world().await;
    let _operator = Operator::start(&cluster, "only").await;
    let contradiction = json!([{"podSelector": {
        "matchLabels": {"app": "a"},
        "matchExpressions": [{"key": "app", "operator": "DoesNotExist"}],
    }}]);
    for (name, field, value, (type_, reason), says) in [
        (
            "nobody",
            "selectors",
            contradiction,
            ("Accepted", "InvalidSpec"),
            "can match nothing",
        ),
        (
            "nowhere",
            "excludedCIDRs",
            json!(["198.51.100.0/23"]),
            ("Accepted", "InvalidSpec"),
            "leave nothing of",
        ),
        (
            "not-held",
            "egressSourceIP",
            json!("192.0.2.99"),
            ("GatewayReady", "AddressNotFound"),
            "no node holds",
        ),
    ] {
        let mut spec = spec_from_gateway();
        spec[field] = value;
        apply(&client, &policy(name, spec)).await;
        let status = eventually(name, async || status_when(&client, name, type_, "False").await).await;
        assert_eq!(condition_of(&status, type_), ("False", reason), "{name}");
        let conditions = status["conditions"].to_string();
        assert!(conditions.contains(says), "{name}: {conditions}");
    }
    apply(&client, &policy("good", spec_from_gateway())).await;
    eventually("the good one", async || {
        status_when(&client, "good", "GatewayReady", "True").await
    })
    .await;
}

#[tokio::test]
async fn what_was_in_force_stays_when_its_spec_turns_bad() {
    let (cluster, client) = world().await;
    let _operator = Operator::start(&cluster, "only").await;
    apply(&client, &policy("turned", spec_from_gateway())).await;
    eventually("a gateway", async || {
        status_when(&client, "turned", "GatewayReady", "True").await
    })
    .await;
    let before = plan_with_policy(&client, GATEWAY).await.unwrap();

    let mut spec = spec_from_gateway();
    spec["excludedCIDRs"] = json!(["198.51.100.0/24"]);
    apply(&client, &policy("turned", spec)).await;
    let status = eventually("a word", async || {
        status_when(&client, "turned", "Accepted", "False").await
    })
    .await;
    assert!(
        status["conditions"].to_string().contains("stays in force"),
        "{status}"
    );
    assert_eq!(
        plan_with_policy(&client, GATEWAY).await.unwrap().spec,
        before.spec
    );
}

#[tokio::test]
async fn plans_are_kept_as_they_should_be() {
    let (cluster, client) = world().await;
    apply(&client, &policy("kept", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;
    let plans: Api<EgressPlan> = Api::all(client.clone());
    let made = eventually("a plan", async || plan_with_policy(&client, WORKER).await).await;

    let meddled = Patch::Merge(json!({"spec": {"pods": []}}));
    plans
        .patch(WORKER, &PatchParams::default(), &meddled)
        .await
        .unwrap();
    eventually("its repair", async || {
        plans.get(WORKER).await.ok().filter(|plan| plan.spec == made.spec)
    })
    .await;

    plans.delete(WORKER, &DeleteParams::default()).await.unwrap();
    eventually("it again", async || {
        let plan = plans.get_opt(WORKER).await.unwrap()?;
        (plan.uid() != made.uid() && plan.spec == made.spec).then_some(())
    })
    .await;

    Api::<Pod>::namespaced(client.clone(), "apps")
        .delete("on-worker", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    eventually("a plan without the pod", async || {
        plans
            .get(WORKER)
            .await
            .ok()
            .filter(|plan| plan.spec.pods.is_empty())
    })
    .await;

    Api::<Node>::all(client.clone())
        .delete(WORKER, &DeleteParams::default())
        .await
        .unwrap();
    eventually("no plan without a node", async || {
        plans.get_opt(WORKER).await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn of_two_operators_one_leads_and_the_other_takes_over() {
    let (cluster, client) = world().await;
    apply(&client, &policy("led", spec_from_gateway())).await;
    let first = Operator::start(&cluster, "first").await;
    eventually("the first to lead", async || {
        leader_is(&client, Some("first")).await
    })
    .await;
    let second = Operator::start(&cluster, "second").await;
    eventually("a plan", async || plan_with_policy(&client, WORKER).await).await;
    assert!(
        leader_is(&client, Some("first")).await.is_some(),
        "the second waits"
    );

    first.kill();
    run_pod(&client, "late", WORKER, "10.1.2.9").await;
    eventually("the second to lead", async || {
        leader_is(&client, Some("second")).await
    })
    .await;
    eventually("the late pod", async || {
        let plan = plan_with_policy(&client, WORKER).await?;
        plan.spec
            .pods
            .iter()
            .any(|pod| pod.name == "apps/late")
            .then_some(())
    })
    .await;

    second.stop.cancel();
    eventually("the lease given back", async || leader_is(&client, None).await).await;
}

#[tokio::test]
async fn nothing_is_written_while_a_watch_has_not_synced() {
    let (cluster, client) = world().await;
    apply(&client, &policy("early", spec_from_gateway())).await;
    // Without its right to read the API server's addresses, one watch of seven cannot begin.
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
    let mut binding = bindings.get(OPERATOR).await.unwrap();
    bindings.delete(OPERATOR, &DeleteParams::default()).await.unwrap();

    let _operator = Operator::start(&cluster, "only").await;
    eventually("it to lead", async || leader_is(&client, Some("only")).await).await;
    let plans: Api<EgressPlan> = Api::all(client.clone());
    let watched_until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < watched_until {
        assert_eq!(
            plans.list(&Default::default()).await.unwrap().items,
            [],
            "written too early"
        );
        assert_eq!(
            status_of(&client, "early").await,
            Value::Null,
            "written too early"
        );
        sleep(Duration::from_millis(100)).await;
    }

    binding.metadata.resource_version = None;
    bindings.create(&Default::default(), &binding).await.unwrap();
    eventually("a plan once all is known", async || {
        plan_with_policy(&client, WORKER).await
    })
    .await;
}
