//! `walsweep status`.

use std::path::Path;

use super::failure::{Failure, halted, print};
use super::listener::page;
use super::load::configuration;

/// `walsweep status`: what `/readyz` of the running process says, and whether `/healthz` is 200. It
/// needs no shell and no other program, so that a container can be asked for its health.
///
/// # Errors
///
/// 78 for the configuration, 1 where nobody answers, or the process makes no progress.
pub async fn status(path: &Path) -> Result<(), Failure> {
    let (config, _rules) = configuration(path)?;
    let Some(address) = config.http.listen else {
        let hint = "give it an address, such as \"127.0.0.1:9185\"";
        let message = "`http.listen` is \"\", so that nobody can be asked";
        return Err(Failure::halted(message.to_owned()).with_hint(Some(hint)));
    };
    let health = page(address, "/healthz").await;
    let Some((is_well, why)) = told(&health) else {
        let hint = "start `walsweep run`, or name the configuration that it runs with";
        let message = format!("ask at `http.listen` `{address}`: no walsweep answers there");
        return Err(Failure::halted(message).with_hint(Some(hint)));
    };
    let readiness = page(address, "/readyz").await;
    let (_is_ready, text) = told(&readiness).unwrap_or_default();
    print(text)?;
    if is_well { Ok(()) } else { Err(halted(why.trim_end())) }
}

/// Whether an answer is 200, and its body; `None` if it is none of walsweep's.
pub(super) fn told(answer: &str) -> Option<(bool, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    match head.split(' ').nth(1)? {
        "200" => Some((true, body)),
        "503" => Some((false, body)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn only_a_page_of_health_counts_as_an_answer() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\na: b\r\n\r\nalive\n", Some((true, "alive\n"))),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nno progress", Some((false, "no progress"))),
            ("HTTP/1.1 404 Not Found\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("", None),
        ] {
            assert_eq!(told(answer), expected, "{answer}");
        }
    }
}
