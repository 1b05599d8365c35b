//! The client with which operator and agents speak to the API server.
//!
//! A connection to the API server's Service address lives by a translation in conntrack. When that is lost (somebody
//! empties conntrack), the server's packets come from an address that the connection does not know; the kernel refuses
//! them, the server gives up, and this side, which only listens, hears of nothing until its watch is over, after five
//! minutes. So the kernel asks, when nothing has come for a while, whether the other end is still there. That costs the
//! API server no request.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::client::retry::RetryPolicy;
use kube::{Client, Config, Error};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// After how long a silence the kernel asks, and how often.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How long the other end may owe an answer to that, or the acknowledgement of a request (`TCP_USER_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(15);

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A client for the cluster that this process runs in, or that of its kubeconfig.
///
/// # Errors
/// Where there is neither, or what they say cannot be used.
pub async fn connect() -> Result<Client, Error> {
    client(Config::infer().await.map_err(Error::InferConfig)?)
}

/// kube's own client, by connections that notice within [`PATIENCE`] that nobody is there any more.
///
/// # Errors
/// Where the configuration's certificates or credentials cannot be used.
pub fn client(config: Config) -> Result<Client, Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_tcp_user_timeout(Some(PATIENCE));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
