//! etcd and an API server alone, on loopback, for tests of what the API server does: up in seconds, as many
//! at once as there are tests that want their own, gone with the test.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rcgen::KeyPair;
use serde_json::json;

use crate::{
    command,
    error::{Context, Error, Result},
    site::Site,
    wait,
};

const READY_DEADLINE: Duration = Duration::from_secs(60);

/// The address at which the API server says it is; nothing connects to it. Endpoints refuse loopback.
pub const ADVERTISED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Starts both programs and waits for the end of its standard input, a pipe that the test holds: it ends
/// with [`ApiServer`], and with the test's process, whatever killed that. Then both are killed, by the ids of
/// these very children, and the folder is removed.
const GUARD: &str = r#"
"$KUBE" etcd --data-dir=etcd --listen-client-urls="$ETCD" --advertise-client-urls="$ETCD" \
    --listen-peer-urls="$PEER" --initial-advertise-peer-urls="$PEER" --initial-cluster=default="$PEER" \
    --unsafe-no-fsync --log-level=warn </dev/null >etcd.log 2>&1 &
etcd=$!
"$KUBE" kube-apiserver --etcd-servers="$ETCD" "$@" </dev/null >kube-apiserver.log 2>&1 &
apiserver=$!
read -r _
kill -KILL $etcd $apiserver
wait
rm -rf "$PWD"
"#;

/// A running API server with its own etcd. Dropping it ends both and removes what they wrote.
#[derive(Debug)]
pub struct ApiServer {
    guard: Child,
    folder: PathBuf,
}

impl ApiServer {
    /// Starts etcd and the API server, and waits until it is ready.
    ///
    /// # Errors
    /// When the programs have not been built, or do not become ready.
    pub fn start() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let kube = Site::program("kube");
        if !kube.exists() {
            return Err(Error::State(format!(
                "{} is missing: run e2e/setup.sh",
                kube.display()
            )));
        }
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = Site::shared().join("api-servers").join(name);
        fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        let [etcd, peer, port] = free_ports()?;
        write_credentials(&folder, port)?;
        let guard = Command::new("sh")
            .args(["-c", GUARD, "api-server"])
            .args(api_server_args(port))
            .envs([("ETCD", url(etcd)), ("PEER", url(peer))])
            .env("KUBE", kube)
            .current_dir(&folder)
            // An interrupt at the terminal is for the test alone; the guard then cleans up after it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "start a shell".into())?;
        let server = Self { guard, folder };
        server.wait_ready()?;
        Ok(server)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(Site::program("kube"));
        // Its cache of the discovery is by server address, and another server may have had this one.
        kubectl
            .arg("kubectl")
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig());
        kubectl
    }

    fn wait_ready(&self) -> Result<()> {
        wait::until("a ready API server", READY_DEADLINE, || {
            command::output(self.kubectl().args(["get", "--raw", "/readyz"]))?;
            command::output(self.kubectl().args(["get", "namespace", "default"]))
        })
        .map(drop)
        .map_err(|error| Error::State(format!("{error}\n{}", self.log_tails())))
    }

    fn log_tails(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            let skip = log.lines().count().saturating_sub(10);
            log.lines()
                .skip(skip)
                .map(|line| format!("{name}: {line}\n"))
                .collect::<String>()
        };
        tail("etcd.log") + &tail("kube-apiserver.log")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // The guard cannot fail to be there: it is our child, and waited for only here.
        let _ = self.guard.wait();
    }
}

fn api_server_args(port: u16) -> Vec<String> {
    let mut args: Vec<String> = [
        "--bind-address=127.0.0.1",
        // It makes its own certificate there.
        "--cert-dir=pki",
        "--token-auth-file=tokens.csv",
        "--authorization-mode=Node,RBAC",
        // The second one is off by default, but on in OpenShift.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=sa.pub",
        "--service-account-signing-key-file=sa.key",
        "--profiling=false",
    ]
    .map(str::to_owned)
    .into();
    args.push(format!("--secure-port={port}"));
    args.push(format!("--advertise-address={ADVERTISED}"));
    args
}

fn write_credentials(folder: &Path, port: u16) -> Result<()> {
    let write = |name: &str, content: String| {
        let path = folder.join(name);
        fs::write(&path, content).context(|| format!("write {}", path.display()))
    };
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid").context(|| "make a token".into())?;
    let token = token.trim();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            // The certificate's chain, its authority included.
            "certificate-authority": folder.join("pki/apiserver.crt"),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    let service_accounts = KeyPair::generate()?;
    write("sa.key", service_accounts.serialize_pem())?;
    write("sa.pub", service_accounts.public_key_pem())?;
    write("tokens.csv", format!("{token},admin,admin,system:masters\n"))?;
    write("kubeconfig", config.to_string())
}

/// Ports that were free a moment ago; all are held until the last is found, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "find a free port".into())?;
        *port = listener
            .local_addr()
            .context(|| "find a free port".into())?
            .port();
        held.push(listener);
    }
    Ok(ports)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
