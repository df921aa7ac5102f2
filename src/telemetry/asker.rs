//! Who asks for a page, as far as it decides what he is told.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST as HOST_HEADER, HeaderMap, HeaderValue};

/// The name of the host for which `walsweep why` asks.
pub const HOST: &str = "walsweep";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// Whether the connection comes from this machine.
    pub(super) is_here: bool,
}

impl Asker {
    /// Of a connection from `peer` to our address `own`.
    pub(super) fn new(peer: SocketAddr, own: Option<SocketAddr>) -> Asker {
        let peer = peer.ip().to_canonical();
        let is_own = own.is_some_and(|own| own.ip().to_canonical() == peer);
        Asker { is_here: peer.is_loopback() || is_own }
    }

    /// Whether the command of this machine asks, and nobody through a browser or a proxy.
    pub(super) fn is_command(self, headers: &HeaderMap) -> bool {
        self.is_here && is_of_command(headers)
    }

    /// Whether a page of another site may ask, through a browser that takes its name for this
    /// machine (DNS rebinding). Whoever comes from elsewhere has reached us by a name that is ours
    /// there.
    pub(super) fn may_be_another_site(self, headers: &HeaderMap) -> bool {
        let host = headers.get(HOST_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
        self.is_here && !std::str::from_utf8(host).is_ok_and(is_of_this_machine)
    }
}

/// Whether a host, with or without a port, is a name that no other site has.
fn is_of_this_machine(host: &str) -> bool {
    let has_port = |rest: &str| rest.is_empty() || rest.starts_with(':');
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return address.parse::<IpAddr>().is_ok() && has_port(rest);
    }
    let name = host.split_once(':').map_or(host, |(name, _port)| name).to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || [HOST, "localhost"].contains(&name.as_str())
        || name.ends_with(".localhost")
}

/// Whether a request names one host, [`HOST`], and nobody for whom it is passed on.
fn is_of_command(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST_HEADER).iter();
    let is_one = hosts.next().is_some_and(|host| host == HOST) && hosts.next().is_none();
    let is_passed_on = |name: &str| {
        ["forwarded", "via", "origin", "referer", "x-real-ip"].contains(&name)
            || ["x-forwarded-", "sec-"].iter().any(|prefix| name.starts_with(prefix))
    };
    is_one && !headers.keys().any(|name| is_passed_on(name.as_str()))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};

    use super::{Asker, is_of_command};

    #[test]
    fn a_request_that_is_passed_on_is_not_the_commands() {
        let is_of_command_with = |more: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in more {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            is_of_command(&headers)
        };
        let host = ("host", "walsweep");
        assert!(is_of_command_with(&[host, ("connection", "close")]));
        assert!(!is_of_command_with(&[]));
        assert!(!is_of_command_with(&[("host", "localhost")]));
        assert!(!is_of_command_with(&[host, host]));
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-real-ip",
            "via",
            "origin",
            "referer",
            "sec-fetch-site",
        ] {
            assert!(!is_of_command_with(&[host, (name, "1.2.3.4")]), "{name}");
        }
    }

    #[test]
    fn who_is_on_this_machine_comes_from_the_loopback_or_its_own_address() {
        for (peer, own, expected) in [
            ("127.0.0.1:5", "127.0.0.1:9187", true),
            ("[::1]:5", "[::1]:9187", true),
            ("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:9187", true),
            ("10.0.0.5:5", "10.0.0.5:9187", true),
            ("10.0.0.6:5", "10.0.0.5:9187", false),
        ] {
            let asker = Asker::new(peer.parse().unwrap(), own.parse().ok());
            assert_eq!(asker.is_here, expected, "{peer}");
        }
    }

    #[test]
    fn another_site_does_not_ask_through_a_browser_on_this_machine() {
        for (host, expected) in [
            ("127.0.0.1:9187", false),
            ("[::1]:9187", false),
            ("[::1]", false),
            ("localhost:9187", false),
            ("LOCALHOST", false),
            ("app.localhost:80", false),
            ("walsweep", false),
            ("evil.example:9187", true),
            ("localhost.evil.example", true),
            ("[::1]evil.example", true),
            ("", true),
        ] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            for (is_here, expected) in [(true, expected), (false, false)] {
                let asker = Asker { is_here };
                assert_eq!(asker.may_be_another_site(&headers), expected, "{host}");
            }
        }
    }
}
