//! What the plugin does with a request of the runtime.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::captured;
use super::gate::{self, Answer, GateError, Request};
use super::notes::{Note, Notes};
use super::spec::{
    Attachment, CniError, Command, Configuration, OnTimeout, PodName, ValidAttachment, versions,
};
use super::standing::{self, Absent};

/// Between two tries to reach the agent.
const PAUSE: Duration = Duration::from_millis(50);
/// For what is not waited for: DEL, CHECK, GC.
const SHORT: Duration = Duration::from_secs(2);

/// Why a pod may not start.
enum Held {
    /// An address is still captured for another pod: it would send with that one's egress address.
    Taken(IpAddr),
    /// Nobody can say yet.
    Undecided(String),
}

/// What the runtime gets.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// On standard output; nothing for commands without a result.
    pub result: Option<Value>,
    /// What an administrator should read.
    pub warning: Option<String>,
}

/// Serves one command. `input` is the network configuration.
pub fn serve(command: &Command, input: &str) -> Result<Outcome, CniError> {
    if *command == Command::Version {
        return Ok(Outcome {
            result: Some(versions()),
            warning: None,
        });
    }
    let configuration = Configuration::parse(input)?;
    match command {
        Command::Add(attachment) => add(&configuration, attachment),
        Command::Check(attachment) => check(&configuration, attachment),
        Command::Del(attachment) => {
            let attachment = attachment.into();
            Notes::beside(&configuration.socket).remove(&attachment);
            Ok(tell(&configuration, Request::Del { attachment }))
        }
        Command::Gc => Ok(tell(
            &configuration,
            Request::Gc {
                valid: configuration.valid_attachments.iter().cloned().collect(),
            },
        )),
        // Pods of namespaces without a policy start even without the agent: ADD can always be served.
        Command::Status | Command::Version => Ok(Outcome::default()),
    }
}

fn add(configuration: &Configuration, attachment: &Attachment) -> Result<Outcome, CniError> {
    let addresses: BTreeSet<IpAddr> = configuration.addresses()?.into_iter().collect();
    let passed = |warning: Option<String>| {
        Ok(Outcome {
            result: configuration.prev_result.clone(),
            warning,
        })
    };
    let Some(pod) = &attachment.pod else {
        return passed(None);
    };
    let deadline = Instant::now() + configuration.timeout();
    match wait(configuration, pod, attachment, &addresses, deadline) {
        Ok(warning) => passed(warning),
        // The next try has another address, as a rule: no namespace is locked out.
        Err(Held::Taken(address)) => Err(CniError::TryAgain(format!(
            "{pod} was given {address}, which this node still captures for a pod that had it before, and the agent cannot \
             change that now; the kubelet tries again"
        ))),
        Err(Held::Undecided(why)) if is_exempt(configuration, pod) => passed(Some(format!(
            "{pod} starts ungated, as all of namespace {} do: {why}",
            pod.namespace
        ))),
        Err(Held::Undecided(why)) => match configuration.on_timeout {
            OnTimeout::Allow => passed(Some(format!("{pod} starts ungated: {why}"))),
            OnTimeout::Retry => Err(CniError::TryAgain(format!(
                "{pod} waits until its egress address is in force: {why}; the kubelet tries again"
            ))),
        },
    }
}

/// Asks until the agent says that the pod may start, or until the deadline; the error says why it may not. The
/// text of success is what an administrator should know.
fn wait(
    configuration: &Configuration,
    pod: &PodName,
    attachment: &Attachment,
    addresses: &BTreeSet<IpAddr>,
    deadline: Instant,
) -> Result<Option<String>, Held> {
    let notes = Notes::beside(&configuration.socket);
    let mut noted = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = Request::Add {
            pod: pod.clone(),
            attachment: attachment.into(),
            addresses: addresses.clone(),
            patience: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let why = match gate::ask(&configuration.socket, &request, left + SHORT) {
            Ok(Answer::Programmed | Answer::NotSelected | Answer::Done) => {
                if noted.is_some() {
                    notes.remove(&attachment.into());
                }
                return Ok(None);
            }
            Ok(Answer::Taken { address }) => return Err(Held::Taken(address)),
            Ok(Answer::NotYet { why }) => why,
            Err(error @ GateError::Garbled(_)) => error.to_string(),
            // An agent that begins listens first, and reads the notes then: asked once more after it was written, it
            // has either the note or the request.
            Err(GateError::Unreachable(_)) if noted.is_none() => {
                noted = Some(leave(&notes, pod, attachment, addresses));
                continue;
            }
            Err(error @ GateError::Unreachable(_)) => match without_agent(configuration, pod, addresses) {
                Ok(warning) => return Ok(warning.or(noted.flatten())),
                Err(Held::Taken(address)) => {
                    // It does not start.
                    notes.remove(&attachment.into());
                    return Err(Held::Taken(address));
                }
                Err(Held::Undecided(why)) => format!("{error}; {why}"),
            },
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(Held::Undecided(why));
        }
        thread::sleep(PAUSE);
    }
}

/// For the agent that comes next. The text says why it will not know of the pod in time.
fn leave(
    notes: &Notes,
    pod: &PodName,
    attachment: &Attachment,
    addresses: &BTreeSet<IpAddr>,
) -> Option<String> {
    let left = notes.leave(&Note {
        pod: pod.clone(),
        attachment: attachment.into(),
        addresses: addresses.clone(),
    });
    left.err()
        .map(|error| format!("failed to leave a note of {pod}: {error}"))
}

/// Whether the pod may start although no agent answers; the error says why not.
fn without_agent(
    configuration: &Configuration,
    pod: &PodName,
    addresses: &BTreeSet<IpAddr>,
) -> Result<Option<String>, Held> {
    let (standing, captured) = (&configuration.standing, captured::beside(&configuration.socket));
    let unreadable = |file: &Path, error: io::Error| {
        Held::Undecided(format!("failed to read {}: {error}", file.display()))
    };
    let absent = standing::absent(standing, &configuration.kubelet_pods, SystemTime::now());
    let known = match absent.map_err(|error| unreadable(standing, error))? {
        Absent::Down(known) => known,
        Absent::Removed(why) => {
            return Ok(Some(format!(
                "disarmed, {pod} starts without an egress address: {why}; remove {} from the network configuration",
                super::PLUGIN
            )));
        }
    };
    let sources = captured::read(&captured).map_err(|error| unreadable(&captured, error))?;
    if let Some(address) = captured::taken(&sources, addresses) {
        return Err(Held::Taken(address));
    }
    match known.namespaces.contains(&pod.namespace) {
        false => Ok(None),
        true => Err(Held::Undecided(format!(
            "policies may select pods of namespace {}, and the agent on this node is down",
            pod.namespace
        ))),
    }
}

fn check(configuration: &Configuration, attachment: &Attachment) -> Result<Outcome, CniError> {
    let Some(pod) = &attachment.pod else {
        return Ok(Outcome::default());
    };
    let request = Request::Check {
        pod: pod.clone(),
        addresses: configuration.addresses()?.into_iter().collect(),
    };
    match gate::ask(&configuration.socket, &request, SHORT) {
        Ok(Answer::NotYet { why }) => Err(CniError::NotProgrammed(format!("{pod}: {why}"))),
        Ok(_) => Ok(Outcome::default()),
        // What is in the kernel stays in force without the agent.
        Err(error) => Ok(Outcome {
            result: None,
            warning: Some(format!("{pod} is not checked: {error}")),
        }),
    }
}

/// DEL and GC must not fail for what is gone: an agent that is down asks the kernel when it comes back.
fn tell(configuration: &Configuration, request: Request) -> Outcome {
    let told = gate::ask(&configuration.socket, &request, SHORT);
    Outcome {
        result: None,
        warning: told.err().map(|error| error.to_string()),
    }
}

fn is_exempt(configuration: &Configuration, pod: &PodName) -> bool {
    configuration.exempt_namespaces.contains(&pod.namespace)
}

impl From<&Attachment> for ValidAttachment {
    fn from(attachment: &Attachment) -> Self {
        Self {
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
        }
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests;
