//! A data folder that new servers are copied from: to fill one takes more processor time than most
//! of what is then done with the server.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

use super::process::Reaper;
use super::{Error, io_error};

/// A filled data folder.
#[derive(Debug)]
pub(super) struct Template {
    bin_dir: PathBuf,
    folder: TempDir,
    /// Removes the folder at the end of this process: nobody drops what is static.
    _reaper: Reaper,
}

/// The templates of this process, one for each folder of programs: for as long as it lives, since
/// tests that run one after the other would else fill one each.
static MADE: Mutex<Vec<Arc<Template>>> = Mutex::new(Vec::new());

impl Template {
    /// The template of these programs; `make` fills one where there is none. Fails as `make` does.
    pub(super) fn of(
        bin_dir: &Path,
        make: impl FnOnce() -> Result<TempDir, Error>,
    ) -> Result<Arc<Template>, Error> {
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.iter().find(|one| one.bin_dir == bin_dir) {
            return Ok(Arc::clone(known));
        }
        let folder = make()?;
        let reaper = Reaper::of(&[folder.path()]).map_err(io_error("start the reaper"))?;
        let bin_dir = bin_dir.to_owned();
        made.push(Arc::new(Template { bin_dir, folder, _reaper: reaper }));
        Ok(Arc::clone(&made[made.len() - 1]))
    }

    /// Copies it into an empty folder, for a user and group, if another than this one.
    pub(super) fn copy(&self, to: &Path, owner: Option<(u32, u32)>) -> Result<(), Error> {
        copy(&Template::data_in(self.folder.path()), to, owner)
            .map_err(io_error("copy a data folder"))
    }

    /// Where the data folder of a template lies in its temporary folder.
    pub(super) fn data_in(folder: &Path) -> PathBuf {
        folder.join("data")
    }
}

/// Copies what is in a folder: all but the write-ahead log, which [`rename`] has made anew.
fn copy(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copied = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&copied)?;
            fs::set_permissions(&copied, fs::Permissions::from_mode(0o700))?;
            copy(&entry.path(), &copied, owner)?;
        } else if from.ends_with("pg_wal") {
            continue;
        } else {
            fs::copy(entry.path(), &copied)?;
        }
        owner.map_or(Ok(()), |(uid, gid)| chown(&copied, Some(uid), Some(gid)))?;
    }
    Ok(())
}

/// Gives a copied data folder a system identifier of its own, as each `initdb` does: the first
/// field of the control file (`src/include/catalog/pg_control.h`). The checksum of the file is
/// wrong afterwards, until `pg_resetwal --force` has written it, and the log, anew.
pub(super) fn rename(data_dir: &Path) -> Result<(), Error> {
    let control = fs::File::options().write(true).open(data_dir.join("global/pg_control"));
    // SQL shows it as a signed number.
    let identifier = RandomState::new().hash_one(data_dir) >> 1;
    let written = control.and_then(|file| file.write_all_at(&identifier.to_ne_bytes(), 0));
    written.map_err(io_error("write a system identifier"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::Template;

    #[test]
    fn it_is_made_once_for_each_folder_of_programs() {
        let of = |programs: &str| {
            let make = || {
                let folder = TempDir::new().unwrap();
                let data = Template::data_in(folder.path());
                fs::create_dir_all(data.join("pg_wal")).unwrap();
                fs::write(data.join("PG_VERSION"), "15").unwrap();
                fs::write(data.join("pg_wal/000000010000000000000001"), "log").unwrap();
                Ok(folder)
            };
            Template::of(Path::new(programs), make).unwrap()
        };
        let first = of("/no/15/bin");
        assert!(!Arc::ptr_eq(&first, &of("/no/18/bin")));
        let to = TempDir::new().unwrap();
        first.copy(to.path(), None).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("PG_VERSION")).unwrap(), "15");
        let log: Vec<_> = fs::read_dir(to.path().join("pg_wal")).unwrap().collect();
        assert!(log.is_empty(), "{log:?}");
        let folder = first.folder.path().to_owned();
        drop(first);
        // Nobody uses it, and the next one does again.
        assert_eq!(of("/no/15/bin").folder.path(), folder);
    }
}
