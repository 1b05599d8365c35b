//! The real agent against the real API server and a kernel of its own: from the plan to nftables and back to
//! the plan's status, its probes and its metrics. The test stands in for the operator.

use std::net::SocketAddr;

use egressnat_e2e::topology::{Flow, PORT, SERVER, knock_udp};
use serde_json::json;

use super::{
    node::{World, assert_same, get, kernel, on_node, on_node_with},
    world::eventually,
};

/// With these flags, for how long the last plan holds.
fn holding(seconds: u32) -> Vec<String> {
    vec![format!("--hold-without-plan-seconds={seconds}")]
}

#[test]
fn a_plan_is_programmed_reported_and_removed() {
    on_node_with(holding(0), async |world| {
        let netns = &world.topology.source.netns;
        let before = kernel(netns);
        assert!(!before.contains("egressnat"), "{before}");

        world.write(world.spec()).await;
        let ready = world.says("True", "Programmed").await;
        let status = ready.status.unwrap();
        assert_eq!(status.observed_generation, ready.metadata.generation);
        let eth0 = status
            .interfaces
            .iter()
            .find(|interface| interface.name == "eth0")
            .unwrap();
        let address = world.topology.source.address.v4.into();
        assert!(eth0.addresses.contains(&address), "{eth0:?}");
        let programmed = kernel(netns);
        let pod = world.topology.source.pods[0].address;
        for ours in [
            "table inet egressnat",
            &format!("{} :", pod.v4),
            &format!("{} :", pod.v6),
            "egressnat0",
            "770:",
        ] {
            assert!(programmed.contains(ours), "no {ours} in\n{programmed}");
        }
        assert!(get("/readyz").unwrap().starts_with("HTTP/1.0 200"));

        world.delete_plan().await;
        eventually("a kernel as it was before", async || {
            (kernel(netns) == before).then_some(())
        })
        .await;
    });
}

/// Its Node object was deleted, say, with the pods still there.
#[test]
fn the_last_plan_holds_where_there_is_none_any_more_and_not_for_ever() {
    on_node_with(holding(2), async |world| {
        let netns = &world.topology.source.netns;
        let before = kernel(netns);
        world.write(world.spec()).await;
        world.says("True", "Programmed").await;
        let programmed = kernel(netns);
        world.delete_plan().await;
        // What another hand takes away meanwhile comes back.
        netns.ip("rule del priority 770").unwrap();
        eventually("the rule", async || (kernel(netns) == programmed).then_some(())).await;
        // It was written again in time.
        world.write(world.spec()).await;
        world.says("True", "Programmed").await;
        assert_same(&programmed, &kernel(netns), "again");
        world.delete_plan().await;
        eventually("a kernel as it was before", async || {
            (kernel(netns) == before).then_some(())
        })
        .await;
        // One that tears down does not hold.
        let mut spec = world.spec();
        world.write(spec.clone()).await;
        world.says("True", "Programmed").await;
        spec["teardown"] = json!(true);
        world.write(spec).await;
        eventually("nothing of ours", async || {
            (kernel(netns) == before).then_some(())
        })
        .await;
    });
}

#[test]
fn a_contradictory_plan_is_refused_and_what_was_programmed_stays() {
    on_node(async |world| {
        let netns = &world.topology.source.netns;
        world.write(world.spec()).await;
        let good = world.says("True", "Programmed").await;
        let programmed = kernel(netns);

        let mut spec = world.spec();
        spec["pods"][0]["profile"] = json!(9);
        world.write(spec).await;
        let refused = world.says("False", "PlanInvalid").await.status.unwrap();
        assert_eq!(
            refused.observed_generation, good.metadata.generation,
            "what is in force"
        );
        expect_unready("PlanInvalid").await;
        assert_same(&programmed, &kernel(netns), "refused");

        world.write(world.spec()).await;
        world.says("True", "Programmed").await;
        assert!(get("/readyz").unwrap().contains("200 OK"));
    });
}

#[test]
fn a_clash_is_named_changes_nothing_and_heals_when_it_goes() {
    on_node_with(holding(0), async |mut world| {
        let netns = &world.topology.source.netns;
        let untouched = kernel(netns);
        for (clash, undo, category) in [
            (
                "rule add fwmark 5 lookup 100 priority 770",
                "rule del priority 770",
                "ClashRulePriority",
            ),
            (
                "link add egressnat0 type bridge",
                "link del egressnat0",
                "ClashLinkName",
            ),
            (
                "link add overlay type vxlan id 5 dstport 5770 dev eth0",
                "link del overlay",
                "ClashTunnelPort",
            ),
        ] {
            world.agent.kill();
            netns.ip(clash).unwrap();
            let before = kernel(netns);
            assert_ne!(before, untouched, "the probe sees the clash");
            world.write(world.spec()).await;
            world.restart_agent().await;
            let refused = world.says("False", category).await.status.unwrap();
            assert_eq!(refused.observed_generation, None, "nothing is in force");
            expect_unready(category).await;
            assert_same(&before, &kernel(netns), category);

            netns.ip(undo).unwrap();
            world.says("True", "Programmed").await;
            assert!(kernel(netns).contains("table inet egressnat"));
            world.delete_plan().await;
            eventually("nothing of ours", async || {
                (kernel(netns) == untouched).then_some(())
            })
            .await;
        }
    });
}

#[test]
fn drops_are_counted_by_reason() {
    on_node(async |world| {
        let mut spec = world.spec();
        spec["peers"] = json!([]);
        spec["policies"][0]["source"] = json!({"noGateway": "Drop"});
        world.write(spec).await;
        world.says("True", "Programmed").await;
        assert_eq!(dropped("no_gateway").await, 0);
        for server in SERVER.both() {
            knock_udp(&world.topology.source.pods[0].netns, server).unwrap();
        }
        assert_eq!(dropped("no_gateway").await, 2);
    });
}

#[test]
fn a_policy_without_ports_left_is_counted_and_named_in_the_status() {
    on_node(async |world| {
        let source = &world.topology.source;
        let mut spec = world.spec();
        spec["peers"] = json!([]);
        spec["policies"][0]["source"]["gateway"] = json!(source.name);
        spec["policies"][0]["gateway"] = json!({"addresses": source.egress.both(), "sourcePorts": "20000"});
        world.write(spec).await;
        let status = world.says("True", "Programmed").await.status.unwrap();
        assert_eq!(status.exhausted_ports, []);

        let open = |server| Flow::open(&source.pods[0].netns, SocketAddr::new(server, PORT)).unwrap();
        let taken = SERVER.both().map(open);
        for (flow, address) in taken.iter().zip(source.egress.both()) {
            assert_eq!(flow.peer().unwrap(), SocketAddr::new(address, 20000));
        }
        assert_eq!(dropped("ports_exhausted").await, 0);
        for server in SERVER.both() {
            open(server).send().unwrap();
        }
        eventually("both drops", async || {
            (dropped("ports_exhausted").await == 2).then_some(())
        })
        .await;
        let named = eventually("both destinations in the status", async || {
            let plan = world.plans.get(world.name()).await.unwrap();
            let exhausted = plan.status?.exhausted_ports;
            (exhausted.len() == 2).then_some(exhausted)
        })
        .await;
        for (of, server) in named.iter().zip(SERVER.both()) {
            assert_eq!(
                (of.policy.as_str(), of.destination, of.port),
                ("walk", server, Some(PORT))
            );
        }
    });
}

#[test]
fn without_the_api_server_the_datapath_stays_and_is_looked_after() {
    on_node(async |world| {
        world.write(world.spec()).await;
        world.says("True", "Programmed").await;
        let World {
            topology,
            cluster,
            mut agent,
            ..
        } = world;
        let netns = &topology.source.netns;
        let programmed = kernel(netns);

        drop(cluster);
        eventually("the agent to notice", async || {
            get("/metrics")?
                .lines()
                .find(|line| line.contains(r#"errors_total{category="Watch"}"#))
                .map(drop)
        })
        .await;
        assert_same(&programmed, &kernel(netns), "without the API server");
        assert!(get("/readyz").unwrap().contains("200 OK"));

        netns.ip("rule del priority 770").unwrap();
        // It may be back before anybody can look: that it was gone is what the agent says.
        let repaired = r#"repairs_total{object="IpRule"} 1"#;
        eventually("the repair", async || {
            let is_said = get("/metrics")?.lines().any(|line| line.ends_with(repaired));
            (is_said && kernel(netns) == programmed).then_some(())
        })
        .await;

        agent.kill();
        assert_eq!(get("/healthz"), None, "it is gone");
        assert_same(&programmed, &kernel(netns), "without an agent");
    });
}

async fn expect_unready(why: &str) {
    eventually("a probe that says why", async || {
        get("/readyz").filter(|answer| answer.contains("503") && answer.contains(why))
    })
    .await;
}

/// How many packets the agent counts for a reason.
async fn dropped(reason: &str) -> u64 {
    let counter = format!(r#"dropped_packets{{reason="{reason}"}}"#);
    eventually("the counter", async || {
        let metrics = get("/metrics")?;
        let line = metrics.lines().find(|line| line.contains(&counter))?;
        line.rsplit(' ').next()?.parse().ok()
    })
    .await
}
