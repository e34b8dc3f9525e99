//! Files up and down.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use rand::Rng;
use serde::Serialize;

use super::{
    Outcome,
    context::Context,
    find,
    http::{Call, Failure},
    measure::{Loop, closed_loop},
};

/// The largest file, in bytes.
const LARGEST: usize = 100 << 20;
/// Files at most: what is uploaded is kept.
const MOST_FILES: u64 = 2_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Media {
    /// Size of each file
    #[arg(long, default_value_t = 200_000, value_name = "BYTES")]
    pub size: usize,
    /// Connections at the same time
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    pub connections: usize,
    /// How long uploads are measured, and how long downloads
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
}

pub async fn run(context: &Context, options: &Media) -> Result<Outcome> {
    ensure!((16..=LARGEST).contains(&options.size), "from 16 to {LARGEST} bytes");
    ensure!(options.connections > 0, "at least one connection");
    let people = context.people(&context.server, 1).await?;
    let user = &people[0];
    let mut noise = vec![0; options.size];
    rand::rng().fill_bytes(&mut noise);
    let files = RefCell::new(Vec::new());
    let mut plan =
        Loop { name: "upload", connections: options.connections, seconds: options.seconds, most: MOST_FILES };
    context.progress.stage(plan.name);
    let up = closed_loop(context, &context.server, &plan, async |connection, turn| {
        // No two files are equal: some servers keep equal ones once.
        let mut file = noise.clone();
        file[..8].copy_from_slice(&turn.number.to_le_bytes());
        let call = Call::post("/_matrix/media/v3/upload", Bytes::from(file));
        let answer = connection.call(&call.content_type("application/octet-stream").by(user)).await?;
        let uri = find::text_after(&answer, b"\"content_uri\":").ok_or(Failure::Malformed("content_uri"))?;
        files.borrow_mut().push(uri.trim_start_matches("mxc://").to_owned());
        Ok(answer.len() as u64)
    });
    let mut up = up.await?;
    up.set("mb_per_second", up.count as f64 * options.size as f64 / 1e6 / up.seconds);
    let files = files.into_inner();
    (plan.name, plan.most) = ("download", u64::MAX);
    context.progress.stage(plan.name);
    let down = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let file = &files[turn.number as usize % files.len()];
        let answer =
            connection.call(&Call::get(format!("/_matrix/client/v1/media/download/{file}")).by(user)).await?;
        if answer.len() != options.size {
            return Err(Failure::Malformed("whole file"));
        }
        Ok(answer.len() as u64)
    });
    let mut down = down.await?;
    down.set("mb_per_second", down.count as f64 * options.size as f64 / 1e6 / down.seconds);
    Ok(Outcome { measures: vec![up, down], ..Outcome::default() })
}
