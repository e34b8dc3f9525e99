//! The outbound sender on a simulated network, with an outbox in memory.

use crate::sim::{Network, Us, us};
use async_trait::async_trait;
use parking_lot::Mutex;
use ruma::api::federation::transactions::edu::TypingContent;
use ruma::{OwnedServerName, ServerName};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use waxwing_federation::outbound::{Sender, SenderLimits, VolatileEdu};
use waxwing_federation::ports::{Batch, BatchLimits, DestinationState, Outbox, PortResult};

/// Rows of numbers; each is a PDU.
#[derive(Default)]
struct Rows {
    pdus: Mutex<BTreeMap<OwnedServerName, Vec<i64>>>,
    failures: Mutex<BTreeMap<OwnedServerName, DestinationState>>,
    /// EDUs that go with every batch.
    edus: Mutex<Vec<String>>,
}

impl Rows {
    fn push(&self, destination: &str, row: i64) {
        self.pdus.lock().entry(destination.try_into().unwrap()).or_default().push(row);
    }

    fn left(&self, destination: &str) -> usize {
        self.pdus.lock().get(name(destination)).map_or(0, Vec::len)
    }
}

#[async_trait]
impl Outbox for Rows {
    async fn destinations_waiting(&self, _: usize) -> PortResult<Vec<DestinationState>> {
        let rows = self.pdus.lock();
        let failures = self.failures.lock();
        let waiting = rows.iter().filter(|(_, rows)| !rows.is_empty()).map(|(destination, _)| {
            failures.get(destination).cloned().unwrap_or(DestinationState {
                destination: destination.clone(),
                failing_since: None,
                retry_at: None,
                interval: None,
            })
        });
        Ok(waiting.collect())
    }

    async fn next_batch(&self, destination: &ServerName, limits: BatchLimits) -> PortResult<Option<Batch>> {
        let rows = self.pdus.lock();
        let Some(rows) = rows.get(destination).filter(|rows| !rows.is_empty()) else { return Ok(None) };
        let rows = &rows[..rows.len().min(limits.pdus)];
        let pdu = |row: &i64| Arc::from(RawValue::from_string(row.to_string()).unwrap());
        let upto = *rows.last().unwrap();
        let pdus = rows.iter().map(pdu).collect();
        let edu = |edu: &String| Arc::from(RawValue::from_string(edu.clone()).unwrap());
        let edus = self.edus.lock().iter().map(edu).collect();
        Ok(Some(Batch { txn_id: format!("t{upto}").into(), pdus, edus, upto }))
    }

    async fn batch_done(&self, destination: &ServerName, upto: i64) -> PortResult<()> {
        self.pdus.lock().get_mut(destination).unwrap().retain(|row| *row > upto);
        self.failures.lock().remove(destination);
        Ok(())
    }

    async fn destination_failed(&self, state: &DestinationState) -> PortResult<()> {
        self.failures.lock().insert(state.destination.clone(), state.clone());
        Ok(())
    }

    async fn destination_recovered(&self, destination: &ServerName) -> PortResult<()> {
        self.failures.lock().remove(destination);
        Ok(())
    }
}

fn name(text: &str) -> &ServerName {
    text.try_into().unwrap()
}

/// What a server received: transaction ids with bodies.
type Received = Arc<Mutex<Vec<(String, Value)>>>;

struct World {
    us: Us,
    network: Arc<Network>,
    rows: Arc<Rows>,
    sender: Sender,
    stop: Option<oneshot::Sender<()>>,
}

impl World {
    fn new(parallel: usize) -> World {
        let network = Arc::new(Network::default());
        let us = us(&network, &[]);
        let rows = Arc::new(Rows::default());
        let limits = SenderLimits { parallel, poll: Duration::from_secs(30) };
        let sender = Sender::new(us.client.clone(), Arc::clone(&rows) as _, us.clock.clone(), limits);
        World { us, network, rows, sender, stop: None }
    }

    fn run(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let sender = self.sender.clone();
        tokio::spawn(async move {
            sender
                .run(async move {
                    let _ = stopped.await;
                })
                .await;
        });
        self.stop = Some(stop);
    }

    /// A server that accepts while `up`.
    fn server(&self, server: &str, up: &Arc<AtomicBool>) -> Received {
        let received = Received::default();
        let (log, up) = (Arc::clone(&received), Arc::clone(up));
        self.network.add(server, move |request| {
            let txn = request.path_and_query.rsplit('/').next().unwrap().to_owned();
            log.lock().push((txn, serde_json::from_slice(request.body.as_ref().unwrap()).unwrap()));
            Some(if up.load(Ordering::SeqCst) { (200, json!({ "pdus": {} })) } else { (503, json!({})) })
        });
        received
    }
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..500 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}

fn typing(user: &str) -> VolatileEdu {
    VolatileEdu::Typing(TypingContent::new("!r:us.test".try_into().unwrap(), user.try_into().unwrap(), true))
}

#[tokio::test]
async fn rows_go_out_in_order_fifty_at_a_time() {
    let mut world = World::new(4);
    let received = world.server("a.test", &Arc::new(AtomicBool::new(true)));
    for row in 0..120 {
        world.rows.push("a.test", row);
    }
    world.run();
    until(|| world.rows.left("a.test") == 0).await;
    let sent = received.lock().clone();
    let counts: Vec<usize> = sent.iter().map(|(_, body)| body["pdus"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [50, 50, 20]);
    let rows: Vec<i64> = sent
        .iter()
        .flat_map(|(_, body)| body["pdus"].as_array().unwrap())
        .map(|n| n.as_i64().unwrap())
        .collect();
    assert_eq!(rows, (0..120).collect::<Vec<_>>());
    assert_eq!(sent[0].1["origin"], "us.test");
}

#[tokio::test]
async fn the_same_transaction_is_repeated_until_it_is_accepted() {
    let mut world = World::new(4);
    let up = Arc::new(AtomicBool::new(false));
    let received = world.server("a.test", &up);
    world.rows.push("a.test", 1);
    world.sender.push_volatile(name("a.test"), typing("@u:us.test"));
    world.run();
    until(|| world.rows.failures.lock().contains_key(name("a.test"))).await;
    // New rows do not change a transaction that was tried.
    world.rows.push("a.test", 2);
    world.sender.wake(name("a.test"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(received.lock().len(), 1, "not before the wait is over");
    up.store(true, Ordering::SeqCst);
    world.us.clock.advance(3_000);
    world.sender.wake(name("a.test"));
    until(|| world.rows.left("a.test") == 0).await;
    let sent = received.lock().clone();
    assert_eq!(sent[0], sent[1]);
    assert_eq!(sent[2].0, "t2");
    assert!(world.rows.failures.lock().is_empty());
}

#[tokio::test]
async fn an_edu_that_nobody_could_read_does_not_block_the_others() {
    let mut world = World::new(4);
    let received = world.server("a.test", &Arc::new(AtomicBool::new(true)));
    let deep = "[".repeat(120) + &"]".repeat(120);
    world.rows.edus.lock().push(format!(r#"{{"edu_type":"m.x","content":{deep}}}"#));
    world.rows.edus.lock().push(r#"{"edu_type":"m.y","content":{"float":1.5}}"#.to_owned());
    world.rows.push("a.test", 1);
    world.run();
    until(|| world.rows.left("a.test") == 0).await;
    let edus = received.lock()[0].1["edus"].clone();
    assert_eq!(edus.as_array().unwrap().len(), 1);
    assert_eq!(edus[0]["edu_type"], "m.y");
}

#[tokio::test]
async fn a_word_from_the_destination_ends_the_wait() {
    let mut world = World::new(4);
    let up = Arc::new(AtomicBool::new(false));
    world.server("a.test", &up);
    world.rows.push("a.test", 1);
    world.run();
    until(|| world.rows.failures.lock().contains_key(name("a.test"))).await;
    up.store(true, Ordering::SeqCst);
    world.sender.heard_from(name("a.test"));
    until(|| world.rows.left("a.test") == 0).await;
}

#[tokio::test]
async fn a_remembered_wait_holds_after_a_restart() {
    let mut world = World::new(4);
    let received = world.server("a.test", &Arc::new(AtomicBool::new(true)));
    world.rows.push("a.test", 1);
    let retry_at = world.us.clock.millis() + 60_000;
    let state = DestinationState {
        destination: name("a.test").to_owned(),
        failing_since: Some(0),
        retry_at: Some(retry_at),
        interval: Some(60_000),
    };
    world.rows.failures.lock().insert(name("a.test").to_owned(), state);
    world.run();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(received.lock().is_empty());
    world.us.clock.advance(61_000);
    world.sender.wake(name("a.test"));
    until(|| world.rows.left("a.test") == 0).await;
}

/// What was in flight when we went was answered `401`: the other side could not fetch our key. We are back within a
/// second, and so is what we had to say.
#[tokio::test]
async fn a_wait_that_began_as_we_went_ends_as_we_return() {
    let mut world = World::new(4);
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    world.network.add("a.test", move |_| {
        let unauthorised = json!({ "errcode": "M_UNAUTHORIZED", "error": "no key" });
        Some(if count.fetch_add(1, Ordering::SeqCst) == 0 { (401, unauthorised) } else { (200, json!({})) })
    });
    world.rows.push("a.test", 1);
    let now = world.us.clock.millis();
    let state = DestinationState {
        destination: name("a.test").to_owned(),
        failing_since: Some(now - 500),
        retry_at: Some(now + 2_000),
        interval: Some(2_000),
    };
    world.rows.failures.lock().insert(name("a.test").to_owned(), state);
    world.run();
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.us.clock.advance(100);
    until(|| tries.load(Ordering::SeqCst) == 1).await;
    until(|| world.rows.failures.lock()[name("a.test")].interval == Some(250)).await;
    world.us.clock.advance(400);
    world.sender.wake(name("a.test"));
    until(|| world.rows.left("a.test") == 0).await;
}

#[tokio::test]
async fn volatile_data_goes_out_alone_and_is_forgotten_for_the_dead() {
    let mut world = World::new(4);
    let received = world.server("a.test", &Arc::new(AtomicBool::new(true)));
    world.run();
    world.sender.push_volatile(name("a.test"), typing("@u:us.test"));
    until(|| !received.lock().is_empty()).await;
    assert_eq!(received.lock()[0].1["edus"][0]["edu_type"], "m.typing");
    // Never to ourselves.
    world.sender.push_volatile(name("us.test"), typing("@u:us.test"));
    world.sender.wake(name("us.test"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!world.network.log.lock().iter().any(|(server, _)| server == "us.test"));
}

#[tokio::test]
async fn destinations_are_served_in_parallel_within_the_limit() {
    let mut world = World::new(3);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for n in 0..10 {
        let server = format!("s{n}.test");
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        world.network.add(&server, move |_| {
            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(running, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(10));
            now.fetch_sub(1, Ordering::SeqCst);
            Some((200, json!({})))
        });
        world.rows.push(&server, 1);
    }
    world.run();
    until(|| (0..10).all(|n| world.rows.left(&format!("s{n}.test")) == 0)).await;
    assert!(most.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn a_stop_lets_what_is_in_flight_finish() {
    let mut world = World::new(3);
    world.server("a.test", &Arc::new(AtomicBool::new(true)));
    world.run();
    let stop = world.stop.take().unwrap();
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.rows.push("a.test", 1);
    world.sender.wake(name("a.test"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.rows.left("a.test"), 1);
}
