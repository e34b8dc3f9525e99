//! Joining, leaving, knocking and inviting through a simulated resident server.

use crate::sim::{NOW, Network, Resident, VERSION, identity, no_content, us};
use serde_json::{Value, json};
use std::sync::Arc;
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::remote::{
    JoinRequest, KnockRequest, LeaveRequest, RemoteError, RemoteInvite, RemoteMemberships,
};
use waxwing_federation::transport::Request;
use waxwing_model::Event;
use waxwing_rooms::sign::sign_event;

fn raw(event: &Event) -> Value {
    serde_json::from_str(event.json.get()).unwrap()
}

fn template(resident: &Resident, membership: &str) -> Value {
    let find = |kind: &str, key: &str| {
        let entry = resident.state.iter().find(|((k, s), _)| k.to_string() == kind && s == key);
        entry.unwrap().1.event_id.clone()
    };
    let auth = ["m.room.create", "m.room.power_levels", "m.room.join_rules"].map(|kind| find(kind, ""));
    json!({ "room_version": "10", "event": {
        "type": "m.room.member", "room_id": resident.room, "sender": "@me:us.test", "state_key": "@me:us.test",
        "content": { "membership": membership }, "depth": 9, "origin_server_ts": 1,
        "prev_events": [resident.events.last().unwrap().event_id], "auth_events": auth,
        "signatures": { "evil.test": {} }, "extra": "not signed by us" } })
}

/// Answers join requests with what `change` makes of the honest answer.
fn serve(
    network: &Network,
    resident: &Arc<Resident>,
    change: impl Fn(&Request, Value) -> Option<(u16, Value)> + Send + Sync + 'static,
) {
    let resident = Arc::clone(resident);
    network.add(resident.identity.server.clone().as_str(), move |request| {
        let path = &request.path_and_query;
        let answer = if path.contains("/make_join/") {
            template(&resident, "join")
        } else if path.contains("/make_leave/") {
            template(&resident, "leave")
        } else if path.contains("/make_knock/") {
            template(&resident, "knock")
        } else if path.contains("/send_join/") {
            let state: Vec<Value> = resident.state.values().map(|event| raw(event)).collect();
            let chain: Vec<Value> = resident.events.iter().map(|event| raw(event)).collect();
            json!({ "state": state, "auth_chain": chain, "servers_in_room": ["them.test"] })
        } else if path.contains("/send_knock/") {
            let state: Vec<Value> = resident.state.values().map(|event| raw(event)).collect();
            json!({ "knock_room_state": state })
        } else if path.contains("/key/v2/server") {
            resident.key_document()
        } else {
            json!({})
        };
        change(request, answer)
    });
}

fn request(resident: &Resident, servers: &[&str]) -> JoinRequest {
    JoinRequest {
        room: resident.room.clone(),
        user: "@me:us.test".try_into().unwrap(),
        servers: servers.iter().map(|server| (*server).try_into().unwrap()).collect(),
        content: serde_json::from_value(json!({ "displayname": "Me", "membership": "ban" })).unwrap(),
        omit_members: false,
    }
}

fn memberships(network: &Arc<Network>) -> RemoteMemberships {
    let us = us(network, &[]);
    RemoteMemberships::new(us.client, us.ring, us.clock)
}

#[tokio::test]
async fn a_join_gives_the_room_verified_and_the_event_signed() {
    let network = Arc::new(Network::default());
    let resident = Arc::new(Resident::new("them.test", 2));
    serve(&network, &resident, |_, answer| Some((200, answer)));
    let servers = ["us.test", "dead.test", "them.test"];
    let joined = memberships(&network).join(&request(&resident, &servers)).await.unwrap();
    assert_eq!(joined.resident, "them.test");
    assert_eq!(joined.version, VERSION);
    assert_eq!(joined.state.len(), resident.state.len());
    assert!(joined.auth_chain.iter().all(|outlier| outlier.rejected.is_none()));
    let content: Value = joined.join.content_as().unwrap();
    assert_eq!(content, json!({ "membership": "join", "displayname": "Me" }));
    let json = raw(&joined.join);
    assert!(json.get("extra").is_none() && json["signatures"].get("evil.test").is_none());
    assert!(json["signatures"]["us.test"].is_object());
    assert_eq!(joined.servers_in_room, ["them.test"]);
}

#[tokio::test]
async fn forged_state_is_left_out_and_a_room_that_does_not_hold_is_refused() {
    let network = Arc::new(Network::default());
    let resident = Arc::new(Resident::new("them.test", 2));
    // The power levels are changed in a field that the signature covers.
    serve(&network, &resident, |_, mut answer| {
        for list in ["state", "auth_chain"] {
            for event in answer.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if event["type"] == "m.room.join_rules" {
                    event["origin_server_ts"] = json!(1);
                }
            }
        }
        Some((200, answer))
    });
    // Without its join rules nobody may join.
    let refused = memberships(&network).join(&request(&resident, &["them.test"])).await;
    assert!(matches!(refused, Err(RemoteError::Invalid(_))), "{refused:?}");

    serve(&network, &resident, |request, mut answer| {
        if request.path_and_query.contains("/send_join/") {
            answer["state"] = json!([]);
            answer["auth_chain"] = json!([1, {}, "x"]);
        }
        Some((200, answer))
    });
    let refused = memberships(&network).join(&request(&resident, &["them.test"])).await;
    assert!(matches!(refused, Err(RemoteError::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn templates_for_something_else_are_not_signed() {
    let resident = Arc::new(Resident::new("them.test", 2));
    for (field, value) in [
        ("sender", json!("@other:us.test")),
        ("state_key", json!("@other:us.test")),
        ("type", json!("m.room.message")),
        ("room_id", json!("!else:them.test")),
        ("content", json!({ "membership": "leave" })),
    ] {
        let network = Arc::new(Network::default());
        serve(&network, &resident, move |request, mut answer| {
            if request.path_and_query.contains("/make_join/") {
                answer["event"][field] = value.clone();
            }
            Some((200, answer))
        });
        let refused = memberships(&network).join(&request(&resident, &["them.test"])).await;
        assert!(matches!(refused, Err(RemoteError::Invalid(_))), "{field}: {refused:?}");
        assert_eq!(network.count("/send_join/"), 0);
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let resident = Arc::new(Resident::new("them.test", 2));
    let attempt = async |status: u16, body: Value, servers: &[&str]| {
        let network = Arc::new(Network::default());
        for server in ["them.test", "also.test"] {
            let body = body.clone();
            network.add(server, move |_| Some((status, body.clone())));
        }
        let error = memberships(&network).join(&request(&resident, servers)).await.unwrap_err();
        (error, network.count("/make_join/"))
    };
    let both = ["them.test", "also.test"];
    let (error, asked) = attempt(403, json!({ "errcode": "M_FORBIDDEN" }), &both).await;
    assert!(matches!(error, RemoteError::Refused(refusal) if refusal.errcode == "M_FORBIDDEN") && asked == 1);
    let (error, asked) = attempt(404, json!({ "errcode": "M_NOT_FOUND" }), &both).await;
    assert!(matches!(error, RemoteError::Refused(_)) && asked == 2);
    let (_, asked) = attempt(400, json!({ "errcode": "M_UNABLE_TO_GRANT_JOIN" }), &both).await;
    assert_eq!(asked, 2);
    let body = json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "room_version": "99" });
    let (error, asked) = attempt(400, body, &both).await;
    assert!(matches!(error, RemoteError::IncompatibleVersion(version) if version == "99") && asked == 1);
    let (error, _) = attempt(403, json!({}), &[]).await;
    assert!(matches!(error, RemoteError::NoServers));
}

#[tokio::test]
async fn leaving_and_knocking() {
    let network = Arc::new(Network::default());
    let resident = Arc::new(Resident::new("them.test", 2));
    serve(&network, &resident, |_, answer| Some((200, answer)));
    let memberships = memberships(&network);
    let join = request(&resident, &["them.test"]);
    let leave = LeaveRequest {
        room: join.room.clone(),
        user: join.user.clone(),
        servers: join.servers.clone(),
        content: no_content(),
    };
    let (version, event) = memberships.leave(&leave).await.unwrap();
    assert_eq!((version, event.content_str("membership").unwrap()), (VERSION, "leave".into()));
    assert_eq!(network.count("/send_leave/"), 1);
    let knock =
        KnockRequest { room: join.room, user: join.user, servers: join.servers, content: no_content() };
    let knocked = memberships.knock(&knock).await.unwrap();
    assert_eq!(knocked.stripped_state.len(), resident.state.len());
    assert!(!knocked.stripped_state[0].get().contains("signatures"));
}

#[tokio::test]
async fn an_invite_comes_back_with_both_signatures() {
    let network = Arc::new(Network::default());
    let mut ours = Resident::new("us.test", 1);
    let content = json!({ "membership": "invite" });
    let (tip, state) = (ours.events.last().unwrap().clone(), ours.state.clone());
    let invite = ours.make("creator", "m.room.member", Some("@them:them.test"), content, &[tip], &state);
    let signing = |sign: bool| {
        move |request: &Request| {
            if request.path_and_query.contains("/key/") {
                let own = OwnKeys::new(identity("them.test", 2), Vec::new());
                return Some((200, serde_json::from_str(own.document(NOW).unwrap().get()).unwrap()));
            }
            let body: Value = serde_json::from_slice(request.body.as_ref().unwrap()).unwrap();
            let mut event = serde_json::from_value(body["event"].clone()).unwrap();
            if sign {
                let them = identity("them.test", 2);
                sign_event(&mut event, &VERSION, &them.server, &them.key).unwrap();
            }
            Some((200, json!({ "event": event })))
        }
    };
    let memberships = memberships(&network);
    let them = "them.test".try_into().unwrap();
    let request = RemoteInvite { version: &VERSION, event: &invite, state: &[] };
    network.add("them.test", signing(false));
    assert!(matches!(memberships.invite(them, &request).await, Err(RemoteError::Invalid(_))));
    network.add("them.test", signing(true));
    let both = memberships.invite(them, &request).await.unwrap();
    let signatures = &raw(&both)["signatures"];
    assert!(signatures["us.test"].is_object() && signatures["them.test"].is_object());
    assert_eq!(both.event_id, invite.event_id);
}
