//! What happens to the nodes, the database and the lines between them.

use super::balancer::Balancer;
use super::cluster::Cluster;
use super::people::{People, Person};
use super::wire::{Line, Protocol, Wire};
use crate::harness::dice::Dice;
use crate::nats_server::NatsServer;
use crate::node::{Node, say};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Longer than a lease, and longer than the database waits for a transaction that stands still.
const LONG: Duration = Duration::from_secs(6);
/// Between two faults: all must be well again.
const REST: Duration = Duration::from_millis(1500);
/// Work that a lost node had the lease of goes on within this time on a quiet machine; a busy one gets twice as much.
const RECOVERED: Duration = Duration::from_secs(5);
const BUSY: u32 = 2;

pub const NODES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Killed and started again.
    Kill(usize),
    /// Stopped for longer than a lease.
    Pause(usize),
    CutFromDatabase(usize),
    SilentDatabase(usize),
    CutFromBus(usize),
    /// The database is shut down and started again; it crashes and is started again.
    Restart,
    Crash,
    /// The database's machine is gone; its replica takes over.
    FailOver,
    /// Each node in turn is told to stop, and started again.
    Rolling,
    /// The same, and from then on hints go over NATS.
    ToNats,
    CutFromNats(usize),
    SilentNats(usize),
    /// NATS is gone, and comes back.
    NatsAway,
}

impl Fault {
    /// The ones that every run has, in this order.
    pub const EACH: [Fault; 11] = [
        // One of them has the lease of delayed events.
        Fault::Kill(0),
        Fault::Kill(1),
        Fault::Kill(2),
        Fault::Rolling,
        Fault::Pause(1),
        Fault::CutFromDatabase(2),
        Fault::SilentDatabase(0),
        Fault::CutFromBus(1),
        Fault::Restart,
        Fault::Crash,
        Fault::FailOver,
    ];

    /// The ones that every run has after those, with hints over NATS.
    pub const OVER_NATS: [Fault; 6] = [
        Fault::ToNats,
        Fault::CutFromNats(0),
        Fault::SilentNats(1),
        Fault::NatsAway,
        Fault::Kill(2),
        Fault::CutFromDatabase(0),
    ];

    fn is_of_nats(self) -> bool {
        matches!(self, Fault::ToNats | Fault::CutFromNats(_) | Fault::SilentNats(_) | Fault::NatsAway)
    }

    pub fn any(dice: &Dice) -> Fault {
        let node = dice.below(NODES as u64) as usize;
        match dice.below(15) {
            0..=2 => Fault::Kill(node),
            3 | 4 => Fault::Pause(node),
            5 => Fault::CutFromDatabase(node),
            6 => Fault::SilentDatabase(node),
            7 => Fault::CutFromBus(node),
            8 => Fault::Restart,
            9 => Fault::Crash,
            10 => Fault::FailOver,
            11 => Fault::CutFromNats(node),
            12 => Fault::SilentNats(node),
            13 => Fault::NatsAway,
            _ => Fault::Rolling,
        }
    }
}

/// Failed requests of each fault that are shown.
const SHOWN: usize = 5;

/// Everything that can be hurt. The order of fields is that in which they end.
pub struct World {
    pub balancer: Balancer,
    nodes: Vec<Node>,
    wires: Vec<Wire>,
    nats_wires: Vec<Wire>,
    nats: Option<NatsServer>,
    cluster: Cluster,
    dice: Arc<Dice>,
    /// Seconds until leased work went on after a node was lost.
    pub recoveries: Vec<f64>,
    /// Requests that failed during rolling restarts.
    pub failed_while_rolling: u64,
}

impl World {
    /// Starts everything in `folder`.
    pub async fn start(folder: &Path, dice: Arc<Dice>) -> World {
        let cluster = tokio::task::block_in_place(|| Cluster::start(folder));
        let (mut nodes, mut wires, mut nats_wires) = (Vec::new(), Vec::new(), Vec::new());
        let mut nats = NatsServer::new(&[]);
        if let Some(server) = &mut nats {
            server.start();
        }
        for number in 0..NODES {
            let wire = Wire::start(Protocol::Postgres, cluster.port(), Arc::clone(&dice)).await;
            if let Some(server) = &nats {
                nats_wires.push(Wire::start(Protocol::Nats, server.port, Arc::clone(&dice)).await);
            }
            let settings = [
                format!("database={}", Cluster::url(wire.port)),
                format!("media.path={}", folder.join("media").display()),
                "federation.enabled=false".to_owned(),
                "push.enabled=false".to_owned(),
                "drain_seconds=1".to_owned(),
                "presence=false".to_owned(),
            ];
            let home = folder.join(format!("node-{number}"));
            let mut node = Node::new(&home, &settings);
            if number > 0 {
                // The key is the server's, not the node's.
                std::fs::create_dir_all(home.join("data")).unwrap();
                std::fs::copy(folder.join("node-0/data/signing.key"), home.join("data/signing.key")).unwrap();
            }
            node.start().await;
            nodes.push(node);
            wires.push(wire);
        }
        let balancer = Balancer::start(nodes.iter().map(Node::client_url).collect()).await;
        let recoveries = Vec::new();
        World { balancer, nodes, wires, nats_wires, nats, cluster, dice, recoveries, failed_while_rolling: 0 }
    }

    /// What `waxwing doctor` says.
    pub async fn examine(&self) -> String {
        crate::harness::examine(&self.nodes[0]).await
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::client_url).collect()
    }

    /// Does it, waits until it is over, and lets everybody take a breath.
    pub async fn suffer(&mut self, fault: Fault, people: &Arc<People>) {
        if self.nats.is_none() && fault.is_of_nats() {
            return;
        }
        let began = Instant::now();
        let rolls = matches!(fault, Fault::Rolling | Fault::ToNats);
        if rolls {
            // Polls that were broken off before have failed by then, and do not count.
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
        let failed = people.tally.failed.load(Ordering::Relaxed);
        for wire in self.wires.iter().chain(&self.nats_wires) {
            wire.mangle_hints(self.dice.below(2) == 0);
        }
        match fault {
            Fault::Kill(node) => self.kill(node, people).await,
            Fault::Pause(node) => {
                self.nodes[node].signal("STOP").await;
                tokio::time::sleep(LONG).await;
                self.nodes[node].signal("CONT").await;
            }
            Fault::CutFromDatabase(node) => line(&self.wires[node], Line::Cut).await,
            Fault::SilentDatabase(node) => line(&self.wires[node], Line::Silent).await,
            Fault::CutFromBus(node) => line(&self.wires[node], Line::NoBus).await,
            Fault::CutFromNats(node) => line(&self.nats_wires[node], Line::Cut).await,
            Fault::SilentNats(node) => line(&self.nats_wires[node], Line::Silent).await,
            Fault::NatsAway => self.without_nats().await,
            Fault::Restart => tokio::task::block_in_place(|| self.cluster.restart("fast")),
            Fault::Crash => tokio::task::block_in_place(|| self.cluster.restart("immediate")),
            Fault::FailOver => {
                let port = tokio::task::block_in_place(|| self.cluster.fail_over());
                self.wires.iter().for_each(|wire| wire.lead_to(port));
                tokio::time::sleep(REST).await;
                tokio::task::block_in_place(|| self.cluster.mend());
            }
            Fault::ToNats => {
                for (node, wire) in self.nodes.iter_mut().zip(&self.nats_wires) {
                    node.set(format!("cluster.nats=nats://127.0.0.1:{}", wire.port));
                }
                self.roll().await;
                for node in &self.nodes {
                    assert!(node.logged().contains("hints go over NATS"), "{}", node.logged());
                }
            }
            Fault::Rolling => self.roll().await,
        }
        let over = Instant::now();
        tokio::time::sleep(REST).await;
        let failed = people.tally.failed.load(Ordering::Relaxed) - failed;
        if rolls {
            self.failed_while_rolling += failed;
        }
        let gap = longest_silence(people, began);
        say(&format!(
            "{fault:?}: {:.1} s, {failed} requests failed, no event acknowledged for {:.1} s at most",
            (over - began).as_secs_f64(),
            gap.as_secs_f64(),
        ));
        let why = std::mem::take(&mut *people.tally.why.lock().unwrap());
        for why in why.iter().take(SHOWN) {
            say(&format!("  {}", why.chars().take(400).collect::<String>()));
        }
    }

    async fn roll(&mut self) {
        for node in &mut self.nodes {
            node.stop().await;
            node.start().await;
            // The balancer has seen it before the next one goes.
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
    }

    async fn without_nats(&mut self) {
        let Some(server) = &mut self.nats else { return };
        server.kill();
        tokio::time::sleep(LONG).await;
        tokio::task::block_in_place(|| server.start());
    }

    /// An event waits to be sent until long after the end, so that one node always has the lease of that.
    pub async fn keep_a_lease(&self, people: &People) {
        self.put_aside(&people.all[0], Duration::from_hours(20)).await;
    }

    /// An event of the person is to be sent after `delay`. Its content.
    async fn put_aside(&self, person: &Person, delay: Duration) -> Value {
        let mark = format!("delayed.{}.", self.dice.below(u64::MAX));
        let path = format!(
            "/_matrix/client/v3/rooms/{}/send/m.reaction/{mark}?org.matrix.msc4140.delay={}",
            person.room,
            delay.as_millis(),
        );
        let content = json!({"mark": mark});
        person.account.sure(Method::PUT, &path, &content).await;
        content
    }

    /// A node is killed while an event waits to be sent by whoever has the lease of that.
    async fn kill(&mut self, node: usize, people: &Arc<People>) {
        const DELAY: Duration = Duration::from_secs(1);
        let person = Arc::clone(&people.all[0]);
        let content = self.put_aside(&person, DELAY).await;
        let due = Instant::now() + DELAY;
        self.nodes[node].kill().await;
        let messages = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=30", person.room);
        loop {
            let page = person.account.sure(Method::GET, &messages, &Value::Null).await;
            if page["chunk"].as_array().into_iter().flatten().any(|event| event["content"] == content) {
                break;
            }
            assert!(due.elapsed() < RECOVERED * BUSY, "what the lost node had the lease of is not done");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.recoveries.push(due.elapsed().as_secs_f64());
        self.nodes[node].start().await;
    }
}

/// Does something to a line for a while.
async fn line(wire: &Wire, line: Line) {
    wire.set(line);
    tokio::time::sleep(LONG).await;
    wire.set(Line::Open);
}

/// For how long nobody's event was acknowledged since `began`.
fn longest_silence(people: &People, began: Instant) -> Duration {
    let now = Instant::now();
    let book = people.book.lock();
    let mut times: Vec<Instant> = book.times.iter().copied().filter(|at| *at >= began).collect();
    times.insert(0, began);
    times.push(now);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
