//! The plan's status: what the kernel holds, or what is wrong.

use std::future::pending;

use egressnat_crds::plan::{Hindrance, NodeInterface};
use egressnat_crds::{AGENT_MANAGER, EgressPlan, EgressPlanStatus};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::time::Instant;

use super::Report;
use super::gate::{GateReport, State};
use super::repairs::{self, Untold};
use super::retry::Retry;
use crate::diff::Touched;
use crate::error::AgentError;
use crate::kernel::clash::Clash;

/// Writes the status of this node's plan, where it says something new. One write is under way at a time, and nobody waits
/// for it: a pod at the gate must not wait for the API server.
pub(super) struct Reporter {
    plans: Api<EgressPlan>,
    node: String,
    /// What was last written, and to which plan: the watch may show an older state.
    written: Option<(String, EgressPlanStatus)>,
    under_way: Option<UnderWay>,
    untold: Untold,
    retry: Retry,
}

/// A status on its way.
struct UnderWay {
    uid: String,
    status: EgressPlanStatus,
    /// What it tells of repairs.
    told: Vec<Touched>,
    answer: BoxFuture<'static, kube::Result<EgressPlan>>,
}

impl Reporter {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            plans: Api::all(client),
            node: node.into(),
            written: None,
            under_way: None,
            untold: Untold::default(),
            retry: Retry::default(),
        }
    }

    /// When to report again without news: what waits has waited for long enough, or a write has failed. Never where
    /// nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.under_way {
            Some(_) => None,
            None => self.retry.due().or_else(|| self.untold.due(Instant::now())),
        }
    }

    /// Takes note of what was repaired, for the next report.
    pub(super) fn note(&mut self, touched: &[Touched]) {
        self.untold.add(touched);
    }

    /// Begins to write what `result` says of `plan`, unless the status says so already, or a write is under way, or the
    /// last has failed and it is too early to try again.
    pub(super) fn report(
        &mut self,
        plan: &EgressPlan,
        interfaces: Vec<NodeInterface>,
        gate: Option<GateReport>,
        result: &Result<Report, AgentError>,
    ) {
        let began = Instant::now();
        if self.under_way.is_some() || self.retry.due().is_some_and(|due| due > began) {
            return;
        }
        let uid = plan.metadata.uid.clone().unwrap_or_default();
        let before = match &self.written {
            Some((of, status)) if *of == uid => status.clone(),
            _ => plan.status.clone().unwrap_or_default(),
        };
        let now = Timestamp::now();
        let mut status = next_status(&before, plan, interfaces, gate, result, now);
        let news = status != before || self.written.is_none();
        if !news && self.untold.due(began).is_none_or(|due| due > began) {
            // What could not be written needs to be no more.
            self.retry.note(true, began);
            return;
        }
        let told = self.untold.take(began);
        status.repairs = repairs::after(&before.repairs, &told, now);
        self.under_way = Some(UnderWay {
            answer: self.write(&uid, &status),
            uid,
            status,
            told,
        });
    }

    fn write(&self, uid: &str, status: &EgressPlanStatus) -> BoxFuture<'static, kube::Result<EgressPlan>> {
        let patch = json!({
            "apiVersion": EgressPlan::api_version(&()),
            "kind": EgressPlan::kind(&()),
            "metadata": { "name": self.node, "uid": uid },
            "status": status,
        });
        let (plans, node) = (self.plans.clone(), self.node.clone());
        Box::pin(async move {
            let params = PatchParams::apply(AGENT_MANAGER).force();
            plans.patch_status(&node, &params, &Patch::Apply(patch)).await
        })
    }

    /// Whether a write is under way.
    pub(super) fn is_telling(&self) -> bool {
        self.under_way.is_some()
    }

    /// Waits for the end of the write that is under way; for ever where none is. Nothing is lost when the future is
    /// dropped.
    pub(super) async fn told(&mut self) -> Result<(), AgentError> {
        let Some(under_way) = &mut self.under_way else {
            return pending().await;
        };
        let answer = (&mut under_way.answer).await;
        self.retry.note(answer.is_ok(), Instant::now());
        let Some(UnderWay {
            uid, status, told, ..
        }) = self.under_way.take()
        else {
            return Ok(());
        };
        match answer {
            Ok(_) => {
                self.written = Some((uid, status));
                Ok(())
            }
            Err(error) => {
                self.untold.give_back(told);
                Err(AgentError::Status(error))
            }
        }
    }
}

/// The status after a try. Where it failed, the kernel still holds the generation that it held before.
fn next_status(
    before: &EgressPlanStatus,
    plan: &EgressPlan,
    interfaces: Vec<NodeInterface>,
    gate: Option<GateReport>,
    result: &Result<Report, AgentError>,
    now: Timestamp,
) -> EgressPlanStatus {
    let generation = plan.metadata.generation;
    let (status, reason, message) = match result {
        Ok(report) => programmed(report),
        Err(error) => ("False", error.category(), error.to_string()),
    };
    let condition = |type_: &str, (status, reason, message): (&str, &str, String)| {
        let old = before.conditions.iter().find(|c| c.type_ == type_);
        let since = old
            .filter(|c| c.status == status)
            .map_or(Time(now), |c| c.last_transition_time.clone());
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: generation,
            last_transition_time: since,
        }
    };
    let gated = gate
        .as_ref()
        .and_then(|gate| Some(condition("Gate", of_gate(&gate.state)?)));
    let ready = condition("Ready", (status, reason, message));
    let masquerade = match result {
        Ok(report) => masqueraded(plan, report).map(|verdict| condition("Masquerade", verdict)),
        Err(_) => before
            .conditions
            .iter()
            .find(|c| c.type_ == "Masquerade")
            .cloned(),
    };
    EgressPlanStatus {
        observed_generation: if result.is_ok() {
            generation
        } else {
            before.observed_generation
        },
        conditions: gated.into_iter().chain(masquerade).chain([ready]).collect(),
        interfaces,
        missing_addresses: match result {
            Ok(report) => report.missing.iter().copied().collect(),
            Err(_) => before.missing_addresses.clone(),
        },
        exhausted_ports: match result {
            Ok(report) => report.exhausted.clone(),
            Err(_) => before.exhausted_ports.clone(),
        },
        exits: match result {
            Ok(report) => report.exits.clone(),
            Err(_) => before.exits.clone(),
        },
        ungated: gate.map(|gate| gate.ungated).unwrap_or_default(),
        repairs: before.repairs.clone(),
        hindrances: match result {
            Ok(report) => hindrances(&report.warnings),
            Err(AgentError::Clash(clashes)) => hindrances(clashes),
            Err(_) => before.hindrances.clone(),
        },
    }
}

/// The first few, those that keep the agent from working before others.
fn hindrances(clashes: &[Clash]) -> Vec<Hindrance> {
    clashes.iter().take(Hindrance::MAX).map(Hindrance::from).collect()
}

/// Whether pods wait for their verdict; nothing where the plan does not ask for it.
fn of_gate(state: &State) -> Option<(&'static str, &'static str, String)> {
    let (status, reason, message) = match state {
        State::Off => return None,
        State::Armed => (
            "True",
            "Armed",
            "pods start only when this node knows them".into(),
        ),
        State::NoConfiguration => {
            let message = "the network plugin has no configuration on this node yet".to_owned();
            ("False", "NoNetworkConfiguration", message)
        }
        State::Failed(why) => ("False", "GateFailed", why.clone()),
    };
    Some((status, reason, message))
}

/// The kernel holds the plan: status, reason and message of the condition.
fn programmed(report: &Report) -> (&'static str, &'static str, String) {
    let stranded = report.stranded.iter().map(|(link, family)| {
        format!(
            "{link} has no {family:?} next hop: by it, only its own networks are reached, all else is refused"
        )
    });
    if !report.missing.is_empty() {
        let missing: Vec<String> = report.missing.iter().map(ToString::to_string).collect();
        let message = format!("programmed, but this node does not hold {}", missing.join(", "));
        let rest = stranded.map(|s| format!("; {s}"));
        return ("True", "AddressMissing", message + &rest.collect::<String>());
    }
    if !report.stranded.is_empty() {
        let stranded: Vec<String> = stranded.collect();
        let message = format!("programmed, but {}", stranded.join("; "));
        return ("True", "NextHopMissing", message);
    }
    let warnings = report.warnings.iter().map(|w| format!("; {w}"));
    let message = "the kernel holds what the plan says".to_string() + &warnings.collect::<String>();
    // Something on the node hinders it all the same.
    let reason = report.warnings.first().map_or("Programmed", Clash::category);
    ("True", reason, message)
}

/// Condition `Masquerade` of a plan that asks for one: status, reason and message.
fn masqueraded(plan: &EgressPlan, report: &Report) -> Option<(&'static str, &'static str, String)> {
    plan.spec.masquerade.as_ref()?;
    if report.left_to.is_empty() {
        let message = "pods' packets that no policy captures leave with this node's address";
        return Some(("True", "Programmed", message.into()));
    }
    let by: Vec<String> = report.left_to.iter().map(ToString::to_string).collect();
    let message = format!(
        "left out, since this node's pods are masqueraded already: {}. To have it done here, switch it off there \
         (a CNI's ipMasq or natOutgoing, ip-masq-agent); or set masquerade.enabled=false",
        by.join(", ")
    );
    Some(("False", "CniMasquerades", message))
}

#[cfg(test)]
mod tests {
    use egressnat_crds::EgressPlanSpec;
    use egressnat_crds::plan::{Family, Masquerade};

    use super::*;
    use crate::compile::CompileError;
    use crate::facts::Masquerader;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn next(
        before: &EgressPlanStatus,
        generation: i64,
        result: &Result<Report, AgentError>,
        seconds: i64,
    ) -> EgressPlanStatus {
        next_status(before, &plan(generation, None), vec![], None, result, at(seconds))
    }

    fn plan(generation: i64, masquerade: Option<Masquerade>) -> EgressPlan {
        let spec = EgressPlanSpec {
            masquerade,
            ..EgressPlanSpec::default()
        };
        let mut plan = EgressPlan::new("node", spec);
        plan.metadata.generation = Some(generation);
        plan
    }

    #[test]
    fn who_masquerades_instead_is_named_and_all_else_is_ready() {
        let plan = plan(1, Some(Masquerade::default()));
        let status = |before: &EgressPlanStatus, left_to: &[Masquerader], seconds| {
            let report = Report {
                left_to: left_to.to_vec(),
                ..Report::default()
            };
            next_status(before, &plan, vec![], None, &Ok(report), at(seconds))
        };
        let by = Masquerader {
            family: Family::IPv4,
            table: "ip nat".into(),
            chain: "FLANNEL-POSTRTG".into(),
        };
        let ours = status(&EgressPlanStatus::default(), &[], 10);
        let [masquerade, ready] = ours.conditions.as_slice() else {
            panic!("{:?}", ours.conditions)
        };
        assert_eq!(
            (masquerade.type_.as_str(), masquerade.status.as_str()),
            ("Masquerade", "True")
        );
        assert_eq!((ready.type_.as_str(), ready.status.as_str()), ("Ready", "True"));
        let theirs = status(&ours, &[by], 20);
        let [masquerade, ready] = theirs.conditions.as_slice() else {
            panic!("{:?}", theirs.conditions)
        };
        assert_eq!(
            (masquerade.status.as_str(), masquerade.reason.as_str()),
            ("False", "CniMasquerades")
        );
        assert_eq!(masquerade.last_transition_time, Time(at(20)));
        assert_eq!(
            (ready.status.as_str(), &ready.last_transition_time),
            ("True", &Time(at(10)))
        );
        assert!(
            masquerade
                .message
                .contains("IPv4 by chain FLANNEL-POSTRTG of table ip nat"),
            "{}",
            masquerade.message
        );
    }

    #[tokio::test]
    async fn what_needs_no_telling_any_more_is_not_tried_again() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let mut reporter = Reporter::new(Client::try_from(config).unwrap(), "node");
        let outcome = Ok(Report::default());
        let report = |reporter: &mut Reporter| reporter.report(&plan(1, None), vec![], None, &outcome);
        let ago = |seconds| Instant::now() - std::time::Duration::from_secs(seconds);
        reporter.retry.note(false, ago(10));
        assert!(reporter.due().is_some(), "a write has failed");
        report(&mut reporter);
        assert!(reporter.is_telling(), "it is tried again");

        let told = reporter.under_way.take().unwrap();
        reporter.written = Some((told.uid, told.status));
        report(&mut reporter);
        assert!(!reporter.is_telling());
        assert_eq!(reporter.due(), None, "the agent would go round for ever");
    }

    #[test]
    fn time_alone_changes_nothing() {
        let first = next(&EgressPlanStatus::default(), 1, &Ok(Report::default()), 10);
        assert_eq!(first, next(&first, 1, &Ok(Report::default()), 99));
    }

    #[test]
    fn a_failure_keeps_the_generation_that_is_in_force() {
        let ready = next(&EgressPlanStatus::default(), 1, &Ok(Report::default()), 10);
        let failed = next(&ready, 2, &Err(CompileError::TunnelMissing.into()), 20);
        assert_eq!(failed.observed_generation, Some(1));
        assert_eq!(failed.conditions[0].status, "False");
        assert_eq!(failed.conditions[0].reason, "TunnelMissing");
        assert_eq!(failed.conditions[0].last_transition_time, Time(at(20)));
    }

    #[test]
    fn a_link_without_a_next_hop_is_named() {
        let report = Report {
            stranded: [("eth1".into(), Family::IPv6)].into(),
            ..Report::default()
        };
        let status = next(&EgressPlanStatus::default(), 1, &Ok(report), 10);
        assert_eq!(status.conditions[0].reason, "NextHopMissing");
        assert!(status.conditions[0].message.contains("eth1 has no IPv6 next hop"));
    }

    #[test]
    fn what_hinders_some_traffic_is_the_reason_and_all_else_is_ready() {
        let report = Report {
            warnings: vec![Clash::NoForwarding(Family::IPv4)],
            ..Report::default()
        };
        let status = next(&EgressPlanStatus::default(), 1, &Ok(report), 10);
        let ready = status.conditions[0].clone();
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("True", "NoForwarding")
        );
        assert_eq!(status.hindrances[0].reason, "NoForwarding");
        let gone = next(&status, 1, &Ok(Report::default()), 11);
        assert_eq!(
            (gone.conditions[0].reason.as_str(), gone.hindrances),
            ("Programmed", vec![])
        );
        let refused = AgentError::Clash(vec![Clash::NoVxlan]);
        let status = next(&status, 1, &Err(refused), 12);
        let reasons: Vec<_> = status.hindrances.iter().map(|h| h.reason.as_str()).collect();
        assert_eq!(
            (status.conditions[0].status.as_str(), reasons),
            ("False", vec!["NoVxlan"])
        );
        let status = next(&status, 1, &Err(AgentError::Verify(String::new())), 13);
        assert_eq!(status.hindrances.len(), 1, "they have not been looked for");
        assert!(
            ready.message.contains("net.ipv4.ip_forward=1"),
            "{}",
            ready.message
        );
    }

    #[test]
    fn a_missing_address_is_named() {
        let report = Report {
            missing: ["192.0.2.1".parse().unwrap()].into(),
            ..Report::default()
        };
        let status = next(&EgressPlanStatus::default(), 1, &Ok(report), 10);
        assert_eq!(status.conditions[0].reason, "AddressMissing");
        assert!(status.conditions[0].message.contains("192.0.2.1"));
        assert_eq!(
            status.missing_addresses,
            ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
        );
    }
}
