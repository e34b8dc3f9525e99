//! The directory that holds one device: the session, the room state, the key store. One process at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

const LOCK_FILE: &str = "lock";

/// An open and locked home directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    /// Opens `path`, creating it readable by its owner only.
    ///
    /// Two processes that advance one Olm account make it unreadable, so a second one is turned away.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::HomeInUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a JSON file of the home; `None` when there is none.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::DamagedFile { path, source })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Replaces a JSON file of the home in one step: a crash leaves the old one or the new one.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.path.join(name);
        let bytes = serde_json::to_vec(value)?;
        let draft = self.path.join(format!("{name}.new"));
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| Error::File { path, source })
    }

    /// Removes a file or directory of the home; absent is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File { path, source }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_home_is_private_and_held_by_one_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alice");
        let home = Home::open(&path).unwrap();
        home.write("session.json", &"hello").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("session.json")), 0o600);
        assert!(matches!(Home::open(&path), Err(Error::HomeInUse(_))));
        drop(home);
        let home = Home::open(&path).unwrap();
        assert_eq!(home.read::<String>("session.json").unwrap().as_deref(), Some("hello"));
        assert_eq!(home.read::<String>("absent.json").unwrap(), None);
        home.remove("session.json").unwrap();
        home.remove("session.json").unwrap();
        assert_eq!(home.read::<String>("session.json").unwrap(), None);
    }
}
