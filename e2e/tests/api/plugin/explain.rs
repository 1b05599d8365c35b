//! What the plugin explains, against what the operator and the agents do.

use super::*;

#[tokio::test]
async fn the_plugin_explains_what_the_operator_and_the_agents_do() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    apply(&client, &policy("weaker", weaker())).await;
    let _operator = Operator::start(&cluster, "only").await;
    for node in [GATEWAY, WORKER] {
        eventually("a plan of both policies", async || {
            let plan = plan_with_policy(&client, node).await?;
            (plan.spec.policies.len() == 2).then_some(())
        })
        .await;
    }
    let plugin = Plugin::of(&cluster);
    let ask = ["explain", "on-worker", "-n", "apps", "--to", "198.51.100.7:443"];

    let before = plugin.says(&ask);
    assert_eq!(before.code, Some(0), "{}", before.err);
    assert!(
        before.out.contains("198.51.100.7 will see 192.0.2.11"),
        "{}",
        before.out
    );
    report_until_programmed(&cluster, &client, "walk").await;
    let after = plugin.says(&ask).out;
    assert!(
        after.contains("198.51.100.7 sees 192.0.2.11, by policy walk"),
        "{after}"
    );
    assert!(
        after.contains("wins over  weaker: priority 100 is above 50"),
        "{after}"
    );

    let explained = plugin.json(&["explain", "pod/on-worker", "--namespace=apps"]);
    assert_eq!(explained["policies"][1]["lost"][0]["to"], "walk");
    assert_eq!(explained["seen"][1]["address"], WORKER_IP);
    for (to, because) in [
        ("10.96.0.1", "it is a Service address"),
        (WORKER_IP, "it is an address of node worker"),
        ("10.1.1.2", "it is the address of pod apps/on-gateway"),
        ("8.8.8.8", "no policy that selects the pod"),
    ] {
        let said = plugin.says(&["explain", "on-worker", "-n", "apps", "--to", to]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(
            said.out.contains(&format!("Not captured, because {because}")),
            "{}",
            said.out
        );
    }

    eventually("both policies in place", async || {
        let said = plugin.says(&["status"]);
        (said.code == Some(0) && said.out.matches("Ready").count() == 2).then_some(())
    })
    .await;
    let status = plugin.json(&["status"]);
    assert_eq!(status["policies"][0]["addresses"], json!([GATEWAY_IP]));
    assert_eq!(status["nodes"][1]["state"], "Programmed");
}

#[tokio::test]
async fn the_plugin_shows_plans_and_what_would_change() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let _operator = Operator::start(&cluster, "only").await;
    report_until_programmed(&cluster, &client, "walk").await;
    let plugin = Plugin::of(&cluster);

    let plan = plugin.says(&["plan", WORKER]);
    assert_eq!(plan.code, Some(0), "{}", plan.err);
    for part in [
        "name: apps/on-worker",
        "table inet egressnat {",
        "ip route add default via",
    ] {
        assert!(plan.out.contains(part), "no {part} in\n{}", plan.out);
    }

    let extra = policy("extra", weaker()).to_string();
    let diff = plugin.says_of(&["plan", "--diff", "-"], &extra);
    assert_eq!(diff.code, Some(0), "{}", diff.err);
    for part in [
        "Policy extra would be new: it would capture packets of 2 pods.",
        "203.0.113.0/24: not captured -> extra, 192.0.2.12 by worker",
    ] {
        assert!(diff.out.contains(part), "no {part} in\n{}", diff.out);
    }
    assert!(!diff.out.contains("198.51.100"), "{}", diff.out);
    let same = plugin.says_of(
        &["plan", "--diff", "-"],
        &policy("walk", spec_from_gateway()).to_string(),
    );
    assert!(same.out.ends_with("Nothing would change.\n"), "{}", same.out);
    let mut lost = weaker();
    lost["egressSourceIP"] = json!("192.0.2.99");
    let lost = plugin.says_of(&["plan", "--diff", "-"], &policy("lost", lost).to_string());
    assert_eq!(lost.code, Some(1), "{}", lost.out);

    let policies: Api<EgressNATPolicy> = Api::all(client);
    assert!(
        policies.get_opt("extra").await.unwrap().is_none(),
        "nothing was applied"
    );
}

#[tokio::test]
async fn addresses_of_services_are_not_captured() {
    let (cluster, client) = world().await;
    apply(&client, &policy("walk", spec_from_gateway())).await;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "front", "namespace": "apps"},
        "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.81"], "ports": [{"port": 443}]},
    });
    cluster.kubectl(&["apply", "-f", "-"], &service.to_string());
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.80"}]}}}).to_string();
    let patch = [
        "-n",
        "apps",
        "patch",
        "service",
        "front",
        "--subresource=status",
        "-p",
        &status,
    ];
    cluster.kubectl(&patch, "");
    let plugin = Plugin::of(&cluster);
    for (to, says) in [
        (
            "198.51.100.80",
            "Not captured, because it is the ingress address of Service apps/front",
        ),
        (
            "198.51.100.81:443",
            "Not captured, because it is the external address of Service apps/front",
        ),
        ("198.51.100.80:53", "policy walk"),
        ("198.51.100.82", "policy walk"),
    ] {
        let said = plugin.says(&["explain", "on-worker", "-n", "apps", "--to", to]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(said.out.contains(says), "{to}: {}", said.out);
    }
    cluster.kubectl(&["-n", "apps", "delete", "service", "front"], "");
}
