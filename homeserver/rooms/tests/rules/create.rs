//! How a room begins, and what its create event says for good.

use crate::case::{ALICE, ALL, BOB, EVE, LEFT, Room, STRANGER, create, member, message, rule, run, state};
use serde_json::json;

/// `m.room.create`: rule 1.
#[test]
fn create_events() {
    let plain = || create(json!({ "creator": ALICE }));
    // Without a word on the version it is 1; so each case names the one that it is made for.
    for number in ALL {
        let content = json!({ "creator": ALICE, "room_version": number.to_string() });
        let good = || create(content.clone());
        run(vec![
            rule("no prev_events", good(), good().after(&["bob:x"])).of(number..=number),
            rule("a version that we know", good(), good().with("room_version", json!("nonesuch")))
                .of(number..=number),
            rule(
                "the version of the room",
                good(),
                good().with("room_version", json!((number % 12 + 1).to_string())),
            )
            .of(number..=number),
        ]);
        let without = create(json!({ "room_version": number.to_string() }));
        let case = rule("a creator in the content", good(), without.clone()).of(1..=10);
        run(vec![if number <= 10 {
            case.of(number..=number)
        } else {
            rule("no creator is needed", without, good().after(&["bob:x"])).of(number..=number)
        }]);
        let domain = || good().in_room("!create:elsewhere");
        run(vec![if number < 12 {
            rule("a room id of the sender's server", good(), domain()).of(number..=number)
        } else {
            rule("no room id", good(), good().in_room("!other")).of(12..=12)
        }]);
        let more = |value| good().with("additional_creators", value);
        let last = number == 12;
        for bad in [json!(["not a user"]), json!(BOB), json!([BOB, 7]), json!({ BOB: 1 })] {
            let case = rule("additional creators are users", more(json!([BOB, EVE])), more(bad));
            let versions = if last { 12..=12 } else { number..=number };
            let case = case.of(versions);
            // The field means nothing before.
            run(if last { vec![case] } else { vec![] });
        }
        if !last {
            run(vec![
                rule("the field means nothing before", more(json!(["not a user"])), good().after(&["bob:x"]))
                    .of(number..=number),
            ]);
        }
    }
    run(vec![rule("version 1 may go without saying", plain(), plain().after(&["bob:x"])).of(1..=1)]);
}

/// Rule 2: `auth_events`.
#[test]
fn auth_events() {
    run(vec![
        rule("no two for one entry", message(BOB), message(BOB).citing("newlevels:x")).given(|room| {
            room.know(state(ALICE, "m.room.power_levels", "", json!({})).named("newlevels:x"), false);
        }),
        rule("not the same twice", message(BOB), message(BOB).citing("levels:x")),
        rule("none that it does not need", member(LEFT, LEFT, "join"), message(BOB).citing("rules:x")),
        rule("none of another person", message(BOB), message(BOB).citing("alice:x")),
        rule("none that is no state", message(BOB), message(BOB).citing("said:x"))
            .given(|room| room.know(message(BOB).named("said:x"), false)),
        rule("none that was rejected", message(BOB), message(EVE)).given(|room| room.reject("eve:elsewhere")),
        rule("none that nobody knows", message(BOB), message(BOB).citing("unknown:x")),
        rule("none of another room", message(BOB), message(BOB).not_citing("levels:x").citing("foreign:x"))
            .given(|room| {
                let levels = state(ALICE, "m.room.power_levels", "", json!({}));
                room.know(levels.in_room("!other:x").named("foreign:x"), false);
            }),
        rule("the create event", message(BOB), message(BOB).not_citing("create:x")).of(1..=11),
        rule("not the create event, which the room id names", message(BOB), message(BOB).citing("create:x"))
            .of(12..=12),
    ]);
}

/// Rule 2 of version 12: the room id is the hash of an accepted create event.
#[test]
fn the_room_id_names_the_create_event() {
    run(vec![
        rule(
            "its create event is known",
            create(json!({ "room_version": "12" })),
            message(BOB).in_room("!nonesuch:x").citing_nothing(),
        )
        .of(12..=12),
        rule("a room without accepted create event", create(json!({ "room_version": "12" })), message(BOB))
            .of(12..=12)
            .given(|room| room.reject("create:x")),
    ]);
}

/// `m.federate`, against the domain of whoever sent the create event: a version 12 room id has none.
#[test]
fn rooms_of_one_server() {
    fn closed(room: &mut Room) {
        let content = json!({
            "creator": ALICE, "room_version": room.number.to_string(), "m.federate": false,
            "additional_creators": [EVE],
        });
        room.put(create(content).named("create:x"));
    }
    run(vec![
        rule("messages", message(BOB), message(EVE)).given(closed),
        rule("joins", member(STRANGER, STRANGER, "join"), member("@new:elsewhere", "@new:elsewhere", "join"))
            .given(closed),
        rule("leaving", member(BOB, BOB, "leave"), member(EVE, EVE, "leave")).given(closed),
        rule(
            "state",
            state(BOB, "org.example.free", "", json!({})),
            state(EVE, "org.example.free", "", json!({})),
        )
        .given(closed),
        // An invitation comes from inside.
        rule("invitations out are sent inside", member(BOB, "@new:elsewhere", "invite"), message(EVE))
            .given(closed),
        rule("an open room", message(EVE), message(LEFT)),
    ]);
}
