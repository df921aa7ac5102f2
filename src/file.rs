//! Files that others lay down for us: passwords, certificates, the configuration.
//!
//! Takes: a path. Gives: what is in the file. Never knows: what it means. Whatever reads a file
//! waits as long as the file system does: for a pipe as long as nobody writes into it, for a mount
//! whose server is gone for good. So pipes are refused, and while the program runs files are read
//! on threads of their own, for which nobody waits longer than a limit.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustls::pki_types::pem;
use secrecy::zeroize::Zeroizing;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// How long a file may take to be read: less than any login has.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// More than all certificate authorities of the world take, bytes; a wrong path must not fill the
/// memory.
pub const CERTIFICATES_MAX: u64 = 4 << 20;

/// The content of a regular file.
///
/// # Errors
///
/// The file cannot be read, is a pipe, a device or a folder, or has more than `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = OpenOptions::new().read(true).custom_flags(unwaiting()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    // A vector that grows leaves parts of a secret behind.
    let size = usize::try_from(found.len().min(max) + 1).unwrap_or_default();
    let mut content = Zeroizing::new(Vec::with_capacity(size));
    file.take(max.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > max {
        return Err(io::Error::other(format!("the file has more than {} KiB", max / 1024)));
    }
    Ok(content)
}

/// Why the content of a file is no PEM, for people: the library shows the bytes of a marker.
#[must_use]
pub fn pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let what = if end_marker.ends_with(b"KEY") { "key" } else { "certificate" };
            format!("it ends in the middle of a {what}")
        }
        pem::Error::IllegalSectionStart { .. } => "a line that begins a part is broken".to_owned(),
        other => other.to_string(),
    }
}

/// Flags to open what may be a pipe or a device: its other end is not waited for. On a regular file
/// they do nothing.
#[must_use]
pub fn unwaiting() -> i32 {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    i32::try_from(flags.bits()).expect("these are two low bits")
}

/// Flags to open a file under its own name, and not what a link leads to.
#[must_use]
pub fn unfollowing() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).expect("it is a low bit")
}

/// Somebody who reads a file, on a thread that has not ended.
struct Reader {
    id: u64,
    path: PathBuf,
    began: Instant,
}

/// Whoever reads now. One that hangs stays, so that its file is not tried by ever more threads.
static READERS: Mutex<Vec<Reader>> = Mutex::new(Vec::new());

fn readers() -> MutexGuard<'static, Vec<Reader>> {
    READERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work`, which reads the file `path`, on a thread of its own. May be cancelled; the thread
/// ends when the file system lets it.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] if it takes longer than `limit`, or an earlier reader of the same path
/// still does; that there is no thread for it.
pub async fn apart<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let hangs = || {
        let seconds = limit.as_secs();
        let message = format!("the file system has not answered for {seconds} s");
        io::Error::new(ErrorKind::TimedOut, message)
    };
    let id = LAST.fetch_add(1, Ordering::Relaxed);
    {
        let mut readers = readers();
        if readers.iter().any(|one| one.path == path && one.began.elapsed() >= limit) {
            return Err(hangs());
        }
        readers.push(Reader { id, path: path.to_owned(), began: Instant::now() });
    }
    let (sender, receiver) = oneshot::channel();
    let end = Ended(id);
    let spawned = thread::Builder::new().name("walsweep-file".to_owned()).spawn(move || {
        let outcome = work();
        drop(end);
        // Who asked may wait no longer.
        drop(sender.send(outcome));
    });
    // There may be one later.
    spawned.map_err(|error| io::Error::new(ErrorKind::TimedOut, format!("no thread: {error}")))?;
    match timeout(limit, receiver).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(io::Error::other("the thread that read it ended early")),
        Err(_) => Err(hangs()),
    }
}

/// Takes the reader of this id from the list when it is dropped.
struct Ended(u64);

impl Drop for Ended {
    fn drop(&mut self) {
        readers().retain(|one| one.id != self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::path::Path;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustls::pki_types::pem::{PemObject, SectionKind};

    use super::{TIMEOUT, apart, read, readers};

    #[test]
    fn a_regular_file_is_read_and_nothing_else_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let [file, pipe] = ["file", "pipe"].map(|name| folder.path().join(name));
        fs::write(&file, "12345").unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(&**read(&file, 5).unwrap(), b"12345");
        for (path, max, expected) in [
            (file.as_path(), 4, "more than"),
            (&pipe, 5, "no regular file"),
            (folder.path(), 5, "no regular file"),
            (Path::new("/dev/zero"), 5, "no regular file"),
        ] {
            let error = read(path, max).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", path.display());
        }
    }

    #[tokio::test]
    async fn who_hangs_is_not_waited_for_and_not_tried_again_until_he_is_back() {
        let (path, limit) = (Path::new("/a/file/that/hangs"), Duration::from_millis(50));
        let (release, released) = mpsc::channel::<()>();
        let error = apart(path, limit, move || released.recv()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let tried = apart(path, limit, || panic!("a second thread")).await.unwrap_err();
        assert_eq!(tried.kind(), ErrorKind::TimedOut);
        let other = Path::new("/another/file");
        assert_eq!(apart(other, TIMEOUT, || 7).await.unwrap(), 7, "others are read");
        drop(release);
        while readers().iter().any(|one| one.path == path) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(apart(path, TIMEOUT, || 8).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn who_waits_no_longer_leaves_a_reader_that_counts() {
        let (path, limit) = (Path::new("/a/file/given/up"), Duration::from_millis(50));
        let (release, released) = mpsc::channel::<()>();
        let given_up = apart(path, limit, move || released.recv());
        assert!(tokio::time::timeout(Duration::from_millis(1), given_up).await.is_err());
        tokio::time::sleep(limit).await;
        let error = apart(path, limit, || ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(release);
    }

    #[test]
    fn half_a_certificate_is_told_in_words() {
        for (text, words) in [
            ("-----BEGIN CERTIFICATE-----\nMIIB\n", "it ends in the middle of a certificate"),
            ("-----BEGIN PRIVATE KEY-----\nMIIB\n", "it ends in the middle of a key"),
        ] {
            let parts = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes());
            let error = parts.last().unwrap().unwrap_err();
            assert_eq!(super::pem(&error), words);
        }
    }
}
