//! A fresh network namespace for a test, and other programs as its second opinion.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use egressnat_agent::kernel::rtnl::Rtnl;
use egressnat_agent::kernel::sysctl::Sysctls;
use egressnat_agent::model::{Link, MacAddr, Tunnel};
use egressnat_agent::owned::{Numbers, TUNNEL_ADDRESS};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::Value;

/// Runs `body` on a thread in a network namespace of its own, which goes with the thread.
pub fn in_netns<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(body());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Another network namespace, to which links can be moved by this thread's number.
pub struct Elsewhere {
    pub thread: i32,
    stop: Option<Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Elsewhere {
    pub fn new() -> Self {
        let (stop, stopped) = channel();
        let (tell, told) = channel();
        let handle = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid().as_raw()).unwrap();
            // Ends when the sender goes.
            let _ = stopped.recv();
        });
        Self {
            thread: told.recv().unwrap(),
            stop: Some(stop),
            handle: Some(handle),
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.stop.take();
        self.handle.take().map(JoinHandle::join);
    }
}

/// `up0` with the addresses 192.0.2.1 and 2001:db8::1: the interface under the tunnel.
pub fn make_underlay() -> Link {
    ip("link add up0 mtu 1500 type veth peer name up1");
    ip("link set up1 up");
    ip("link set up0 up");
    ip("address add 192.0.2.1/24 dev up0");
    ip("address add 2001:db8::1/64 dev up0 nodad");
    link("up0")
}

/// A link of that name.
pub fn link(name: &str) -> Link {
    Link {
        name: name.into(),
        index: index(name),
    }
}

/// The index of the link of that name.
pub fn index(name: &str) -> u32 {
    let index = json(&format!("ip -j link show {name}"))[0]["ifindex"].as_u64();
    u32::try_from(index.unwrap()).unwrap()
}

/// The tunnel on [`make_underlay`]'s interface.
pub fn tunnel(underlay: &Link, local: &str) -> Tunnel {
    let local = local.parse().unwrap();
    let numbers = Numbers::default();
    Tunnel {
        underlay: underlay.clone(),
        local,
        vni: numbers.vni,
        port: numbers.port,
        mtu: 1400,
        mac: MacAddr::of_underlay(local),
        address: TUNNEL_ADDRESS,
    }
}

/// The layer under test.
pub fn rtnl() -> Rtnl {
    Rtnl::open(Numbers::default(), Sysctls::default()).unwrap()
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) -> String {
    run(&format!("ip {arguments}"))
}

/// Runs a command in the calling thread's namespace. It has to succeed.
pub fn run(command: &str) -> String {
    attempt(command).unwrap_or_else(|e| panic!("{command}: {e}"))
}

/// Runs a command in the calling thread's namespace.
pub fn attempt(command: &str) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What a command prints as JSON. Nothing is an empty list.
pub fn json(command: &str) -> Value {
    let text = run(command);
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

/// Waits until `holds`, which has ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}
