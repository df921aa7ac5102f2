//! `walsweep demo`.

use super::failure::{Failure, halted};
use crate::demo::{self, DemoOptions};
use crate::throwaway;

/// `walsweep demo`.
///
/// # Errors
///
/// 1 when a server does not start, or a key did not do as it should.
pub async fn demo(keep: bool) -> Result<(), Failure> {
    demo::run(DemoOptions { keep }).await.map_err(|error| {
        let hint = matches!(error, demo::Error::Server(throwaway::Error::Missing { .. }))
            .then_some(
                "install both servers: `apt install postgresql redis-server`; none has to run",
            );
        halted(&error).with_hint(hint)
    })
}
