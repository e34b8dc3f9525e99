//! The command line over the client library.

mod account;
mod cli;
mod demo;
mod keys;
mod load;
mod output;
mod rooms;
mod talk;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;
use waxwing_client::{Client, Error, Secret};

use crate::cli::{Cli, Command, Global};

const NOT_LOGGED_IN: u8 = 3;
const TIMED_OUT: u8 = 4;

fn main() -> ExitCode {
    waxwing_client::install_tls_provider();
    let cli = Cli::parse();
    start_logging(cli.global.verbose);
    // One thread is cheaper than several that hand work over, and load shares the machine with the server.
    let mut runtime = match cli.command {
        Command::Load(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let done = match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("waxwing-client: {}", output::clean(&output::explain(&error)));
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Error>() {
        Some(Error::NotLoggedIn(_)) => ExitCode::from(NOT_LOGGED_IN),
        Some(Error::Timeout { .. }) => ExitCode::from(TIMED_OUT),
        _ => ExitCode::FAILURE,
    }
}

async fn run(cli: Cli) -> Result<()> {
    let device = Device::new(&cli.global)?;
    match cli.command {
        Command::Register(account) => account::register(&device, &account).await,
        Command::Login(account) => account::login(&device, &account).await,
        Command::Logout => account::logout(device.open().await?).await,
        Command::Whoami => account::whoami(&device.open().await?).await,
        Command::Rooms => rooms::list(&device.open().await?).await,
        Command::Members { room } => rooms::members(&device.open().await?, &room).await,
        Command::Create { name, invite } => rooms::create(&device.open().await?, &name, &invite).await,
        Command::Invite { room, user } => rooms::invite(&device.open().await?, &room, &user).await,
        Command::Join { room, via } => rooms::join(&device.open().await?, &room, &via).await,
        Command::Leave { room } => rooms::leave(&device.open().await?, &room).await,
        Command::Send { room, text } => talk::send(&device.open().await?, &room, &text).await,
        Command::SendFile { room, path, media_type } => {
            talk::send_file(&device.open().await?, &room, &path, media_type.as_deref()).await
        }
        Command::Read(read) => talk::read(&device.open().await?, &read).await,
        Command::Watch { room, seconds, json } => {
            talk::watch(&device.open().await?, room.as_deref(), seconds, json).await
        }
        Command::Verify(verify) => keys::verify(&device.open().await?, &verify).await,
        Command::Bootstrap => keys::bootstrap(&device.open().await?).await,
        Command::Backup { command } => keys::backup(&device.open().await?, &command).await,
        Command::Demo(options) => demo::run(&options).await,
        Command::Load(load) => load::run(&load).await,
    }
}

/// Where the device lives, and what opens its key store.
pub struct Device {
    pub home: PathBuf,
    pub passphrase: Option<Secret>,
}

impl Device {
    fn new(global: &Global) -> Result<Self> {
        let passphrase = global.passphrase_file.as_deref().map(first_line).transpose()?;
        let home = global.home.clone().or_else(default_home).context("say where to keep keys: --home DIR")?;
        Ok(Self { home, passphrase })
    }

    async fn open(&self) -> Result<Client> {
        Ok(Client::open_with(&self.home, self.passphrase.as_ref()).await?)
    }
}

pub fn first_line(path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Secret::new(text.lines().next().unwrap_or_default()))
}

fn default_home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("waxwing-client"))
}

fn start_logging(verbose: u8) {
    let filter = match verbose {
        // The key machine warns about things that are ordinary life, such as a key that comes late.
        0 => "error,waxwing_client=warn,matrix_sdk_crypto=off",
        1 => "warn,waxwing_client=debug",
        _ => "info,waxwing_client=trace,matrix_sdk_crypto=debug",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
