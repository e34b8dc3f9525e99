//! `waxwing room purge`, `waxwing history purge`, `waxwing purges`: over the database itself, so that they work beside a
//! running server. It is the server that purges, because only it can tell other servers and its own clients.

use crate::config::Config;
use crate::{signing_key, wiring};
use anyhow::Context;
use ruma::{OwnedEventId, RoomId};
use waxwing_services::purge::{Before, HistoryPurge, Purges, RoomPurge};
use waxwing_services::timeline::Timeline;

const DAY: u64 = 24 * 60 * 60 * 1000;

async fn purges(config: &Config) -> anyhow::Result<Purges> {
    let core = wiring::core(config, signing_key::load_or_make(&config.data_dir)?).await?;
    Ok(Purges::new(core.clone(), Timeline::new(core, None), wiring::purge_settings(config)))
}

fn begun(id: &str) {
    println!("{id}");
    eprintln!("The server does it, now or when it starts. `waxwing purges {id}` shows how far it has come.");
}

/// Asks for a room to be forgotten.
pub async fn room(config: &Config, room: &RoomId, block: bool, force: bool) -> anyhow::Result<()> {
    let wanted = RoomPurge { block, purge: true, force, ..RoomPurge::default() };
    let id = purges(config).await?.purge_room(room, wanted).await;
    begun(&id.with_context(|| format!("cannot purge {room}"))?);
    Ok(())
}

/// Asks for history to be forgotten: before an event, or what is older than so many days.
pub async fn history(
    config: &Config,
    room: &RoomId,
    before: Option<OwnedEventId>,
    days: Option<u64>,
    local: bool,
) -> anyhow::Result<()> {
    let now = waxwing_model::Clock::System.millis();
    let before = match before {
        Some(event) => Before::Event(event),
        None => Before::Time(now.saturating_sub(days.unwrap_or(0).saturating_mul(DAY))),
    };
    let id = purges(config).await?.purge_history(room, HistoryPurge { before, local }).await;
    begun(&id.with_context(|| format!("cannot purge the history of {room}"))?);
    Ok(())
}

/// Prints a line for each of the newest purges, or for this one. Whether there is one.
pub async fn show(config: &Config, id: Option<&str>) -> anyhow::Result<bool> {
    let purges = purges(config).await?;
    let found = match id {
        Some(id) => purges.status(id).await?.into_iter().collect(),
        None => purges.newest().await?,
    };
    for purge in &found {
        println!("{purge}");
    }
    Ok(!found.is_empty())
}
