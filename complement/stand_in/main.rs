//! A server to try the runner with: it answers every request with what it knows about itself, and counts its starts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::{env, fs, thread};

fn main() {
    let config = env::args().nth(3).expect("called as: serve --config FILE");
    let config = fs::read_to_string(config).expect("the configuration");
    let data = PathBuf::from(setting(&config, "data_dir"));
    if env::var_os("STAND_IN_CRASHES").is_some() {
        println!("crashing as told");
        std::process::exit(3);
    }
    let starts = data.join("starts");
    let count = fs::read_to_string(&starts).map_or(0, |text| text.parse().expect("a number")) + 1;
    fs::write(&starts, count.to_string()).expect("writing the count");
    let answer = format!("{} start {count}", setting(&config, "server_name"));
    println!("{answer}");
    let federation = TcpListener::bind(setting(&config, "federation")).expect("the federation port");
    let client = TcpListener::bind(setting(&config, "client")).expect("the client port");
    let spare = answer.clone();
    thread::spawn(move || serve(&federation, &spare));
    serve(&client, &answer);
}

/// The text of a setting, without the quotes and brackets around it.
fn setting<'a>(config: &'a str, name: &str) -> &'a str {
    let line = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    line.expect(name).trim_matches(['"', '[', ']'])
}

fn serve(listener: &TcpListener, answer: &str) {
    for stream in listener.incoming().flatten() {
        respond(stream, answer);
    }
}

/// `/resolve/NAME` tells what the name resolves to, `/hosts` who this server thinks it is.
fn respond(mut stream: TcpStream, answer: &str) {
    let mut request = [0; 1024];
    let Ok(length) = stream.read(&mut request) else { return };
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let body = match path.strip_prefix("/resolve/") {
        Some(name) => (name, 0).to_socket_addrs().map_or("nothing".to_owned(), |mut found| {
            found.next().map_or("nothing".to_owned(), |address| address.ip().to_string())
        }),
        None if path == "/hosts" => fs::read_to_string(Path::new("/etc/hosts")).unwrap_or_default(),
        None => answer.to_owned(),
    };
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
}
