//! A Redis: how it is reached, what is asked of it, and what that costs it.
//!
//! - [`connect`], [`sentinel`] and [`standalone`]: its connections; [`cluster`]: several servers
//!   as one;
//! - [`endpoint`]: one address that may hide several servers;
//! - [`node`]: what a sweeper asks of it; [`standing`]: the watermark, for whoever has no sweeper;
//! - [`unlink`], exact keys; [`pass`], patterns; [`inside`], fields and tags, by [`act`];
//! - [`observe`], which keys were written again; [`index`], which keys there are;
//! - [`pace`], [`measure`] and [`budget`]: how much of its time SCAN may take, and takes;
//! - [`lease`]: functions for readers, which no stage knows; [`canary`]: the key of a probe.

pub(super) mod act;
pub(super) mod budget;
pub mod canary;
pub mod cluster;
pub mod connect;
pub mod endpoint;
pub(super) mod info;
pub(super) mod index;
pub(super) mod inside;
pub mod lease;
mod renewal;
pub(super) mod measure;
pub(super) mod node;
pub(super) mod observe;
mod own;
mod prefix;
pub(super) mod pace;
pub(super) mod pass;
pub(super) mod pass_items;
pub mod sentinel;
mod slots;
pub(super) mod standalone;
pub(super) mod standing;
mod tracking;
pub(super) mod unlink;
