//! The API client of operator and agents, where the path to the API server goes silent.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::pin,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use egressnat_e2e::netns::Netns;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Config};
use kube_runtime::watcher;
use tokio::{
    runtime::Builder,
    time::{Instant, timeout},
};

use crate::lab::ok;

/// What a lost path may cost, and some more for a busy machine.
const BOUND: Duration = Duration::from_secs(25);

const LIST: &str =
    r#"{"kind":"NamespaceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#;

/// A server that answers lists at once, and watches with nothing, for ever. Tells of each request: from which port, and
/// whether it is a watch.
fn serve(told: &mpsc::Sender<(u16, bool)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("failed to listen");
    let address = listener.local_addr().expect("it listens");
    let told = told.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let told = told.clone();
            thread::spawn(move || answer(stream, &told));
        }
    });
    address
}

fn answer(stream: TcpStream, told: &mpsc::Sender<(u16, bool)>) -> Option<()> {
    let port = stream.peer_addr().ok()?.port();
    let (mut to, from) = (stream.try_clone().ok()?, BufReader::new(stream));
    let mut lines = from.lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        lines.find(String::is_empty)?;
        let is_watch = request.contains("watch=true");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        match is_watch {
            true => write!(to, "{head}Transfer-Encoding: chunked\r\n\r\n").ok()?,
            false => write!(to, "{head}Content-Length: {}\r\n\r\n{LIST}", LIST.len()).ok()?,
        }
        told.send((port, is_watch)).ok()?;
    }
    Some(())
}

/// From now on nothing passes between the server and this port of the client's, and nobody is told.
fn cut(netns: &Netns, port: u16) {
    let rules = format!(
        "add table inet cut; add chain inet cut input {{ type filter hook input priority 0; }}; \
         add rule inet cut input tcp sport {port} drop; add rule inet cut input tcp dport {port} drop"
    );
    ok(netns.output(Command::new("nft").arg(rules)));
}

fn in_netns(test: impl AsyncFnOnce(&Netns, Config, mpsc::Receiver<(u16, bool)>) + Send) {
    let netns = ok(Netns::anonymous());
    let inside = || {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("failed to start a runtime").block_on(async {
            let (told, requests) = mpsc::channel();
            let server = serve(&told);
            let url = format!("http://{server}").parse().expect("a URL");
            test(&netns, Config::new(url), requests).await;
        });
    };
    ok(netns.run(inside));
}

#[test]
fn a_watch_whose_path_is_lost_is_begun_again() {
    in_netns(async |netns, config, requests| {
        let client = egressnat_api_client::client(config).expect("a client");
        let namespaces = Api::<Namespace>::all(client);
        let mut events = pin!(watcher::watcher(namespaces, watcher::Config::default()));
        let mut next_watch = async || {
            loop {
                if let Some((port, _)) = requests.try_iter().find(|(_, is_watch)| *is_watch) {
                    return port;
                }
                // It works only while it is asked.
                let _ = timeout(Duration::from_millis(50), events.next()).await;
            }
        };
        let first = timeout(BOUND, next_watch()).await.expect("no watch at all");
        cut(netns, first);
        let began = Instant::now();
        let second = timeout(BOUND, next_watch()).await.expect("it is deaf");
        assert_ne!(first, second);
        eprintln!("begun again after {:?}", began.elapsed());
    });
}

#[test]
fn a_request_whose_path_is_lost_ends() {
    in_netns(async |netns, config, requests| {
        let client = egressnat_api_client::client(config).expect("a client");
        let namespaces = Api::<Namespace>::all(client);
        let list = async || timeout(BOUND, namespaces.list(&Default::default())).await;
        list().await.expect("in time").expect("a list");
        let mut ports = BTreeMap::new();
        ports.extend(requests.try_iter());
        ports.keys().for_each(|port| cut(netns, *port));
        let began = Instant::now();
        let error = list().await.expect("it waits for ever");
        assert!(error.is_err(), "the connection was to be used again");
        eprintln!("failed after {:?}", began.elapsed());
        list().await.expect("in time").expect("another connection");
    });
}
