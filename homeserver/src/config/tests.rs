//! How the layers go together, and what a mistake is answered with.

use super::{Config, Plaintext, Registration, Sources, load};
use std::io::Write;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str, environment: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Config, String> {
    let file = file(text);
    let sources =
        Sources { file: Some(file.path().to_owned()), environment: pairs(environment), sets: pairs(sets) };
    load(&sources).map_err(|error| error.to_string())
}

fn refused(text: &str, environment: &[(&str, &str)], sets: &[(&str, &str)]) -> String {
    read(text, environment, sets).expect_err("this configuration must be refused")
}

#[test]
fn without_sources_there_are_the_defaults() {
    let config = read("", &[], &[]).unwrap();
    assert_eq!(config.server_name, "localhost");
    assert_eq!(config.registration, Registration::Token);
    assert_eq!(config.plaintext, Plaintext::Refuse);
    assert_eq!(config.default_room_version.as_str(), "12");
    assert_eq!(config.listen.client.iter().collect::<Vec<_>>(), ["127.0.0.1:8008"]);
    assert_eq!(config.database_shown(), "sqlite:./waxwing-data/waxwing.db");
}

#[test]
fn the_environment_goes_over_the_file_and_flags_over_both() {
    let text = "workers = 1\nserver_name = 'a.example'\n[media]\nmax_upload_bytes = 1\n[log]\nlevel = 'warn'";
    let environment = [("WAXWING_WORKERS", "2"), ("WAXWING_MEDIA__MAX_UPLOAD_BYTES", "2"), ("HOME", "/root")];
    let config = read(text, &environment, &[("workers", "3")]).unwrap();
    assert_eq!(config.workers, 3);
    assert_eq!(config.media.max_upload_bytes, 2);
    assert_eq!(config.server_name, "a.example");
    assert_eq!(config.log.level, "warn");
}

#[test]
fn variables_are_text_numbers_lists_and_tables() {
    let config = read(
        "",
        &[
            ("WAXWING_REGISTRATION_SHARED_SECRET", "12345"),
            ("WAXWING_RATE_LIMITS__ENABLED", "false"),
            ("WAXWING_RATE_LIMITS__JOIN", "{ per_second = 2, burst = 3 }"),
            ("WAXWING_LISTEN__CLIENT", r#"["127.0.0.1:1", "[::1]:1"]"#),
            ("WAXWING_LISTEN__FEDERATION", "127.0.0.1:2"),
            ("WAXWING_LISTEN__METRICS", ""),
            ("WAXWING_URL_PREVIEWS__DENIED_HOSTS", " intranet.example"),
            ("WAXWING_FEDERATION__HOSTS", r#"{ "b.example" = "127.0.0.1:3" }"#),
            ("WAXWING_FEDERATION__HOSTS__C.EXAMPLE:8448", "127.0.0.1:4"),
            ("WAXWING_TEST_POSTGRES", "not a setting"),
            ("WAXWING_CONFIG", "not a setting"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.registration_shared_secret.unwrap().expose(), "12345");
    assert!(!config.rate_limits.enabled);
    assert_eq!(config.rate_limits.join.burst, 3);
    assert_eq!(config.listen.client.iter().count(), 2);
    assert_eq!(config.listen.federation.iter().collect::<Vec<_>>(), ["127.0.0.1:2"]);
    assert!(config.listen.metrics.is_empty());
    assert_eq!(config.url_previews.denied_hosts, ["intranet.example"]);
    assert_eq!(config.federation.hosts["c.example:8448"], "127.0.0.1:4");
}

#[test]
fn listeners_take_a_string_or_an_array_in_the_file() {
    let config = read("[listen]\nclient = '127.0.0.1:1'\nfederation = []\nmetrics = ''", &[], &[]).unwrap();
    assert_eq!(config.listen.client.iter().collect::<Vec<_>>(), ["127.0.0.1:1"]);
    assert!(config.listen.federation.is_empty());
    assert!(config.listen.metrics.is_empty());
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let error = refused("sever_name = 'x'", &[], &[]);
    assert!(error.starts_with("unknown setting `sever_name` in /"), "{error}");
    assert!(error.ends_with("did you mean `server_name`?"), "{error}");
}

#[test]
fn an_unknown_nested_key_names_the_nearest() {
    let error = refused("[listen]\nclients = ['127.0.0.1:1']", &[], &[]);
    assert!(error.contains("`listen.clients`") && error.ends_with("`listen.client`?"), "{error}");
    let error = refused("extra_roots = []", &[], &[]);
    assert!(error.ends_with("`tls.extra_roots`?"), "{error}");
    let error = refused("[rate_limits]\njoin = { per_second = 1, brust = 2 }", &[], &[]);
    assert!(error.contains("rate_limits.join") && error.contains("brust"), "{error}");
}

#[test]
fn an_unknown_variable_names_the_nearest() {
    let error = refused("", &[("WAXWING_LISTEN__CLEINT", "127.0.0.1:1")], &[]);
    let wanted = "unknown setting `WAXWING_LISTEN__CLEINT` in the environment; \
                  did you mean `WAXWING_LISTEN__CLIENT`?";
    assert_eq!(error, wanted);
}

#[test]
fn an_unknown_flag_names_the_nearest() {
    let error = refused("", &[], &[("medai.path", "x")]);
    assert!(error.ends_with("did you mean `--set media.path`?"), "{error}");
}

#[test]
fn a_key_like_no_other_has_no_suggestion() {
    let error = refused("zzzz = 1", &[], &[]);
    assert!(error.starts_with("unknown setting `zzzz`") && !error.contains("did you mean"), "{error}");
}

#[test]
fn a_wrong_value_names_its_key_and_place() {
    let error = refused("workers = 'many'", &[], &[]);
    assert!(error.starts_with("setting workers (in /"), "{error}");
    let error = refused("", &[("WAXWING_WORKERS", "many")], &[]);
    assert_eq!(error, "setting WAXWING_WORKERS: neither a number nor true or false");
    let error = refused("registration = 'everyone'", &[], &[]);
    assert!(error.contains("registration") && error.contains("closed"), "{error}");
    let error = refused("server_name = 'not a name'", &[], &[]);
    assert!(error.contains("server_name"), "{error}");
    let error = refused("[listen]\nclient = '127.0.0.1'", &[], &[]);
    assert!(error.contains("listen.client") && error.contains("port"), "{error}");
    let error = refused("default_room_version = '99'", &[], &[]);
    assert!(error.contains("default_room_version"), "{error}");
    let error = refused("[tls]\nkey = 'k.pem'", &[], &[]);
    assert!(error.contains("go together"), "{error}");
    let error = refused("[rate_limits]\njoin = { per_second = 0, burst = 1 }", &[], &[]);
    assert!(error.contains("rate_limits.join"), "{error}");
    let error = refused("database = 'mysql://root:hunter2@db/x'", &[], &[]);
    assert!(error.contains("database") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_broken_file_names_the_line() {
    let error = refused("workers = [1\nx", &[], &[]);
    assert!(error.contains("line 1") || error.contains("line 2"), "{error}");
}

#[test]
fn a_file_that_was_named_must_exist() {
    let sources = Sources { file: Some("/nowhere/waxwing.toml".into()), ..Sources::default() };
    let error = load(&sources).unwrap_err().to_string();
    assert!(error.contains("/nowhere/waxwing.toml"), "{error}");
}

#[test]
fn secrets_are_not_shown() {
    let text =
        "registration_shared_secret = 'hunter2'\ndatabase = 'postgres://me:hunter2@db.example/waxwing?a=b'";
    let config = read(text, &[], &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.database_shown(), "postgres://db.example/waxwing");
}
