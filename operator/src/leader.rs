//! Leader election by a Lease: of all operators, one writes.
//!
//! Written here, since the libraries at hand judge another's lease by comparing clocks of two machines, or
//! go on as leaders when the API server is out of reach. As in client-go, a lease counts as dead when *this*
//! process has seen it unchanged for its whole duration, by its own monotonic clock; every write carries the
//! resourceVersion that it was decided on, so that of two takers one fails; and a holder that could not renew
//! in time gives up before anybody else may take over.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Request, chain};

/// The Lease's name.
pub const LEASE_NAME: &str = "egressnat-operator";

/// How a Lease is held.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The Lease's namespace.
    pub namespace: String,
    /// This process, among all that may want the Lease.
    pub identity: String,
    /// How long the Lease lives unrenewed.
    pub duration: Duration,
    /// How long the holder tries to renew it before it gives up: less than `duration`.
    pub renew_deadline: Duration,
    /// Pause between two attempts: less than `renew_deadline`.
    pub retry_period: Duration,
}

/// Takes the lease and keeps it. `leads` becomes true when it is held. Ends with the lease released when
/// `stop` is cancelled, and with [`Error::LeaseLost`] when it was held and could not be renewed.
pub async fn run(
    client: Client,
    config: LeaseConfig,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut elector = Elector {
        api: Api::namespaced(client, &config.namespace),
        config,
        seen: None,
    };
    let held = tokio::select! {
        held = elector.keep(&leads) => held,
        () = stop.cancelled() => Ok(()),
    };
    let led = leads.send_replace(false);
    if led && held.is_ok() {
        elector.release().await;
    }
    held
}

/// What came of an attempt.
enum Attempt {
    /// The lease is ours.
    Ours,
    /// Another process holds it.
    Anothers,
    /// Somebody else was faster: the lease is not what it was when it was read.
    Raced,
}

/// The Lease as last read, and since when its spec has been what it is.
struct Seen {
    lease: Lease,
    since: Instant,
}

struct Elector {
    api: Api<Lease>,
    config: LeaseConfig,
    seen: Option<Seen>,
}

impl Elector {
    /// Acquires, then renews until that fails for too long.
    async fn keep(&mut self, leads: &watch::Sender<bool>) -> Result<(), Error> {
        let mut renewed: Option<Instant> = None;
        loop {
            // The lease counts from before the request: it may be written long before the answer is here.
            let begun = Instant::now();
            let deadline = renewed.unwrap_or(begun) + self.config.renew_deadline;
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(Attempt::Ours)) => {
                    renewed = Some(begun);
                    if !leads.send_replace(true) {
                        tracing::info!(identity = self.config.identity, "holds the lease");
                    }
                }
                Ok(Ok(Attempt::Anothers)) if renewed.is_some() => return Err(Error::LeaseLost),
                Ok(Ok(Attempt::Anothers | Attempt::Raced)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&Error::Lease(error)), "will be tried again");
                }
                Err(_) if renewed.is_some() => return Err(Error::LeaseLost),
                Err(_) => {
                    tracing::warn!("no answer from the API server about the lease, will be tried again")
                }
            }
            match renewed {
                None => sleep(self.config.retry_period).await,
                Some(at) if Instant::now() >= at + self.config.renew_deadline => {
                    return Err(Error::LeaseLost);
                }
                Some(at) => {
                    let next = Instant::now() + self.config.retry_period;
                    sleep_until(next.min(at + self.config.renew_deadline)).await;
                }
            }
        }
    }

    /// One attempt to take or renew the lease.
    async fn attempt(&mut self) -> Result<Attempt, Request> {
        let Some(lease) = self.api.get_opt(LEASE_NAME).await? else {
            let lease = self.lease(None);
            return self.written(self.api.create(&PostParams::default(), &lease).await);
        };
        self.observe(&lease);
        let ours = holder(&lease) == Some(self.config.identity.as_str());
        if !ours && holder(&lease).is_some() && !self.dead() {
            return Ok(Attempt::Anothers);
        }
        let lease = self.lease(Some(lease));
        self.written(self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await)
    }

    fn written(&mut self, result: kube::Result<Lease>) -> Result<Attempt, Request> {
        match result {
            Ok(lease) => {
                self.observe(&lease);
                Ok(Attempt::Ours)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::Raced),
            Err(error) => Err(error.into()),
        }
    }

    fn observe(&mut self, lease: &Lease) {
        let unchanged = self.seen.as_ref().filter(|s| s.lease.spec == lease.spec);
        self.seen = Some(Seen {
            since: unchanged.map_or_else(Instant::now, |s| s.since),
            lease: lease.clone(),
        });
    }

    /// Whether the lease has been unchanged for longer than it lives.
    fn dead(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            let spec = seen.lease.spec.as_ref();
            let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(0);
            seen.since.elapsed() > Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        })
    }

    /// The lease as ours, in place of `old`.
    fn lease(&self, old: Option<Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = old.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.into()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        let spec = lease.spec.take().unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(self.config.identity.as_str());
        let transitions = spec.lease_transitions.unwrap_or(0);
        let seconds = self.config.duration.as_secs().max(1);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: spec.acquire_time.filter(|_| ours).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        });
        lease
    }

    /// Gives the lease up, so that another process need not wait for its end.
    async fn release(&self) {
        let Some(mut lease) = self.seen.as_ref().map(|s| s.lease.clone()) else {
            return;
        };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let params = PostParams::default();
        let write = self.api.replace(LEASE_NAME, &params, &lease);
        match tokio::time::timeout(self.config.retry_period, write).await {
            Ok(Ok(_)) => tracing::info!("released the lease"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "failed to release the lease"),
            Err(_) => tracing::warn!("failed to release the lease in time"),
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.as_deref().filter(|h| !h.is_empty())
}
