//! `m.room.power_levels`.

use crate::case::{
    ALICE, BOB, EVE, LARGEST, MOD, OTHER_MOD, Room, Try, create, member, message, rule, run, state,
};
use serde_json::{Value, json};

fn levels(sender: &str, changes: Value) -> Try {
    state(sender, "m.room.power_levels", "", changes)
}

/// Numbers are numbers from version 10 on.
#[test]
fn types() {
    for field in ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"] {
        run(vec![
            rule("a number", levels(ALICE, json!({ field: 50 })), levels(ALICE, json!({ field: "50" })))
                .of(10..=12)
                .elsewhere(true, true),
            rule(
                "at least one in words",
                levels(ALICE, json!({ field: 50 })),
                levels(ALICE, json!({ field: "many" })),
            ),
            rule("no list", levels(ALICE, json!({ field: 50 })), levels(ALICE, json!({ field: [50] }))),
        ]);
    }
    let (of, wrong) = (|value: Value| levels(ALICE, value), |value: Value| levels(ALICE, value));
    run(vec![
        rule("events", of(json!({ "events": { "a": 50 } })), wrong(json!({ "events": { "a": "50" } })))
            .of(10..=12)
            .elsewhere(true, true),
        rule(
            "notifications",
            of(json!({ "notifications": { "room": 20 } })),
            wrong(json!({ "notifications": { "room": "20" } })),
        )
        .of(10..=12)
        .elsewhere(true, true),
        rule("users", of(json!({ "users": { BOB: 10 } })), wrong(json!({ "users": { BOB: "10" } })))
            .of(10..=12)
            .elsewhere(true, true),
        rule(
            "users are users",
            of(json!({ "users": { BOB: 10 } })),
            wrong(json!({ "users": { "bob": 10 } })),
        ),
        rule(
            "users have numbers",
            of(json!({ "users": { BOB: 10 } })),
            wrong(json!({ "users": { BOB: "much" } })),
        ),
        rule("events is no list", of(json!({ "events": {} })), wrong(json!({ "events": [1] }))),
        rule("users is no list", of(json!({ "users": {} })), wrong(json!({ "users": [1] }))),
    ]);
}

#[test]
fn the_first() {
    fn unset(room: &mut Room) {
        room.remove("m.room.power_levels", "");
    }
    // Whoever may send it may set what they like.
    run(vec![
        rule(
            "anything goes",
            levels(ALICE, json!({ "ban": 100, "users": { BOB: 100 } })),
            levels(BOB, json!({})),
        )
        .given(unset),
    ]);
}

/// Nobody gives more than they have, nor changes what is above them.
#[test]
fn changes() {
    fn dear(room: &mut Room) {
        let above = json!({
            "users_default": 60, "users": { BOB: 0, EVE: 0 }, "events_default": 60,
            "ban": 60, "redact": 60, "kick": 60, "invite": 60,
            "events": { "m.room.power_levels": 50 },
        });
        room.put(state(ALICE, "m.room.power_levels", "", above).named("levels:x"));
    }
    for field in ["users_default", "events_default", "ban", "redact", "kick", "invite", "state_default"] {
        run(vec![
            rule("not above oneself", levels(MOD, json!({ field: 50 })), levels(MOD, json!({ field: 51 }))),
            rule(
                "who has more may",
                levels(ALICE, json!({ field: 100 })),
                levels(MOD, json!({ field: 100 })),
            ),
        ]);
    }
    for field in ["events_default", "ban", "redact", "kick", "invite"] {
        // All else stays as it is in the room above.
        let keep = json!({
            "users_default": 60, "users": { BOB: 0, EVE: 0 }, "events_default": 60, "ban": 60, "redact": 60,
            "kick": 60, "invite": 60, "events": { "m.room.power_levels": 50 },
        });
        let changed = |value: Value| {
            let mut all = keep.clone();
            all[field] = value;
            all
        };
        run(vec![
            rule("not what is above oneself", levels(MOD, keep.clone()), levels(MOD, changed(50.into())))
                .given(dear),
            rule("nor take it out", levels(ALICE, changed(50.into())), levels(MOD, changed(Value::Null)))
                .given(dear),
        ]);
    }
}

#[test]
fn changes_of_events_and_notifications() {
    let events = |sender: &str, changes: Value| levels(sender, json!({ "events": changes }));
    let tell = |sender: &str, changes: Value| levels(sender, json!({ "notifications": changes }));
    run(vec![
        rule("not above oneself", events(MOD, json!({ "a": 50 })), events(MOD, json!({ "a": 51 }))),
        rule("who has more may", events(ALICE, json!({ "a": 51 })), events(MOD, json!({ "a": 51 }))),
        rule(
            "not what is above",
            events(ALICE, json!({ "org.example.dear": 10 })),
            events(MOD, json!({ "org.example.dear": 10 })),
        ),
        rule(
            "nor take it out",
            events(MOD, json!({ "org.example.free": null })),
            events(MOD, json!({ "org.example.dear": null })),
        ),
        rule(
            "from version 6 on: not above oneself",
            tell(MOD, json!({ "room": 40 })),
            tell(MOD, json!({ "room": 60 })),
        )
        .of(6..=12)
        .elsewhere(true, true),
        rule("not what is above", tell(ALICE, json!({ "dear": 10 })), tell(MOD, json!({ "dear": 10 })))
            .of(6..=12)
            .elsewhere(true, true),
        rule("nor take it out", tell(MOD, json!({ "room": null })), tell(MOD, json!({ "dear": null })))
            .of(6..=12)
            .elsewhere(true, true),
    ]);
}

#[test]
fn changes_of_users() {
    let users = |sender: &str, changes: Value| levels(sender, json!({ "users": changes }));
    run(vec![
        rule("not above oneself", users(MOD, json!({ BOB: 50 })), users(MOD, json!({ BOB: 51 }))),
        rule("not oneself either", users(MOD, json!({ MOD: 40 })), users(MOD, json!({ MOD: 51 }))),
        rule(
            "not one as powerful",
            users(ALICE, json!({ OTHER_MOD: 0 })),
            users(MOD, json!({ OTHER_MOD: 0 })),
        ),
        rule(
            "nor take them out",
            users(ALICE, json!({ OTHER_MOD: null })),
            users(MOD, json!({ OTHER_MOD: null })),
        ),
        rule("oneself may go", users(MOD, json!({ MOD: 0 })), users(BOB, json!({ BOB: 0 }))),
    ]);
}

/// Version 12: creators have more than any number, and no entry.
#[test]
fn creators() {
    fn more(room: &mut Room) {
        let content = json!({
            "creator": ALICE, "room_version": room.number.to_string(), "additional_creators": [EVE],
        });
        room.put(create(content).named("create:x"));
    }
    fn largest(room: &mut Room) {
        more(room);
        let content = json!({ "users": { MOD: LARGEST }, "ban": LARGEST, "events_default": LARGEST });
        room.put(state(ALICE, "m.room.power_levels", "", content).named("levels:x"));
    }
    let users = |user: &str| levels(ALICE, json!({ "users": { user: 100 } }));
    run(vec![
        rule("no entry for the creator", levels(ALICE, json!({ "ban": 40 })), users(ALICE))
            .of(12..=12)
            .elsewhere(true, true),
        rule("nor for others who created", users(BOB), users(EVE))
            .of(12..=12)
            .elsewhere(true, true)
            .given(more),
        rule("may do what takes the largest level", member(ALICE, BOB, "ban"), member(OTHER_MOD, BOB, "ban"))
            .of(12..=12)
            .elsewhere(false, false)
            .given(largest),
        rule("so may others who created", message(EVE), message(BOB))
            .of(12..=12)
            .elsewhere(false, false)
            .given(largest),
        rule("cannot be removed", member(MOD, BOB, "leave"), member(MOD, ALICE, "leave"))
            .of(12..=12)
            .elsewhere(true, true)
            .given(largest),
        rule("not even by each other", member(ALICE, MOD, "leave"), member(EVE, ALICE, "leave"))
            .of(12..=12)
            .elsewhere(false, false)
            .given(largest),
        rule("nor banned", member(ALICE, OTHER_MOD, "ban"), member(MOD, EVE, "ban"))
            .of(12..=12)
            .elsewhere(false, true)
            .given(largest),
    ]);
}
