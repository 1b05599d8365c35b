//! The operator's metrics, all with the prefix `egressnat_operator_`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Label `result`: `ok` or `error`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Label `kind`: the watched kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Label `category`: see [`crate::error::Error::category`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CategoryLabel {
    category: &'static str,
}

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Policies.
    pub policies: Gauge,
    /// Pods that at least one policy selects.
    pub pods_selected: Gauge,
    /// Plans.
    pub plans: Gauge,
    /// 1 while this process writes.
    pub leader: Gauge,
    plan_duration: Histogram,
    plan_writes: Family<ResultLabel, Counter>,
    status_writes: Family<ResultLabel, Counter>,
    watch_errors: Family<KindLabel, Counter>,
    errors: Family<CategoryLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("egressnat_operator"),
            policies: Gauge::default(),
            pods_selected: Gauge::default(),
            plans: Gauge::default(),
            leader: Gauge::default(),
            plan_duration: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            plan_writes: Family::default(),
            status_writes: Family::default(),
            watch_errors: Family::default(),
            errors: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    /// Plans were brought up to date.
    pub fn planned(&self, took: Duration) {
        self.plan_duration.observe(took.as_secs_f64());
    }

    /// A plan was written or deleted, or that failed.
    pub fn plan_written(&self, ok: bool) {
        self.plan_writes.get_or_create(&result_label(ok)).inc();
    }

    /// A policy's status was written, or that failed.
    pub fn status_written(&self, ok: bool) {
        self.status_writes.get_or_create(&result_label(ok)).inc();
    }

    /// A watch broke.
    pub fn watch_broke(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabel { kind }).inc();
    }

    /// Something failed.
    pub fn failed(&self, category: &'static str) {
        self.errors.get_or_create(&CategoryLabel { category }).inc();
    }

    /// All metrics, in the OpenMetrics text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("policies", "EgressNATPolicies", self.policies.clone());
        r.register(
            "pods_selected",
            "Pods that at least one policy selects",
            self.pods_selected.clone(),
        );
        r.register("plans", "EgressPlans, one per node", self.plans.clone());
        r.register("leader", "Whether this process writes", self.leader.clone());
        r.register(
            "plan_duration_seconds",
            "Time to bring the plans up to date",
            self.plan_duration.clone(),
        );
        r.register(
            "plan_writes",
            "Plans written or deleted",
            self.plan_writes.clone(),
        );
        r.register(
            "status_writes",
            "Policy statuses written",
            self.status_writes.clone(),
        );
        r.register("watch_errors", "Watches that broke", self.watch_errors.clone());
        r.register("errors", "Things that failed", self.errors.clone());
    }
}

fn result_label(ok: bool) -> ResultLabel {
    ResultLabel {
        result: if ok { "ok" } else { "error" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_documented() {
        let metrics = Metrics::default();
        metrics.plan_written(true);
        metrics.status_written(false);
        metrics.watch_broke("Pod");
        metrics.failed("write");
        metrics.planned(Duration::from_millis(3));
        let text = metrics.text().unwrap();
        for line in [
            "egressnat_operator_policies 0",
            "egressnat_operator_pods_selected 0",
            "egressnat_operator_plans 0",
            "egressnat_operator_leader 0",
            "egressnat_operator_plan_duration_seconds_count 1",
            "egressnat_operator_plan_writes_total{result=\"ok\"} 1",
            "egressnat_operator_status_writes_total{result=\"error\"} 1",
            "egressnat_operator_watch_errors_total{kind=\"Pod\"} 1",
            "egressnat_operator_errors_total{category=\"write\"} 1",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}
