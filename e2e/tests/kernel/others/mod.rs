//! Other programs' rules that are in our way: seen when they come and when they go, before the start and after it.

use std::{process::Command, time::Duration};

use egressnat_agent::{agent::Report, error::AgentError};
use egressnat_crds::EgressPlanSpec;
use egressnat_e2e::topology::{Node, Options, SEGMENT, SERVER, Topology};

use crate::{
    agent::Agent,
    lab::{Lab, ok},
    plan::Policy,
    programs::PROGRAMS,
};

mod rules;
mod surroundings;

use rules::{CASES, Case, HARMLESS, REFUSED};

const NOTICE: Duration = Duration::from_secs(5);

fn run(node: &Node, script: &str) {
    ok(node.netns.output(Command::new("sh").args(["-ec", script])));
}

/// All tables but ours go.
fn clean(node: &Node) {
    let script = "nft list tables | grep -v egressnat | while read -r table; do nft delete $table; done";
    run(node, script);
}

fn policies(topology: &Topology) -> [Policy; 1] {
    let Topology { source, gateway, .. } = topology;
    let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
    [policy.select(&source.pods[0])]
}

/// The node of a case, its agent and its plan.
fn of<'a>(lab: &'a Lab, case: &Case) -> (&'a Node, &'a Agent, EgressPlanSpec) {
    let Topology { source, gateway, .. } = &lab.topology;
    let (node, agent) = match case.on_gateway {
        true => (gateway, &lab.gateway),
        false => (source, &lab.source),
    };
    (node, agent, lab.plan(node, &policies(&lab.topology)))
}

fn warnings(report: &Report) -> Vec<(&'static str, String)> {
    let warnings = report.warnings.iter();
    warnings.map(|w| (w.category(), w.to_string())).collect()
}

#[track_caller]
fn assert_said(said: &[(&'static str, String)], case: &Case) {
    let Case {
        name,
        category,
        words,
        ..
    } = case;
    let has = |(found, text): &(&str, String)| found == category && words.iter().all(|w| text.contains(w));
    assert!(said.iter().any(has), "{name}: {said:#?}");
    assert!(
        said.iter().all(|(found, _)| found == category),
        "{name}: {said:#?}"
    );
}

#[test]
fn what_hinders_packets_is_said_when_it_comes_and_until_it_goes() {
    let lab = Lab::new(Options::default());
    let before = lab.apply(&policies(&lab.topology));
    assert_eq!(before.warnings, []);
    for case in &CASES {
        let (node, agent, plan) = of(&lab, case);
        let name = case.name;
        run(node, case.script);
        assert!(agent.changed(NOTICE), "{name} was not noticed");
        assert_said(&warnings(&ok(agent.sync(Some(&plan)))), case);
        // One that looks at everything, as when it starts, finds it as well.
        agent.distrust();
        assert_said(&warnings(&ok(agent.sync(Some(&plan)))), case);
        clean(node);
        assert!(agent.changed(NOTICE), "{name} is gone, which was not noticed");
        assert_eq!(ok(agent.sync(Some(&plan))).warnings, [], "{name} is gone");
    }
    let Topology { source, gateway, .. } = &lab.topology;
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}

/// What is said to be dropped is: the rules of the cases are right.
#[test]
fn what_is_said_to_be_dropped_is_dropped() {
    for case in CASES.iter().filter(|case| case.category == "FirewallDrops") {
        let lab = Lab::new(Options::default());
        lab.apply(&policies(&lab.topology));
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        let server = match case.words.contains(&"IPv6") {
            true => SERVER.v6.into(),
            false => SERVER.v4.into(),
        };
        run(of(&lab, case).0, case.script);
        let answer = egressnat_e2e::topology::ask_tcp(&source.pods[0].netns, server);
        assert!(answer.is_err(), "{}: {answer:?}", case.name);
    }
}

#[test]
fn what_would_be_taken_for_ours_is_refused_until_it_goes() {
    for case in &REFUSED {
        let lab = Lab::new(Options::default());
        let (node, agent, plan) = of(&lab, case);
        run(node, case.script);
        let refused = |agent: &Agent| match agent.sync(Some(&plan)) {
            Err(AgentError::Clash(clashes)) => {
                clashes.iter().map(|c| (c.category(), c.to_string())).collect()
            }
            other => panic!("{}: {other:?}", case.name),
        };
        let said: Vec<_> = refused(agent);
        assert_said(&said, case);
        clean(node);
        lab.apply(&policies(&lab.topology));
        let Topology { source, gateway, .. } = &lab.topology;
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        // Where pods are served already, it stops nothing.
        run(node, case.script);
        assert!(agent.changed(NOTICE), "{} was not noticed", case.name);
        let warnings = ok(agent.sync(Some(&plan))).warnings;
        let said: Vec<_> = warnings.iter().map(|c| (c.category(), c.to_string())).collect();
        assert_said(&said, case);
        clean(node);
        assert!(
            agent.changed(NOTICE),
            "{} is gone, which was not noticed",
            case.name
        );
        assert_eq!(ok(agent.sync(Some(&plan))).warnings, []);
    }
}

#[test]
fn what_others_are_known_to_write_hinders_nothing() {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        run(node, HARMLESS);
        PROGRAMS.iter().for_each(|program| program.write(node));
    }
    for agent in [&lab.source, &lab.gateway] {
        agent.distrust();
    }
    let said = lab.apply(&policies(&lab.topology)).warnings;
    assert_eq!(said, []);
    let plan = lab.plan(gateway, &policies(&lab.topology));
    assert_eq!(ok(lab.gateway.sync(Some(&plan))).warnings, []);
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
}
