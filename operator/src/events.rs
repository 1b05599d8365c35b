//! Events on policies: one for each condition that changes. Events on pods: one for each fault that is new. Events on
//! nodes: one for each thing that their agents have repaired, or find in the way.

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, CustomResourceExt};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};

use tokio::time::Instant;

use crate::announced::{Announced, Numbered};
use crate::apply::request;
use crate::condition::{ConditionType, Reason};
use crate::error::Error;
use crate::hindered::Hindered;
use crate::plan::faults::{Fault, PodReason};
use crate::repaired::{self, Repaired};

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The condition that changed.
    pub condition: ConditionType,
    /// It is bad news.
    pub warning: bool,
    /// The condition's reason.
    pub reason: String,
    /// The condition's message.
    pub message: String,
}

/// Of a new policy, these are no news.
const AS_INSTALLED: [Reason; 3] = [Reason::AsSpecified, Reason::Gated, Reason::GateOff];

/// What is worth an Event between two states of a policy's conditions: another status or reason. Not worth
/// one: that nothing is degraded in a new policy, that the installation has a start gate or none, and that nodes are on
/// their way.
pub fn notes(old: &[Condition], new: &[Condition]) -> Vec<Note> {
    let find = |of: &[Condition], type_: &str| of.iter().find(|c| c.type_ == type_).cloned();
    let mut notes = Vec::new();
    for condition in ConditionType::ALL {
        let type_ = condition.to_string();
        let (before, Some(now)) = (find(old, &type_), find(new, &type_)) else {
            continue;
        };
        let same = before
            .as_ref()
            .is_some_and(|b| b.status == now.status && b.reason == now.reason);
        let silent = now.reason == Reason::Progressing.to_string()
            || now.reason == Reason::NotAccepted.to_string()
            || now.reason == Reason::NoGateway.to_string()
            || (before.is_none() && AS_INSTALLED.iter().any(|reason| now.reason == reason.to_string()));
        if !same && !silent {
            notes.push(Note {
                condition,
                warning: !condition.good_when(now.status == "True"),
                reason: now.reason,
                message: now.message,
            });
        }
    }
    notes
}

/// Sends Events.
pub struct Events {
    recorder: Recorder,
    announced: Announced,
    repairs: Announced,
    hindrances: Announced,
}

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: egressnat_crds::OPERATOR_MANAGER.into(),
            instance: Some(identity.into()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            announced: Announced::default(),
            repairs: Announced::default(),
            hindrances: Announced::default(),
        }
    }

    /// Sends `note` on the policy with this name and uid.
    pub async fn send(&self, policy: &str, uid: &str, note: Note) -> Result<(), Error> {
        let resource = EgressNATPolicy::api_resource();
        let on = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(policy.into()),
            uid: Some(uid.into()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason,
            note: Some(shortened(note.message)),
            action: note.condition.to_string(),
            secondary: None,
        };
        publish(&self.recorder, Occasion { on, event }).await
    }

    /// The world is another: there may be faults, repairs and hindrances that are new.
    pub fn world_changed(&mut self) {
        self.announced.world_changed();
        self.repairs.world_changed();
        self.hindrances.world_changed();
    }

    /// Sends an Event on the pod of each of the `faults` that are new, some at a time and not too often; the answer
    /// is what failed, and will be tried again. Another one of the same reason within minutes counts the first one up.
    pub async fn send_on_pods<'a>(
        &mut self,
        now: Instant,
        faults: impl FnOnce() -> Vec<Fault<'a>>,
    ) -> Vec<Error> {
        send_new(&self.recorder, &mut self.announced, now, faults, on_pod).await
    }

    /// Sends an Event on a pod, whoever has been told.
    pub async fn send_on_pod(&self, fault: &Fault<'_>) -> Result<(), Error> {
        publish(&self.recorder, on_pod(fault)).await
    }

    /// When to look for what is new on nodes, if anything may be.
    pub fn next_on_nodes(&self) -> Option<Instant> {
        let next = [self.repairs.next(), self.hindrances.next()];
        next.into_iter().flatten().min()
    }

    /// Sends an Event on the node of each of the `repairs` that are new, likewise: of the same thing.
    pub async fn send_repairs<'a>(
        &mut self,
        now: Instant,
        repairs: impl FnOnce() -> Vec<Repaired<'a>>,
    ) -> Vec<Error> {
        send_new(&self.recorder, &mut self.repairs, now, repairs, of_repair).await
    }

    /// Sends an Event on the node of each of the `hindrances` that are new, likewise.
    pub async fn send_hindrances<'a>(
        &mut self,
        now: Instant,
        hindrances: impl FnOnce() -> Vec<Hindered<'a>>,
    ) -> Vec<Error> {
        let announced = &mut self.hindrances;
        send_new(&self.recorder, announced, now, hindrances, of_hindrance).await
    }
}

/// An Event on an object.
struct Occasion {
    on: ObjectReference,
    event: Event,
}

/// What an Event on a node says.
struct NodeNote<'a> {
    /// The node's name and uid, and the uid of its plan.
    node: (&'a str, &'a str, &'a str),
    reason: &'a str,
    action: &'a str,
    note: String,
    /// Which part of the plan it is about: what is said besides is an Event of its own.
    path: String,
}

fn of_repair(repaired: &Repaired<'_>) -> Occasion {
    on_node(NodeNote {
        node: (repaired.node, repaired.uid, repaired.plan_uid),
        reason: repaired::REASON,
        action: "Repair",
        note: repaired.to_string(),
        path: format!("status.repairs[{}]", repaired.repair.what),
    })
}

fn of_hindrance(hindered: &Hindered<'_>) -> Occasion {
    on_node(NodeNote {
        node: (hindered.node, hindered.uid, hindered.plan_uid),
        reason: &hindered.hindrance.reason,
        action: "Look",
        note: hindered.to_string(),
        path: format!("status.hindrances[{:x}]", hindered.number()),
    })
}

fn on_node(note: NodeNote<'_>) -> Occasion {
    let (name, uid, plan_uid) = note.node;
    let on = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(uid.into()),
        ..ObjectReference::default()
    };
    let resource = EgressPlan::api_resource();
    let event = Event {
        type_: EventType::Warning,
        reason: note.reason.into(),
        note: Some(shortened(note.note)),
        action: note.action.into(),
        secondary: Some(ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(name.into()),
            uid: Some(plan_uid.into()),
            field_path: Some(note.path),
            ..ObjectReference::default()
        }),
    };
    Occasion { on, event }
}

fn on_pod(fault: &Fault<'_>) -> Occasion {
    let pod = fault.pod;
    let on = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: match fault.reason {
            PodReason::AddressTakenOver | PodReason::NoFamilyServed | PodReason::StartedUngated => {
                EventType::Warning
            }
            PodReason::OnHostNetwork => EventType::Normal,
        },
        reason: fault.reason.to_string(),
        note: Some(shortened(fault.to_string())),
        action: "Capture".into(),
        secondary: None,
    };
    Occasion { on, event }
}

/// Sends an Event for each of the news that nobody has been told of; the answer is what failed, which is news still.
async fn send_new<N: Numbered>(
    recorder: &Recorder,
    announced: &mut Announced,
    now: Instant,
    all: impl FnOnce() -> Vec<N>,
    occasion: impl Fn(&N) -> Occasion,
) -> Vec<Error> {
    if !announced.is_due(now) {
        return Vec::new();
    }
    let news = announced.news(all());
    let sending = news.iter().map(|news| publish(recorder, occasion(news)));
    let sent = futures::future::join_all(sending).await;
    let failed = news.iter().zip(sent).filter_map(|(news, sent)| {
        let error = sent.err()?;
        announced.forget(news.number());
        Some(error)
    });
    failed.collect()
}

async fn publish(recorder: &Recorder, Occasion { on, event }: Occasion) -> Result<(), Error> {
    let sent = request(recorder.publish(&event, &on)).await;
    sent.map_err(|source| Error::SendEvent {
        object: object(&on),
        source,
    })
}

/// The object in words: `pod apps/a`.
fn object(on: &ObjectReference) -> String {
    let kind = on.kind.as_deref().unwrap_or_default().to_lowercase();
    let name = on.name.as_deref().unwrap_or_default();
    match &on.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// The API server refuses notes of more than 1024 bytes.
fn shortened(mut note: String) -> String {
    const LONGEST: usize = 1000;
    if note.len() > LONGEST {
        note.truncate(note.floor_char_boundary(LONGEST));
        note.push_str("...");
    }
    note
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing;

    fn condition(type_: ConditionType, status: &str, reason: Reason) -> Condition {
        Condition {
            last_transition_time: Time(testing::time(0)),
            message: "why".into(),
            observed_generation: Some(1),
            reason: reason.to_string(),
            status: status.into(),
            type_: type_.to_string(),
        }
    }

    #[test]
    fn one_note_for_each_change_of_status_or_reason() {
        let good = [
            condition(ConditionType::Accepted, "True", Reason::Accepted),
            condition(ConditionType::GatewayReady, "True", Reason::GatewayReady),
            condition(ConditionType::Degraded, "False", Reason::AsSpecified),
        ];
        let reasons = |old: &[Condition], new: &[Condition]| -> Vec<(String, bool)> {
            notes(old, new)
                .into_iter()
                .map(|n| (n.reason, n.warning))
                .collect()
        };
        let both = vec![("Accepted".into(), false), ("GatewayReady".into(), false)];
        assert_eq!(reasons(&[], &good), both);
        assert_eq!(reasons(&good, &good), vec![]);

        let mut bad = good.clone();
        bad[1] = condition(ConditionType::GatewayReady, "False", Reason::AddressNotFound);
        bad[2] = condition(ConditionType::Degraded, "True", Reason::FamilyNotServed);
        let bad_news = vec![("AddressNotFound".into(), true), ("FamilyNotServed".into(), true)];
        assert_eq!(reasons(&good, &bad), bad_news);
        let good_news = vec![("GatewayReady".into(), false), ("AsSpecified".into(), false)];
        assert_eq!(reasons(&bad, &good), good_news);
    }

    #[test]
    fn nodes_on_their_way_are_no_news() {
        let done = [condition(ConditionType::Programmed, "True", Reason::Programmed)];
        let under_way = [condition(ConditionType::Programmed, "False", Reason::Progressing)];
        assert_eq!(notes(&done, &under_way), vec![]);
        assert_eq!(notes(&under_way, &done).len(), 1);
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        let note = shortened("ü".repeat(600));
        assert!(note.len() <= 1024 && note.ends_with("ü..."));
    }
}
