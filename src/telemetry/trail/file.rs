//! The file of the audit trail: it grows, becomes `file.1` at a size, and is made anew.
//!
//! Why our own: the crates that rotate know no file that somebody else moves (logrotate), and
//! take a disk that is full for an error to be raised, not for a line to be torn and mended.

use std::fs::{File, OpenOptions, metadata, remove_file, rename};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::file::{unfollowing, unwaiting};

/// Its lines hold keys: they are for the owner and his group.
const MODE: u32 = 0o640;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    max_bytes: u64,
    keep: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// The device and the number of the file.
    id: (u64, u64),
    /// Its size; of what is no file, such as a pipe, `None`.
    size: Option<u64>,
    /// Whether its last line has no end.
    is_torn: bool,
}

/// An error, and how many whole lines were written before it.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) lines: usize,
    pub(super) error: io::Error,
}

impl AuditFile {
    /// A file that becomes no larger than so many bytes, and of which so many older ones stay.
    /// Nothing is opened yet.
    pub(super) fn new(path: PathBuf, max_bytes: u64, keep: usize) -> AuditFile {
        AuditFile { path, max_bytes, keep, open: None }
    }

    /// Writes whole lines. Opens the file if it is not the one that is open.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Failed> {
        self.make_ready(lines.len()).map_err(|error| Failed { lines: 0, error })?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let (written, outcome) = open.write(lines);
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => {
                // Opened anew, it may be another one, where there is room.
                self.open = None;
                let whole = lines.get(..written).unwrap_or_default();
                Err(Failed { lines: whole.iter().filter(|byte| **byte == b'\n').count(), error })
            }
        }
    }

    /// Opens the file, if it is not open, or was moved or removed; makes a new one where this one
    /// has no room.
    fn make_ready(&mut self, more: usize) -> io::Result<()> {
        let id = match metadata(&self.path) {
            Ok(found) => Some((found.dev(), found.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if self.open.as_ref().map(|open| open.id) != id || self.open.is_none() {
            self.open = Some(Open::at(&self.path)?);
        }
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let is_full = |size: u64| size > 0 && size.saturating_add(more) > self.max_bytes;
        if self.open.as_mut().and_then(Open::size).is_some_and(is_full) {
            self.rotate()?;
            self.open = Some(Open::at(&self.path)?);
        }
        Ok(())
    }

    /// Moves each file to the next number; the last one goes.
    fn rotate(&self) -> io::Result<()> {
        let unless_gone = |outcome: io::Result<()>| match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        };
        if self.keep == 0 {
            return unless_gone(remove_file(&self.path));
        }
        for number in (1..self.keep).rev() {
            unless_gone(rename(numbered(&self.path, number), numbered(&self.path, number + 1)))?;
        }
        unless_gone(rename(&self.path, numbered(&self.path, 1)))
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        let is_other = metadata(path).is_ok_and(|found| !found.is_file());
        let mut options = OpenOptions::new();
        // A pipe that nobody reads is waited for here, by the thread that writes, and by no other.
        options.append(true).read(!is_other).create(!is_other).mode(MODE);
        Open::of(options.open(path)?)
    }

    fn of(file: File) -> io::Result<Open> {
        let found = file.metadata()?;
        let size = found.is_file().then_some(found.len());
        let mut last = [b'\n'];
        if let Some(at) = size.and_then(|size| size.checked_sub(1)) {
            file.read_exact_at(&mut last, at)?;
        }
        Ok(Open { file, id: (found.dev(), found.ino()), size, is_torn: last != [b'\n'] })
    }

    /// The size as it is now: somebody may have cut the file, or written to it as well.
    fn size(&mut self) -> Option<u64> {
        self.size?;
        self.size = self.file.metadata().ok().map(|found| found.len());
        self.size
    }

    /// How much of the lines was written.
    fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if self.is_torn {
            // What a full disk, or a crash, left is a line by itself, which no reader takes.
            match self.file.write_all(b"\n") {
                Ok(()) => self.is_torn = false,
                Err(error) => return (0, Err(error)),
            }
        }
        let mut written = 0;
        while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }
}

/// Appends a line as somebody else than the process that writes the file: root, say. Waits for
/// nobody. Makes the file only as one of the folder's owner, for the process has to write it later.
pub(super) fn append_by_hand(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Root must not be led by a link to a file of somebody else.
    options.append(true).read(true).custom_flags(unwaiting() | unfollowing()).mode(MODE);
    let file = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let owner = metadata(folder.unwrap_or(Path::new(".")))?;
            let own = geteuid().as_raw();
            if own != 0 && own != owner.uid() {
                let message = "there is none yet: the process that `walsweep run` is makes it";
                return Err(io::Error::new(ErrorKind::NotFound, message));
            }
            let file = options.create_new(true).open(path)?;
            if own != owner.uid() {
                fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            file
        }
        outcome => outcome?,
    };
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() > 1 {
        return Err(io::Error::other("it is no regular file, or has several names"));
    }
    let (_written, outcome) = Open::of(file)?.write(line);
    outcome
}

/// The older file of this number.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The file and the older ones that there are, the oldest first, each once. One that is moved
/// meanwhile is not missed: they are opened in the direction in which they move.
pub(super) fn all(path: &Path, keep: usize) -> io::Result<Vec<File>> {
    let mut files: Vec<((u64, u64), File)> = Vec::new();
    let paths = (1..=keep).map(|number| numbered(path, number));
    for path in std::iter::once(path.to_owned()).chain(paths) {
        let opened = OpenOptions::new().read(true).custom_flags(unwaiting()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        let id = (found.dev(), found.ino());
        if found.is_file() && !files.iter().any(|(known, _)| *known == id) {
            files.push((id, file));
        }
    }
    Ok(files.into_iter().rev().map(|(_, file)| file).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;
    use std::process::Command;

    use rustix::process::geteuid;

    use super::{AuditFile, all, append_by_hand};

    fn read(path: &Path, keep: usize) -> String {
        let mut text = String::new();
        for mut file in all(path, keep).unwrap() {
            File::read_to_string(&mut file, &mut text).unwrap();
        }
        text
    }

    #[test]
    fn a_line_by_hand_goes_to_a_regular_file_and_waits_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let [path, pipe] = ["audit.jsonl", "pipe"].map(|name| folder.path().join(name));
        fs::write(&path, "whole\nto").unwrap();
        append_by_hand(&path, b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nto\nnext\n");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = append_by_hand(&pipe, b"lost\n").unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        // Nor is root led to another file.
        let [link, name] = ["link", "name"].map(|name| folder.path().join(name));
        symlink(&path, &link).unwrap();
        fs::hard_link(&path, &name).unwrap();
        for led in [&link, &name] {
            append_by_hand(led, b"lost\n").unwrap_err();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nto\nnext\n");
    }

    #[test]
    fn a_file_that_is_made_by_hand_is_of_the_folders_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        if geteuid().is_root() {
            chown(folder.path(), Some(65_534), Some(65_534)).unwrap();
        }
        append_by_hand(&path, b"line\n").unwrap();
        let [made, folder] = [&path, folder.path()].map(|one| fs::metadata(one).unwrap());
        assert_eq!((made.uid(), made.gid()), (folder.uid(), folder.gid()));
        assert_eq!(made.permissions().mode() & 0o777 & !0o640, 0);
    }

    #[test]
    fn a_file_that_is_full_becomes_the_next_number_and_the_last_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut file = AuditFile::new(path.clone(), 10, 2);
        for line in 1..=7 {
            file.write(format!("line{line}\n").as_bytes()).unwrap();
        }
        // Each holds one line of six bytes.
        assert_eq!(read(&path, 2), "line5\nline6\nline7\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0);
        // One that is larger than all is written by itself.
        file.write(b"a line of more than ten bytes\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a line of more than ten bytes\n");
        let mut none = AuditFile::new(path.clone(), 10, 0);
        none.write(b"one\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
    }

    #[test]
    fn a_file_that_somebody_moves_removes_or_cuts_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let mut file = AuditFile::new(path.clone(), 1 << 20, 5);
        file.write(b"1\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!(read(&path, 5), "1\n2\n");
        fs::remove_file(&path).unwrap();
        file.write(b"3\n").unwrap();
        assert_eq!(read(&path, 5), "1\n3\n");
        File::create(&path).unwrap();
        file.write(b"4\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4\n");
    }

    #[test]
    fn a_torn_line_stands_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        fs::write(&path, "whole\nto").unwrap();
        AuditFile::new(path.clone(), 1 << 20, 5).write(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nto\nnext\n");
    }

    #[test]
    fn what_cannot_be_written_is_an_error_each_time_and_can_be_later() {
        let mut full = AuditFile::new("/dev/full".into(), 1 << 20, 5);
        for _ in 0..2 {
            assert_eq!(full.write(b"1\n2\n").unwrap_err().lines, 0);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("audit");
        let mut file = AuditFile::new(path.clone(), 1 << 20, 5);
        assert!(file.write(b"1\n").is_err());
        fs::create_dir(path.parent().unwrap()).unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!(read(&path, 5), "2\n");
    }
}
