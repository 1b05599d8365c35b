//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::health::Health;
use crate::metrics::Metrics;

/// What the server tells of.
#[derive(Clone)]
pub struct Told {
    /// Health of the main loop.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Listens on `address`; port 0 means any free one.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| Error::Listen { address, source })
}

/// Serves until `stop` is cancelled.
pub async fn serve(listener: TcpListener, told: Told, stop: CancellationToken) -> Result<(), Error> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(told);
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    server.await.map_err(Error::Serve)
}

async fn healthz(State(told): State<Told>) -> (StatusCode, &'static str) {
    match told.health.is_live() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the main loop is stalled\n"),
    }
}

async fn readyz(State(told): State<Told>) -> (StatusCode, &'static str) {
    match told.health.is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not every watch has synced\n"),
    }
}

async fn metrics(State(told): State<Told>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match told.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Told {
            health: Arc::new(Health::default()),
            metrics: Arc::new(Metrics::default()),
        };
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, told.clone(), stop.clone()));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        told.health.set_synced(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains("egressnat_operator_leader 0"), "{metrics}");
        let taken = listen(address).await;
        assert!(matches!(taken, Err(Error::Listen { .. })));
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
