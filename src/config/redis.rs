//! `[redis]`: its URL, with the password taken out of it (I9).

use std::path::PathBuf;

use ::redis::IntoConnectionInfo;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::SecretString;
use url::Url;

use super::Redis;
use super::parse::password_file;
use super::reader::{Reader, Section};

const URL_HINT: &str = "give it as `redis://host:6379/0`, or `rediss://` for TLS";

/// Reads the section.
pub(super) fn redis(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Option<Redis> {
    let mut section = reader.section(root, "redis");
    let url = reader.required_text(&mut section, "url", URL_HINT);
    let has_password_file = section.has("password_file");
    let file_password = password_file(reader, &mut section);
    let ca_file = reader.text(&mut section, "ca_file");
    reader.finish(&section);
    if let Some(path) = &ca_file
        && let Err(reason) = authorities(&path.value)
    {
        let message = format!("read `{}`: {reason}", path.value);
        let hint = "name a PEM file of certificate authorities";
        reader.problem(path.at.clone(), message, Some(hint));
    }
    let url = url?;
    let address = match Address::parse(&url.value) {
        Ok(address) => address,
        Err(message) => {
            reader.problem(url.at, message, Some(URL_HINT));
            return None;
        }
    };
    if let Some(path) = ca_file.as_ref().filter(|_| !address.is_encrypted) {
        let message = "`redis.url` is not `rediss://`, so the server shows no certificate";
        let hint = "write `rediss://` for TLS, or take `ca_file` away";
        reader.problem(path.at.clone(), message.to_owned(), Some(hint));
    }
    if let (Some(file), Some(_)) = (&file_password, &address.password) {
        let message = "`redis.url` has a password, too".to_owned();
        reader.problem(file.at.clone(), message, Some("keep one of the two"));
    }
    // The client library would go on as the default user.
    if address.has_user && address.password.is_none() && !has_password_file {
        let message = "the URL names a user and no password".to_owned();
        let hint = "a password alone is written `redis://:password@host`; or name a file with it \
                    in `password_file`";
        reader.problem(url.at, message, Some(hint));
    }
    let password = address.password.or(file_password.map(|file| file.value));
    Some(Redis {
        url: address.url,
        password,
        ca_file: ca_file.map(|path| PathBuf::from(path.value)),
    })
}

/// Whether a file holds certificates of which at least one can be trusted.
fn authorities(path: &str) -> Result<(), String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.map_err(|error| error.to_string())?);
    if store.is_empty() { Err("no usable certificate in it".to_owned()) } else { Ok(()) }
}

/// What a Redis URL says. No message about it repeats any of it: where a character of the password
/// is not encoded, each part may be one of the password.
struct Address {
    /// The URL without its password.
    url: String,
    password: Option<SecretString>,
    has_user: bool,
    is_encrypted: bool,
}

impl Address {
    fn parse(text: &str) -> Result<Address, String> {
        let not_a_url = || "is not a Redis URL".to_owned();
        let mut url = Url::parse(text).ok().ok_or_else(not_a_url)?;
        let parameters: &[&str] = match url.scheme() {
            "redis" | "rediss" => &["protocol"],
            "redis+unix" | "unix" => &["db", "user", "pass", "protocol"],
            _ => return Err(not_a_url()),
        };
        // The client library ignores what it does not know, such as the database `?db=3` over TCP.
        if url.query_pairs().any(|(name, _)| !parameters.contains(&&*name)) {
            let known = parameters.join("`, `");
            return Err(format!("the URL has an unknown parameter; known are `{known}`"));
        }
        if url.fragment().is_some() {
            let message = "the URL has a part after `#`; certificates are always verified, and in \
                           a password `#` is written `%23`";
            return Err(message.to_owned());
        }
        let password = take_password(&mut url).ok_or_else(not_a_url)?;
        let info = url.as_str().into_connection_info().map_err(|error| {
            // Its detail repeats the value; what comes before the kind does not.
            let text = error.to_string().to_lowercase();
            let reason = text.split(" - ").next().unwrap_or_default();
            format!("the URL is not accepted: {reason}")
        })?;
        let has_user = info.redis_settings().username().is_some();
        let is_encrypted = url.scheme() == "rediss";
        Ok(Address { url: url.into(), password, has_user, is_encrypted })
    }
}

/// Removes the password, which the URL of a socket has as a parameter; `None` if it is not text.
fn take_password(url: &mut Url) -> Option<Option<SecretString>> {
    let mut password = None;
    if let Some(encoded) = url.password() {
        let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8().ok()?;
        password = Some(SecretString::from(decoded.as_ref()));
        url.set_password(None).ok()?;
    }
    let (mut others, query) = (Vec::new(), url.query_pairs().into_owned());
    for (name, value) in query {
        match name.as_str() {
            "pass" => password = Some(SecretString::from(value)),
            _ => others.push((name, value)),
        }
    }
    url.set_query(None);
    if !others.is_empty() {
        url.query_pairs_mut().extend_pairs(others);
    }
    Some(password)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::Address;

    #[test]
    fn the_password_is_taken_out_of_every_form_of_url() {
        for (text, url, password, has_user) in [
            ("redis://h:1/2", "redis://h:1/2", None, false),
            ("redis://:p%40%23s@h", "redis://h", Some("p@#s"), false),
            (
                "rediss://u:p@[::1]:7/1?protocol=resp3",
                "rediss://u@[::1]:7/1?protocol=resp3",
                Some("p"),
                true,
            ),
            (
                "redis+unix:///s?db=1&user=u&pass=p%26s",
                "redis+unix:///s?db=1&user=u",
                Some("p&s"),
                true,
            ),
            ("unix:///s?pass=p", "unix:///s", Some("p"), false),
            ("unix:///s", "unix:///s", None, false),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.url, url);
            let taken = address.password.as_ref().map(ExposeSecret::expose_secret);
            assert_eq!(taken, password, "{text}");
            assert_eq!(address.has_user, has_user, "{text}");
            assert_eq!(address.is_encrypted, text.starts_with("rediss"), "{text}");
        }
    }

    #[test]
    fn what_the_client_library_would_ignore_or_refuse_later_is_refused() {
        for (text, reason) in [
            ("hunter2", "not a Redis URL"),
            ("http://:hunter2@h", "not a Redis URL"),
            ("redis://:%ffhunter2@h", "not a Redis URL"),
            ("redis://:hunter2@h/x", "invalid database number"),
            ("redis:///0", "missing hostname"),
            ("redis://:hunter2@0.0.0.0", "wildcard address"),
            ("redis://h?db=hunter2", "known are `protocol`"),
            ("redis://h?protocol=hunter2", "invalid protocol version"),
            ("redis://u:1?hunter2@h", "known are `protocol`"),
            ("unix:///s?database=1", "known are `db`, `user`, `pass`, `protocol`"),
            ("unix:///s?db=hunter2", "invalid database number"),
            ("unix:s", "missing path"),
            ("rediss://h/#insecure", "certificates are always verified"),
        ] {
            let said = Address::parse(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(said.contains(reason), "{text}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
