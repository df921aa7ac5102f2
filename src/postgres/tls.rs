//! TLS as libpq does it: what is verified depends on `sslmode`
//! (<https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::{rfc4519, rfc5912};
use x509_cert::der::{Decode, oid::ObjectIdentifier};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::{ClientCertificate, Endpoint, Error, SslMode};
use crate::file;

/// Configures what to verify, from `sslmode` and `sslrootcert`. Without `sslrootcert` the modes
/// that verify trust the system's authorities.
pub(super) async fn client_config(endpoint: &Endpoint) -> Result<Arc<ClientConfig>, Error> {
    let certificate = endpoint.client_certificate.as_ref().map(|files| &files.certificate);
    let system = Path::new("system");
    let path = endpoint.ssl_root_cert.as_ref().or(certificate).map_or(system, PathBuf::as_path);
    let of_thread = endpoint.clone();
    let built = file::apart(path, file::TIMEOUT, move || build(&of_thread)).await;
    built.unwrap_or_else(|error| {
        let source = io::Error::new(error.kind(), format!("read `{}`: {error}", path.display()));
        Err(Error::Connect { address: endpoint.address(), source })
    })
}

fn build(endpoint: &Endpoint) -> Result<Arc<ClientConfig>, Error> {
    let trusts = match (endpoint.ssl_mode, &endpoint.ssl_root_cert) {
        (SslMode::Disable | SslMode::Prefer | SslMode::Require, None) => None,
        (_, Some(path)) => Some(Trust::from_file(path)?),
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => Some(Trust::of_system()?),
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier {
        trust: trusts,
        check_name: endpoint.ssl_mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the protocol versions of rustls")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(files) = &endpoint.client_certificate else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let (certificate, key) = files.read()?;
    let config = builder.with_client_auth_cert(certificate, key);
    Ok(Arc::new(config.map_err(|error| failed("sslcert", &files.certificate, &error))?))
}

impl ClientCertificate {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let failed_certificate = |reason: String| failed("sslcert", &self.certificate, &reason);
        let certificates = certificates(&self.certificate).map_err(failed_certificate)?;
        if certificates.is_empty() {
            return Err(failed("sslcert", &self.certificate, &"no certificate in it"));
        }
        let metadata = fs::metadata(&self.key);
        let metadata = metadata.map_err(|error| failed("sslkey", &self.key, &error))?;
        // As in libpq: one of root's may be readable by a group.
        let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & forbidden != 0 {
            let path = self.key.display();
            let reason = format!(
                "it has mode {mode:04o}, so that others may read it; run `chmod 600 {path}`"
            );
            return Err(failed("sslkey", &self.key, &reason));
        }
        let failed_key = |reason: String| failed("sslkey", &self.key, &reason);
        let key = file::read(&self.key, file::CERTIFICATES_MAX);
        let key = key.map_err(|error| failed_key(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&key);
        Ok((certificates, key.map_err(|error| failed_key(file::pem(&error)))?))
    }
}

/// The certificates in a PEM file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = file::read(path, file::CERTIFICATES_MAX).map_err(|error| error.to_string())?;
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem).collect();
    all.map_err(|error| file::pem(&error))
}

fn failed(parameter: &'static str, path: &Path, reason: &impl ToString) -> Error {
    Error::ClientCertificate { parameter, path: path.to_owned(), reason: reason.to_string() }
}

/// Certificates that are trusted.
#[derive(Debug)]
struct Trust {
    authorities: RootCertStore,
    /// The certificates themselves, whole: a server's own self-signed certificate may stand in
    /// `sslrootcert`, and is then trusted as it is.
    certificates: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn from_file(path: &Path) -> Result<Trust, Error> {
        let failed = |reason: String| Error::RootCertificates { path: path.to_owned(), reason };
        let certificates = certificates(path).map_err(&failed)?;
        Trust::of(certificates).ok_or_else(|| failed("no usable certificate in it".to_owned()))
    }

    fn of_system() -> Result<Trust, Error> {
        Trust::of(rustls_native_certs::load_native_certs().certs).ok_or_else(|| {
            let reason = "the system has no trusted certificates".to_owned();
            Error::RootCertificates { path: PathBuf::from("system"), reason }
        })
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Option<Trust> {
        let mut authorities = RootCertStore::empty();
        authorities.add_parsable_certificates(certificates.iter().cloned());
        (!authorities.is_empty()).then_some(Trust { authorities, certificates })
    }
}

/// Verifies a server's certificate as far as `sslmode` asks for. Whatever is trusted, the server
/// must prove that it owns the certificate: channel binding relies on that.
#[derive(Debug)]
struct Verifier {
    /// `None` trusts every certificate.
    trust: Option<Trust>,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if trust.certificates.contains(end_entity) {
            verify_dates(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trust.authorities,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.check_name {
            match verify_server_name(&parsed, server_name) {
                Err(_) if common_name_matches(end_entity, server_name) => {}
                result => result?,
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let certificate = Certificate::from_der(certificate)
        .map_err(|_malformed| rustls::Error::from(CertificateError::BadEncoding))?;
    let validity = certificate.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// As libpq, looks for the host in the common name if the certificate has no alternative names:
/// that is how the manual's own recipe makes certificates.
fn common_name_matches(certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> bool {
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return false;
    };
    let names = match certificate.tbs_certificate.get::<SubjectAltName>() {
        Ok(names) => names.map(|(_critical, names)| names.0).unwrap_or_default(),
        Err(_) => return false,
    };
    let has_alternative = names
        .iter()
        .any(|name| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_)));
    if has_alternative {
        return false;
    }
    let host = server_name.to_str();
    let attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|name| name.0.iter());
    attributes.filter(|attribute| attribute.oid == rfc4519::CN).any(|attribute| {
        let value = &attribute.value;
        let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
        let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string());
        utf8.or_else(|_| printable()).is_ok_and(|name| name_matches(&name, &host))
    })
}

/// libpq's rule: equal but for case, or `*.` in front for exactly one label.
fn name_matches(name: &str, host: &str) -> bool {
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, host_domain))) => {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(host_domain)
        }
        _ => name.eq_ignore_ascii_case(host),
    }
}

/// RFC 5929 `tls-server-end-point`: the certificate hashed by the hash of its own signature, MD5
/// and SHA-1 replaced by SHA-256. `None` where the signature names no single hash (Ed25519,
/// RSA-PSS): such a certificate cannot be bound.
pub(super) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    /// Not in the crate's tables: md5WithRSAEncryption and ecdsa-with-SHA1.
    const MD5_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4");
    const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");
    let parsed = Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.oid {
        MD5_WITH_RSA
        | ECDSA_WITH_SHA_1
        | rfc5912::SHA_1_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_256_WITH_RSA_ENCRYPTION
        | rfc5912::ECDSA_WITH_SHA_256 => Some(Sha256::digest(certificate).to_vec()),
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => {
            Some(Sha384::digest(certificate).to_vec())
        }
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        for (name, host, expected) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", false),
            ("*", "db", false),
            ("db", "db", true),
            ("db", "db2", false),
        ] {
            assert_eq!(name_matches(name, host), expected, "{name} {host}");
        }
    }
}
