//! The pods whose network is up on this node, as the start gate has seen them or the runtime's cached results tell: what
//! the plan says of them comes true before it says their addresses.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use serde::{Deserialize, Serialize};

use crate::cni::notes::Note;
use crate::cni::spec::{PodName, ValidAttachment};

/// What a plan says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A policy selects it.
    Selected,
    /// None does.
    NotSelected,
    /// The plan does not know it yet, or not any more.
    Unknown,
}

/// The interfaces that are known and still there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    held: Vec<Held>,
    /// The pods whose network is gone, by uid, as long as the plan still has them.
    #[serde(default)]
    ended: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    attachment: ValidAttachment,
    pod: PodName,
    addresses: BTreeSet<IpAddr>,
    /// The pod started with a verdict that the kernel knew.
    #[serde(default)]
    passed: bool,
    /// Pods, by uid, to which the plan gave one of the addresses when it came to this one: that is what the API server says
    /// until their kubelets have reported, and what it goes on saying of those that are gone.
    #[serde(default)]
    former: BTreeSet<String>,
    /// The plan has not been asked for them yet.
    #[serde(skip)]
    new: bool,
    /// It is known from the runtime's cached results alone, and so will be by the next process.
    #[serde(skip)]
    cached: bool,
}

/// What a pod at the gate is told, once anything is known of it. Where the gate is open none has to wait.
pub fn verdict(plan: &EgressPlanSpec, pod: &PodName) -> Verdict {
    match plan.closed_gate() {
        Some(_) => known(plan, pod),
        None => Verdict::NotSelected,
    }
}

/// What the plan says of the pod.
pub fn known(plan: &EgressPlanSpec, pod: &PodName) -> Verdict {
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
        self.forget(|held| held.addresses.is_empty());
        self.ended.remove(&pod.uid);
        self.held.push(Held {
            attachment,
            pod,
            addresses,
            passed: false,
            former: BTreeSet::new(),
            new: true,
            cached: false,
        });
    }

    /// The same, as the runtime's cached result says. Whether that is news.
    pub fn add_cached(&mut self, note: &Note) -> bool {
        let same = |held: &Held| {
            held.attachment == note.attachment && held.pod == note.pod && held.addresses == note.addresses
        };
        if self.held.iter().any(same) {
            return false;
        }
        self.add(note.attachment.clone(), note.pod.clone(), note.addresses.clone());
        self.held
            .iter_mut()
            .filter(|held| same(held))
            .for_each(|held| held.cached = true);
        true
    }

    /// What the gate has seen, or what the runtime's cached results tell.
    pub fn only(&self, cached: bool) -> Self {
        let held = self.held.iter().filter(|held| held.cached == cached);
        Self {
            held: held.cloned().collect(),
            ended: self.ended.clone(),
        }
    }

    /// The pod was told that it may start, on the ground of a verdict.
    pub fn pass(&mut self, uid: &str) {
        let of_pod = self.held.iter_mut().filter(|held| held.pod.uid == uid);
        of_pod.for_each(|held| held.passed = true);
    }

    /// Forgets interfaces that are gone. Whether there were any.
    pub fn release(&mut self, gone: impl Fn(&ValidAttachment) -> bool) -> bool {
        self.forget(|held| gone(&held.attachment))
    }

    fn forget(&mut self, gone: impl Fn(&Held) -> bool) -> bool {
        let forgotten: Vec<Held> = self.held.extract_if(.., |held| gone(held)).collect();
        let any = !forgotten.is_empty();
        let uids = forgotten.into_iter().map(|held| held.pod.uid);
        let ended = uids.filter(|uid| self.held.iter().all(|held| held.pod.uid != *uid));
        self.ended.extend(ended);
        any
    }

    /// Takes note of whose the plan says that the addresses are of those that have come. Whether any had another before.
    pub fn meet(&mut self, plan: &EgressPlanSpec) -> bool {
        let mut news = false;
        for held in self.held.iter_mut().filter(|held| held.new) {
            held.new = false;
            let others = plan.pods.iter().filter(|pod| pod.uid != held.pod.uid);
            let former = others.filter(|pod| pod.ips.iter().any(|ip| held.addresses.contains(ip)));
            held.former = former.map(|pod| pod.uid.clone()).collect();
            news |= !held.former.is_empty();
        }
        news
    }

    /// Takes note of the pods that the plan has no more. Whether there were any that are over.
    pub fn observe(&mut self, plan: &EgressPlanSpec) -> bool {
        let before = self.ended.len();
        let is_there = |uid: &String| plan.pods.binary_search_by(|pod| pod.uid.cmp(uid)).is_ok();
        self.ended.retain(is_there);
        for held in &mut self.held {
            held.former.retain(is_there);
        }
        self.ended.len() != before
    }

    /// The uids of the pods that have passed the gate.
    pub fn passed(&self) -> impl Iterator<Item = &str> {
        let passed = self.held.iter().filter(|held| held.passed);
        passed.map(|held| held.pod.uid.as_str())
    }

    /// The plan with the addresses of its pods that it does not know of yet. An address that it gives to another pod is
    /// that pod's, unless it had been that one's before, or that one's network is gone.
    pub fn complete<'a>(&self, plan: &'a EgressPlanSpec) -> Cow<'a, EgressPlanSpec> {
        let mut complete = self.bequeath(plan);
        let claimed = complete.pods.iter().flat_map(|pod| &pod.ips);
        let claimed: BTreeSet<IpAddr> = claimed.copied().collect();
        for held in &self.held {
            let place = plan.pods.binary_search_by(|pod| pod.uid.cmp(&held.pod.uid));
            let mut new = held.addresses.difference(&claimed).peekable();
            if let (Ok(place), Some(_)) = (place, new.peek()) {
                let ips = &mut complete.to_mut().pods[place].ips;
                ips.extend(new);
                ips.sort_unstable();
                ips.dedup();
            }
        }
        complete
    }

    /// The plan without the addresses of pods that are others' by now.
    fn bequeath<'a>(&self, plan: &'a EgressPlanSpec) -> Cow<'a, EgressPlanSpec> {
        let mut left = Cow::Borrowed(plan);
        for held in &self.held {
            for uid in held.former.iter().chain(&self.ended) {
                if let Ok(place) = plan.pods.binary_search_by(|pod| pod.uid.cmp(uid))
                    && left.pods[place].ips.iter().any(|ip| held.addresses.contains(ip))
                {
                    let ips = &mut left.to_mut().pods[place].ips;
                    ips.retain(|ip| !held.addresses.contains(ip));
                }
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::{self, ips};

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

    /// Of a node whose gate is closed.
    fn plan(selected: &[(&str, &[&str])], unselected: &[&str]) -> EgressPlanSpec {
        fixtures::plan(false, selected, unselected)
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
    fn an_address_is_the_next_pods_also_where_the_one_before_has_another_by_now() {
        // u1, which the API server says has it, and u2 are both there; u1's sandbox was made anew, before or after.
        let of = |address: &str| BTreeSet::from_iter(ips(&[address]));
        for u1_first in [true, false] {
            let plan = plan(&[("u1", &["10.1.0.2"]), ("u2", &[])], &[]);
            let mut ledger = Ledger::default();
            let anew = |ledger: &mut Ledger| {
                ledger.add(attachment("c1"), pod("u1"), of("10.1.0.3"));
                ledger.meet(&plan);
            };
            if u1_first {
                anew(&mut ledger);
            }
            ledger.add(attachment("c2"), pod("u2"), of("10.1.0.2"));
            assert!(ledger.meet(&plan));
            if !u1_first {
                anew(&mut ledger);
            }
            let expected = [ips(&["10.1.0.3"]), ips(&["10.1.0.2"])];
            for _ in 0..2 {
                let complete = ledger.complete(&plan);
                assert_eq!(
                    [&complete.pods[0].ips, &complete.pods[1].ips],
                    [&expected[0], &expected[1]]
                );
                // By the next process too.
                ledger = serde_json::from_value(serde_json::to_value(&ledger).unwrap()).unwrap();
                assert!(!ledger.meet(&plan));
            }
            // It comes back to the first.
            ledger.add(attachment("c3"), pod("u1"), of("10.1.0.2"));
            ledger.meet(&plan);
            assert_eq!(ledger.complete(&plan).pods[0].ips, ips(&["10.1.0.2", "10.1.0.3"]));
            assert_eq!(ledger.complete(&plan).pods[1].ips, ips(&[]));
        }
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
    fn a_cached_result_is_news_once_and_none_of_what_passed_the_gate() {
        let note = |uid: &str, container: &str| Note {
            pod: pod(uid),
            attachment: attachment(container),
            addresses: ips(&["10.1.0.2"]).into_iter().collect(),
        };
        let mut ledger = held("u1", &["10.1.0.2"]);
        ledger.pass("u1");
        assert!(!ledger.add_cached(&note("u1", "c1")), "the gate has seen it");
        assert_eq!(ledger.passed().collect::<Vec<_>>(), ["u1"]);
        assert!(ledger.add_cached(&note("u2", "c2")) && !ledger.add_cached(&note("u2", "c2")));
        let address = ips(&["10.1.0.2"]);
        let plan = plan(&[("u1", &[]), ("u2", &[])], &[]);
        for (cached, given) in [(true, address.as_slice()), (false, &[])] {
            let complete = ledger.only(cached);
            let complete = complete.complete(&plan);
            assert_eq!(pods(&complete), [("u1", [].as_slice(), 7), ("u2", given, 7)]);
        }
    }

    #[test]
    fn a_plan_that_knows_all_is_left_as_it_is() {
        let ledger = held("u1", &["10.1.0.2"]);
        let plan = plan(&[("u1", &["10.1.0.2"])], &[]);
        assert!(matches!(ledger.complete(&plan), Cow::Borrowed(_)));
    }

    #[test]
    fn an_address_that_is_another_pods_now_is_left_to_it() {
        let ledger = held("u1", &["10.1.0.2"]);
        let reused = plan(&[("u1", &[]), ("u2", &["10.1.0.2"])], &[]);
        assert!(matches!(ledger.complete(&reused), Cow::Borrowed(_)));
    }

    /// The plan still gives the address to a pod whose network is gone: its heir, whether selected or not, has it alone.
    #[test]
    fn an_address_that_was_another_pods_goes_to_its_heir() {
        let selected = plan(&[("u1", &["10.1.0.2", "2001:db8::2"]), ("u2", &[])], &["u3"]);
        for (heir, inherits) in [("u2", true), ("u3", false)] {
            for told in [true, false] {
                let mut ledger = held("u1", &["10.1.0.2"]);
                if told {
                    ledger.release(|a| *a == attachment("c1"));
                    assert!(!ledger.observe(&selected), "the plan has it");
                }
                ledger.add(
                    attachment("c2"),
                    pod(heir),
                    ips(&["10.1.0.2"]).into_iter().collect(),
                );
                let (left, given) = (ips(&["2001:db8::2"]), ips(&["10.1.0.2"]));
                let given = if inherits { given.as_slice() } else { &[] };
                let complete = ledger.complete(&selected);
                let expected = [("u1", left.as_slice(), 7), ("u2", given, 7)];
                assert_eq!(pods(&complete), expected, "{heir}");
                assert!(ledger.observe(&plan(&[], &[])), "the plan has it no more");
            }
        }
    }

    /// Where no other has its address, a pod keeps it: it may have started anew while nobody was there to hear of it.
    #[test]
    fn an_address_that_nobody_inherits_stays() {
        let mut ledger = held("u1", &["10.1.0.2"]);
        let plan = plan(&[("u1", &["10.1.0.2"])], &[]);
        ledger.release(|a| *a == attachment("c1"));
        assert!(matches!(ledger.complete(&plan), Cow::Borrowed(_)));
        let addresses = ips(&["10.1.0.2"]).into_iter().collect();
        ledger.add(attachment("c2"), pod("u1"), addresses);
        assert!(matches!(ledger.complete(&plan), Cow::Borrowed(_)));
    }

    #[test]
    fn of_a_pod_that_is_not_in_the_plan_nothing_is_added() {
        let ledger = held("u1", &["10.1.0.2"]);
        assert!(matches!(ledger.complete(&plan(&[], &[])), Cow::Borrowed(_)));
    }

    #[test]
    fn at_an_open_gate_none_waits_and_as_much_is_known() {
        let mut plan = plan(&[("u1", &[])], &[]);
        plan.gate.as_mut().unwrap().open = true;
        for uid in ["u1", "u2"] {
            assert_eq!(verdict(&plan, &pod(uid)), Verdict::NotSelected);
        }
        assert_eq!(known(&plan, &pod("u1")), Verdict::Selected);
        assert_eq!(known(&plan, &pod("u2")), Verdict::Unknown);
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
