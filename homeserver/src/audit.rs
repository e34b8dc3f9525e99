//! `waxwing audit`: what the database really holds.

use crate::config::Config;
use anyhow::{Context, ensure};
use ruma::EventId;
use waxwing_services::{PlaintextPolicy, audit};
use waxwing_storage::Store;

/// Looks through the database, prints what was checked, and says whether it was clean. With an event id, prints
/// what is stored of that event instead, and says whether there is anything.
pub async fn run(config: &Config, show_event: Option<&str>) -> anyhow::Result<bool> {
    let store = open(config).await?;
    if let Some(id) = show_event {
        let id = EventId::parse(id).with_context(|| format!("{id} is no event id"))?;
        let row = audit::show_event(&store, &id).await.context("cannot read the event")?;
        match &row {
            Some(row) => println!("{row}"),
            None => eprintln!("waxwing: there is no event {id}"),
        }
        return Ok(row.is_some());
    }
    let policy = PlaintextPolicy {
        accept: config.plaintext == crate::config::Plaintext::Accept,
        rooms: config.plaintext_rooms.clone(),
        appservices: config.plaintext_appservices.clone(),
    };
    let notices = crate::people::notices_user(config)?;
    let report =
        audit::run(&store, &policy, notices.as_deref()).await.context("the audit could not be finished")?;
    println!("{report}");
    Ok(report.is_clean())
}

/// Opens the database, which must be there: an audit of a new one would say that all is well.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Store> {
    let url = config.database_url();
    let shown = config.database_shown();
    if let Some(path) = url.expose().strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = path.split('?').next().unwrap_or(path);
        ensure!(std::path::Path::new(path).exists(), "there is no database at {shown}");
    }
    Store::open(url.expose()).await.with_context(|| format!("cannot open the database {shown}"))
}
