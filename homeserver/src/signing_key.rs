//! The server's signing key.
//! <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>

use crate::config::Config;
use crate::data_dir::write_secret;
use crate::wiring;
use anyhow::{Context, ensure};
use std::io::ErrorKind;
use std::path::Path;
use waxwing_rooms::KeyPair;
use waxwing_services::signing_keys;

/// The signing key of the server, made on the first start. The only place that knows where it is kept.
///
/// The file has the form that other homeservers use (`ed25519 VERSION SEED`), so a server can move here with
/// its key.
pub fn load_or_make(data_dir: &Path) -> anyhow::Result<KeyPair> {
    let path = data_dir.join("signing.key");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("{}\n", KeyPair::generate()?.to_line());
            write_secret(&path, &text)?;
            text
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    KeyPair::from_line(line).with_context(|| format!("{} is not a signing key", path.display()))
}

/// Puts another key in the place of the one that is kept.
pub fn keep(data_dir: &Path, key: &KeyPair) -> anyhow::Result<()> {
    write_secret(&data_dir.join("signing.key"), &format!("{}\n", key.to_line()))
}

/// `waxwing key rotate`: retires the key in use and makes a new one, which running servers use from then on.
pub async fn rotate(config: &Config) -> anyhow::Result<()> {
    let path = config.data_dir.join("signing.key");
    ensure!(path.exists(), "there is no {}: rotate the key where the server keeps it", path.display());
    let core = wiring::core(config, load_or_make(&config.data_dir)?).await?;
    let old = core.key.id();
    let new = signing_keys::rotate(&core).await.context("cannot rotate the key")?;
    // Had we ended before, the next start would have read it from the database.
    keep(&config.data_dir, &new)?;
    println!("{} signs from now on; {old} is published as an old key", new.id());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_kept_secret() {
        let folder = tempfile::tempdir().unwrap();
        let made = load_or_make(folder.path()).unwrap();
        let read = load_or_make(folder.path()).unwrap();
        assert_eq!(made.id(), read.id());
        assert_eq!(made.to_line(), read.to_line());
        let mode = std::fs::metadata(folder.path().join("signing.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// As another homeserver wrote it, with the seed of the specification's examples.
    /// <https://spec.matrix.org/v1.19/appendices/#cryptographic-test-vectors>
    #[test]
    fn the_keys_of_other_homeservers_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let line = "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n";
        std::fs::write(folder.path().join("signing.key"), line).unwrap();
        let pair = load_or_make(folder.path()).unwrap();
        assert_eq!(pair.id().as_str(), "ed25519:1");
        assert_eq!(pair.public_key().encode(), "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
    }

    #[test]
    fn a_damaged_key_is_named_but_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "ed25519 a_b", "rsa a AAAA", "ed25519 a:b AAAA", "ed25519 a hunter2", "ed25519 a ??"]
        {
            std::fs::write(folder.path().join("signing.key"), text).unwrap();
            let error = format!("{:#}", load_or_make(folder.path()).unwrap_err());
            assert!(error.contains("is not a signing key") && !error.contains("hunter2"), "{error}");
        }
    }
}
