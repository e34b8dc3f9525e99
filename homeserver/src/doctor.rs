//! `waxwing doctor`: whether the database is whole.

use crate::audit::open;
use crate::config::Config;
use anyhow::Context;
use waxwing_services::doctor;

/// Looks through the database, prints what was checked, and says whether it is whole.
pub async fn run(config: &Config) -> anyhow::Result<bool> {
    let store = open(config).await?;
    let diagnosis = doctor::examine(&store).await.context("the examination could not be finished")?;
    println!("{diagnosis}");
    Ok(diagnosis.is_healthy())
}
