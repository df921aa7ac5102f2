//! The server whose slot is read, watched from beside the stream.
//!
//! - [`slot_server`]: which server that is, the primary or a standby, and whether it still is;
//! - [`slot_health`]: the disk that the slot costs, for whom it waits, and when it has to go;
//!   [`own`]: what has to be shown before it does, of which [`said`] is what Redis says, and
//!   [`lineage`] knows the timelines;
//! - [`shape`]: how the rules' tables read; [`watch`], which judges again what was judged before
//!   the start; and [`catalog_changes`], whether anybody wrote to the catalog since;
//! - [`between`]: what goes on while no session stands; [`holder`]: who has the slot then.

pub mod between;
pub mod catalog_changes;
mod error;
pub mod holder;
pub mod lineage;
pub mod own;
pub mod said;
pub mod shape;
pub mod slot_health;
pub mod slot_server;
pub mod watch;

pub use error::Error;
pub(crate) use error::within;
