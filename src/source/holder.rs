//! Who has the slot: which process of the server.

/// A process of the server that serves a stream. A number alone says little: after a restart of the
/// server another process may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walsender {
    /// Its process id on the server.
    pub pid: i32,
    /// When it began, in seconds since 1970, if that may be seen.
    pub since: Option<String>,
}
