//! The container interface as Complement uses it, with real processes behind it. Needs root, for the name servers.

mod runner;

use std::net::{Ipv4Addr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use runner::{Runner, request};

const FILTER: &str = "?filters=%7B%22label%22%3A%7B%22complement_pkg%3Dt%22%3Atrue%7D%7D";

/// A closed port, within a second.
fn closes(port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn a_container_keeps_its_data_and_passes_it_on() {
    let runner = Runner::start();
    runner.network("net");
    let id = runner.create("one", "hs1", "waxwing", &[]);
    assert_eq!(runner.get(&format!("/containers/{id}/json"))["State"]["Running"], false);
    assert_eq!(runner.act(&id, "start"), 204);
    assert_eq!(runner.act(&id, "start"), 304);
    assert_eq!(runner.ask(&id, "/"), "hs1 start 1");

    let port = runner.client_port(&id);
    assert_eq!(runner.act(&id, "stop?t=10"), 204);
    assert!(closes(port));
    assert_eq!(runner.act(&id, "stop?t=10"), 304);
    assert_eq!(runner.act(&id, "start"), 204);
    assert_eq!(runner.ask(&id, "/"), "hs1 start 2");
    assert_eq!(runner.act(&id, "kill?signal=KILL"), 204);

    let commit = format!(
        "/commit?container={id}&repo=localhost%2Fcomplement&tag=t.hs1&changes=LABEL%20%22device_id%40a%22%3D%22D%22"
    );
    let image = runner.post(&commit, json!({})).json()["Id"].as_str().unwrap().to_owned();
    let listed = runner.get("/images/json");
    assert_eq!(listed[0]["Id"], image.as_str());
    assert_eq!(listed[0]["RepoTags"][0], "localhost/complement:t.hs1");
    assert_eq!(listed[0]["Labels"], json!({ "complement_hs_name": "hs1", "device_id@a": "D" }));

    let next = runner.create("next", "hs1", &image, &[]);
    assert_eq!(runner.act(&next, "start"), 204);
    assert_eq!(runner.ask(&next, "/"), "hs1 start 3");
    assert_eq!(runner.get(&format!("/containers/{next}/json"))["Config"]["Labels"]["device_id@a"], "D");

    assert_eq!(runner.call("DELETE", &format!("/images/{image}?force=1"), b"").status, 200);
    assert_eq!(runner.get("/images/json"), json!([]));
    assert_eq!(runner.ask(&next, "/"), "hs1 start 3", "a container outlives its image");
}

#[test]
fn containers_know_the_names_of_their_network_only() {
    let runner = Runner::start();
    runner.network("net");
    let one = runner.create("one", "hs1", "waxwing", &[]);
    assert_eq!(runner.act(&one, "start"), 204);
    let began = Instant::now();
    assert_eq!(runner.ask(&one, "/resolve/hs2"), "nothing");
    assert_eq!(runner.ask(&one, "/resolve/example.com"), "nothing");
    assert!(began.elapsed() < Duration::from_secs(1), "an unknown name must be denied at once");

    let two = runner.create("two", "hs2", "waxwing", &[]);
    assert_eq!(runner.act(&two, "start"), 204);
    let address = runner.ask(&one, "/resolve/hs2");
    assert!(address.starts_with("127.77."), "{address}");
    assert_eq!(runner.ask(&two, "/resolve/hs2"), address);
    assert_eq!(runner.ask(&one, "/resolve/host.docker.internal"), "127.0.0.1");
    assert!(runner.ask(&two, "/hosts").contains(&format!("{address} hs2")), "its own hosts file");
    assert!(!std::fs::read_to_string("/etc/hosts").unwrap().contains("127.77."), "ours is untouched");
}

#[test]
fn a_server_that_crashes_at_start_is_an_error_with_its_log() {
    let runner = Runner::start();
    runner.network("net");
    let id = runner.create("one", "hs1", "waxwing", &["STAND_IN_CRASHES=1"]);
    let began = Instant::now();
    let started = runner.call("POST", &format!("/containers/{id}/start"), b"");
    assert_eq!(started.status, 500);
    let message = started.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("exit status: 3") && message.contains("crashing as told"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for a server that was gone");
    assert_eq!(runner.get(&format!("/containers/{id}/json"))["State"]["Running"], false);
}

#[test]
fn a_log_is_framed() {
    let runner = Runner::start();
    runner.network("net");
    let id = runner.create("one", "hs1", "waxwing", &[]);
    assert_eq!(runner.act(&id, "start"), 204);
    let log = runner.call("GET", &format!("/containers/{id}/logs?stdout=1&stderr=1&tail=all"), b"").body;
    assert_eq!(log[..4], [1, 0, 0, 0]);
    let length = u32::from_be_bytes(log[4..8].try_into().unwrap()) as usize;
    assert_eq!(log[8..8 + length], *b"hs1 start 1\n");
}

#[test]
fn networks_in_use_stay_and_names_are_used_once() {
    let runner = Runner::start();
    let network = runner.network("net");
    let id = runner.create("one", "hs1", "waxwing", &[]);
    assert_eq!(runner.act(&id, "start"), 204);
    let delete = |path: &str| runner.call("DELETE", path, b"").status;
    assert_eq!(delete(&format!("/networks/{network}")), 403);
    let again = json!({ "Image": "waxwing", "Env": ["SERVER_NAME=hs1"] });
    assert_eq!(runner.post("/containers/create?name=one", again).status, 409);
    assert_eq!(runner.get(&format!("/networks{FILTER}"))[0]["Name"], "net");
    assert_eq!(runner.get(&format!("/containers/json{FILTER}&all=1")), json!([]), "it has no such label");
    assert_eq!(runner.get("/containers/json?all=1")[0]["Names"][0], "/one");

    assert_eq!(delete(&format!("/containers/{id}")), 409, "it runs, and force was not asked for");
    assert_eq!(delete(&format!("/containers/{id}?force=1")), 204);
    assert_eq!(delete(&format!("/containers/{id}?force=1")), 404);
    assert_eq!(delete(&format!("/networks/{network}")), 204);
    assert_eq!(runner.get(&format!("/networks{FILTER}")), json!([]));
}

#[test]
fn a_paused_server_does_not_answer_and_keeps_its_port() {
    let runner = Runner::start();
    runner.network("net");
    let id = runner.create("one", "hs1", "waxwing", &[]);
    assert_eq!(runner.act(&id, "pause"), 409, "it does not run");
    assert_eq!(runner.act(&id, "start"), 204);
    let port = runner.client_port(&id);
    assert_eq!(runner.act(&id, "pause"), 204);
    assert!(request(port, "GET", "/", b"").is_none());
    assert_eq!(runner.act(&id, "unpause"), 204);
    assert_eq!(runner.client_port(&id), port);
    assert_eq!(runner.ask(&id, "/"), "hs1 start 1");
    assert_eq!(runner.act(&id, "pause"), 204);
    assert_eq!(runner.act(&id, "stop?t=10"), 204, "also a paused server can be stopped");
}

#[test]
fn what_is_not_offered_is_refused() {
    let runner = Runner::start();
    assert_eq!(runner.call("GET", "/_ping", b"").text(), "OK");
    assert_eq!(runner.call("GET", "/volumes", b"").status, 404);
    assert_eq!(runner.call("GET", "/networks?filters=%7B%22name%22%3A%7B%7D%7D", b"").status, 400);
    assert_eq!(runner.call("GET", "/containers/none/json", b"").status, 404);
    let unknown = json!({ "Image": "sha256:1", "Env": ["SERVER_NAME=hs1"] });
    assert_eq!(runner.post("/containers/create?name=one", unknown).status, 404);
}

#[test]
fn nothing_is_left_of_a_runner() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut runner = Runner::start();
        runner.network("net");
        let id = runner.create("one", "hs1", "waxwing", &[]);
        assert_eq!(runner.act(&id, "start"), 204);
        let own = runner.ask(&id, "/resolve/hs1").parse::<Ipv4Addr>().unwrap();
        let reachable = || TcpStream::connect((own, 8008)).is_ok();
        assert!(reachable());
        runner.end(signal);
        let deadline = Instant::now() + Duration::from_secs(2);
        while reachable() && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        assert!(!reachable(), "the server is still there after {signal:?}");
        if signal == Signal::TERM {
            let left = std::fs::read_dir(runner.files.path().join("state")).unwrap().count();
            assert_eq!(left, 0, "files of containers are left");
            assert_eq!(std::fs::read_dir(runner.files.path().join("output/servers")).unwrap().count(), 1);
        }
    }
}
