//! The pods whose addresses the kernel knows, until their network is gone.
//!
//! A pod that leaves the plan is either still there, and no policy selects it any more: the plan's `gate` says so, and
//! its addresses are released at once. Or it is gone from the API server, and the plan says nothing of it; but its
//! processes may run on, for a moment or, where its kubelet is cut off, for days. What it sends meets what the last
//! plan said of it, until nobody has its addresses any more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Destination, MAX_POLICY_ID, PlanPod, PlanPolicy, Profile, SourceRole};
use egressnat_crds::policy::{NoGateway, OnChange};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::gate::{Verdict, known};
use crate::cni::spec::PodName;
use crate::kernel::rtnl::Whereabouts;

/// How long the kernel asks for an address before it takes it for silent: three times, a second apart.
const ASKED: Duration = Duration::from_secs(3);

/// How long an address stays of which the kernel cannot tell whose it is: nothing but time tells it from one that was
/// given to another pod. A kubelet that has heard of a deletion has killed the pod by then, the longest default grace
/// period included.
const UNCLEAR: Duration = Duration::from_secs(60);

/// The pods whose addresses the kernel knows, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residents {
    pods: BTreeMap<IpAddr, Resident>,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resident {
    pod: PodName,
    /// What the last plan that knew the pod said. `None` where that is in the plan no more: nothing leaves.
    profile: Option<u32>,
    /// The link that leads to its network and to no other, by index, once that is known.
    link: Option<u32>,
    /// What it sends comes in by that link, and not by a bridge that the link is a port of.
    #[serde(default)]
    routed: bool,
    /// The node's routes do not say by which link it sends.
    #[serde(default)]
    beyond: bool,
    /// Since when the plan has not given it the address.
    #[serde(skip)]
    left: Option<Instant>,
}

impl Residents {
    /// Takes in what a plan says.
    pub fn note(&mut self, plan: &EgressPlanSpec, now: Instant) {
        let claimed: BTreeMap<IpAddr, &PlanPod> = plan
            .pods
            .iter()
            .flat_map(|pod| pod.ips.iter().map(move |ip| (*ip, pod)))
            .collect();
        self.pods.retain(|ip, resident| {
            claimed.contains_key(ip) || known(plan, &resident.pod) != Verdict::NotSelected
        });
        let profiles: BTreeSet<u32> = plan.profiles.iter().map(|p| p.id).collect();
        for (ip, resident) in &mut self.pods {
            // A number that is free may be given to another profile.
            resident.profile = resident.profile.filter(|profile| profiles.contains(profile));
            if !claimed.contains_key(ip) && resident.left.is_none() {
                resident.left = Some(now);
            }
        }
        for (ip, pod) in claimed {
            let before = self.pods.get(&ip).filter(|before| before.pod.uid == pod.uid);
            let resident = Resident {
                pod: pod_name(pod),
                profile: Some(pod.profile),
                link: before.and_then(|before| before.link),
                routed: before.is_some_and(|before| before.routed),
                beyond: before.is_some_and(|before| before.beyond),
                left: None,
            };
            self.pods.insert(ip, resident);
        }
    }

    /// These addresses are of the pod of this uid now, whosesoever they were. Its network may have been made anew: a link
    /// of its own is looked for again, which a route tells at once. (Of a bridge's ports that is not certain.)
    pub fn give(&mut self, uid: &str, addresses: &BTreeSet<IpAddr>) {
        self.pods
            .retain(|ip, resident| resident.pod.uid == uid || !addresses.contains(ip));
        let own = self.pods.iter_mut().filter(|(ip, _)| addresses.contains(ip));
        let routed = own.filter(|(_, resident)| resident.routed);
        routed.for_each(|(_, resident)| (resident.link, resident.routed) = (None, false));
    }

    /// The addresses of which the link is not known, of pods that the plan knows.
    pub fn unplaced(&self) -> Vec<IpAddr> {
        let unplaced = self
            .pods
            .iter()
            .filter(|(_, r)| r.left.is_none() && r.link.is_none());
        unplaced.map(|(ip, _)| *ip).collect()
    }

    /// The addresses of pods that are gone from the plan, with their links.
    pub fn to_find(&self) -> Vec<(IpAddr, Option<u32>)> {
        let gone = self.gone();
        gone.map(|(ip, resident)| (*ip, resident.link)).collect()
    }

    /// The links of pods that are gone from the plan.
    pub fn links(&self) -> BTreeSet<u32> {
        self.gone().filter_map(|(_, resident)| resident.link).collect()
    }

    /// The links by which nothing comes in but what one of them sends.
    pub fn own_links(&self) -> BTreeSet<u32> {
        let routed = self.pods.values().filter(|resident| resident.routed);
        routed.filter_map(|resident| resident.link).collect()
    }

    /// A pod of which the node's routes do not say by which link it sends.
    pub fn beyond(&self) -> Option<IpAddr> {
        let mut pods = self.pods.iter();
        pods.find_map(|(ip, resident)| resident.beyond.then_some(*ip))
    }

    /// The pods that are gone from the plan, by name.
    pub fn departed(&self) -> BTreeSet<String> {
        self.gone()
            .map(|(_, resident)| resident.pod.to_string())
            .collect()
    }

    fn gone(&self) -> impl Iterator<Item = (&IpAddr, &Resident)> {
        self.pods.iter().filter(|(_, resident)| resident.left.is_some())
    }

    /// The address's network is where the kernel says.
    pub fn found(&mut self, address: IpAddr, whereabouts: Whereabouts, now: Instant) {
        let Some(resident) = self.pods.get_mut(&address) else {
            return;
        };
        resident.beyond = whereabouts == Whereabouts::Beyond;
        let since = resident.left.map(|left| now.duration_since(left));
        let is_past = |limit| since.is_some_and(|since| since >= limit);
        let gone = match whereabouts {
            Whereabouts::Link(link) | Whereabouts::Port(link) => {
                resident.link = Some(link);
                resident.routed = matches!(whereabouts, Whereabouts::Link(_));
                false
            }
            Whereabouts::Nowhere => since.is_some(),
            // Before, it may be long ago that it was asked for.
            Whereabouts::Silent => is_past(ASKED),
            Whereabouts::Beyond | Whereabouts::Unclear => is_past(UNCLEAR),
        };
        if gone {
            self.pods.remove(&address);
        }
    }

    /// The plan with the addresses of pods that it does not know any more.
    pub fn complete<'a>(&self, plan: &'a EgressPlanSpec) -> Cow<'a, EgressPlanSpec> {
        let mut added: BTreeMap<&str, (&Resident, Vec<IpAddr>)> = BTreeMap::new();
        for (ip, resident) in self.gone() {
            let (_, ips) = added.entry(&resident.pod.uid).or_insert((resident, Vec::new()));
            ips.push(*ip);
        }
        if added.is_empty() {
            return Cow::Borrowed(plan);
        }
        let mut plan = plan.clone();
        for (uid, (resident, ips)) in added {
            match plan.pods.binary_search_by(|pod| (*pod.uid).cmp(uid)) {
                Ok(place) => plan.pods[place].ips.extend(ips),
                Err(place) => {
                    let pod = PlanPod {
                        uid: uid.to_owned(),
                        name: resident.pod.to_string(),
                        ips,
                        profile: resident.profile.unwrap_or_else(|| nowhere(&mut plan)),
                    };
                    plan.pods.insert(place, pod);
                }
            }
        }
        Cow::Owned(plan)
    }
}

fn pod_name(pod: &PlanPod) -> PodName {
    let (namespace, name) = pod.name.split_once('/').unwrap_or_default();
    PodName {
        uid: pod.uid.clone(),
        namespace: namespace.into(),
        name: name.into(),
    }
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
mod tests;
