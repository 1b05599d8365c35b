//! One watch per kind, each turned into [`Change`]s for the store.
//!
//! A watch that breaks is begun again with growing pauses, and until then the store keeps what it has.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::utils::{Backoff, ResetTimerBackoff};
use kube_runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use crate::convert;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::store::{Change, Delta};
use crate::wire::WirePod;

/// Labels of the EndpointSlices of the API server, in namespace `default`.
const API_SERVER_SLICES: &str = "kubernetes.io/service-name=kubernetes";

/// Starts all watches. Each ends only when `to` is closed.
pub fn start(client: &Client, to: &Sender<Change>, metrics: &Arc<Metrics>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let all = Config::default;
    let watch = |kind| Watch {
        kind,
        to: to.clone(),
        metrics: metrics.clone(),
    };

    let policies = Api::<DeserializeGuard<EgressNATPolicy>>::all(client.clone());
    let stream = watcher(policies, all());
    tasks.spawn(watch("EgressNATPolicy").run(stream, convert::policy, Change::Policies));

    let stream = watcher(Api::<WirePod>::all(client.clone()), all());
    tasks.spawn(watch("Pod").run(stream, convert::pod, Change::Pods));

    let stream = watcher(Api::<Node>::all(client.clone()), all());
    tasks.spawn(watch("Node").run(stream, convert::node, Change::Nodes));

    let stream = watcher(Api::<Namespace>::all(client.clone()), all());
    tasks.spawn(watch("Namespace").run(stream, convert::namespace, Change::Namespaces));

    let stream = watcher(Api::<ServiceCIDR>::all(client.clone()), all());
    tasks.spawn(watch(SERVICE_CIDR).run(stream, convert::service_cidr, Change::ServiceCidrs));

    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
    let stream = watcher(slices, all().labels(API_SERVER_SLICES));
    tasks.spawn(watch("EndpointSlice").run(stream, convert::endpoints, Change::ApiServers));

    let stream = watcher(Api::<DeserializeGuard<EgressPlan>>::all(client.clone()), all());
    tasks.spawn(watch("EgressPlan").run(stream, convert::plan, Change::Plans));
    tasks
}

/// The one kind that an API server may not have (before 1.33): then there are none.
const SERVICE_CIDR: &str = "ServiceCIDR";

struct Watch {
    kind: &'static str,
    to: Sender<Change>,
    metrics: Arc<Metrics>,
}

impl Watch {
    async fn run<K, V>(
        self,
        stream: impl Stream<Item = Result<Event<K>, Error>>,
        convert: fn(K) -> V,
        change: fn(Delta<V>) -> Change,
    ) where
        K: Resource + DeserializeOwned + Clone + Debug,
    {
        let mut stream = pin!(stream.backoff(pauses()));
        while let Some(event) = stream.next().await {
            let deltas = match event {
                Ok(event) => vec![delta(event, convert)],
                Err(error) if self.kind == SERVICE_CIDR && is_not_found(&error) => {
                    tracing::debug!(kind = self.kind, "the API server does not have this kind");
                    vec![Delta::Restart, Delta::Synced]
                }
                Err(error) => {
                    self.metrics.watch_broke(self.kind);
                    tracing::warn!(
                        kind = self.kind,
                        error = chain(&error),
                        "watch broke, will be begun again"
                    );
                    continue;
                }
            };
            for delta in deltas {
                if self.to.send(change(delta)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Pauses that double up to [`LONGEST_PAUSE`], and are short again after a while without a failure. The
/// library's own go up to 30 s, which is long for a pod that waits to be captured.
#[derive(Debug)]
struct Pauses(Duration);

const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(30);

fn pauses() -> ResetTimerBackoff<Pauses> {
    ResetTimerBackoff::new(Pauses(SHORTEST_PAUSE), QUIET)
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = SHORTEST_PAUSE;
    }
}

fn delta<K: Resource, V>(event: Event<K>, convert: fn(K) -> V) -> Delta<V> {
    match event {
        Event::Init => Delta::Restart,
        Event::InitApply(object) => Delta::Listed(key(&object), convert(object)),
        Event::InitDone => Delta::Synced,
        Event::Apply(object) => Delta::Set(key(&object), convert(object)),
        Event::Delete(object) => Delta::Gone(key(&object)),
    }
}

/// `name`, or `namespace/name`.
fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn is_not_found(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(s)) | Error::WatchStartFailed(kube::Error::Api(s)) => {
            s.code == 404
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew() {
        let mut pauses = Pauses(SHORTEST_PAUSE);
        let first: Vec<Duration> = pauses.by_ref().take(10).collect();
        assert_eq!(first[..2], [SHORTEST_PAUSE, SHORTEST_PAUSE * 2]);
        assert_eq!(first[9], LONGEST_PAUSE);
        pauses.reset();
        assert_eq!(pauses.next(), Some(SHORTEST_PAUSE));
    }
}
