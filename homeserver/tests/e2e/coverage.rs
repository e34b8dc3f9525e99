//! Walks the table of endpoints against a running server and writes down what each answers to who has no token, to a
//! body that is no JSON, and to a method that it does not know. The result is `docs/coverage.md`.

use crate::endpoints::{self, Auth, Kind, Operation, plausible};
use crate::http::Raw;
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::json;
use std::fmt::Write;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/coverage.md");
const HEAD: &str = "\
# Client endpoints

Made by walking `homeserver/tests/coverage/endpoints.tsv` against a running server. To make it anew:
`WAXWING_TEST_UPDATE=1 cargo test -p waxwing --test e2e coverage::`. A test fails while it is not current.

\"Served\": the server knows the path and the method. The other columns are what it answers to a request without a token,
with `{` as the body, and with the method `PATCH`; \"–\" where that means nothing (nobody needs a token, there is no JSON
in the body).
";

/// What an operation answered.
struct Row {
    operation: Operation,
    served: bool,
    no_token: String,
    bad_json: String,
    wrong_method: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_as_documented() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({})).await;
    let mut rows = Vec::new();
    for operation in endpoints::all() {
        let path = operation.filled(|name| plausible(name, &alice.user, &room));
        rows.push(walk(&alice, operation, &path).await);
    }
    let found = document(&rows);
    if std::env::var_os("WAXWING_TEST_UPDATE").is_some() {
        std::fs::write(DOCUMENT, &found).unwrap();
    }
    let committed = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    let differs: Vec<&str> =
        found.lines().filter(|line| !committed.lines().any(|other| other == *line)).collect();
    assert!(committed == found, "docs/coverage.md is not current:\n{}", differs.join("\n"));
    check(&rows);
}

/// Features that clients look for, with an operation that they then call, or none where it is a parameter, a field or an
/// event, which other tests look at.
const FEATURES: &[(&str, &str)] = &[
    ("com.beeper.msc4169", ""),
    ("fi.mau.msc2659.stable", "POST /_matrix/client/v1/appservice/a/ping"),
    ("io.element.e2ee_forced.private", ""),
    ("io.element.e2ee_forced.public", ""),
    ("io.element.e2ee_forced.trusted_private", ""),
    ("org.matrix.e2e_cross_signing", "POST /_matrix/client/v3/keys/device_signing/upload"),
    ("org.matrix.msc2285.stable", "POST /_matrix/client/v3/rooms/!r/receipt/m.read.private/$e"),
    ("org.matrix.msc3030", "GET /_matrix/client/v1/rooms/!r/timestamp_to_event"),
    ("org.matrix.msc3391", "DELETE /_matrix/client/unstable/org.matrix.msc3391/user/@a:b/account_data/a"),
    ("org.matrix.msc3440.stable", "GET /_matrix/client/v1/rooms/!r/threads"),
    ("org.matrix.msc3771", ""),
    ("org.matrix.msc3773", ""),
    ("org.matrix.msc3814", "GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"),
    ("org.matrix.msc3827.stable", "POST /_matrix/client/v3/publicRooms"),
    ("org.matrix.msc3874", ""),
    ("org.matrix.msc3881", ""),
    ("org.matrix.msc3882", "POST /_matrix/client/v1/login/get_token"),
    ("org.matrix.msc3890", ""),
    ("org.matrix.msc3912", ""),
    ("org.matrix.msc3916.stable", "GET /_matrix/client/v1/media/config"),
    ("org.matrix.msc3981", "GET /_matrix/client/v1/rooms/!r/relations/$e"),
    ("org.matrix.msc4108", "POST /_matrix/client/unstable/org.matrix.msc4108/rendezvous"),
    ("org.matrix.msc4140", "GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events"),
    ("org.matrix.msc4143", "GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports"),
    ("org.matrix.msc4151", "POST /_matrix/client/v3/rooms/!r/report"),
    ("org.matrix.msc4155", ""),
    ("org.matrix.msc4222", ""),
    ("org.matrix.msc4306", "GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions"),
    ("org.matrix.msc4354", ""),
    ("org.matrix.msc4380.stable", ""),
    ("org.matrix.simplified_msc3575", "POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync"),
    (
        "uk.half-shot.msc2666.query_mutual_rooms",
        "GET /_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    ),
    ("uk.half-shot.msc2666.query_mutual_rooms.stable", "GET /_matrix/client/v1/mutual_rooms"),
    ("uk.tcpip.msc4133", "GET /_matrix/client/unstable/uk.tcpip.msc4133/profile/@alice:localhost/m.tz"),
    ("uk.tcpip.msc4133.stable", "GET /_matrix/client/v3/profile/@alice:localhost/m.tz"),
    ("uk.timedout.msc4323", "GET /_matrix/client/unstable/uk.timedout.msc4323/admin/lock/@a:b"),
];

/// Every version up to the newest, and of the features exactly those that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_says_that_it_has_is_there() {
    let mut site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let said = Raw::nobody(&site.url).get("/_matrix/client/versions").await.fine();
    let versions: Vec<&str> =
        said["versions"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
    for minor in 1..=19 {
        assert!(versions.contains(&&*format!("v1.{minor}")), "v1.{minor}");
    }
    assert!(versions.contains(&"r0.6.1") && !versions.contains(&"v1.20"), "{versions:?}");
    let features = said["unstable_features"].as_object().unwrap();
    let named: Vec<&str> = features.keys().map(String::as_str).collect();
    let mut known: Vec<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, known);
    assert!(features.values().all(|value| *value == json!(true)), "{features:?}");
    for (name, operation) in FEATURES {
        let Some((method, path)) = operation.split_once(' ') else { continue };
        let answer = alice.send(method.parse().unwrap(), path, "{}").await;
        assert_ne!(answer.code(), "M_UNRECOGNIZED", "{name}: {operation}");
        assert!(answer.status.as_u16() < 500, "{name}: {operation}: {}", answer.body);
    }
    let support = "/.well-known/matrix/support";
    alice.get(support).await.refused(404, "M_NOT_FOUND");
    let node = &mut site.nodes[0];
    node.stop().await;
    node.set("well_known.support_email=help@example.org".to_owned());
    node.set("well_known.support_page=https://example.org/help".to_owned());
    node.start().await;
    let contact = json!([{"role": "m.role.admin", "email_address": "help@example.org"}]);
    let shown = json!({"contacts": contact, "support_page": "https://example.org/help"});
    assert_eq!(Raw::nobody(&site.url).get(support).await.fine(), shown);
}

/// What must hold of every operation, whatever the document says.
fn check(rows: &[Row]) {
    for row in rows.iter().filter(|row| row.served) {
        let shown = row.operation.shown();
        assert_eq!(row.wrong_method, "405 M_UNRECOGNIZED", "{shown}");
        if matches!(row.operation.auth, Auth::User | Auth::Appservice) {
            assert_eq!(row.no_token, "401 M_MISSING_TOKEN", "{shown}");
        }
        if row.operation.takes_json() && row.operation.auth != Auth::Appservice {
            assert_eq!(row.bad_json, "400 M_NOT_JSON", "{shown}");
        }
    }
}

async fn walk(alice: &Raw, operation: Operation, path: &str) -> Row {
    let method = operation.method.clone();
    let wrong = alice.send(Method::PATCH, path, "").await;
    let broken = alice.send(method.clone(), path, if operation.takes_json() { "{" } else { "" }).await;
    let nobody = alice.with_token("").send(method, path, "{}").await;
    let served = wrong.status == 405 && broken.status != 405;
    let answer = |answer: &crate::http::Answer| format!("{} {}", answer.status.as_u16(), answer.code());
    let browsers = alice.send_with(Method::OPTIONS, path, &[("origin", b"https://app.example")], *b"").await;
    let (allowed, headers) = browsers.unwrap();
    assert!(allowed.status.is_success(), "OPTIONS {path}");
    assert_eq!(headers["access-control-allow-origin"], "*", "OPTIONS {path}");
    let needs_token = matches!(operation.auth, Auth::User | Auth::Appservice);
    Row {
        no_token: if needs_token { answer(&nobody) } else { "–".to_owned() },
        bad_json: if operation.takes_json() { answer(&broken) } else { "–".to_owned() },
        wrong_method: answer(&wrong),
        operation,
        served,
    }
}

fn document(rows: &[Row]) -> String {
    let mut out = HEAD.to_owned();
    let parts = [
        (Kind::Spec, "Operations of the specification"),
        (Kind::Prose, "Pages and files of the specification's prose"),
        (Kind::Unstable, "Operations of proposals that clients use"),
        (Kind::Alias, "Older paths"),
    ];
    for (kind, title) in parts {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.operation.kind == kind).collect();
        let served = rows.iter().filter(|row| row.served).count();
        write!(out, "\n## {title}: {served} of {} served\n\n", rows.len()).unwrap();
        out.push_str("| method | path | operation | since | served | no token | bad JSON | wrong method |\n");
        out.push_str("|---|---|---|---|---|---|---|---|\n");
        for row in rows {
            let Row { operation, served, no_token, bad_json, wrong_method } = row;
            let Operation { method, path, name, since, .. } = operation;
            let deprecated = if operation.deprecated { " (deprecated)" } else { "" };
            let blank = "–".to_owned();
            let [no_token, bad_json, wrong_method] =
                if *served { [no_token, bad_json, wrong_method] } else { [&blank; 3] };
            let served = if *served { "yes" } else { "**no**" };
            writeln!(
                out,
                "| {method} | `{path}` | {name}{deprecated} | {since} | {served} | {no_token} | {bad_json} | {wrong_method} |"
            )
            .unwrap();
        }
    }
    out
}
