//! `waxwing user`: accounts, over the database itself, so that it works beside a running server.

use crate::config::{Config, Secret};
use crate::{signing_key, wiring};
use anyhow::{Context, bail};
use std::io::BufRead;

/// Longer lines are no passwords.
const LONGEST_PASSWORD: u64 = 4096;

/// Reads one line.
pub fn read_password(input: impl BufRead) -> anyhow::Result<Secret> {
    let mut line = String::new();
    input.take(LONGEST_PASSWORD).read_line(&mut line).context("cannot read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("the password on standard input is empty");
    }
    Ok(Secret::new(password))
}

/// Makes an account.
pub async fn create(config: &Config, name: &str, password: Secret, admin: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make {}", config.data_dir.display()))?;
    let core = wiring::core(config, signing_key::load_or_make(&config.data_dir)?).await?;
    let accounts = wiring::accounts(config, &core)?;
    let user = accounts
        .create_by_operator(name.to_owned(), password.expose().to_owned(), admin)
        .await
        .with_context(|| format!("cannot make the account {name}"))?;
    println!("{user}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_first_line() {
        assert_eq!(read_password(&b"hunter 2 \r\nmore"[..]).unwrap().expose(), "hunter 2 ");
        assert_eq!(read_password(&b"no newline"[..]).unwrap().expose(), "no newline");
        assert!(read_password(&b"\n"[..]).is_err());
        assert!(read_password(&b""[..]).is_err());
    }
}
