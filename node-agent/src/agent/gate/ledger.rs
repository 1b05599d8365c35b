//! The pods whose network is up on this node, as the start gate has seen them: what the plan says of them comes true
//! before it says their addresses, and stays true until their network is gone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Destination, MAX_POLICY_ID, PlanPod, PlanPolicy, Profile, SourceRole};
use egressnat_crds::policy::{NoGateway, OnChange};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cni::spec::{PodName, ValidAttachment};

/// What a plan says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A policy selects it.
    Selected,
    /// None does.
    NotSelected,
    /// The plan does not know it yet.
    Unknown,
}

/// The interfaces that have passed the gate and are still there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    held: Vec<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    attachment: ValidAttachment,
    pod: PodName,
    addresses: BTreeSet<IpAddr>,
    /// What the last plan that knew the pod said; `None` where no policy selected it.
    profile: Option<u32>,
    /// The pod started with a verdict that the kernel knew.
    #[serde(default)]
    passed: bool,
}

/// What the plan says of the pod.
pub fn verdict(plan: &EgressPlanSpec, pod: &PodName) -> Verdict {
    let Some(gate) = &plan.gate else {
        return Verdict::NotSelected;
    };
    if plan.pods.binary_search_by(|p| p.uid.cmp(&pod.uid)).is_ok() {
        Verdict::Selected
    } else if is_listed(&gate.unselected, &pod.uid) || is_listed(&gate.free, &pod.namespace) {
        Verdict::NotSelected
    } else {
        Verdict::Unknown
    }
}

/// Whether any policy may select pods of the pod's namespace, as far as the plan knows the namespace.
pub fn may_be_selected(plan: &EgressPlanSpec, pod: &PodName) -> bool {
    let gate = plan.gate.as_ref();
    gate.is_some_and(|gate| is_listed(&gate.namespaces, &pod.namespace))
}

/// Plans are sorted.
fn is_listed(list: &[String], text: &String) -> bool {
    list.binary_search(text).is_ok()
}

impl Ledger {
    /// The pod's interface is there. Its addresses are nobody else's any more.
    pub fn add(&mut self, attachment: ValidAttachment, pod: PodName, addresses: BTreeSet<IpAddr>) {
        self.release(|held| *held == attachment);
        for held in &mut self.held {
            held.addresses.retain(|address| !addresses.contains(address));
        }
        self.held.push(Held {
            attachment,
            pod,
            addresses,
            profile: None,
            passed: false,
        });
    }

    /// The pod was told that it may start, on the ground of a verdict.
    pub fn pass(&mut self, uid: &str) {
        let of_pod = self.held.iter_mut().filter(|held| held.pod.uid == uid);
        of_pod.for_each(|held| held.passed = true);
    }

    /// Forgets interfaces that are gone. Whether there were any.
    pub fn release(&mut self, gone: impl Fn(&ValidAttachment) -> bool) -> bool {
        let before = self.held.len();
        self.held.retain(|held| !gone(&held.attachment));
        self.held.len() != before
    }

    /// The interfaces that are held.
    pub fn attachments(&self) -> impl Iterator<Item = &ValidAttachment> {
        self.held.iter().map(|held| &held.attachment)
    }

    /// The uids of the pods that have passed the gate.
    pub fn passed(&self) -> impl Iterator<Item = &str> {
        let passed = self.held.iter().filter(|held| held.passed);
        passed.map(|held| held.pod.uid.as_str())
    }

    /// Takes in what a plan says of the pods that it knows. Whether that is news.
    pub fn observe(&mut self, plan: &EgressPlanSpec) -> bool {
        let profiles: BTreeMap<&str, u32> = plan.pods.iter().map(|p| (p.uid.as_str(), p.profile)).collect();
        let mut news = false;
        for held in &mut self.held {
            let now = match verdict(plan, &held.pod) {
                Verdict::Selected => profiles.get(held.pod.uid.as_str()).copied(),
                Verdict::NotSelected => None,
                Verdict::Unknown => continue,
            };
            news |= std::mem::replace(&mut held.profile, now) != now;
        }
        news
    }

    /// The plan with the addresses of pods that it does not know of yet, and with the pods that it does not know any
    /// more and whose network is still up. An address that the plan gives to another pod is that pod's.
    pub fn complete<'a>(&self, plan: &'a EgressPlanSpec) -> Cow<'a, EgressPlanSpec> {
        let claimed: BTreeMap<IpAddr, &str> = plan
            .pods
            .iter()
            .flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.uid.as_str())))
            .collect();
        let mut added: BTreeMap<&str, (&Held, Vec<IpAddr>)> = BTreeMap::new();
        for held in &self.held {
            let verdict = verdict(plan, &held.pod);
            if verdict == Verdict::Selected || (verdict == Verdict::Unknown && held.profile.is_some()) {
                let free = held.addresses.iter().filter(|ip| !claimed.contains_key(ip));
                let (_, ips) = added.entry(&held.pod.uid).or_insert((held, Vec::new()));
                ips.extend(free);
            }
        }
        added.retain(|_, (_, ips)| !ips.is_empty());
        if added.is_empty() {
            return Cow::Borrowed(plan);
        }
        Cow::Owned(with(plan, added))
    }
}

fn with(plan: &EgressPlanSpec, mut added: BTreeMap<&str, (&Held, Vec<IpAddr>)>) -> EgressPlanSpec {
    let mut plan = plan.clone();
    for pod in &mut plan.pods {
        if let Some((_, ips)) = added.remove(pod.uid.as_str()) {
            pod.ips.extend(ips);
            pod.ips.sort_unstable();
            pod.ips.dedup();
        }
    }
    let profiles: BTreeSet<u32> = plan.profiles.iter().map(|p| p.id).collect();
    for (uid, (held, ips)) in added {
        let known = held.profile.filter(|profile| profiles.contains(profile));
        let profile = known.unwrap_or_else(|| nowhere(&mut plan));
        plan.pods.push(PlanPod {
            uid: uid.to_owned(),
            name: held.pod.to_string(),
            ips,
            profile,
        });
    }
    plan.pods.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    plan
}

/// The profile of pods whose own is not in the plan any more: everything meets a policy without a gateway, and is
/// dropped and counted.
fn nowhere(plan: &mut EgressPlanSpec) -> u32 {
    const PROFILE: u32 = u32::MAX;
    if plan.profiles.iter().any(|p| p.id == PROFILE) {
        return PROFILE;
    }
    let used: BTreeSet<u16> = plan.policies.iter().map(|p| p.id).collect();
    let id = (1..=MAX_POLICY_ID)
        .rev()
        .find(|id| !used.contains(id))
        .unwrap_or(MAX_POLICY_ID);
    plan.policies.push(PlanPolicy {
        id,
        name: "(gone)".into(),
        source: Some(SourceRole {
            gateway: None,
            families: Vec::new(),
            no_gateway: NoGateway::Drop,
            on_change: OnChange::Cut,
        }),
        gateway: None,
    });
    plan.policies.sort_unstable_by_key(|p| p.id);
    let everything = ["0.0.0.0/0", "::/0"]
        .iter()
        .filter_map(|net| net.parse::<IpNet>().ok());
    plan.profiles.push(Profile {
        id: PROFILE,
        destinations: everything
            .map(|net| Destination {
                range: Interval::from(net),
                policy: id,
            })
            .collect(),
    });
    PROFILE
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::Gate;

    use super::*;

    fn attachment(container: &str) -> ValidAttachment {
        ValidAttachment {
            container: container.into(),
            interface: "eth0".into(),
        }
    }

    fn pod(uid: &str) -> PodName {
        PodName {
            uid: uid.into(),
            namespace: "shop".into(),
            name: format!("pod-{uid}"),
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    /// A plan with these selected pods, all of profile 7, and these that no policy selects.
    fn plan(selected: &[(&str, &[&str])], unselected: &[&str]) -> EgressPlanSpec {
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
                namespaces: vec!["shop".into()],
                unselected: unselected.iter().map(|u| (*u).into()).collect(),
                free: vec!["other".into()],
            }),
            ..EgressPlanSpec::default()
        }
    }

    fn held(uid: &str, addresses: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add(attachment("c1"), pod(uid), ips(addresses).into_iter().collect());
        ledger
    }

    fn pods(plan: &EgressPlanSpec) -> Vec<(&str, &[IpAddr], u32)> {
        plan.pods
            .iter()
            .map(|p| (p.uid.as_str(), p.ips.as_slice(), p.profile))
            .collect()
    }

    #[test]
    fn a_pod_has_its_addresses_before_the_plan_knows_them() {
        let ledger = held("u1", &["10.1.0.2", "2001:db8::2"]);
        let plan = plan(&[("u1", &[])], &[]);
        let addresses = ips(&["10.1.0.2", "2001:db8::2"]);
        assert_eq!(pods(&ledger.complete(&plan)), [("u1", addresses.as_slice(), 7)]);
    }

    #[test]
    fn a_pod_has_passed_only_when_it_was_told_so() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        assert_eq!(ledger.passed().count(), 0);
        ledger.pass("u2");
        assert_eq!(ledger.passed().count(), 0);
        ledger.pass("u1");
        assert_eq!(ledger.passed().collect::<Vec<_>>(), ["u1"]);
    }

    #[test]
    fn a_plan_that_knows_all_is_left_as_it_is() {
        let ledger = held("u1", &["10.1.0.2"]);
        let plan = plan(&[("u1", &["10.1.0.2"])], &[]);
        assert!(matches!(ledger.complete(&plan), Cow::Borrowed(_)));
    }

    #[test]
    fn a_pod_that_is_gone_from_the_plan_keeps_its_profile_until_its_network_is_gone() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        assert!(ledger.observe(&plan(&[("u1", &["10.1.0.2"])], &[])));
        let gone = plan(&[], &[]);
        assert!(
            !ledger.observe(&gone),
            "of pods that it does not know, a plan says nothing"
        );
        assert_eq!(
            pods(&ledger.complete(&gone)),
            [("u1", ips(&["10.1.0.2"]).as_slice(), 7)]
        );
        assert!(ledger.release(|a| *a == attachment("c1")));
        assert!(matches!(ledger.complete(&gone), Cow::Borrowed(_)));
    }

    #[test]
    fn where_its_profile_is_gone_as_well_it_sends_nothing() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        ledger.observe(&plan(&[("u1", &["10.1.0.2"])], &[]));
        let mut gone = plan(&[], &[]);
        gone.profiles.clear();
        let complete = ledger.complete(&gone);
        let profile = &complete.profiles[0];
        assert_eq!(
            pods(&complete),
            [("u1", ips(&["10.1.0.2"]).as_slice(), profile.id)]
        );
        assert_eq!(profile.destinations.len(), 2);
        let policy = &complete.policies[0];
        assert_eq!(profile.destinations[0].policy, policy.id);
        let source = policy.source.as_ref().unwrap();
        assert_eq!(
            (source.gateway.as_ref(), source.no_gateway),
            (None, NoGateway::Drop)
        );
    }

    #[test]
    fn a_living_pod_that_is_no_longer_selected_is_released() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        ledger.observe(&plan(&[("u1", &["10.1.0.2"])], &[]));
        let unselected = plan(&[], &["u1"]);
        assert!(ledger.observe(&unselected));
        assert!(matches!(ledger.complete(&unselected), Cow::Borrowed(_)));
    }

    #[test]
    fn an_address_that_is_another_pods_now_is_left_to_it() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        ledger.observe(&plan(&[("u1", &["10.1.0.2"])], &[]));
        let reused = plan(&[("u2", &["10.1.0.2"])], &[]);
        assert_eq!(
            pods(&ledger.complete(&reused)),
            [("u2", ips(&["10.1.0.2"]).as_slice(), 7)]
        );
    }

    #[test]
    fn of_pods_that_it_has_not_heard_of_a_plan_says_nothing() {
        let plan = plan(&[("u1", &[])], &["u2"]);
        let of = |uid: &str, namespace: &str| {
            let pod = PodName {
                namespace: namespace.into(),
                ..pod(uid)
            };
            (verdict(&plan, &pod), may_be_selected(&plan, &pod))
        };
        assert_eq!(of("u1", "shop"), (Verdict::Selected, true));
        assert_eq!(of("u2", "shop"), (Verdict::NotSelected, true));
        assert_eq!(of("u3", "shop"), (Verdict::Unknown, true));
        assert_eq!(of("u3", "other"), (Verdict::NotSelected, false));
        assert_eq!(of("u3", "new"), (Verdict::Unknown, false));
        let off = EgressPlanSpec { gate: None, ..plan };
        assert_eq!(verdict(&off, &pod("u3")), Verdict::NotSelected);
    }
}
