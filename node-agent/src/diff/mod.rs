//! What has to change: `desired` and `observed` in, ordered steps out. Pure.

pub mod net;
pub mod nft;

pub use net::{NetObject, NetStep};
pub use nft::{NftStep, ObservedChain, ObservedTable, SetType};
