//! Which destinations a policy captures: scenarios of destinations, each of them between two other policies for
//! the same pods.

use std::time::Duration;

use egressnat_e2e::{
    capture::Capture,
    cluster::Cluster,
    kube_proxy::KubeProxyMode,
    netns::Netns,
    site::{API_PORT, API_SERVICE, CONTROL_PLANE, ECHO, NODES},
};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test,
    pod::Pod,
    scene::{
        CHOSEN, DEADLINE, EGRESS, ELSEWHERE, GATEWAY, OUTSIDE, POLICY, Scene, condition, egress, hosts, own,
    },
};

pub const TESTS: &[Test] = &[
    (
        "destinations::nothing_inside_the_cluster_is_captured_by_a_policy_for_everything",
        nothing_inside_the_cluster_is_captured_by_a_policy_for_everything,
    ),
    (
        "destinations::excluded_ranges_and_those_not_included_keep_the_nodes_address",
        excluded_ranges_and_those_not_included_keep_the_nodes_address,
    ),
    (
        "destinations::a_family_that_the_gateway_lacks_meets_no_gateway",
        a_family_that_the_gateway_lacks_meets_no_gateway,
    ),
];

const TUNNEL: &str = "udp port 5770";

/// Pods of the other nodes, a Service, every address of every node, the API server, DNS at the node and by
/// its Service: all answer, and see the pod or its node.
fn nothing_inside_the_cluster_is_captured_by_a_policy_for_everything(
    cluster: &Cluster,
) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    cluster.set_kube_proxy(KubeProxyMode::Nftables)?;
    let clients = scene.tshoot()?;
    for client in &clients {
        scene.label(client, CHOSEN)?;
    }
    scene.apply_policy(json!({"destinationCIDRs": ["0.0.0.0/0", "::/0"]}))?;
    let service = service_addresses(&scene)?;
    let peers = scene.peers()?;
    for client in &clients {
        let wire = cluster.node(client.node.name)?.netns()?;
        let tunnel = Capture::start(&wire, "eth0", TUNNEL)?;
        scene.expect("the probe", &[(client, egress())])?;
        if client.node != GATEWAY {
            tunnel.wait_for("the probe in the tunnel", DEADLINE, |_| true)?;
        }
        tunnel.stop()?;

        let tunnel = Capture::start(&wire, "eth0", TUNNEL)?;
        expect_answers(&scene, client, &peers, &service)?;
        expect_api_server(&scene, client, &wire)?;
        expect_dns(&scene, client, &wire)?;
        let captured = tunnel.stop()?;
        assert!(captured.is_empty(), "{client}: {captured:#?}");
    }
    Ok(())
}

fn service_addresses(scene: &Scene) -> Result<[String; 2], Failed> {
    let query = "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}";
    let text = scene
        .kubectl
        .run(["-n", "other", "get", "service", "peer", "-o", query])?;
    let (v4, v6) = text.split_once(' ').ok_or("two addresses")?;
    Ok([v4.to_owned(), v6.to_owned()])
}

/// By address of pod and Service the pod itself is seen; by a node's address the pod on its own node, and
/// elsewhere its node, as the CNI does it.
fn expect_answers(
    scene: &Scene,
    client: &Pod,
    peers: &[Pod; 3],
    service: &[String; 2],
) -> Result<(), Failed> {
    let itself = client.addresses.map(|address| Some(address.to_string()));
    let url = |address: &str, port: u16| match address.contains(':') {
        true => format!("http://[{address}]:{port}/cgi-bin/source"),
        false => format!("http://{address}:{port}/cgi-bin/source"),
    };
    let mut wanted = Vec::new();
    for family in 0..2 {
        let mut want = |address: &str, port, seen: &Option<String>| {
            wanted.push((url(address, port), seen.clone()));
        };
        for peer in peers {
            want(&peer.addresses[family].to_string(), 8080, &itself[family]);
        }
        want(&service[family], 80, &itself[family]);
        for node in NODES {
            let here = node == client.node;
            let seen = if here {
                &itself[family]
            } else {
                &own(client)[family]
            };
            let address = [node.v4.to_string(), node.v6.to_string()];
            want(&address[family], 8081, seen);
            if node == GATEWAY {
                want(EGRESS[family], 8081, seen);
            }
        }
    }
    let urls: Vec<String> = wanted.iter().map(|(url, _)| url.clone()).collect();
    let answers = client.ask(scene.kubectl, &urls)?;
    let answered: Vec<_> = urls.into_iter().zip(answers).collect();
    assert_eq!(answered, wanted, "{client}");
    Ok(())
}

/// It answers at its Service's address; no packet on the way there has the policy's address.
fn expect_api_server(scene: &Scene, client: &Pod, wire: &Netns) -> Result<(), Failed> {
    let packets = Capture::start(
        wire,
        "any",
        &format!("tcp dst port 443 or tcp dst port {API_PORT}"),
    )?;
    let api = API_SERVICE.0;
    client.sh(scene.kubectl, &format!("timeout 5 nc {api} 443 -e true"))?;
    let to_service = packets.wait_for("a packet to the API server's Service", DEADLINE, |line| {
        line.contains(&format!(" > {api}.443"))
    })?;
    let port = to_service
        .split(" > ")
        .next()
        .and_then(|from| from.rsplit('.').next());
    let port = port.ok_or("a packet has a source port")?;
    if client.node != CONTROL_PLANE {
        let hop = format!(".{port} > {}.{API_PORT}", CONTROL_PLANE.v4);
        packets.wait_for("it on its way", DEADLINE, |line| line.contains(&hop))?;
    }
    expect_uncaptured(client, &packets.stop()?);
    Ok(())
}

/// At the node-local address, and at the Service's, whose servers are on every node.
fn expect_dns(scene: &Scene, client: &Pod, wire: &Netns) -> Result<(), Failed> {
    let queries = Capture::start(wire, "any", "udp dst port 53")?;
    for server in ["169.254.20.10", "10.96.0.10", "10.96.0.10", "10.96.0.10"] {
        let name = "echo4.default.svc.cluster.local";
        let answer = client.sh(scene.kubectl, &format!("timeout 5 nslookup {name} {server}"))?;
        assert!(
            answer.contains(&ECHO.0.to_string()),
            "{client}: {server}: {answer}"
        );
        queries.wait_for("the query", Duration::from_secs(5), |line| {
            line.contains(&format!(" > {server}.53"))
        })?;
    }
    expect_uncaptured(client, &queries.stop()?);
    Ok(())
}

fn expect_uncaptured(client: &Pod, lines: &[String]) {
    let ours = |line: &&String| {
        line.contains("egressnat0")
            || EGRESS
                .iter()
                .any(|address| line.contains(&format!(" {address}.")))
    };
    let captured: Vec<_> = lines.iter().filter(ours).collect();
    assert!(captured.is_empty(), "{client}: {captured:#?}");
}

fn excluded_ranges_and_those_not_included_keep_the_nodes_address(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    scene.serve_elsewhere()?;
    let pods = scene.tshoot()?;
    for pod in &pods {
        scene.label(pod, CHOSEN)?;
    }
    let nodes_own = pods.each_ref().map(|pod| (pod, own(pod)));
    scene.apply_policy(json!({"excludedCIDRs": hosts(ELSEWHERE)}))?;
    scene.expect("all of the range", &pods.each_ref().map(|pod| (pod, egress())))?;
    scene.expect_elsewhere("but what is excluded", &nodes_own)?;

    scene.delete_policy()?;
    let echo = [ECHO.0.to_string(), ECHO.1.to_string()];
    scene.apply_policy(json!({"destinationCIDRs": hosts([&echo[0], &echo[1]])}))?;
    scene.expect(
        "one destination alone",
        &pods.each_ref().map(|pod| (pod, egress())),
    )?;
    scene.expect_elsewhere("but not another in the same network", &nodes_own)?;
    Ok(())
}

/// A policy for both families, and a gateway with an IPv4 address only.
fn a_family_that_the_gateway_lacks_meets_no_gateway(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::beside_others(cluster)?;
    let pods = scene.tshoot()?;
    for pod in &pods {
        scene.label(pod, CHOSEN)?;
    }
    scene.expect("the probe", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    for no_gateway in ["Drop", "NodeIP"] {
        scene.apply_policy(json!({
            "egressSourceIPs": [EGRESS[0]],
            "destinationCIDRs": OUTSIDE,
            "noGateway": no_gateway,
        }))?;
        let [v4, _] = egress();
        let expected = pods.each_ref().map(|pod| {
            let [_, own_v6] = own(pod);
            let v6 = own_v6.filter(|_| no_gateway == "NodeIP");
            (pod, [v4.clone(), v6])
        });
        scene.expect(no_gateway, &expected)?;
        let degraded = condition(&scene.shown(POLICY)?, "Degraded");
        assert_eq!(degraded["status"], "True", "{degraded}");
        assert_eq!(degraded["reason"], "FamilyNotServed", "{degraded}");
        let message = degraded["message"].as_str().unwrap_or_default();
        assert!(message.contains("IPv6"), "{message}");
    }
    Ok(())
}
