//! Whether Redis tells which keys are written.

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};

use super::redis::{Needs, is_about_key, is_denied, right};
use super::{Code, Finding, Severity};
use crate::config::Target;

/// Whether writes can be observed, as `refill.observe` and `sweep.index` ask. Without it every
/// second removal takes all keys, and patterns go by SCAN, so that nothing of the promise is lost.
pub(super) async fn tracking(
    needs: &Needs,
    target: &Target,
    connection: &mut MultiplexedConnection,
) -> Option<Finding> {
    let mut on = cmd("CLIENT");
    on.arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
    on.arg("PREFIX").arg(format!("{}:check", needs.watermark));
    let mut off = cmd("CLIENT");
    off.arg("TRACKING").arg("OFF");
    let mut exists = cmd("EXISTS");
    exists.arg(format!("{}:check", needs.watermark));
    let exists = target.sweep.index.is_some().then_some((exists, "exists"));
    // `HELLO` alone changes nothing, and is known where RESP3 is.
    let all = [(cmd("HELLO"), "hello"), (on, "client|tracking"), (off, "client|tracking")];
    for (command, name) in all.into_iter().chain(exists) {
        let Err(error) = command.query_async::<Value>(connection).await else { continue };
        let finding = if is_denied(&error) {
            needs.lacks(&[right(&error, (name, &needs.own))], is_about_key(&error))
        } else {
            let message = format!("redis cannot tell which keys are written: {error}");
            let hint = match target.sweep.index {
                Some(_) => "set `sweep.index` to false: patterns go by SCAN anyway",
                None => "set `refill.observe` to false: every second removal takes all keys anyway",
            };
            Finding::error(Code::RedisTracking, message).hint(hint)
        };
        return Some(Finding { severity: Severity::Warning, code: Code::RedisTracking, ..finding });
    }
    None
}
