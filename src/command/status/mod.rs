//! `walsweep status`.

mod lines;
mod show;

use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::time::{Instant, sleep_until};

use super::cli::StatusArgs;
use super::failure::{Failure, halted, print};
use super::listener::{Page, page};
use super::load::of_running;
use crate::config::Config;
use crate::run::reload::Setting;
use crate::telemetry::status::{Level, Status};
use lines::Screen;
use show::{Look, fitted, shown};

/// How far apart two looks of `--watch` are.
const INTERVAL: Duration = Duration::from_secs(1);

/// Moves to the first place of a terminal, and clears from there on.
const REPAINT: &str = "\u{1b}[H\u{1b}[J";

/// Clears a terminal.
const CLEAR: &str = "\u{1b}[2J";

/// How it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text(Look),
    Json,
}

/// An answer of the running process.
struct Answer {
    /// Whether `/healthz` is 200; if not, why not.
    liveness: Result<(), String>,
    /// The text of `/readyz`.
    readiness: String,
    /// `/status`, as it came; empty from a version that has none.
    json: String,
}

/// `walsweep status`: how the running process is. It needs no shell and no other program, so that a
/// container can be asked for its health. Where it `watches`, it asks again each second until it is
/// ended.
///
/// # Errors
///
/// 78 for the configuration, 1 where nobody answers, or the process makes no progress; 1 also where
/// its verdict is that readers may see old values, unless that it is `alive` is enough.
pub async fn status(path: &Path, asked: StatusArgs) -> Result<(), Failure> {
    let Setting { config, .. } = of_running(path)?;
    let address = listens_at(&config)?;
    let form = if asked.json { Form::Json } else { Form::Text(look()) };
    match asked.watch {
        true => watch(address, form).await,
        false => once(address, form, asked.alive).await,
    }
}

fn listens_at(config: &Config) -> Result<SocketAddr, Failure> {
    config.http.listen.ok_or_else(|| {
        let hint = "give it an address, such as \"127.0.0.1:9185\"";
        let message = "`http.listen` is \"\", so that nobody can be asked";
        Failure::halted(message.to_owned()).with_hint(Some(hint))
    })
}

/// Colours only where a person looks, and wants them (<https://no-color.org>).
fn look() -> Look {
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let is_plain = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if stdout().is_terminal() && is_wanted && !is_plain { Look::Colour } else { Look::Plain }
}

async fn once(address: SocketAddr, form: Form, alive: bool) -> Result<(), Failure> {
    let answer = ask(address).await?;
    print(&told(&answer, form, (None, None))?)?;
    if !alive && is_wrong(&answer.json) {
        return Err(Failure::told(1));
    }
    answer.liveness.map_err(|why| halted(why.trim_end()))
}

/// Whether readers may see old values. A version without a verdict says nothing of it.
fn is_wrong(json: &str) -> bool {
    let status: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let level = serde_json::from_value(status["verdict"]["level"].clone());
    level.is_ok_and(|level: Level| level == Level::Wrong)
}

/// Asks again each second. Somebody who does not answer is said, and asked again.
async fn watch(address: SocketAddr, form: Form) -> Result<(), Failure> {
    let repaints = stdout().is_terminal() && form != Form::Json;
    let (mut before, mut next) = (None::<Status>, Instant::now());
    if repaints {
        print(CLEAR)?;
    }
    loop {
        let text = match ask(address).await {
            Ok(answer) => {
                let screen = repaints.then(screen).flatten();
                let text = told(&answer, form, (before.as_ref(), screen))?;
                before = serde_json::from_str(&answer.json).ok();
                text
            }
            Err(failure) if form == Form::Json => return Err(failure),
            Err(failure) => format!("{failure}\n"),
        };
        let end = if form == Form::Json { "" } else { "\n" };
        // An end of the last line would scroll the first away.
        let fits = text.trim_end();
        print(&if repaints { format!("{REPAINT}{fits}") } else { format!("{text}{end}") })?;
        next = (next + INTERVAL).max(Instant::now());
        sleep_until(next).await;
    }
}

async fn ask(address: SocketAddr) -> Result<Answer, Failure> {
    let health = page(address, "/healthz").await;
    let Some((is_well, why)) = body(health.text()).filter(|(_, text)| is_health(text)) else {
        return Err(health.failure(address));
    };
    let (readiness, json) = (page(address, "/readyz").await, page(address, "/status").await);
    let text =
        |answer: &Page| body(answer.text()).map(|(_, text)| text.to_owned()).unwrap_or_default();
    Ok(Answer {
        liveness: if is_well { Ok(()) } else { Err(why.to_owned()) },
        readiness: text(&readiness),
        json: text(&json),
    })
}

/// How large the terminal is, if it tells; it may be another size each time.
fn screen() -> Option<Screen> {
    let size = tcgetwinsize(stdout()).ok()?;
    let (rows, columns) = (size.ws_row.into(), size.ws_col.into());
    (rows > 0 && columns > 0).then_some(Screen { rows, columns })
}

/// Gives the text for an answer; rates are of what came since the state `before`. Where it is for a
/// terminal that is watched, it fits.
fn told(
    answer: &Answer,
    form: Form,
    (before, screen): (Option<&Status>, Option<Screen>),
) -> Result<String, Failure> {
    let look = match form {
        Form::Text(look) => look,
        Form::Json if answer.json.is_empty() => {
            let message = "the walsweep that runs is older than this one, and has no /status";
            return Err(Failure::halted(message.to_owned()));
        }
        Form::Json => return Ok(answer.json.clone()),
    };
    // One that is older has no more to say.
    let Ok(status) = serde_json::from_str::<Status>(&answer.json) else {
        return Ok(answer.readiness.clone());
    };
    Ok(match screen {
        Some(screen) => fitted(&answer.readiness, (&status, before), (look, screen)),
        None => format!("{}\n{}", answer.readiness, shown(&status, before, look)),
    })
}

/// Whether a text is what `/healthz` says; another program may answer whatever is asked.
fn is_health(text: &str) -> bool {
    ["alive", "no progress"].iter().any(|words| text.starts_with(words))
}

/// Whether an answer is 200, and its body; `None` if it is none of walsweep's.
pub(super) fn body(answer: &str) -> Option<(bool, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    match head.split(' ').nth(1)? {
        "200" => Some((true, body)),
        "503" => Some((false, body)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Form, Look, body, is_health, is_wrong, told};

    #[test]
    fn only_a_page_of_health_counts_as_an_answer() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\na: b\r\n\r\nalive\n", Some((true, "alive\n"))),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nno progress", Some((false, "no progress"))),
            ("HTTP/1.1 404 Not Found\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("", None),
        ] {
            assert_eq!(body(answer), expected, "{answer}");
        }
    }

    /// A server of web pages may have a page for whatever it is asked.
    #[test]
    fn a_page_of_another_program_is_no_answer() {
        assert!(is_health("alive\n") && is_health("no progress: for 300 s\n"));
        assert!(!is_health("<html>hello") && !is_health(""));
    }

    #[test]
    fn a_verdict_that_readers_may_see_old_values_is_told_by_the_exit_status() {
        for (json, expected) in [
            ("{\"verdict\": {\"level\": \"wrong\"}}", true),
            ("{\"verdict\": {\"level\": \"attention\"}}", false),
            ("{\"verdict\": {\"level\": \"well\"}}", false),
            ("{}", false),
            ("", false),
        ] {
            assert_eq!(is_wrong(json), expected, "{json}");
        }
    }

    /// While an upgrade is under way, and a newer program asks.
    #[test]
    fn of_an_older_walsweep_the_readiness_is_told_alone() {
        let (liveness, readiness) = (Ok(()), "ready\n".to_owned());
        let answer = Answer { liveness, readiness, json: String::new() };
        assert_eq!(told(&answer, Form::Text(Look::Plain), (None, None)).unwrap(), "ready\n");
        assert!(told(&answer, Form::Json, (None, None)).is_err());
        let answer = Answer { json: "{\"unknown\": 1}".to_owned(), ..answer };
        let text = told(&answer, Form::Text(Look::Plain), (None, None)).unwrap();
        assert!(text.starts_with("ready\n\n"), "{text}");
    }
}
