//! Prometheus metrics, prefix `egressnat_agent_`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egressnat_crds::EgressPlanSpec;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};

use super::Report;
use crate::error::AgentError;
use crate::kernel::clash::Clash;
use crate::owned::Drop as DropReason;

/// How long a scrape waits for the drop counters, which only the datapath's thread can read.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel's named counters hold: packets and octets.
pub type Counters = BTreeMap<String, (u64, u64)>;

/// A scrape's question for the drop counters.
pub(super) type Question = oneshot::Sender<Counters>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Category {
    category: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Object {
    object: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The agent's metrics. Clones share their values.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    questions: mpsc::Sender<Question>,
    syncs: Counter,
    sync_seconds: Histogram,
    errors: Family<Category, Counter>,
    ready: Gauge,
    generation: Gauge,
    policies: Gauge,
    pods: Gauge,
    steps: Counter,
    flows: Counter,
    dropped: Family<Reason, Gauge>,
    left_to_others: Gauge,
    repairs: Family<Object, Counter>,
    departed: Gauge,
    hindrances: Family<Category, Gauge>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// New metrics, and where scrapes ask for the drop counters.
    pub(super) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(4);
        let mut metrics = Self {
            registry: Arc::default(),
            questions,
            syncs: Counter::default(),
            sync_seconds: Histogram::new([
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
            ]),
            errors: Family::default(),
            ready: Gauge::default(),
            generation: Gauge::default(),
            policies: Gauge::default(),
            pods: Gauge::default(),
            steps: Counter::default(),
            flows: Counter::default(),
            dropped: Family::default(),
            left_to_others: Gauge::default(),
            repairs: Family::default(),
            departed: Gauge::default(),
            hindrances: Family::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        (metrics, asked)
    }

    fn register(&self) -> Registry {
        let mut r = Registry::with_prefix("egressnat_agent");
        r.register(
            "syncs",
            "Times the datapath was brought in step",
            self.syncs.clone(),
        );
        r.register(
            "sync_duration_seconds",
            "Time to bring the datapath in step",
            self.sync_seconds.clone(),
        );
        r.register("errors", "Failures by category", self.errors.clone());
        r.register(
            "ready",
            "1 while the kernel holds what the plan says",
            self.ready.clone(),
        );
        r.register(
            "plan_generation",
            "Generation of the plan that the kernel holds",
            self.generation.clone(),
        );
        r.register(
            "policies",
            "Policies in which this node has a part",
            self.policies.clone(),
        );
        r.register("pods", "Selected pods of this node", self.pods.clone());
        r.register("steps", "Changes written to the kernel", self.steps.clone());
        r.register(
            "flows_deleted",
            "Conntrack entries deleted because their verdict changed",
            self.flows.clone(),
        );
        r.register(
            "dropped_packets",
            "Packets dropped by reason, since the table was made",
            self.dropped.clone(),
        );
        r.register(
            "masquerade_left_to_others",
            "IP families whose masquerade is left out because another program's rules do it",
            self.left_to_others.clone(),
        );
        r.register(
            "repairs",
            "Things of ours in the kernel that another hand had removed or changed, by kind",
            self.repairs.clone(),
        );
        r.register(
            "departed_pods",
            "Pods that are gone from the API server and keep their verdict until their network is gone",
            self.departed.clone(),
        );
        r.register(
            "hindrances",
            "What of other programs, or of the node's settings, is in the way, by category",
            self.hindrances.clone(),
        );
        r
    }

    /// Counts a failure.
    pub(super) fn error(&self, category: &'static str) {
        self.errors.get_or_create(&Category { category }).inc();
    }

    /// Takes note of what is in the way, and of nothing else being so.
    fn hindered(&self, clashes: &[Clash]) {
        self.hindrances.clear();
        for clash in clashes {
            let category = clash.category();
            self.hindrances.get_or_create(&Category { category }).inc();
        }
    }

    /// Takes note of a try that took this long.
    pub(super) fn synced(
        &self,
        began: Instant,
        generation: Option<i64>,
        plan: Option<&EgressPlanSpec>,
        result: &Result<Report, AgentError>,
    ) {
        self.syncs.inc();
        self.sync_seconds.observe(began.elapsed().as_secs_f64());
        self.ready.set(result.is_ok().into());
        match result {
            Ok(report) => {
                let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
                self.generation.set(generation.unwrap_or_default());
                self.policies.set(plan.map_or(0, |p| count(p.policies.len())));
                self.pods.set(plan.map_or(0, |p| count(p.pods.len())));
                self.steps.inc_by((report.nft_steps + report.net_steps) as u64);
                self.flows.inc_by(report.flows as u64);
                self.left_to_others.set(count(report.left_to.len()));
                self.departed.set(count(report.departed));
                self.hindered(&report.warnings);
                for touched in &report.touched {
                    let object = format!("{:?}", touched.object);
                    self.repairs.get_or_create(&Object { object }).inc();
                }
            }
            Err(error) => {
                self.error(error.category());
                if let AgentError::Clash(clashes) = error {
                    self.hindered(clashes);
                }
            }
        }
    }

    /// All metrics as text, with the drop counters read from the kernel where it answers in time.
    pub(super) async fn encode(&self) -> Result<String, fmt::Error> {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(answer).is_ok()
            && let Ok(Ok(counters)) = tokio::time::timeout(PATIENCE, answered).await
        {
            for reason in DropReason::ALL {
                let packets = counters.get(reason.counter()).map_or(0, |(packets, _)| *packets);
                let label = Reason {
                    reason: reason.counter().trim_start_matches("drop_"),
                };
                self.dropped
                    .get_or_create(&label)
                    .set(i64::try_from(packets).unwrap_or(i64::MAX));
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
