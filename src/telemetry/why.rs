//! `/why?key=KEY`: the answer to `walsweep why KEY`.
//!
//! Whoever may ask learns whether a key that he names was removed, when, and for which transaction.
//! He who guesses keys would learn which rows there are, and which change. So without `[http] keys`
//! it is told to this machine alone, and to no browser or proxy on it: these name another host than
//! [`HOST`](super::asker::HOST), as which the command asks, or say for whom they ask. Where a proxy
//! says neither it cannot be told from the command.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::Health;
use super::asker::Asker;
use super::http::{Body, text};

/// One at a time: the others wait.
static ASKED: Mutex<()> = Mutex::const_new(());

/// Answers with an [`Answer`](super::trail::Answer) as JSON; 400 without a key, 403 for whoever may
/// not ask.
pub(super) async fn answer(
    request: &Request<Incoming>,
    health: &Arc<Health>,
    asker: Asker,
) -> Response<Body> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let is_command = asker.is_command(request.headers());
    if !(health.facts().tells_keys() || is_command) {
        let why = "only `walsweep why` on this machine may ask, unless `[http] keys = true`\n";
        return text(StatusCode::FORBIDDEN, why.to_owned());
    }
    let Some(key) = key(request.uri().query().unwrap_or_default()) else {
        return text(StatusCode::BAD_REQUEST, "ask for /why?key=KEY\n".to_owned());
    };
    let _turn = ASKED.lock().await;
    let health = Arc::clone(health);
    // A thread of its own: it takes the lock of the trail for a short while at a time.
    let found = spawn_blocking(move || {
        let told = (health.readiness().1, health.suspended());
        health.trail().find(&key, told)
    });
    let Ok(found) = found.await else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, String::new());
    };
    let body = serde_json::to_string(&found).expect("texts and numbers are JSON");
    let mut response = text(StatusCode::OK, body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The key that a query names, decoded; any bytes.
fn key(query: &str) -> Option<Vec<u8>> {
    let key = query.split('&').find_map(|part| part.strip_prefix("key="))?;
    Some(percent_decode_str(key).collect())
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_key_of_any_bytes_can_be_asked_for() {
        for (query, expected) in [
            ("key=item%3a1", Some(&b"item:1"[..])),
            ("a=b&key=%FF%00%26%2B+", Some(b"\xff\0&++")),
            ("key=", Some(b"")),
            ("kee=1", None),
            ("", None),
        ] {
            assert_eq!(key(query).as_deref(), expected, "{query}");
        }
    }
}
