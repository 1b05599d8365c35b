//! What has to change: `desired` and `observed` in, ordered steps out. Pure.

pub mod flows;
pub mod net;
pub mod nft;

pub use net::{NetChanges, NetObject, NetStep};
pub use nft::{NftStep, ObservedChain, ObservedTable, SetType};

#[cfg(test)]
mod tests;
