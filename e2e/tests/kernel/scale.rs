//! Sizes far above what a page of netlink messages holds.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use egressnat_crds::{
    EgressPlanSpec,
    interval::Interval,
    plan::{Destination, Family, PlanPod, PlanPolicy, Profile, SourceRole},
    policy::{NoGateway, OnChange},
};
use egressnat_e2e::topology::{ELSEWHERE, Options, SERVER, Topology};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

const PODS: u32 = 10_000;
const POLICIES: u16 = 1_000;
/// The policy of the one real pod; the others have the ids up to [`POLICIES`].
const REAL: u16 = 2_000;

/// The netns's plan of one real pod, and beside it a node full of others: each policy has a destination of each
/// family, each profile ten policies.
fn fill(plan: &mut EgressPlanSpec, gateway: &str) {
    let source = SourceRole {
        gateway: Some(gateway.into()),
        families: vec![Family::IPv4, Family::IPv6],
        no_gateway: NoGateway::Drop,
        on_change: OnChange::Cut,
    };
    let policies = (1..=POLICIES).map(|id| PlanPolicy {
        id,
        name: format!("policy-{id}"),
        source: Some(source.clone()),
        gateway: None,
    });
    plan.policies.splice(0..0, policies);
    let profiles = (0..POLICIES / 10).map(|tens| Profile {
        id: u32::from(tens) + 100,
        destinations: destinations(tens * 10 + 1..=tens * 10 + 10),
    });
    plan.profiles.extend(profiles);
    plan.pods.extend((0..PODS).map(pod));
}

fn destinations(ids: impl Iterator<Item = u16>) -> Vec<Destination> {
    let both = ids.flat_map(|id| {
        let v4 = Ipv4Addr::from(0x1400_0000 + (u32::from(id) << 8));
        let v6 = Ipv6Addr::from((0x2001_0db9_u128 << 96) + (u128::from(id) << 64));
        let nets = [
            IpNet::from(Ipv4Net::new_assert(v4, 24)),
            IpNet::from(Ipv6Net::new_assert(v6, 64)),
        ];
        nets.map(|net| Destination {
            range: Interval::from(net),
            policy: id,
        })
    });
    let mut destinations: Vec<_> = both.collect();
    destinations.sort();
    destinations
}

fn pod(number: u32) -> PlanPod {
    PlanPod {
        uid: format!("uid-{number:05}"),
        name: format!("default/pod-{number:05}"),
        ips: vec![
            Ipv4Addr::from(0x0af1_8000 + number).into(),
            Ipv6Addr::from((0xfd00_0010_0241_0080_u128 << 64) + u128::from(number)).into(),
        ],
        profile: number % u32::from(POLICIES / 10) + 100,
    }
}

#[test]
fn ten_thousand_pods_and_a_thousand_policies_go_in_as_one_transaction() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let everything = Policy::new(REAL).to(&["172.30.0.0/24", "fd00:172:30::/64"]);
    let policies = [everything.via(gateway, gateway.egress).select(&source.pods[0])];
    ok(lab.gateway.sync(Some(&lab.plan(gateway, &policies))));
    let mut plan = lab.plan(source, &policies);
    fill(&mut plan, gateway.name);

    let (first, report) = timed(|| ok(lab.source.sync(Some(&plan))));
    assert!(report.changed);
    println!(
        "{PODS} pods, {POLICIES} policies: {} nft steps, {first:?} with reading back",
        report.nft_steps
    );
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    lab.assert_seen(&source.pods[0], ELSEWHERE, source.address);

    plan.pods.push(pod(PODS));
    let (added, report) = timed(|| ok(lab.source.sync(Some(&plan))));
    assert_eq!(report.nft_steps, 2, "one element in each family");
    println!("one pod more: {added:?}");
    plan.pods.pop();
    let (removed, report) = timed(|| ok(lab.source.sync(Some(&plan))));
    assert_eq!(report.nft_steps, 2, "one element in each family");
    println!("one pod less: {removed:?}");

    lab.source.distrust();
    let (verified, report) = timed(|| ok(lab.source.sync(Some(&plan))));
    assert!(!report.changed, "read back and compared, all of it is there");
    println!("read back and compared: {verified:?}");
    lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
    ok(lab.source.sync(None));
    lab.assert_seen(&source.pods[0], SERVER, source.address);
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = work();
    (start.elapsed(), value)
}
