//! What agents find in the way on their nodes, as news.

use std::fmt;

use egressnat_crds::plan::Hindrance;

use crate::announced::Numbered;
use crate::hash::{fnv1a, mix};
use crate::world::World;

/// Something in the way on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Hindered<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The Node's uid.
    pub uid: &'a str,
    /// The uid of its plan.
    pub plan_uid: &'a str,
    /// What it is.
    pub hindrance: &'a Hindrance,
}

/// All that is in the way on all nodes.
pub fn all(world: &World) -> Vec<Hindered<'_>> {
    let mut all = Vec::new();
    for (name, plan) in &world.plans {
        if let Some((node, of)) = world.nodes.get_key_value(name) {
            all.extend(plan.status.hindrances.iter().map(|hindrance| Hindered {
                node,
                uid: &of.uid,
                plan_uid: &plan.uid,
                hindrance,
            }));
        }
    }
    all
}

impl Numbered for Hindered<'_> {
    fn number(&self) -> u64 {
        let Hindrance { reason, message } = self.hindrance;
        mix(fnv1a(format!("{} {reason} {message}", self.node).bytes()))
    }
}

impl fmt::Display for Hindered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hindrance.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announced::Announced;
    use crate::testing;
    use crate::world::ExistingPlan;

    fn world(messages: &[&str]) -> World {
        let mut world = testing::world("{kind: Node, metadata: {name: n, uid: node-uid}}");
        let mut plan = ExistingPlan::default();
        plan.status.hindrances = messages
            .iter()
            .map(|message| Hindrance {
                reason: "FirewallDrops".into(),
                message: (*message).into(),
            })
            .collect();
        world.plans.insert("n".into(), plan.clone());
        world.plans.insert("gone".into(), plan);
        world
    }

    #[test]
    fn each_is_told_once_while_it_is_there() {
        let mut announced = Announced::default();
        let mut told = |messages: &[&str]| {
            let world = world(messages);
            let news = announced.news(all(&world));
            assert!(news.iter().all(|news| (news.node, news.uid) == ("n", "node-uid")));
            news.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(&["a"]), ["a"]);
        assert_eq!(told(&["a", "b"]), ["b"]);
        assert!(told(&["b"]).is_empty());
        assert_eq!(told(&["a", "b"]), ["a"], "it was gone");
    }
}
