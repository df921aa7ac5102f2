//! libpq's password file (<https://www.postgresql.org/docs/current/libpq-pgpass.html>).

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;

use super::Endpoint;
use crate::password::{Source, Unread};

/// Far more than anyone's passwords; a wrong path must not fill the memory.
const PASSFILE_SIZE_MAX: u64 = 1024 * 1024;

/// A passfile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassfileError {
    /// It cannot be read.
    #[error("read passfile `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The source that the configuration names gives none.
    #[error("{}", .0.told("postgres"))]
    Source(#[from] Unread),
    /// Others than its owner may read it.
    #[error(
        "read passfile `{path}`: it has mode {mode:04o}, so that its group or others may read it; \
         run `chmod 600 {path}`"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl PassfileError {
    /// Whether a person has to change something; a command may give a password by the next time.
    pub(super) fn needs_a_person(&self) -> bool {
        match self {
            PassfileError::Source(unread) => unread.needs_a_person(),
            // A mount may come back.
            PassfileError::Read { source, .. } => source.kind() != io::ErrorKind::TimedOut,
            PassfileError::Permissions { .. } => true,
        }
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            PassfileError::Source(unread) => unread.hint(),
            PassfileError::Read { .. } | PassfileError::Permissions { .. } => {
                "write the password, and nothing else, into that file, and let the user that \
                 walsweep runs as read it"
            }
        }
    }
}

impl Endpoint {
    /// Fills [`Endpoint::password`], if it has no source: from `PGPASSWORD`, else from the
    /// passfile, which is `passfile` of the URL, else `PGPASSFILE`, else `~/.pgpass`. Without a
    /// matching line, or without a file where none was named in the URL, there is still none
    /// afterwards.
    ///
    /// A `~/.pgpass` that cannot be used is no error: nobody asked for it, and the server may want
    /// no password at all. It is kept in [`Endpoint::ignored_passfile`] for the login that fails.
    ///
    /// # Errors
    /// The file that the URL or `PGPASSFILE` names cannot be read; others may read a passfile.
    pub fn load_password(&mut self) -> Result<(), PassfileError> {
        let variable = |name| std::env::var_os(name);
        let pgpassword = std::env::var("PGPASSWORD").ok();
        self.load_password_from(pgpassword, variable("PGPASSFILE"), variable("HOME"))
    }

    pub(super) fn load_password_from(
        &mut self,
        pgpassword: Option<String>,
        pgpassfile: Option<OsString>,
        home: Option<OsString>,
    ) -> Result<(), PassfileError> {
        if self.password.is_some() {
            return Ok(());
        }
        if let Some(password) = pgpassword.filter(|text| !text.is_empty()) {
            self.password = Source::Given(SecretString::from(password));
            return Ok(());
        }
        let chosen = pgpassfile.filter(|path| !path.is_empty()).map(PathBuf::from);
        let is_chosen = self.passfile.is_some() || chosen.is_some();
        let default = || home.map(|home| Path::new(&home).join(".pgpass"));
        let Some(path) = self.passfile.clone().or(chosen).or_else(default) else {
            return Ok(());
        };
        match read(&path, self.passfile.is_some()) {
            Ok(lines) => {
                let lines = lines.unwrap_or_default();
                if let Some(found) = lines.lines().find_map(|line| password(line, self)) {
                    self.password = Source::Given(SecretString::from(found));
                }
            }
            Err(error) if is_chosen => return Err(error),
            Err(error) => self.ignored_passfile = Some(Arc::new(error)),
        }
        Ok(())
    }
}

/// Reads the file. One that is not there, or is no file (`PGPASSFILE=/dev/null`), is an error only
/// if the URL names it.
fn read(path: &Path, named: bool) -> Result<Option<String>, PassfileError> {
    let failed = |source| PassfileError::Read { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) if named => return Err(failed(io::Error::other("not a regular file"))),
        Err(error) if named || error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(error));
        }
        Ok(_) | Err(_) => return Ok(None),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PassfileError::Permissions { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    let mut file = fs::File::open(path).map_err(failed)?.take(PASSFILE_SIZE_MAX);
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// The password of a line `host:port:database:user:password`, if its first four fields match.
fn password(line: &str, endpoint: &Endpoint) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    let mut matches = |accepted: &[&str]| {
        let (field, after) = split_field(rest)?;
        rest = after;
        let field = if field == "*" { None } else { Some(unescape(field)) };
        field.is_none_or(|field| accepted.contains(&field.as_str())).then_some(())
    };
    let socket_host = if endpoint.is_unix_socket() { "localhost" } else { &endpoint.host };
    matches(&[&endpoint.host, socket_host])?;
    matches(&[&endpoint.port.to_string()])?;
    matches(&[&endpoint.database])?;
    matches(&[&endpoint.user])?;
    let password = unescape(split_field(rest).map_or(rest, |(password, _)| password));
    Some(password).filter(|password| !password.is_empty())
}

/// Splits at the first `:` that no backslash escapes.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            ':' if !escaped => return Some((text.get(..at)?, text.get(at + 1..)?)),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            _ => text.push(character),
        }
    }
    text
}
