//! The main loop against an API server made of one function: when it writes, and what it does when that fails.
//! That the real API server takes what is written is shown on the API server rung.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse;
use egressnat_operator::apply::Writer;
use egressnat_operator::controller::Controller;
use egressnat_operator::convert;
use egressnat_operator::error::Error;
use egressnat_operator::events::Events;
use egressnat_operator::health::Health;
use egressnat_operator::metrics::Metrics;
use egressnat_operator::store::{Change, Delta, Store};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than the loop waits for anything but a retry that has failed often.
const SOON: Duration = Duration::from_secs(10);
/// Long enough to see a write that should not be: the loop waits at most 200 ms for changes to end.
const A_WHILE: Duration = Duration::from_millis(500);

/// A running main loop.
struct Loop {
    changes: mpsc::Sender<Change>,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Method and path of every request.
    requests: mpsc::UnboundedReceiver<String>,
}

/// Starts a main loop whose first `failures` requests for a plan fail.
fn start(failures: usize) -> Loop {
    let (seen, requests) = mpsc::unbounded_channel();
    let client = Client::new(api_server(seen, failures), "default");
    let (to_loop, changes) = mpsc::channel(64);
    let (lead, leads) = watch::channel(false);
    let (metrics, health) = (Arc::new(Metrics::default()), Arc::new(Health::default()));
    let controller = Controller {
        store: Store::default(),
        backlog: None,
        changes,
        leads,
        writer: Writer::new(client.clone()),
        events: Events::new(client, "test"),
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let stop = CancellationToken::new();
    Loop {
        changes: to_loop,
        leads: lead,
        task: tokio::spawn(controller.run(stop.clone())),
        stop,
        metrics,
        health,
        requests,
    }
}

/// Takes every write, and answers with what was written.
fn api_server(seen: mpsc::UnboundedSender<String>, failures: usize) -> Router {
    let failures = Arc::new(AtomicUsize::new(failures));
    Router::new().fallback(move |request: Request<axum::body::Body>| {
        let (seen, failures) = (seen.clone(), failures.clone());
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path().to_owned();
            seen.send(format!("{} {path}", parts.method)).unwrap();
            let fails = |n: usize| n.checked_sub(1);
            let is_plan = path.contains("/egressplans/");
            if is_plan && failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
                let status = json!({"kind": "Status", "status": "Failure", "code": 500, "reason": "", "message": "no"});
                return (StatusCode::INTERNAL_SERVER_ERROR, status.to_string()).into_response();
            }
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let mut object: Value = serde_json::from_slice(&body).unwrap();
            if path.contains("/egressnatpolicies/") {
                object["spec"] = policy()["spec"].clone();
            }
            if parts.method == Method::PATCH {
                object["metadata"]["generation"] = json!(1);
            }
            object.to_string().into_response()
        }
    })
}

fn policy() -> Value {
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": "p", "uid": "p", "generation": 1},
        "spec": {"selectors": [{"podSelector": {}}], "egressSourceIP": "172.18.0.1"},
    })
}

/// Two nodes and a policy; then the end of every list but one.
fn almost_all() -> Vec<Change> {
    let node = |name: &str| {
        let addresses = json!([{"type": "InternalIP", "address": "172.18.0.1"}]);
        let node = json!({"metadata": {"name": name, "uid": name}, "status": {"addresses": addresses}});
        Change::Nodes(Delta::Listed(
            name.into(),
            convert::node(serde_json::from_value(node).unwrap()),
        ))
    };
    let policy = convert::policy(serde_json::from_value(policy()).unwrap());
    vec![
        node("a"),
        node("b"),
        Change::Nodes(Delta::Synced),
        Change::Policies(Delta::Listed("p".into(), policy)),
        Change::Policies(Delta::Synced),
        Change::Pods(Delta::Synced),
        Change::Namespaces(Delta::Synced),
        Change::ServiceCidrs(Delta::Synced),
        Change::ApiServers(Delta::Synced),
    ]
}

fn the_last() -> Change {
    Change::Plans(Delta::Synced)
}

impl Loop {
    async fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.changes.send(change).await.unwrap();
        }
    }

    /// The next request, which must come soon.
    async fn request(&mut self) -> String {
        timeout(SOON, self.requests.recv()).await.unwrap().unwrap()
    }

    /// The next requests, sorted.
    async fn sorted_requests<const N: usize>(&mut self) -> Vec<String> {
        let mut requests = Vec::new();
        for _ in 0..N {
            requests.push(self.request().await);
        }
        requests.sort();
        requests
    }

    /// No request comes for a while.
    async fn assert_silent(&mut self) {
        let request = timeout(A_WHILE, self.requests.recv()).await;
        assert!(request.is_err(), "{request:?}");
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.text().unwrap().lines().any(|l| l == line)
    }
}

const PLANS: &str = "PATCH /apis/egressnat.io/v1alpha1/egressplans";
const POLICY: &str = "PATCH /apis/egressnat.io/v1alpha1/egressnatpolicies/p/status";
const EVENTS: &str = "POST /apis/events.k8s.io/v1/namespaces/default/events";

#[tokio::test]
async fn nothing_is_written_before_every_watch_has_synced() {
    let mut the_loop = start(0);
    the_loop.leads.send_replace(true);
    the_loop.tell(almost_all()).await;
    the_loop.assert_silent().await;
    assert!(!the_loop.health.is_ready());
    the_loop.tell([the_last()]).await;
    let plans = the_loop.sorted_requests::<2>().await;
    assert_eq!(plans, [format!("{PLANS}/a"), format!("{PLANS}/b")]);
    assert!(the_loop.health.is_ready());
}

#[tokio::test]
async fn only_the_leader_writes_and_the_others_are_ready_to() {
    let mut the_loop = start(0);
    the_loop.tell(almost_all().into_iter().chain([the_last()])).await;
    the_loop.assert_silent().await;
    assert!(the_loop.health.is_ready() && the_loop.health.is_live());
    the_loop.leads.send_replace(true);
    the_loop.sorted_requests::<2>().await;
    assert!(the_loop.metric("egressnat_operator_leader 1"));
}

#[tokio::test]
async fn what_is_written_is_not_written_again() {
    let mut the_loop = start(0);
    the_loop.leads.send_replace(true);
    the_loop.tell(almost_all().into_iter().chain([the_last()])).await;
    the_loop.sorted_requests::<2>().await;
    assert_eq!(the_loop.request().await, POLICY);
    // Accepted, and a gateway that is not Ready.
    assert_eq!(the_loop.sorted_requests::<2>().await, [EVENTS, EVENTS]);
    the_loop.assert_silent().await;
    // A list that begins anew and breaks off, or ends with the same, is nothing to write about either.
    the_loop.tell([Change::Nodes(Delta::Restart)]).await;
    the_loop.assert_silent().await;
    the_loop.tell(almost_all().into_iter().take(3)).await;
    the_loop.assert_silent().await;
    the_loop.tell([Change::Nodes(Delta::Gone("b".into()))]).await;
    assert_eq!(
        the_loop.request().await,
        format!("{PLANS}/b").replace("PATCH", "DELETE")
    );
}

#[tokio::test]
async fn what_fails_is_counted_and_tried_again() {
    const FAILURES: usize = 3;
    let mut the_loop = start(FAILURES);
    the_loop.leads.send_replace(true);
    the_loop.tell(almost_all().into_iter().chain([the_last()])).await;
    let mut plans = 0;
    while plans < FAILURES + 2 {
        plans += usize::from(the_loop.request().await.starts_with(PLANS));
    }
    the_loop.stop.cancel();
    timeout(SOON, the_loop.task).await.unwrap().unwrap().unwrap();
    let text = the_loop.metrics.text().unwrap();
    assert!(
        text.contains("egressnat_operator_plan_writes_total{result=\"error\"} 3"),
        "{text}"
    );
    assert!(
        text.contains("egressnat_operator_errors_total{category=\"PlanWrite\"} 3"),
        "{text}"
    );
}
