//! What others hold that is ours: the agent says which, and changes nothing until it is gone. Where it serves pods already,
//! it says so and goes on.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use egressnat_agent::error::AgentError;
use egressnat_crds::EgressPlanSpec;
use egressnat_e2e::{
    topology::{Node, Options, SEGMENT, SERVER, TUNNEL_PORT, Topology},
    wait,
};

use crate::{
    agent::Agent,
    lab::{Lab, ok},
    plan::Policy,
    snapshot::Snapshot,
};

fn policy(topology: &Topology) -> [Policy; 1] {
    let Topology { source, gateway, .. } = topology;
    [Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])]
}

/// The source node's agent refuses its plan, names the category and these words, and changes nothing.
#[track_caller]
fn assert_refused(node: &Node, agent: &Agent, plan: &EgressPlanSpec, category: &str, words: &[&str]) {
    let before = Snapshot::of(node);
    let error: AgentError = agent.sync(Some(plan)).expect_err("it should have been refused");
    before.assert_unchanged(node, category);
    assert_eq!(error.category(), category, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

/// `clash` makes it, the agent refuses, `undo` removes it, and all is well.
#[track_caller]
fn assert_clash(clash: &str, undo: &str, category: &str, words: &[&str]) {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = policy(&lab.topology);
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    ok(source.netns.ip(clash));
    let plan = lab.plan(source, &policies);
    assert_refused(source, &lab.source, &plan, category, words);
    // Still, and still said.
    assert_refused(source, &lab.source, &plan, category, words);
    ok(source.netns.ip(undo));
    assert!(ok(lab.source.sync(Some(&plan))).changed);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// Also what takes the place of ours: ours comes back beside it.
#[test]
fn what_comes_while_a_policy_is_in_force_is_said_and_stops_nothing() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let pods: Vec<_> = source.pods.iter().collect();
    let of = |count: usize| {
        let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
        [pods[..count]
            .iter()
            .fold(policy, |policy, pod| policy.select(pod))]
    };
    lab.apply(&of(1));
    for (number, (clash, undo, category)) in [
        (
            &[
                "rule del priority 770",
                "rule add priority 770 fwmark 0x01000000/0xff000000 lookup 7701",
            ][..],
            "rule del priority 770 fwmark 0x01000000/0xff000000",
            "ClashRulePriority",
        ),
        (
            &["rule add fwmark 0x01000000/0xff000000 lookup 100 priority 99"],
            "rule del priority 99",
            "ClashRuleMark",
        ),
        (
            &["route add 192.0.2.0/24 via 172.30.0.100 table 7701 proto static"],
            "route del 192.0.2.0/24 table 7701",
            "ClashRoute",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for command in clash {
            ok(source.netns.ip(command));
        }
        // Another pod comes under the policy meanwhile.
        let plan = lab.plan(source, &of(number + 2));
        lab.source.distrust();
        let report = ok(lab.source.sync(Some(&plan)));
        let said: Vec<_> = report.warnings.iter().map(|clash| clash.category()).collect();
        assert!(said.contains(&category), "{category}: {said:?}");
        for pod in &pods[..number + 2] {
            lab.assert_seen(pod, SERVER, gateway.egress);
        }
        ok(source.netns.ip(undo));
        lab.source.distrust();
        let report = ok(lab.source.sync(Some(&plan)));
        let said: Vec<_> = report.warnings.iter().map(|clash| clash.category()).collect();
        assert!(!said.contains(&category), "{category} is gone: {said:?}");
    }
}

#[test]
fn a_rule_of_another_program_at_our_priority() {
    assert_clash(
        "rule add fwmark 5 lookup 100 priority 770",
        "rule del priority 770",
        "ClashRulePriority",
        &["fwmark 0x5", "priority"],
    );
}

#[test]
fn a_rule_of_another_program_with_our_bits_of_the_mark() {
    assert_clash(
        "rule add fwmark 0x01000000/0xff000000 lookup 100 priority 99",
        "rule del priority 99",
        "ClashRuleMark",
        &["0x1000000", "mark"],
    );
}

#[test]
fn a_link_of_another_kind_with_the_tunnels_name() {
    assert_clash(
        "link add egressnat0 type bridge",
        "link del egressnat0",
        "ClashLinkName",
        &["egressnat0", "bridge"],
    );
}

#[test]
fn another_vxlan_device_on_our_port() {
    assert_clash(
        &format!("link add overlay type vxlan id 5 dstport {TUNNEL_PORT} dev eth0"),
        "link del overlay",
        "ClashTunnelPort",
        &["overlay", &TUNNEL_PORT.to_string()],
    );
}

#[test]
fn a_route_of_another_program_in_one_of_our_tables() {
    assert_clash(
        "route add 192.0.2.0/24 via 172.30.0.100 table 7701 proto static",
        "route flush table 7701",
        "ClashRoute",
        &["192.0.2.0/24", "7701"],
    );
}

#[test]
fn a_process_on_our_port() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = policy(&lab.topology);
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    // A node that is idle has been looked at already, while the port was free.
    let idle = EgressPlanSpec {
        underlay: Some(source.address.v4.into()),
        ..EgressPlanSpec::default()
    };
    ok(lab.source.sync(Some(&idle)));
    let socket = ok(ok(source
        .netns
        .run(|| std::net::UdpSocket::bind(("0.0.0.0", TUNNEL_PORT)))));
    let plan = lab.plan(source, &policies);
    assert_refused(
        source,
        &lab.source,
        &plan,
        "ClashSocket",
        &[&TUNNEL_PORT.to_string()],
    );
    drop(socket);
    ok(lab.source.sync(Some(&plan)));
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// A table with our name and an owner that lives: `nft` at its prompt. Ended when dropped.
struct Owner(Child);

impl Owner {
    fn of_the_table(node: &Node) -> Self {
        let mut command = Command::new("nft");
        command
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut owner = Self(ok(node.netns.spawn(&mut command)));
        let prompt = owner.0.stdin.as_mut().expect("its input is a pipe");
        ok(prompt.write_all(b"add table inet egressnat { flags owner; }\n"));
        let listed = || {
            node.netns
                .output(Command::new("nft").args(["list", "table", "inet", "egressnat"]))
        };
        ok(wait::until("the other's table", Duration::from_secs(5), listed));
        owner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_table_of_our_name_with_another_owner() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = policy(&lab.topology);
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    let owner = Owner::of_the_table(source);
    let plan = lab.plan(source, &policies);
    assert_refused(
        source,
        &lab.source,
        &plan,
        "NftOwnedByOther",
        &["owned by another process"],
    );
    drop(owner);
    ok(lab.source.sync(Some(&plan)));
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// What is in force stays in force, under a plan that cannot be compiled as well.
#[test]
fn a_contradictory_plan_leaves_what_was_programmed() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let policies = policy(&lab.topology);
    lab.apply(&policies);
    let mut plan = lab.plan(source, &policies);
    plan.pods[0].profile = 99;
    assert_refused(source, &lab.source, &plan, "PlanInvalid", &["source-1", "99"]);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

#[test]
fn an_underlay_address_that_the_node_does_not_hold() {
    let lab = Lab::new(Options::default());
    let Topology { source, second, .. } = &lab.topology;
    let mut plan = lab.plan(source, &policy(&lab.topology));
    plan.underlay = Some(second.address.v4.into());
    assert_refused(
        source,
        &lab.source,
        &plan,
        "UnderlayMissing",
        &[&second.address.v4.to_string()],
    );
}
