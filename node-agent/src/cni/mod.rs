//! The start gate: a chained CNI plugin that lets a pod's network come up only when the datapath knows the pod.
//!
//! `egressnat-cni` is called last in a pod's ADD. It hands pod and addresses to the node's agent ([`gate`]) and
//! waits for its word; only then does the runtime start the pod. Where the agent does not answer, it decides by
//! what the agent left on the node ([`standing`], [`captured`]), and leaves a note of the pods that start ([`notes`]). Where the plugin is not
//! in the chain, the runtime's own cache tells of pods and addresses ([`results`]). Nothing here knows a client or a
//! kernel; the program around the plugin is `src/bin/egressnat-cni.rs`.

pub mod captured;
pub mod config;
pub mod gate;
pub mod notes;
pub mod plugin;
pub mod results;
pub mod spec;
pub mod standing;

/// The plugin's file name, and its `type` in network configurations.
pub const PLUGIN: &str = "egressnat-cni";
