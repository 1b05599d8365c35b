//! The lab: a real three-node Kubernetes cluster in network namespaces, as a library for the tests and,
//! as the program `lab`, for `make`.
//!
//! Everything of a cluster is below one control group, in named network namespaces and in one folder, all
//! three called after the cluster; [`cluster::down`] removes them in whatever state they are.

pub mod api_server;
pub mod capture;
pub mod cgroup;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod dump;
pub mod echo;
pub mod error;
pub mod flannel;
pub mod hunt;
pub mod images;
pub mod kube_proxy;
pub mod kubectl;
pub mod launch;
pub mod lock;
pub mod netns;
pub mod network;
pub mod node;
pub mod pki;
pub mod power;
pub mod progress;
pub mod proxy;
pub mod residue;
pub mod runtime_folders;
pub mod site;
pub mod temporary;
pub mod topology;
pub mod wait;
pub mod walk;
pub mod workloads;
