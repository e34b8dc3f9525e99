//! The server's signing key.
//! <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>

use crate::data_dir::write_secret;
use anyhow::{Context, bail};
use rand::RngExt;
use ruma::serde::{Base64, base64::Standard};
use ruma::signatures::Ed25519KeyPair;
use std::io::ErrorKind;
use std::path::Path;
use waxwing_model::opaque_id;

/// What stands before the 32 bytes of an Ed25519 seed in a PKCS#8 document.
/// <https://www.rfc-editor.org/rfc/rfc8410#section-7>
const PKCS8_HEAD: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
/// Length of a made version: enough that no server names two keys alike.
const VERSION_LENGTH: usize = 6;

/// The signing key of the server, made on the first start. The only place that knows where it is kept.
///
/// The file has the form that other homeservers use (`ed25519 VERSION SEED`), so a server can move here with
/// its key.
pub fn load_or_make(data_dir: &Path) -> anyhow::Result<Ed25519KeyPair> {
    let path = data_dir.join("signing.key");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = make();
            write_secret(&path, &text)?;
            text
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    parse(&text).with_context(|| format!("{} is not a signing key", path.display()))
}

fn make() -> String {
    let seed: [u8; 32] = rand::rng().random();
    format!("ed25519 a_{} {}\n", opaque_id(VERSION_LENGTH), Base64::<Standard, _>::new(seed))
}

fn parse(text: &str) -> anyhow::Result<Ed25519KeyPair> {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let [algorithm, version, seed] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("expected a line `ed25519 VERSION SEED`");
    };
    if algorithm != "ed25519" {
        bail!("the algorithm is not ed25519");
    }
    if !version.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        bail!("the version may have letters, digits and underscores only");
    }
    let Ok(seed) = Base64::<Standard>::parse(seed) else { bail!("the seed is not base64") };
    if seed.as_bytes().len() != 32 {
        bail!("the seed does not have 32 bytes");
    }
    let document = [&PKCS8_HEAD[..], seed.as_bytes()].concat();
    Ok(Ed25519KeyPair::from_der(&document, version.to_owned())?)
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
        assert_eq!(made.public_key(), read.public_key());
        assert_eq!(made.version(), read.version());
        let mode = std::fs::metadata(folder.path().join("signing.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// The key pair of the specification's examples.
    /// <https://spec.matrix.org/v1.19/appendices/#cryptographic-test-vectors>
    #[test]
    fn the_keys_of_other_homeservers_are_read() {
        let pair = parse("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        assert_eq!(pair.version(), "1");
        let public = Base64::<Standard, _>::new(pair.public_key().to_vec());
        assert_eq!(public.encode(), "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
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
