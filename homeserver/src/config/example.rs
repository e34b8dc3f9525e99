//! The commented example, made from the fields of the tree.

use super::Config;
use super::setting::{Field, Kind, Setting};
use std::fmt::Write;

const HEAD: &str = "\
# Waxwing: every setting with its default. Made by `waxwing config` from the source; a test keeps it current.
#
# Read from `waxwing.toml` in the working directory, or from the file that `--config` names. The environment goes
# over the file (`WAXWING_LISTEN__CLIENT='[\"127.0.0.1:8008\"]'`), and `--set listen.client='[\"127.0.0.1:8008\"]'`
# over both. A key that is not listed here is an error.
";

/// The whole configuration as a commented TOML file.
pub fn example() -> String {
    let mut out = HEAD.to_owned();
    section(&mut out, "", &Config::default().fields());
    out
}

/// TOML wants the keys of a table before its sub-tables.
fn section(out: &mut String, path: &str, fields: &[Field]) {
    for field in fields.iter().filter(|field| field.kind != Kind::Section) {
        documented(out, field.doc);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "#{} = {}", field.name, field.shown);
    }
    for field in fields.iter().filter(|field| field.kind == Kind::Section) {
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        documented(out, field.doc);
        let _ = writeln!(out, "[{path}]");
        section(out, &path, &field.fields);
    }
}

fn documented(out: &mut String, doc: &[&str]) {
    out.push('\n');
    for line in doc {
        let _ = writeln!(out, "#{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Media, S3, UrlPreviews};

    /// The example with every setting switched on.
    fn uncommented() -> String {
        example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_committed_example_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/waxwing.example.toml");
        if std::env::var_os("WAXWING_TEST_UPDATE").is_some() {
            std::fs::write(path, example()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, example(), "run: cargo run -- config > docs/waxwing.example.toml");
    }

    #[test]
    fn the_example_as_it_stands_sets_nothing() {
        let config: Config = toml::from_str(&example()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    /// What has no default in the sections of mail, notices, calls and retention: the example shows a plausible value.
    fn without_default(config: &Config, mut default: Config) -> Config {
        default.organisation.clone_from(&config.organisation);
        default.retention.default_max_days = config.retention.default_max_days;
        default.retention.max_days = config.retention.max_days;
        let (from, to) = (&config.email, &mut default.email);
        to.server.clone_from(&from.server);
        to.port = from.port;
        to.username.clone_from(&from.username);
        to.password.clone_from(&from.password);
        to.from.clone_from(&from.from);
        default.server_notices.avatar_url.clone_from(&config.server_notices.avatar_url);
        let (from, to) = (&config.turn, &mut default.turn);
        to.shared_secret.clone_from(&from.shared_secret);
        to.username.clone_from(&from.username);
        to.password.clone_from(&from.password);
        default
    }

    #[test]
    fn every_setting_of_the_example_is_valid_and_is_the_default() {
        let text = uncommented();
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(text.matches("\nserver_name = ").count(), 1);
        let default = Config::default();
        // These have no default: the example shows a plausible value.
        let wanted = Config {
            database: config.database.clone(),
            public_base_url: config.public_base_url.clone(),
            registration_shared_secret: config.registration_shared_secret.clone(),
            appservices: config.appservices.clone(),
            tls: config.tls.clone(),
            cluster: config.cluster.clone(),
            well_known: config.well_known.clone(),
            media: Media {
                path: config.media.path.clone(),
                store: config.media.store.clone(),
                user_quota_info: config.media.user_quota_info.clone(),
                unused_days: config.media.unused_days,
                s3: S3 {
                    endpoint: config.media.s3.endpoint.clone(),
                    access_key_id: config.media.s3.access_key_id.clone(),
                    secret_access_key: config.media.s3.secret_access_key.clone(),
                    ..default.media.s3.clone()
                },
                ..default.media.clone()
            },
            url_previews: UrlPreviews {
                enabled: config.url_previews.enabled,
                ..default.url_previews.clone()
            },
            ..without_default(&config, default)
        };
        assert_eq!(format!("{config:?}"), format!("{wanted:?}"));
    }

    #[test]
    fn every_field_is_documented() {
        fn check(fields: &[Field]) {
            for field in fields {
                assert!(!field.doc.is_empty(), "{} has no doc comment", field.name);
                check(&field.fields);
            }
        }
        check(&Config::default().fields());
    }
}
