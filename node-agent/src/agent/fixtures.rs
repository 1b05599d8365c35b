//! What several tests begin with.

use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Gate, PlanPod, Profile};

/// These addresses.
pub fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// The plan of a node whose gate is closed or open, with these selected pods, by uid, all of profile 7, and these that no
/// policy selects.
pub fn plan(open: bool, selected: &[(&str, &[&str])], unselected: &[&str]) -> EgressPlanSpec {
    EgressPlanSpec {
        profiles: vec![Profile {
            id: 7,
            destinations: Vec::new(),
        }],
        pods: selected
            .iter()
            .map(|(uid, addresses)| PlanPod {
                uid: (*uid).into(),
                name: format!("shop/pod-{uid}"),
                ips: ips(addresses),
                profile: 7,
            })
            .collect(),
        gate: Some(Gate {
            open,
            namespaces: vec!["shop".into()],
            unselected: unselected.iter().map(|u| (*u).into()).collect(),
            free: vec!["other".into()],
        }),
        ..EgressPlanSpec::default()
    }
}
