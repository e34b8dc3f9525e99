//! `m.room.member`.

use crate::case::{
    ALICE, ALL, BANNED, BOB, EVE, INVITED, KNOCKING, LEFT, MOD, OTHER_MOD, Room, STRANGER, create, event,
    join_rule, member, rule, run, state,
};
use ruma::server_name;
use serde_json::{Value, json};
use waxwing_rooms::sign::required_servers;
use waxwing_rooms::{KeyPair, canonical_object};

#[test]
fn what_membership_needs() {
    let odd = |content| state(STRANGER, "m.room.member", STRANGER, content);
    run(vec![
        rule(
            "a state key",
            member(STRANGER, STRANGER, "join"),
            event(STRANGER, "m.room.member", json!({ "membership": "join" })),
        ),
        rule(
            "a user for state key",
            member(STRANGER, STRANGER, "join"),
            member(STRANGER, "stranger", "join"),
        ),
        rule("a membership", member(STRANGER, STRANGER, "join"), odd(json!({}))),
        rule("one that there is", member(STRANGER, STRANGER, "join"), odd(json!({ "membership": "guest" }))),
        rule("of a type that there is", member(STRANGER, STRANGER, "join"), odd(json!({ "membership": 1 }))),
    ]);
}

#[test]
fn the_first_to_join() {
    fn named(room: &mut Room) {
        room.strip();
        let content = json!({ "creator": BOB, "room_version": room.number.to_string() });
        room.put(create(content).named("create:x"));
    }
    fn several(room: &mut Room) {
        room.strip();
        let content = json!({
            "creator": ALICE, "room_version": room.number.to_string(), "additional_creators": [BOB],
        });
        room.put(create(content).named("create:x"));
    }
    let first = |user: &str| member(user, user, "join").after(&["create:x"]);
    run(vec![
        rule("the creator", first(ALICE), first(BOB)).given(Room::strip),
        rule(
            "right after the creation",
            first(ALICE),
            member(ALICE, ALICE, "join").after(&["create:x", "bob:x"]),
        )
        .given(Room::strip),
        rule("not after anything else", first(ALICE), member(ALICE, ALICE, "join").after(&["bob:x"]))
            .given(Room::strip),
        rule("whom the content names", first(BOB), first(ALICE))
            .of(1..=10)
            .given(named)
            .elsewhere(false, true),
        rule("whoever sent the create event", first(ALICE), first(BOB))
            .of(11..=12)
            .given(named)
            .elsewhere(false, true),
        rule("not an additional creator", first(ALICE), first(BOB)).given(several),
    ]);
}

#[test]
fn joins() {
    let join = |user: &str| member(user, user, "join");
    run(vec![
        rule("for oneself only", join(STRANGER), member(BOB, STRANGER, "join")),
        rule("not when banned", join(LEFT), join(BANNED)),
        rule("public", join(STRANGER), join(BANNED)),
        rule("private: nobody", member(INVITED, INVITED, "leave"), join(INVITED))
            .given(|room| room.put(join_rule("private"))),
        rule("invite: the invited", join(INVITED), join(STRANGER))
            .given(|room| room.put(join_rule("invite"))),
        rule("invite: who is in already", join(BOB), join(LEFT)).given(|room| room.put(join_rule("invite"))),
        rule("no rule is no invitation", join(INVITED), join(STRANGER))
            .given(|room| room.put(join_rule("invite"))),
        rule("knock: the invited", join(INVITED), join(KNOCKING))
            .of(7..=12)
            .elsewhere(false, false)
            .given(|room| room.put(join_rule("knock"))),
        rule("knock: who is in already", join(BOB), join(STRANGER))
            .of(7..=12)
            .elsewhere(false, false)
            .given(|room| room.put(join_rule("knock"))),
        rule("a rule that nobody knows", member(BOB, BOB, "leave"), join(INVITED))
            .given(|room| room.put(join_rule("org.example.odd"))),
    ]);
}

/// Restricted joins: from version 8 on; those that may be knocked at, from version 10 on.
#[test]
fn restricted_joins() {
    fn restricted(room: &mut Room) {
        room.put(join_rule("restricted"));
        room.put(state(ALICE, "m.room.power_levels", "", json!({ "invite": 50 })).named("levels:x"));
    }
    fn knock_restricted(room: &mut Room) {
        restricted(room);
        room.put(join_rule("knock_restricted"));
    }
    let join = |user: &str| member(user, user, "join");
    let via = |user: &str| join(STRANGER).with("join_authorised_via_users_server", json!(user));
    let rooms: [(_, fn(&mut Room)); 2] = [(8..=12, restricted), (10..=12, knock_restricted)];
    for (versions, room) in rooms {
        let table = vec![
            rule("with somebody's word", via(MOD), join(STRANGER)),
            rule("of one who may invite", via(MOD), via(BOB)),
            rule("of one who is in the room", via(MOD), via(LEFT)),
            rule("of a person", via(MOD), via("nobody")),
            rule("a creator may", via(ALICE), via(EVE)),
            rule("the invited need none", join(INVITED), join(KNOCKING)),
            rule("who is in needs none", join(BOB), join(LEFT)),
            rule(
                "not the banned",
                via(MOD),
                join(BANNED).with("join_authorised_via_users_server", json!(MOD)),
            ),
        ];
        run(table
            .into_iter()
            .map(|case| case.of(versions.clone()).elsewhere(false, false).given(room))
            .collect());
    }
}

/// From version 8 on the server of whoever lets somebody in signs too.
#[test]
fn restricted_joins_are_signed_by_who_lets_in() {
    for number in ALL {
        let join = json!({
            "type": "m.room.member", "sender": STRANGER, "state_key": STRANGER, "event_id": "$join:x",
            "content": { "membership": "join", "join_authorised_via_users_server": EVE },
        });
        let version = &waxwing_rooms::version::SUPPORTED[usize::from(number) - 1];
        let servers = required_servers(&canonical_object(&join.to_string()).unwrap(), version).unwrap();
        assert!(servers.contains(server_name!("x")), "{number}");
        assert_eq!(servers.contains(server_name!("elsewhere")), number >= 8, "{number}");
    }
}

#[test]
fn invitations() {
    fn dear(room: &mut Room) {
        room.put(state(ALICE, "m.room.power_levels", "", json!({ "invite": 50 })));
    }
    let invite = |sender: &str, target: &str| member(sender, target, "invite");
    run(vec![
        rule("from inside", invite(BOB, STRANGER), invite(LEFT, STRANGER)),
        rule("not from one who is invited", invite(BOB, STRANGER), invite(INVITED, STRANGER)),
        rule("not of one who is in", invite(BOB, LEFT), invite(BOB, EVE)),
        rule("not of a banned one", invite(ALICE, KNOCKING), invite(ALICE, BANNED)),
        rule("again", invite(BOB, INVITED), invite(LEFT, INVITED)),
        rule("with the level for it", invite(MOD, STRANGER), invite(BOB, STRANGER)).given(dear),
    ]);
}

/// An identity server's word on who has an address, with what is wrong with it.
fn third_party(mxid: Option<&str>, token: Option<&str>, key: &KeyPair) -> Value {
    let mut signed = json!({});
    for (field, value) in [("mxid", mxid), ("token", token)] {
        if let Some(value) = value {
            signed[field] = value.into();
        }
    }
    let mut object = canonical_object(&signed.to_string()).unwrap();
    key.sign_json(server_name!("identity"), &mut object).unwrap();
    json!({ "display_name": "a…@example.org", "signed": object })
}

#[test]
fn third_party_invitations() {
    fn asked(room: &mut Room) {
        let key = KeyPair::from_seed([7; 32], "0").unwrap().public_key();
        let content = json!({
            "display_name": "a…", "key_validity_url": "https://identity/valid", "public_key": key,
            "public_keys": [{ "public_key": key }],
        });
        room.put(state(BOB, "m.room.third_party_invite", "token", content));
    }
    let key = KeyPair::from_seed([7; 32], "0").unwrap();
    let invite = |sender: &str, target: &str, word: Value| {
        member(sender, target, "invite").with("third_party_invite", word)
    };
    let good = || third_party(Some(STRANGER), Some("token"), &key);
    let of = |mxid, token| invite(BOB, STRANGER, third_party(mxid, token, &key));
    let whole = || invite(BOB, STRANGER, good());
    let banned = third_party(Some(BANNED), Some("token"), &key);
    let forged = third_party(Some(STRANGER), Some("token"), &KeyPair::from_seed([8; 32], "0").unwrap());
    let mut changed = good();
    changed["signed"]["more"] = "than was signed".into();
    let mut unsigned = good();
    unsigned["signed"].as_object_mut().unwrap().remove("signatures");
    let table = vec![
        rule("not of a banned one", whole(), invite(BOB, BANNED, banned)),
        rule("something signed", whole(), invite(BOB, STRANGER, json!({ "display_name": "a" }))),
        rule("a user", whole(), of(None, Some("token"))),
        rule("a token", whole(), of(Some(STRANGER), None)),
        rule("the user", whole(), of(Some(LEFT), Some("token"))),
        rule("a token that was asked for", whole(), of(Some(STRANGER), Some("other"))),
        rule("by whoever asked", whole(), invite(MOD, STRANGER, good())),
        rule("signed with the key", whole(), invite(BOB, STRANGER, forged)),
        rule("all of it", whole(), invite(BOB, STRANGER, changed)),
        rule("signed at all", whole(), invite(BOB, STRANGER, unsigned)),
    ];
    run(table.into_iter().map(|case| case.given(asked)).collect());
}

#[test]
fn leaving_and_removing() {
    fn dear_bans(room: &mut Room) {
        room.put(state(ALICE, "m.room.power_levels", "", json!({ "ban": 60 })));
    }
    let leave = |sender: &str, target: &str| member(sender, target, "leave");
    run(vec![
        rule("who is in", leave(BOB, BOB), leave(STRANGER, STRANGER)),
        rule("who is invited", leave(INVITED, INVITED), leave(BANNED, BANNED)),
        rule("not twice", leave(BOB, BOB), leave(LEFT, LEFT)),
        rule("who knocks", leave(KNOCKING, KNOCKING), leave(LEFT, LEFT)).of(7..=12).elsewhere(false, false),
        rule("kicks from inside", leave(MOD, BOB), leave(LEFT, BOB)),
        rule("with the level for it", leave(MOD, EVE), leave(BOB, EVE)),
        rule("not of one as powerful", leave(MOD, BOB), leave(MOD, OTHER_MOD)),
        rule("not of one more powerful", leave(ALICE, MOD), leave(MOD, ALICE)),
        rule("the level to ban lifts bans", leave(ALICE, BANNED), leave(MOD, BANNED)).given(dear_bans),
        rule("the level to ban suffices", leave(MOD, BANNED), leave(BOB, BANNED)),
        rule("taking an invitation back", leave(MOD, INVITED), leave(EVE, INVITED)),
    ]);
}

#[test]
fn bans() {
    let ban = |sender: &str, target: &str| member(sender, target, "ban");
    run(vec![
        rule("from inside", ban(MOD, BOB), ban(LEFT, BOB)),
        rule("with the level for it", ban(MOD, EVE), ban(BOB, EVE)),
        rule("not of one as powerful", ban(MOD, BOB), ban(MOD, OTHER_MOD)),
        rule("not of one more powerful", ban(ALICE, MOD), ban(MOD, ALICE)),
        rule("of one who was never there", ban(MOD, STRANGER), ban(BOB, STRANGER)),
        rule("not of oneself", ban(ALICE, BOB), ban(MOD, MOD)),
    ]);
}

/// From version 7 on.
#[test]
fn knocks() {
    fn knock(room: &mut Room) {
        room.put(join_rule("knock"));
    }
    let ask = |user: &str| member(user, user, "knock");
    let table = vec![
        rule("for oneself", ask(STRANGER), member(BOB, STRANGER, "knock")),
        rule("not the banned", ask(LEFT), ask(BANNED)),
        rule("not the invited", ask(KNOCKING), ask(INVITED)),
        rule("not who is in", ask(STRANGER), ask(BOB)),
    ];
    run(table.into_iter().map(|case| case.of(7..=12).elsewhere(false, false).given(knock)).collect());
    run(vec![
        rule("not where one may just come in", member(STRANGER, STRANGER, "join"), ask(STRANGER)),
        rule("not where one must be invited", member(INVITED, INVITED, "join"), ask(STRANGER))
            .given(|room| room.put(join_rule("invite"))),
        rule("not where others let in", member(INVITED, INVITED, "leave"), ask(STRANGER))
            .given(|room| room.put(join_rule("restricted"))),
        rule("where others let in, or one may ask", ask(STRANGER), ask(INVITED))
            .of(10..=12)
            .elsewhere(false, false)
            .given(|room| room.put(join_rule("knock_restricted"))),
    ]);
}
