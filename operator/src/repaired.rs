//! What agents have repaired on their nodes, as news.

use std::fmt;

use egressnat_crds::plan::Repair;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::announced::Numbered;
use crate::hash::{fnv1a, mix};
use crate::world::World;

/// The reason of the Event.
pub const REASON: &str = "DatapathRepaired";

/// Older repairs are history, which a process that has just begun to lead need not tell again.
const NEWS: SignedDuration = SignedDuration::from_secs(600);

/// A repair on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Repaired<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The Node's uid.
    pub uid: &'a str,
    /// The uid of its plan.
    pub plan_uid: &'a str,
    /// The repair.
    pub repair: &'a Repair,
}

/// The repairs of the last minutes on all nodes.
pub fn latest(world: &World, now: Timestamp) -> Vec<Repaired<'_>> {
    let mut latest = Vec::new();
    for (name, plan) in &world.plans {
        let Some((node, of)) = world.nodes.get_key_value(name) else {
            continue;
        };
        // The node's clock may go before ours.
        let recent = |repair: &&Repair| now.duration_since(repair.last_time.0) < NEWS;
        latest.extend(plan.status.repairs.iter().filter(recent).map(|repair| Repaired {
            node,
            uid: &of.uid,
            plan_uid: &plan.uid,
            repair,
        }));
    }
    latest
}

impl Numbered for Repaired<'_> {
    /// The same thing repaired again has another number.
    fn number(&self) -> u64 {
        let Repair {
            object,
            what,
            count,
            last_time,
        } = self.repair;
        let text = format!("{} {object:?} {what} {count} {}", self.node, last_time.0);
        mix(fnv1a(text.bytes()))
    }
}

/// What was touched, and what has been done about it.
impl fmt::Display for Repaired<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repair {
            object, what, count, ..
        } = self.repair;
        write!(
            f,
            "another program has removed or changed the {} `{what}` of egressnat on this node ({count} times so far); \
             it has been put right",
            object.word()
        )
    }
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::RepairedObject;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing;
    use crate::world::ExistingPlan;

    fn world(repairs: &[(u32, i64)]) -> World {
        let mut world = testing::world("{kind: Node, metadata: {name: n, uid: node-uid}}");
        let mut plan = ExistingPlan::default();
        plan.status.repairs = repairs
            .iter()
            .map(|(count, seconds)| Repair {
                object: RepairedObject::IpRule,
                what: "ip -4 rule".into(),
                count: *count,
                last_time: Time(testing::time(*seconds)),
            })
            .collect();
        world.plans.insert("n".into(), plan);
        world
    }

    #[test]
    fn the_latest_are_told_by_name_on_their_node() {
        let world = world(&[(3, 1000), (1, 100)]);
        let latest = latest(&world, testing::time(1001));
        let [told] = latest.as_slice() else {
            panic!("{latest:?}")
        };
        assert_eq!((told.node, told.uid), ("n", "node-uid"));
        let text = told.to_string();
        assert!(
            text.contains("ip rule `ip -4 rule`") && text.contains("3 times"),
            "{text}"
        );
    }

    #[test]
    fn what_is_repaired_again_is_news_again() {
        let number = |world: &World| latest(world, testing::time(1000))[0].number();
        let first = number(&world(&[(1, 990)]));
        assert_eq!(first, number(&world(&[(1, 990)])));
        assert_ne!(first, number(&world(&[(2, 995)])));
    }
}
