//! `walsweep demo`.

use walsweep_stage::demo::{self, DemoOptions};
use walsweep_stage::throwaway;

use super::failure::{Failure, halted};

/// The demonstration's rules, which are also the reference of all options.
const CONFIG: &str = include_str!("../../config.toml");

/// `walsweep demo`.
///
/// # Errors
///
/// 1 when a server does not start, or a key did not do as it should.
pub async fn demo(keep: bool) -> Result<(), Failure> {
    demo::run(DemoOptions { keep, config: CONFIG }).await.map_err(|error| {
        if let demo::Error::Io { action: demo::REPORT, source } = &error {
            return Failure::of_output(source);
        }
        let hint = matches!(error, demo::Error::Server(throwaway::Error::Missing { .. }))
            .then_some(
                "install both servers: `apt install postgresql redis-server`; none has to run",
            );
        halted(&error).with_hint(hint)
    })
}
