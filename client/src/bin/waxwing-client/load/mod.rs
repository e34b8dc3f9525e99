//! The load driver: scenarios against any homeserver over its public API, each bounded in time and count, each
//! printing one line of JSON. What it needs itself is measured apart from what the server needs.

mod accounts;
mod all;
mod backlog;
mod context;
mod creation;
mod delivery;
mod federated;
mod find;
mod histogram;
mod http;
mod idle;
mod keys;
mod limits;
mod listeners;
mod measure;
mod media;
mod reads;
mod rooms;
mod sample;
mod sends;
mod syncs;
mod table;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};
use url::Url;

use self::{accounts::Registration, context::Context, http::Server, measure::Measure, sample::Sampler};

/// Loads a homeserver over its client API and measures it.
///
/// Each scenario prints one line of JSON. Times are in milliseconds, memory in MB of 10^6 bytes; figures "each" are
/// per operation (per message for deliveries), the server's (cpu_ms_each, with --pid) apart from the driver's.
#[derive(Debug, Args)]
pub struct Load {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Args)]
struct Common {
    /// Client API of the server, plain HTTP
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8008")]
    server: Url,
    /// Client API of a second server that federates with it; accounts are made there the same way
    #[arg(long, global = true, value_name = "URL")]
    to: Option<Url>,
    /// A process of the server, measured with all its descendants (repeat for several, such as its database)
    #[arg(long, global = true, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// A process of the second server
    #[arg(long, global = true, value_name = "PID", value_delimiter = ',')]
    to_pid: Vec<u32>,
    /// A file or folder of the server's data, whose size is measured (repeat for several)
    #[arg(long, global = true, value_name = "PATH", value_delimiter = ',')]
    data: Vec<PathBuf>,
    /// File with a registration token, where accounts need one
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "secret_file")]
    token_file: Option<PathBuf>,
    /// File with the secret of shared-secret registration (/_synapse/admin/v1/register)
    #[arg(long, global = true, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Name of the server in the results
    #[arg(long, global = true, value_name = "TEXT", default_value = "server")]
    label: String,
    /// Give up a scenario after so long, its preparation included
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 1800)]
    limit: u64,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Closed-loop sends: each sender sends when the last message is acknowledged
    Sends(sends::Sends),
    /// Open-loop delivery: messages at a fixed rate to members who all hold a long poll
    Delivery(delivery::Delivery),
    /// Memory of long polls that only wait
    Idle(idle::Idle),
    /// First and further syncs of a person in many rooms, over /v3/sync and sliding sync
    Syncs(syncs::Syncs),
    /// Uploads, queries and claims of keys, and messages to devices
    Keys(keys::Keys),
    /// To-device messages queued and drained, with deliveries before and after
    Backlog(backlog::Backlog),
    /// History, state, members, whoami
    Reads(reads::Reads),
    /// Rooms created and joined
    Creation(creation::Creation),
    /// Files up and down
    Media(media::Media),
    /// Open-loop delivery from one server to people on another
    Federated(federated::Federated),
    /// A join of a large room on another server
    RemoteJoin(federated::RemoteJoin),
    /// Every scenario, one after the other; those of two servers with --to
    All(all::All),
    /// Print results as a table of medians and ratios
    Table(table::Table),
}

/// What a scenario found.
#[derive(Debug, Default)]
struct Outcome {
    measures: Vec<Measure>,
    /// What is no measure of an operation.
    facts: Map<String, Value>,
}

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Self::Sends(_) => "sends",
            Self::Delivery(_) => "delivery",
            Self::Idle(_) => "idle",
            Self::Syncs(_) => "syncs",
            Self::Keys(_) => "keys",
            Self::Backlog(_) => "backlog",
            Self::Reads(_) => "reads",
            Self::Creation(_) => "creation",
            Self::Media(_) => "media",
            Self::Federated(_) => "federated",
            Self::RemoteJoin(_) => "remote-join",
            Self::All(_) => "all",
            Self::Table(_) => "table",
        }
    }

    fn options(&self) -> Result<Value> {
        Ok(match self {
            Self::Sends(options) => serde_json::to_value(options)?,
            Self::Delivery(options) => serde_json::to_value(options)?,
            Self::Idle(options) => serde_json::to_value(options)?,
            Self::Syncs(options) => serde_json::to_value(options)?,
            Self::Keys(options) => serde_json::to_value(options)?,
            Self::Backlog(options) => serde_json::to_value(options)?,
            Self::Reads(options) => serde_json::to_value(options)?,
            Self::Creation(options) => serde_json::to_value(options)?,
            Self::Media(options) => serde_json::to_value(options)?,
            Self::Federated(options) => serde_json::to_value(options)?,
            Self::RemoteJoin(options) => serde_json::to_value(options)?,
            Self::All(_) | Self::Table(_) => Value::Null,
        })
    }

    async fn run(&self, context: &Context) -> Result<Outcome> {
        match self {
            Self::Sends(options) => sends::run(context, options).await,
            Self::Delivery(options) => delivery::run(context, options).await,
            Self::Idle(options) => idle::run(context, options).await,
            Self::Syncs(options) => syncs::run(context, options).await,
            Self::Keys(options) => keys::run(context, options).await,
            Self::Backlog(options) => backlog::run(context, options).await,
            Self::Reads(options) => reads::run(context, options).await,
            Self::Creation(options) => creation::run(context, options).await,
            Self::Media(options) => media::run(context, options).await,
            Self::Federated(options) => federated::run(context, options).await,
            Self::RemoteJoin(options) => federated::join(context, options).await,
            Self::All(_) | Self::Table(_) => bail!("not a scenario of its own"),
        }
    }
}

/// One line of results.
#[derive(Debug, Serialize)]
struct Line {
    scenario: &'static str,
    label: String,
    server: String,
    /// Seconds since 1970.
    began: u64,
    /// With all that was prepared.
    seconds: f64,
    options: Value,
    measures: Vec<Measure>,
    #[serde(flatten)]
    facts: Map<String, Value>,
}

pub async fn run(load: &Load) -> Result<()> {
    if let Scenario::Table(options) = &load.scenario {
        return table::run(options);
    }
    let context = load.common.context().await?;
    let Scenario::All(options) = &load.scenario else {
        return run_one(&context, &load.common, &load.scenario).await;
    };
    let mut failed = Vec::new();
    for scenario in options.scenarios(context.other.is_some()) {
        if let Err(error) = run_one(&context, &load.common, &scenario).await {
            eprintln!("waxwing-client: {}", crate::output::clean(&crate::output::explain(&error)));
            failed.push(scenario.name());
        }
    }
    ensure!(failed.is_empty(), "these scenarios failed: {}", failed.join(", "));
    Ok(())
}

async fn run_one(context: &Context, common: &Common, scenario: &Scenario) -> Result<()> {
    let (clock, began) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let (memory, data) = (context.sampler.memory(), context.sampler.data_bytes());
    let limit = Duration::from_secs(common.limit);
    let ran = tokio::select! {
        ran = tokio::time::timeout(limit, scenario.run(context)) => ran,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    context.progress.clear();
    let mut outcome = match ran {
        Ok(ran) => ran.with_context(|| format!("scenario {}", scenario.name()))?,
        Err(_) => bail!("scenario {} was not done within {limit:?}", scenario.name()),
    };
    let mut fact = |name: &str, bytes: Option<u64>| {
        if let Some(bytes) = bytes {
            outcome.facts.insert(name.to_owned(), json!(measure::round(bytes as f64 / 1e6)));
        }
    };
    fact("pss_mb_before", memory);
    fact("pss_mb_after", context.sampler.memory());
    fact("data_mb_before", data);
    fact("data_mb_after", context.sampler.data_bytes());
    let line = Line {
        scenario: scenario.name(),
        label: common.label.clone(),
        server: context.server.url().to_owned(),
        began,
        seconds: measure::round(clock.elapsed().as_secs_f64()),
        options: scenario.options()?,
        measures: outcome.measures,
        facts: outcome.facts,
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

impl Common {
    async fn context(&self) -> Result<Context> {
        let server = Server::new(&self.server).await?;
        let other = match &self.to {
            Some(url) => Some(Server::new(url).await?),
            None => None,
        };
        let registration = match (&self.token_file, &self.secret_file) {
            (Some(path), _) => Registration::Token(crate::first_line(path)?),
            (_, Some(path)) => Registration::SharedSecret(crate::first_line(path)?),
            _ => Registration::Open,
        };
        let samplers = [
            Sampler::new(self.pid.clone(), self.data.clone())?,
            Sampler::new(self.to_pid.clone(), Vec::new())?,
        ];
        Ok(Context::new(server, other, registration, samplers))
    }
}
