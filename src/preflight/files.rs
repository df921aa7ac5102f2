//! Files with secrets that others than their owner may read.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{Code, Finding, Report};
use crate::config::Config;

/// Looks at the modes of the files that the configuration names, and of a `~/.pgpass` that was
/// ignored for its mode. Nothing is refused for it: a mounted secret often belongs to root, who
/// lets everybody in the container read it. One of root's may be readable by a group, as libpq has
/// it for `sslkey`.
#[must_use]
pub fn files(config: &Config) -> Report {
    let postgres = &config.postgres.endpoint;
    let mut of_postgres: Vec<Finding> =
        postgres.password.file().into_iter().filter_map(exposed).collect();
    let logged_in = postgres.with_own_password().ok();
    if let Some(cause) = logged_in.and_then(|endpoint| endpoint.ignored_passfile) {
        of_postgres
            .push(Finding::warning(Code::PassfileIgnored, format!("{cause}: it is ignored")));
    }
    let secrets = config.redis.iter().flat_map(|redis| {
        let key = redis.client_certificate.iter().map(|(_certificate, key)| key.as_path());
        redis.password.file().into_iter().chain(key)
    });
    let secrets: BTreeSet<&Path> = secrets.collect();
    let of_redis = secrets.into_iter().filter_map(exposed).collect();
    Report { postgres: of_postgres, redis: of_redis, ..Report::default() }
}

/// Where links lead to is what counts.
fn exposed(path: &Path) -> Option<Finding> {
    let metadata = fs::metadata(path).ok()?;
    let mode = metadata.permissions().mode() & 0o7777;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden == 0 {
        return None;
    }
    let shown = path.display();
    let message = format!("`{shown}` has mode {mode:04o}: others than its owner may use it");
    let hint = format!(
        "`chmod 600 {shown}`, or 640 where its group is walsweep's; of a Kubernetes secret set \
         `defaultMode: 0440` and `fsGroup`"
    );
    Some(Finding::warning(Code::SecretReadable, message).hint(hint))
}
