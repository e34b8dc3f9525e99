//! A runner to test, and a client of its interface that is as plain as can be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Runner {
    child: Child,
    port: u16,
    pub files: TempDir,
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Runner {
    pub fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing-complement"));
        command.args(["serve", "--server-binary", env!("CARGO_BIN_EXE_complement-stand-in")]);
        command
            .arg("--output")
            .arg(files.path().join("output"))
            .arg("--state")
            .arg(files.path().join("state"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().expect("the runner told no port");
        make_authority(&files);
        Self { child, port, files }
    }

    pub fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        request(self.port, method, &format!("/v1.47{path}"), body).expect("the runner did not answer")
    }

    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, b"").json()
    }

    pub fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, body.to_string().as_bytes())
    }

    pub fn network(&self, name: &str) -> String {
        let made =
            self.post("/networks/create", json!({ "Name": name, "Labels": { "complement_pkg": "t" } }));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["Id"].as_str().unwrap().to_owned()
    }

    /// Creates a container and copies the certificate authority in, as Complement does.
    pub fn create(&self, name: &str, server_name: &str, image: &str, env: &[&str]) -> String {
        let mut all = vec![format!("SERVER_NAME={server_name}")];
        all.extend(env.iter().map(|pair| (*pair).to_owned()));
        let body = json!({
            "Image": image, "Env": all, "Labels": { "complement_hs_name": server_name },
            "HostConfig": { "ExtraHosts": ["host.docker.internal:host-gateway"], "Mounts": null },
            "NetworkingConfig": { "EndpointsConfig": { "net": { "Aliases": [server_name] } } },
        });
        let made = self.post(&format!("/containers/create?name={name}"), body);
        assert_eq!(made.status, 201, "{}", made.text());
        let id = made.json()["Id"].as_str().unwrap().to_owned();
        for file in ["ca.crt", "ca.key"] {
            let content = std::fs::read(self.files.path().join(file)).unwrap();
            let archive = archive(&format!("/complement/ca/{file}"), &content);
            let put = self.call("PUT", &format!("/containers/{id}/archive?path=%2F"), &archive);
            assert_eq!(put.status, 200, "{}", put.text());
        }
        id
    }

    pub fn act(&self, id: &str, verb: &str) -> u16 {
        self.call("POST", &format!("/containers/{id}/{verb}"), b"").status
    }

    /// The published port of the container's client API.
    pub fn client_port(&self, id: &str) -> u16 {
        let inspected = self.get(&format!("/containers/{id}/json"));
        let published = &inspected["NetworkSettings"]["Ports"]["8008/tcp"][0];
        assert_eq!(published["HostIp"], "127.0.0.1", "{inspected}");
        published["HostPort"].as_str().unwrap().parse().unwrap()
    }

    /// What the server in the container answers.
    pub fn ask(&self, id: &str, path: &str) -> String {
        request(self.client_port(id), "GET", path, b"").expect("the server did not answer").text()
    }

    pub fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end(Signal::TERM);
        }
    }
}

/// One request on one connection; nothing if there is no answer within two seconds.
pub fn request(port: u16, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    // Long enough for a call that makes a certificate on a busy machine.
    stream.set_read_timeout(Some(Duration::from_secs(if path.starts_with("/v1") { 30 } else { 2 }))).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: answer[end + 4..].to_vec() })
}

fn make_authority(files: &TempDir) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Test", "-keyout", "ca.key"]);
    let output = openssl.args(["-out", "ca.crt"]).current_dir(files.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A tar archive of one file.
fn archive(path: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = vec![0; 512];
    archive[..path.len()].copy_from_slice(path.as_bytes());
    archive[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    archive[156] = b'0';
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}
