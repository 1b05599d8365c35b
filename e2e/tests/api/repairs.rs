//! What somebody does to the datapath by hand: the real agent repairs it, counts it and names it in its plan's status,
//! and the real operator makes an Event on the node of it, with their own rights.

use egressnat_crds::{AGENT_MANAGER, EgressPlan, OPERATOR_MANAGER, plan::RepairedObject};
use k8s_openapi::{api::events::v1::Event, jiff::Timestamp};
use kube::{Api, Client, api::PatchParams};
use serde_json::{Value, json};

use super::{
    node::{get, kernel, on_node},
    support::*,
    world::*,
};

#[test]
fn a_repair_is_counted_and_named_in_the_plans_status() {
    on_node(async |world| {
        let netns = &world.topology.source.netns;
        world.write(world.spec()).await;
        let status = world.says("True", "Programmed").await.status.unwrap();
        assert_eq!(status.repairs, [], "what it writes itself is no repair");
        let programmed = kernel(netns);
        for count in 1..=2 {
            netns.ip("rule del priority 770").unwrap();
            let repairs = eventually("the repair in the status", async || {
                let plan = world.plans.get(world.name()).await.unwrap();
                let repairs = plan.status?.repairs;
                repairs
                    .iter()
                    .any(|repair| repair.count == count)
                    .then_some(repairs)
            })
            .await;
            let [repair] = repairs.as_slice() else {
                panic!("{repairs:?}")
            };
            assert_eq!(repair.object, RepairedObject::IpRule);
            assert!(repair.what.contains("priority 770"), "{}", repair.what);
            assert_eq!(kernel(netns), programmed);
            let counted = format!(r#"repairs_total{{object="IpRule"}} {count}"#);
            assert!(get("/metrics").unwrap().contains(&counted), "no {counted}");
        }
    });
}

/// The operator's Events on a node of this reason.
async fn events_on_node(client: &Client, node: &str, reason: &str) -> Vec<Event> {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    let events = events.list(&Default::default()).await.unwrap().into_iter();
    let is_on = |event: &Event| {
        let regarding = event.regarding.as_ref();
        regarding.is_some_and(|o| o.kind.as_deref() == Some("Node") && o.name.as_deref() == Some(node))
    };
    events
        .filter(|event| is_on(event) && event.reason.as_deref() == Some(reason))
        .filter(|event| event.reporting_controller.as_deref() == Some(OPERATOR_MANAGER))
        .collect()
}

fn repair(object: &str, what: &str, last_time: Timestamp) -> Value {
    json!({"object": object, "what": what, "count": 1, "lastTime": last_time.to_string()})
}

#[tokio::test]
async fn a_repair_is_an_event_on_its_node_that_names_what_was_touched() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;
    eventually("a plan", async || plan_with_policy(&client, WORKER).await).await;

    let (rule, route) = ("ip -4 rule priority 770", "ip route default table 7701");
    let now = Timestamp::now();
    let long_ago = repair("Link", "egressnat0", Timestamp::from_second(0).unwrap());
    let repairs = [repair("IpRule", rule, now), repair("Route", route, now), long_ago];
    let status = plan_status(json!({"repairs": repairs}));
    let plans: Api<EgressPlan> = Api::all(cluster.agent_of(WORKER).await);
    let params = PatchParams::apply(AGENT_MANAGER);
    plans.patch_status(WORKER, &params, &status).await.unwrap();

    let told = eventually("two Events on the node", async || {
        let events = events_on_node(&client, WORKER, "DatapathRepaired").await;
        (events.len() >= 2).then_some(events)
    })
    .await;
    let mut notes: Vec<String> = told.into_iter().filter_map(|event| event.note).collect();
    notes.sort();
    assert_eq!(notes.len(), 2, "what is long ago is history: {notes:#?}");
    for (note, what) in notes.iter().zip([rule, route]) {
        assert!(note.contains(what), "{note}");
    }
    let elsewhere = events_on_node(&client, GATEWAY, "DatapathRepaired").await;
    assert!(elsewhere.is_empty());
}

#[tokio::test]
async fn what_is_in_the_way_is_an_event_on_its_node() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;
    eventually("a plan", async || plan_with_policy(&client, WORKER).await).await;

    let message = "chain FORWARD of table ip filter drops them";
    let hindrances = json!([{"reason": "FirewallDrops", "message": message}]);
    let status = plan_status(json!({"hindrances": hindrances}));
    let plans: Api<EgressPlan> = Api::all(cluster.agent_of(WORKER).await);
    let params = PatchParams::apply(AGENT_MANAGER);
    plans.patch_status(WORKER, &params, &status).await.unwrap();

    let told = eventually("an Event on the node", async || {
        let mut events = events_on_node(&client, WORKER, "FirewallDrops").await;
        events.pop()
    })
    .await;
    assert_eq!(told.note.as_deref(), Some(message));
    assert_eq!(told.type_.as_deref(), Some("Warning"));
    assert!(events_on_node(&client, GATEWAY, "FirewallDrops").await.is_empty());
}
