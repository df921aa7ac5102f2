//! Certificates for tests of TLS, made by `openssl`, which has to be installed.

#![allow(dead_code, reason = "a kit of tools: no test needs all of them")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The usual part of a request: a short key that is not encrypted.
const EC: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";

/// A folder of certificates, each `NAME.crt` with its key `NAME.key`.
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// In this folder, two authorities, `ca` and `other`.
    pub(crate) fn new(folder: &Path) -> Certificates {
        let certificates = Certificates { folder: folder.to_owned() };
        for name in ["ca", "other"] {
            certificates.openssl(&format!(
                "req -x509 {EC} -subj /CN={name} -keyout {name}.key -out {name}.crt"
            ));
        }
        certificates
    }

    /// Adds a certificate `name` for `subject`, signed by `ca`; it vouches for the names of
    /// `alternatives`, such as `DNS:localhost`.
    pub(crate) fn sign(&self, name: &str, subject: &str, alternatives: &str) {
        self.openssl(&format!("req {EC} -subj /CN={subject} -keyout {name}.key -out {name}.csr"));
        fs::write(self.file("extensions"), format!("subjectAltName={alternatives}")).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.crt"
        ));
        self.hand_over(name);
    }

    /// Adds a certificate `name` for `localhost`, signed by itself, with a key of this kind.
    pub(crate) fn sign_itself(&self, name: &str, kind: &str) {
        self.openssl(&format!(
            "req -x509 -newkey {kind} -nodes -days 2 -subj /CN=localhost \
             -keyout {name}.key -out {name}.crt"
        ));
        self.hand_over(name);
    }

    /// Gives a certificate and its key to the folder's owner, and hides the key from all others.
    fn hand_over(&self, name: &str) {
        let owner = self.folder.metadata().unwrap();
        for file in [self.file(&format!("{name}.key")), self.file(&format!("{name}.crt"))] {
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Lines for `postgresql.conf` that turn TLS on with the certificate `server`.
    pub(crate) fn conf(&self) -> String {
        let file = |name: &str| self.file(name).display().to_string();
        let (certificate, key) = (file("server.crt"), file("server.key"));
        let authority = file("ca.crt");
        format!(
            "ssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\n\
             ssl_ca_file = '{authority}'"
        )
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(&self.folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", output.stderr.escape_ascii());
    }
}
