//! Who listens where `walsweep run` would, and what he says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::telemetry::asker::HOST;
use crate::telemetry::metrics::{Metrics, SlotLabel};

/// How long whoever listens has for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most that is read of it, bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Who listens at an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listener {
    /// A walsweep that streams from this slot, or does not tell yet from which.
    Own,
    /// A walsweep that streams from another slot: its series of `walsweep_slot_info`.
    Another(String),
    /// Something else.
    Stranger,
}

/// Asks who listens at `address`. Where it is not known which slot is meant, a walsweep is believed
/// to be of that one.
pub(super) async fn listener(address: SocketAddr, slot: Option<SlotLabel>) -> Listener {
    judge(&page(address, "/metrics").await, slot)
}

/// Who gave this page of metrics.
fn judge(page: &str, slot: Option<SlotLabel>) -> Listener {
    if !page.contains("\n# TYPE walsweep_") {
        return Listener::Stranger;
    }
    let series = |page: &str| {
        let line = page.lines().find(|line| line.starts_with("walsweep_slot_info{"));
        line.and_then(|line| line.strip_suffix(" 1")).map(str::to_owned)
    };
    let own = slot.and_then(|slot| {
        let metrics = Metrics::new(&[]);
        metrics.slot_is(&slot);
        series(&metrics.text())
    });
    match (series(page), own) {
        (Some(whose), Some(own)) if whose != own => Listener::Another(whose),
        _ => Listener::Own,
    }
}

/// The beginning of the answer to a request for a page, with its head; nothing where nobody answers
/// in time. Of an address that stands for all of this host it asks at the loopback.
pub(super) async fn page(address: SocketAddr, path: &str) -> String {
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let host = if address.ip().is_unspecified() { loopback } else { address.ip() };
    let asked = answer(SocketAddr::new(host, address.port()), path);
    timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_default()
}

async fn answer(address: SocketAddr, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
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
    use super::{Listener, judge};
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
            let Listener::Another(whose) = judge(&page, Some(other)) else { panic!("{page}") };
            assert!(whose.contains("slot=\"walsweep\"") && whose.contains("\"7\""), "{whose}");
        }
        for page in ["", "HTTP/1.1 200 OK\r\n\r\nhello"] {
            assert_eq!(judge(page, Some(label("walsweep", "a", "7"))), Listener::Stranger);
        }
    }
}
