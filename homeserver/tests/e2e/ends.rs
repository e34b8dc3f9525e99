//! Rooms whose graph another server frays on purpose: every event of its is an end of its own. The row of the room stays
//! bounded, the state is the one that all servers find, and whoever of ours speaks brings the ends together.

use crate::federation::NAMES;
use crate::http::{Raw, at};
use crate::neighbours::{Guest, Neighbours, ask_as};
use crate::site::Shape;
use reqwest::Method;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId};
use serde_json::{Value, json};
use waxwing_rooms::format::Counts;
use waxwing_rooms::parse::parse_pdu;
use waxwing_rooms::sign::hash_and_sign_event;

const LETTER: &str = "m.room.encrypted";
/// Ends that a room may have.
const MOST_ENDS: usize = 1_000;
/// Events that say too much.
const SURPLUS: usize = 30;
/// Events in a transaction.
const TOGETHER: usize = 50;
/// Events that an event may follow.
const MOST_FOLLOWED: usize = 20;
/// States that are resolved at once.
const MOST_SIDES: usize = 100;

struct Frayed {
    neighbours: Neighbours,
    alice: Raw,
    guest: Guest,
    sent: usize,
}

impl Frayed {
    async fn start() -> Frayed {
        let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
        let alice = Raw::register(&neighbours.alpha.nodes[0].client_url(), "alice").await;
        let guest = neighbours.joins(&alice, RoomVersionId::V11).await;
        Frayed { neighbours, alice, guest, sent: 0 }
    }

    /// An event that follows the guest's join, so many milliseconds after it; a state event unless it is a letter.
    fn event(&self, kind: &str, content: &Value, later: u64) -> (String, Value) {
        let join = &self.guest.join;
        self.event_after(kind, content, later, &[join.event_id.as_str()], u64::from(join.depth) + 1)
    }

    fn event_after(
        &self,
        kind: &str,
        content: &Value,
        later: u64,
        ends: &[&str],
        depth: u64,
    ) -> (String, Value) {
        let auth: Vec<Value> = self.guest.auth_events.iter().map(|event| json!(event.event_id)).collect();
        let mut event = json!({
            "type": kind, "sender": self.guest.user, "room_id": self.guest.room, "content": content,
            "origin_server_ts": u64::from(MilliSecondsSinceUnixEpoch::now().get()) + 60_000 + later,
            "depth": depth, "prev_events": ends, "auth_events": auth,
        });
        if kind != LETTER {
            event["state_key"] = "".into();
        }
        let mut object = serde_json::from_value(event).unwrap();
        let beta = &self.neighbours.beta;
        hash_and_sign_event(&mut object, &self.guest.version, &beta.server, &beta.key).unwrap();
        let pdu = serde_json::to_value(object).unwrap();
        let raw = serde_json::value::to_raw_value(&pdu).unwrap();
        let id = parse_pdu(&raw, &self.guest.version, Counts::Limited).unwrap().event.event_id;
        (id.to_string(), pdu)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let url = self.neighbours.alpha.nodes[0].client_url();
        ask_as(&self.neighbours.beta, &url, method, path, body).await.fine()
    }

    /// All are taken in.
    async fn send(&mut self, pdus: &[Value]) {
        for some in pdus.chunks(TOGETHER) {
            self.sent += 1;
            let path = format!("/_matrix/federation/v1/send/fray{}", self.sent);
            let body = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": some, "edus": []});
            let answer = self.ask(Method::PUT, &path, Some(&body)).await;
            let outcomes = answer["pdus"].as_object().unwrap();
            assert_eq!(outcomes.len(), some.len());
            assert!(outcomes.values().all(|outcome| *outcome == json!({})), "{answer}");
        }
    }

    async fn shows(&self, id: &str) -> bool {
        let path = at(&self.guest.room, &format!("event/{id}"));
        let answer = self.alice.get(&path).await;
        if answer.status != 404 {
            answer.fine();
            return true;
        }
        false
    }

    /// A letter of alice's: its id, and what it follows as the other server reads it.
    async fn letter(&self, transaction: &str) -> (String, Vec<String>) {
        let sent = self.alice.send_sealed(&self.guest.room, transaction).await.fine();
        let id = sent["event_id"].as_str().unwrap().to_owned();
        let answer = self.ask(Method::GET, &format!("/_matrix/federation/v1/event/{id}"), None).await;
        let follows = answer["pdus"][0]["prev_events"].as_array().unwrap();
        (id, follows.iter().map(|id| id.as_str().unwrap().to_owned()).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_has_so_many_ends_and_not_one_more() {
    let mut frayed = Frayed::start().await;
    let content = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"});
    let letters: Vec<_> =
        (0..MOST_ENDS + SURPLUS).map(|number| frayed.event(LETTER, &content, number as u64)).collect();
    let pdus: Vec<Value> = letters.iter().map(|(_, pdu)| pdu.clone()).collect();
    frayed.send(&pdus).await;
    for (number, (id, _)) in letters.iter().enumerate() {
        // Each of the first, around the limit, and of the last.
        if number % 50 == 0 || number > MOST_ENDS - 5 {
            assert_eq!(frayed.shows(id).await, number < MOST_ENDS, "{number}");
        }
    }
    // What is kept back counts as soon as something follows that brings ends together.
    let ends = letters[..10].iter().chain(&letters[MOST_ENDS..MOST_ENDS + 5]);
    let ends: Vec<&str> = ends.map(|(id, _)| id.as_str()).collect();
    let (id, follows_it) = frayed.event_after(LETTER, &content, 5_000, &ends, 50);
    frayed.send(&[follows_it]).await;
    assert!(frayed.shows(&id).await);

    let (_, follows) = frayed.letter("one").await;
    assert_eq!(follows.len(), MOST_FOLLOWED);
    let (two, follows) = frayed.letter("two").await;
    assert!(follows.len() <= MOST_FOLLOWED, "{follows:?}");
    let (_, follows) = frayed.letter("three").await;
    assert_eq!(follows, [two], "the ends are together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_states_than_are_resolved_at_once_give_the_same_state() {
    let mut frayed = Frayed::start().await;
    // The newest of them holds the entry, whenever it comes: one among the first, one when there are many already.
    let (early, late) = (37, MOST_SIDES + 20);
    let notes: Vec<_> = (0..late + 10)
        .map(|number| {
            let later = match number {
                _ if number == early => 100_000,
                _ if number == late => 200_000,
                _ => (number * 7919 % 1000) as u64,
            };
            frayed.event("org.example.note", &json!({"number": number}), later)
        })
        .collect();
    let pdus: Vec<Value> = notes.iter().map(|(_, pdu)| pdu.clone()).collect();
    let state = at(&frayed.guest.room, "state/org.example.note/");
    let mut sent = 0;
    for (upto, holds) in [(60, early), (late - 1, early), (pdus.len(), late)] {
        frayed.send(&pdus[sent..upto]).await;
        sent = upto;
        assert_eq!(frayed.alice.get(&state).await.fine(), json!({"number": holds}), "{upto} ends");
    }
    let (letter, follows) = frayed.letter("one").await;
    assert!(follows.len() <= MOST_FOLLOWED, "{follows:?}");
    let (second, _) = frayed.letter("two").await;
    assert_eq!(frayed.alice.get(&state).await.fine(), json!({"number": late}));
    for id in [letter, second] {
        let path = format!("/_matrix/federation/v1/state_ids/{}?event_id={id}", frayed.guest.room);
        let ids = frayed.ask(Method::GET, &path, None).await["pdu_ids"].take();
        let of_notes: Vec<usize> = (0..notes.len())
            .filter(|number| ids.as_array().unwrap().contains(&json!(notes[*number].0)))
            .collect();
        assert_eq!(of_notes, [late], "before {id}");
    }
}
