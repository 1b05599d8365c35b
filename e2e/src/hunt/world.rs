//! Everything that the hunt did, and when: the history by which packets are judged.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    change::{Change, Trouble},
    model::{Label, Labels, Policy, possible_sources},
    place::{NAMESPACES, Source, VALUES},
    random::Random,
    timeline::{Time, Timeline},
};
use crate::site::NODES;

/// How long before and after a packet its time line tells of changes.
const AROUND: Time = 30_000_000_000;

/// How long a pod may be about a connection that conntrack was made to forget: its node takes a second to forget,
/// the pod waits for an answer, closes, and gives the connection up (`sender`).
pub const FORGETTING: Time = 8_000_000_000;

/// This moment.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(Time::MAX)
}

/// The history, whichever thread may have ended while it held it.
pub fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of the last changes are told.
const TOLD: usize = 20;

/// A pod of the hunt.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, which is in its payloads.
    pub name: String,
    /// Its namespace, by its place in [`NAMESPACES`].
    pub namespace: usize,
    /// Its node, by its place in [`NODES`].
    pub node: usize,
    /// Its uid, once the API server has said it.
    pub uid: String,
    /// When it was sent to the API server.
    pub created: Time,
    /// When its deletion was asked for.
    pub deleted: Option<Time>,
    /// When it was gone from the API server: nobody can know more of it than was known then.
    pub removed: Option<Time>,
    /// When the kubelet said that it has an address.
    pub started: Option<Time>,
    /// When its first packet was seen outside.
    pub heard: Option<Time>,
    /// Its label.
    pub label: Timeline<Label>,
}

/// The history.
#[derive(Debug, Clone)]
pub struct World {
    /// Policies by name.
    pub policies: BTreeMap<String, Timeline<Option<Policy>>>,
    /// The namespaces' labels, in the order of [`NAMESPACES`].
    pub namespaces: [Timeline<Label>; 2],
    /// The nodes' labels, in the order of [`NODES`].
    pub nodes: [Timeline<Label>; 3],
    /// Which nodes have the gateway's label.
    pub gateways: [bool; 3],
    /// Which node holds each pair of egress addresses.
    pub holders: [usize; 6],
    /// Pods by the port that they send to.
    pub pods: BTreeMap<u16, Pod>,
    /// When each node's conntrack was made to forget everything last.
    pub forgotten: [Option<Time>; 3],
    /// How many pods have had an address that another pod had had before.
    pub reused: u64,
    addresses: BTreeMap<String, u16>,
    journal: Vec<(Time, String)>,
}

impl World {
    /// Before the first change: no policy, the first label everywhere, addresses spread over the nodes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            policies: BTreeMap::new(),
            namespaces: NAMESPACES.map(|_| Timeline::new(VALUES[0])),
            nodes: NODES.map(|_| Timeline::new(VALUES[0])),
            gateways: [true; 3],
            holders: [0, 1, 2, 0, 1, 2],
            pods: BTreeMap::new(),
            forgotten: [None; 3],
            reused: 0,
            addresses: BTreeMap::new(),
            journal: Vec::new(),
        }
    }

    /// Notes what happened, for the time lines.
    pub fn note(&mut self, now: Time, what: String) {
        self.journal.push((now, what));
    }

    /// A change is about to be sent.
    pub fn change(&mut self, now: Time, change: &Change) {
        self.note(now, change.to_string());
        match change {
            Change::Policy(name, policy) => self
                .policies
                .entry((*name).to_owned())
                .or_insert_with(|| Timeline::new(None))
                .change(policy.clone(), now),
            Change::Pod(port, label) => {
                if let Some(pod) = self.pods.get_mut(port) {
                    pod.label.change(label, now);
                }
            }
            Change::Namespace(namespace, label) => self.namespaces[*namespace].change(label, now),
            Change::Node(node, label) => self.nodes[*node].change(label, now),
            Change::Gateway(node, is_gateway) => self.gateways[*node] = *is_gateway,
            Change::Addresses(pair, node) => self.holders[*pair] = *node,
            Change::Trouble(Trouble::Conntrack(node)) => self.forgotten[*node] = Some(now),
            Change::Trouble(_) => {}
        }
    }

    /// The pod of a port has an address.
    pub fn has_address(&mut self, port: u16, address: &str, now: Time) {
        if let Some(pod) = self.pods.get_mut(&port) {
            pod.started.get_or_insert(now);
        }
        let before = self.addresses.insert(address.to_owned(), port);
        self.reused += u64::from(before.is_some_and(|before| before != port));
    }

    /// All that was sent is in place.
    pub fn settle(&mut self, now: Time) {
        self.policies
            .values_mut()
            .for_each(|timeline| timeline.settle(now));
        self.namespaces
            .iter_mut()
            .chain(&mut self.nodes)
            .for_each(|timeline| timeline.settle(now));
        self.pods.values_mut().for_each(|pod| pod.label.settle(now));
        self.note(now, "all of that is in place".into());
    }

    /// The labels that decide of a pod, as they were sent last.
    #[must_use]
    pub fn labels(&self, pod: &Pod) -> Labels {
        Labels {
            pod: pod.label.last(),
            namespace: self.namespaces[pod.namespace].last(),
            node: self.nodes[pod.node].last(),
        }
    }

    /// The policies as they were sent last.
    pub fn current_policies(&self) -> impl Iterator<Item = (&str, &Policy)> {
        self.policies
            .iter()
            .filter_map(|(name, timeline)| Some((name.as_str(), timeline.last().as_ref()?)))
    }

    /// A policy as it was sent last, where it is there.
    #[must_use]
    pub fn current_policy(&self, name: &str) -> Option<&Policy> {
        self.policies.get(name)?.last().as_ref()
    }

    /// The sources that a packet of a pod may have at a moment. A pod that is gone from the API server, but not
    /// yet from its node, keeps the verdict that it had; later changes may reach it or not.
    #[must_use]
    pub fn allowed(&self, pod: &Pod, destination: usize, at: Time) -> Vec<Source> {
        let span = (pod.removed.map_or(at, |removed| removed.min(at)), at);
        let mut labels = Vec::new();
        for namespace in self.namespaces[pod.namespace].possible(span.0, span.1) {
            for node in self.nodes[pod.node].possible(span.0, span.1) {
                for own in pod.label.possible(span.0, span.1) {
                    labels.push(Labels {
                        pod: own,
                        namespace,
                        node,
                    });
                }
            }
        }
        possible_sources(self.policies.values(), &labels, (pod.node, destination), span)
    }

    /// The last things that were changed, in order; times in seconds from now.
    #[must_use]
    pub fn last_changes(&self) -> Vec<String> {
        let (now, first) = (now(), self.journal.len().saturating_sub(TOLD));
        let told = self.journal[first..].iter();
        told.map(|(time, what)| format!("{:+9.3} s  {what}", seconds(*time, now)))
            .collect()
    }

    /// Whether a pod may still be about a connection that another hand than the product's had forgotten.
    #[must_use]
    pub fn has_forgotten(&self, pod: &Pod, at: Time) -> bool {
        let is_recent = |when: Time| (pod.created.max(at.saturating_sub(FORGETTING))..=at).contains(&when);
        self.forgotten[pod.node].is_some_and(is_recent)
    }

    /// What happened to a pod, and what was changed around a moment, in order; times in seconds from then.
    #[must_use]
    pub fn time_line<'a>(&'a self, pod: Option<&'a Pod>, at: Time, what: &'a str) -> Vec<String> {
        let near = |time: Time| time.abs_diff(at) <= AROUND;
        let changes = self
            .journal
            .iter()
            .filter(|(time, _)| near(*time))
            .map(|(time, what)| (*time, what.as_str()));
        let mut lines: Vec<(Time, &str)> = pod.into_iter().flat_map(Pod::life).chain(changes).collect();
        lines.push((at, what));
        lines.sort_unstable();
        lines
            .iter()
            .map(|(time, what)| format!("{:+9.3} s  {what}", seconds(*time, at)))
            .collect()
    }
}

impl Pod {
    /// One that is not there yet, in any namespace, on any node, with any label.
    #[must_use]
    pub fn draw(random: &mut Random, name: String) -> Self {
        Self {
            name,
            namespace: random.below(NAMESPACES.len()),
            node: random.below(NODES.len()),
            uid: String::new(),
            created: 0,
            deleted: None,
            removed: None,
            started: None,
            heard: None,
            label: Timeline::new(random.pick(&VALUES)),
        }
    }

    fn life(&self) -> impl Iterator<Item = (Time, &str)> {
        let life = [
            (Some(self.created), "created"),
            (self.started, "its address is in the API server"),
            (self.heard, "first packet seen"),
            (self.deleted, "deletion asked for"),
            (self.removed, "gone from the API server"),
        ];
        life.into_iter().filter_map(|(time, what)| Some((time?, what)))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to a person, in milliseconds")]
fn seconds(time: Time, from: Time) -> f64 {
    let apart = time.abs_diff(from) as f64 / 1e9;
    if time < from { -apart } else { apart }
}
