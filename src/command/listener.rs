//! Who listens where `walsweep run` would, and what he says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::Failure;
use crate::telemetry::asker::HOST;
use crate::telemetry::metrics::SlotLabel;

/// How long whoever listens has for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most that is read of it, bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Who listens at an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listener {
    /// A walsweep that streams from this slot, or does not tell yet from which.
    Own,
    /// A walsweep that streams from another slot.
    Another(SlotLabel),
    /// Somebody who does not answer in time: perhaps a walsweep that is stopped.
    Silent,
    /// Something else.
    Stranger,
}

/// Asks who listens at `address`. Where it is not known which slot is meant, a walsweep is believed
/// to be of that one.
pub(super) async fn listener(address: SocketAddr, slot: Option<SlotLabel>) -> Listener {
    match page(address, "/metrics").await {
        Page::Silent => Listener::Silent,
        page => judge(page.text(), slot),
    }
}

/// Says that somebody listens who does not answer.
pub(super) fn silent() -> String {
    format!("a process listens there, and does not answer within {} s", ANSWER_TIMEOUT.as_secs())
}

/// Cure of [`silent`].
pub(super) const SILENT_HINT: &str = "it is stopped, or hangs: `ss -ltnp` names it; if it is \
                                      walsweep, and `ps -o stat` shows `T`, let it go on (`kill \
                                      -CONT`); else restart it";

/// An answer to a request for a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// The beginning of it, with its head; whatever it is.
    Answer(String),
    /// Nobody listens.
    Nobody,
    /// Somebody listens, and does not answer in time.
    Silent,
}

impl Page {
    /// The beginning of the answer; nothing where there is none.
    pub(super) fn text(&self) -> &str {
        match self {
            Page::Answer(text) => text,
            Page::Nobody | Page::Silent => "",
        }
    }

    /// Says that this was no answer of a walsweep, as one that `/healthz` gave.
    pub(super) fn failure(&self, address: SocketAddr) -> Failure {
        let (what, hint) = match self {
            Page::Answer(text) if !text.is_empty() => (
                "another program answers there, which is no walsweep".to_owned(),
                "`ss -ltnp` names it; let `http.listen` be the address of the walsweep that you \
                 mean",
            ),
            Page::Silent => (silent(), SILENT_HINT),
            Page::Answer(_) | Page::Nobody => (
                "no walsweep answers there".to_owned(),
                "start `walsweep run`, or name the configuration that it runs with by `--config`; \
                 one whose `http.listen` is to change needs a restart",
            ),
        };
        let message = format!("ask at `http.listen` `{address}`: {what}");
        let failure = Failure::halted(message).with_hint(Some(hint));
        match self {
            Page::Silent => failure.with_section("walsweep-does-not-start"),
            Page::Answer(_) | Page::Nobody => failure,
        }
    }
}

/// Who gave this page of metrics.
fn judge(page: &str, slot: Option<SlotLabel>) -> Listener {
    if !page.contains("\n# TYPE walsweep_") {
        return Listener::Stranger;
    }
    let line = page.lines().find(|line| line.starts_with("walsweep_slot_info{"));
    match (line.and_then(slot_of), slot) {
        (Some(theirs), Some(own)) if theirs != own => Listener::Another(theirs),
        _ => Listener::Own,
    }
}

/// The slot that a series tells of.
fn slot_of(series: &str) -> Option<SlotLabel> {
    let value = |name: &str| {
        let (_, rest) = series.split_once(&format!("{name}=\""))?;
        let (mut value, mut is_escaped) = (String::new(), false);
        for one in rest.chars() {
            match (is_escaped, one) {
                (false, '"') => return Some(value),
                (false, '\\') => is_escaped = true,
                (is_newline, one) => {
                    value.push(if is_newline && one == 'n' { '\n' } else { one });
                    is_escaped = false;
                }
            }
        }
        None
    };
    let (slot, database) = (value("{slot").or_else(|| value(",slot"))?, value("database")?);
    Some(SlotLabel { slot, database, system_id: value("system_id")? })
}

/// The answer to a request for a page. Of an address that stands for all of this host it asks at
/// the loopback.
pub(super) async fn page(address: SocketAddr, path: &str) -> Page {
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let host = if address.ip().is_unspecified() { loopback } else { address.ip() };
    let connecting = TcpStream::connect(SocketAddr::new(host, address.port()));
    let Ok(Ok(stream)) = timeout(ANSWER_TIMEOUT, connecting).await else { return Page::Nobody };
    let answer = timeout(ANSWER_TIMEOUT, answer(stream, path)).await;
    answer.map_or(Page::Silent, Page::Answer)
}

async fn answer(mut stream: TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return String::new();
    }
    let mut answer = Vec::new();
    // What came before an error counts.
    drop(stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await);
    let text = answer.utf8_chunks().flat_map(|chunk| chunk.valid().chars());
    // Whoever listens may be anybody: nothing of his moves the cursor of a terminal.
    text.filter(|one| !one.is_control() || ['\r', '\n', '\t'].contains(one)).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::{Listener, Page, judge, page};
    use crate::telemetry::metrics::{Metrics, SlotLabel};

    fn label(slot: &str, database: &str, system_id: &str) -> SlotLabel {
        let [slot, database, system_id] = [slot, database, system_id].map(str::to_owned);
        SlotLabel { slot, database, system_id }
    }

    /// A name may be `walsweep` everywhere.
    #[test]
    fn a_walsweep_is_known_by_slot_database_and_cluster() {
        let metrics = Metrics::new(&[]);
        let young = format!("HTTP/1.1 200 OK\r\n\r\n{}", metrics.text());
        metrics.slot_is(&label("walsweep", "a\"b", "7"));
        let page = format!("HTTP/1.1 200 OK\r\n\r\n{}", metrics.text());
        assert_eq!(judge(&page, Some(label("walsweep", "a\"b", "7"))), Listener::Own);
        assert_eq!(judge(&page, None), Listener::Own);
        assert_eq!(judge(&young, Some(label("other", "a", "7"))), Listener::Own);
        for other in [("other", "a\"b", "7"), ("walsweep", "a", "7"), ("walsweep", "a\"b", "8")] {
            let other = label(other.0, other.1, other.2);
            let theirs = Listener::Another(label("walsweep", "a\"b", "7"));
            assert_eq!(judge(&page, Some(other)), theirs);
        }
        for page in ["", "HTTP/1.1 200 OK\r\n\r\nhello"] {
            assert_eq!(judge(page, Some(label("walsweep", "a", "7"))), Listener::Stranger);
        }
    }

    /// Whoever listens answers once, with these bytes.
    async fn asked(answer: &'static [u8]) -> Page {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _asked = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(page(address, "/healthz"), answers).0
    }

    /// Whoever listens may be anybody, and what he says is shown on a terminal.
    #[tokio::test]
    async fn nothing_of_an_answer_moves_the_cursor() {
        let answer = asked(b"a\x1b[2J\x07\x08b\r\n\tc\xc2\x9bd\xff\x00e").await;
        assert_eq!(answer, Page::Answer("a[2Jb\r\n\tcde".to_owned()));
    }

    #[tokio::test]
    async fn who_does_not_answer_is_told_from_who_is_not_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(super::listener(address, None).await, Listener::Silent);
        let silent = page(address, "/healthz").await;
        let said = silent.failure(address).to_string();
        assert!(silent == Page::Silent && said.contains("listens there, and does not"), "{said}");
        drop(listener);
        let nobody = page(address, "/healthz").await;
        let said = nobody.failure(address).to_string();
        assert!(nobody == Page::Nobody && said.contains("no walsweep answers"), "{said}");
        let stranger = asked(b"HTTP/1.1 404 Not Found\r\n\r\n").await;
        let said = stranger.failure(address).to_string();
        assert!(said.contains("another program answers there, which is no walsweep"), "{said}");
    }
}
