//! What may be sent.

use crate::case::{
    ALICE, BOB, EVE, INVITED, KNOCKING, LEFT, MOD, Room, STRANGER, event, member, message, rule, run, state,
};
use serde_json::json;

/// `m.room.aliases` had rules of its own until version 5.
#[test]
fn aliases() {
    let aliases = |sender: &str, key: &str| state(sender, "m.room.aliases", key, json!({ "aliases": [] }));
    run(vec![
        rule("of the sender's server", aliases(BOB, "x"), aliases(BOB, "elsewhere"))
            .of(1..=5)
            .elsewhere(false, false),
        rule("whatever the level", aliases(BOB, "x"), aliases(ALICE, "elsewhere"))
            .of(1..=5)
            .elsewhere(false, true),
        rule("as state", aliases(BOB, "x"), event(BOB, "m.room.aliases", json!({})))
            .of(1..=5)
            .elsewhere(false, true),
        rule("even from outside", aliases(LEFT, "x"), aliases(LEFT, "elsewhere"))
            .of(1..=5)
            .elsewhere(false, false),
    ]);
}

#[test]
fn who_may_send() {
    fn dear_invitations(room: &mut Room) {
        let levels = json!({ "invite": 50, "events": { "m.room.third_party_invite": 100 } });
        room.put(state(ALICE, "m.room.power_levels", "", levels));
    }
    fn dear_words(room: &mut Room) {
        let levels = json!({ "events_default": 10, "users": { EVE: 10 } });
        room.put(state(ALICE, "m.room.power_levels", "", levels));
    }
    let asked = |sender: &str| state(sender, "m.room.third_party_invite", "token", json!({}));
    let topic = |sender: &str| state(sender, "m.room.topic", "", json!({}));
    let of_user = |sender: &str, key: &str| state(sender, "org.example.free", key, json!({}));
    run(vec![
        rule("who is in", message(BOB), message(LEFT)),
        rule("not who is invited", message(BOB), message(INVITED)),
        rule("not who knocks", message(EVE), message(KNOCKING)),
        rule("not who was never there", message(EVE), message(STRANGER)),
        rule("requests to invite, at the level of invitations", asked(MOD), asked(BOB))
            .given(dear_invitations),
        rule("state, at the level of state", topic(MOD), topic(BOB)),
        rule("messages, at the level of messages", message(EVE), message(BOB)).given(dear_words),
        rule(
            "types with a level of their own",
            state(BOB, "org.example.free", "", json!({})),
            state(MOD, "org.example.dear", "", json!({})),
        ),
        rule(
            "messages of a type with a level",
            event(ALICE, "org.example.dear", json!({})),
            event(MOD, "org.example.dear", json!({})),
        ),
        rule("state keys of oneself", of_user(BOB, BOB), of_user(BOB, EVE)),
        rule("whatever the level", of_user(ALICE, ALICE), of_user(ALICE, BOB)),
        rule("even if it is no user", of_user(BOB, "bob"), of_user(BOB, "@")),
        rule("not even with something behind", of_user(BOB, BOB), of_user(BOB, "@bob:x_device")),
    ]);
}

/// Without `m.room.power_levels` the creator has 100 and all others have nothing.
#[test]
fn rooms_without_levels() {
    fn unset(room: &mut Room) {
        room.remove("m.room.power_levels", "");
    }
    let topic = |sender: &str| state(sender, "m.room.topic", "", json!({}));
    run(vec![
        rule("messages", message(BOB), message(LEFT)).given(unset),
        rule("state", topic(ALICE), topic(MOD)).given(unset),
        rule("bans", member(ALICE, BOB, "ban"), member(MOD, BOB, "ban")).given(unset),
        rule("invitations", member(BOB, STRANGER, "invite"), member(LEFT, STRANGER, "invite")).given(unset),
    ]);
}

/// Redactions had a rule until version 2; since then they stand, and whether they apply is judged apart.
#[test]
fn redactions() {
    let redaction =
        |sender: &str, target: &str| event(sender, "m.room.redaction", json!({})).redacting(target);
    let here = "said:x";
    run(vec![
        rule("with the level for it", redaction(MOD, "$said:elsewhere"), redaction(BOB, "$said:elsewhere"))
            .of(1..=2)
            .elsewhere(true, true),
        rule(
            "of one's own server's events",
            redaction(BOB, &format!("${here}")),
            redaction(BOB, "$said:elsewhere"),
        )
        .of(1..=2)
        .elsewhere(true, true),
        rule(
            "the server is that of the redaction's id",
            redaction(EVE, "$said:elsewhere").named("redaction:elsewhere"),
            redaction(EVE, "$said:elsewhere").named("redaction:x"),
        )
        .of(1..=2)
        .elsewhere(true, true),
        rule("from inside", redaction(BOB, "$said:x"), redaction(LEFT, "$said:x")),
    ]);
}
