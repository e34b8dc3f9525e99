//! A published port: 127.0.0.1 with a port of the system's choice, connected to a port of one container.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// A restarted server may not listen yet when Complement first asks; waiting here is quicker than its next poll.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// Dropping it closes the port and every connection through it, as stopping a container does.
pub struct Proxy {
    port: u16,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn open(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { port, task: tokio::spawn(accept(listener, target)) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        // A failed accept leaves nothing to answer to; the pause keeps an exhausted descriptor table from spinning.
        let Ok((client, _)) = listener.accept().await else {
            sleep(CONNECT_PAUSE).await;
            continue;
        };
        connections.spawn(forward(client, target));
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr) {
    let Some(mut server) = connect(target).await else { return };
    // Without this the kernel holds small answers back for 40 ms.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    // An error is one side going away, which the other side sees by its own connection closing.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

async fn connect(target: SocketAddr) -> Option<TcpStream> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match TcpStream::connect(target).await {
            Ok(stream) => return Some(stream),
            Err(_) if Instant::now() < deadline => sleep(CONNECT_PAUSE).await,
            Err(_) => return None,
        }
    }
}
