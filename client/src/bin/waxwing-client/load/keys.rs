//! What encryption asks of a server: uploads of keys, queries, claims, and messages to devices.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use matrix_sdk_crypto::vodozemac::{Curve25519PublicKey, Curve25519SecretKey, Ed25519SecretKey};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Outcome,
    accounts::User,
    context::{Context, PREPARERS},
    http::{Call, escape},
    measure::{Loop, closed_loop},
    rooms::Letters,
};

/// One-time keys of one upload, as clients make them.
const KEYS_EACH: usize = 50;
/// People of one query.
const QUERIED: usize = 20;
/// Devices to which one request sends.
pub const RECIPIENTS: usize = 10;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Keys {
    /// People with keys
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub people: usize,
    /// Uploads of each, of 50 one-time keys
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    pub uploads: usize,
    /// Connections that ask at the same time
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    pub connections: usize,
    /// How long each kind of request is measured
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
}

pub async fn run(context: &Context, options: &Keys) -> Result<Outcome> {
    ensure!(options.people > 0 && options.uploads > 0 && options.connections > 0, "at least one of each");
    let people = context.people(&context.server, options.people).await?;
    context.progress.stage("making keys");
    let machines: Vec<Machine> = people.iter().map(Machine::new).collect();
    let mut outcome = Outcome::default();
    upload(context, options, &people, &machines, &mut outcome).await?;
    query(context, options, &people, &mut outcome).await?;
    claim(context, options, &people, &mut outcome).await?;
    send(context, options, &people, &mut outcome).await?;
    Ok(outcome)
}

fn plan<'a>(options: &Keys, name: &'a str, most: usize) -> Loop<'a> {
    Loop { name, connections: options.connections, seconds: options.seconds, most: most as u64 }
}

async fn upload(
    context: &Context,
    options: &Keys,
    people: &[User],
    machines: &[Machine],
    outcome: &mut Outcome,
) -> Result<()> {
    let bodies: Vec<String> =
        (0..options.uploads).flat_map(|round| machines.iter().map(move |one| one.upload(round))).collect();
    // The last claims of what was uploaded must not wait for time to run out.
    let plan = Loop { seconds: options.seconds * 10.0, ..plan(options, "keys/upload", bodies.len()) };
    context.progress.stage(plan.name);
    let measured = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let number = turn.number as usize;
        let user = &people[number % people.len()];
        let call = Call::post("/_matrix/client/v3/keys/upload", bodies[number].clone()).by(user);
        Ok(connection.call(&call).await?.len() as u64)
    });
    outcome.measures.push(measured.await?);
    Ok(())
}

async fn query(context: &Context, options: &Keys, people: &[User], outcome: &mut Outcome) -> Result<()> {
    let plan = plan(options, "keys/query of 20", usize::MAX);
    context.progress.stage(plan.name);
    let measured = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let number = turn.number as usize;
        let asked = people.iter().cycle().skip(number % people.len()).take(QUERIED.min(people.len()));
        let asked: Vec<String> = asked.map(|user| format!("\"{}\":[]", user.id)).collect();
        let body = format!("{{\"device_keys\":{{{}}}}}", asked.join(","));
        let call = Call::post("/_matrix/client/v3/keys/query", body).by(&people[number % people.len()]);
        Ok(connection.call(&call).await?.len() as u64)
    });
    outcome.measures.push(measured.await?);
    Ok(())
}

async fn claim(context: &Context, options: &Keys, people: &[User], outcome: &mut Outcome) -> Result<()> {
    // Half of what is there: claims of used-up devices are another thing.
    let plan = plan(options, "keys/claim", options.people * options.uploads * KEYS_EACH / 2);
    context.progress.stage(plan.name);
    let measured = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let number = turn.number as usize;
        let (by, of) = (&people[number % people.len()], &people[(number + 1) % people.len()]);
        let body =
            format!("{{\"one_time_keys\":{{\"{}\":{{\"{}\":\"signed_curve25519\"}}}}}}", of.id, of.device);
        let call = Call::post("/_matrix/client/v3/keys/claim", body).by(by);
        Ok(connection.call(&call).await?.len() as u64)
    });
    outcome.measures.push(measured.await?);
    Ok(())
}

async fn send(context: &Context, options: &Keys, people: &[User], outcome: &mut Outcome) -> Result<()> {
    let plan = plan(options, "sendToDevice to 10", usize::MAX);
    context.progress.stage(plan.name);
    let letters = Letters::new();
    let measured = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let number = turn.number as usize;
        let to = people.iter().cycle().skip(number % people.len()).take(RECIPIENTS);
        let call = sending(context, &letters, &people[number % people.len()], to).1;
        Ok(connection.call(&call).await?.len() as u64)
    });
    outcome.measures.push(measured.await?);
    Ok(())
}

/// The call that sends an encrypted message to a device of each, and the number in it.
pub fn sending<'a>(
    context: &Context,
    letters: &Letters,
    by: &User,
    to: impl Iterator<Item = &'a User>,
) -> (u64, Call) {
    let number = context.unique();
    let mark = context.mark.of(number);
    let messages: Vec<String> =
        to.map(|user| format!("\"{}\":{{\"{}\":{}}}", user.id, user.device, letters.direct(&mark))).collect();
    let body = format!("{{\"messages\":{{{}}}}}", messages.join(","));
    let path = format!("/_matrix/client/v3/sendToDevice/m.room.encrypted/{number}");
    (number, Call::put(path, body).by(by))
}

/// The keys of a device, signed as clients sign them: servers check that.
struct Machine {
    user: String,
    device: String,
    signing: Ed25519SecretKey,
    identity: String,
    keys: String,
}

impl Machine {
    fn new(user: &User) -> Self {
        let signing = Ed25519SecretKey::new();
        let identity = curve_key();
        let mut machine = Self {
            user: user.id.clone(),
            device: user.device.clone(),
            signing,
            identity,
            keys: String::new(),
        };
        machine.keys = machine.device_keys().to_string();
        machine
    }

    /// `text` is canonical JSON.
    fn sign(&self, text: &str) -> Value {
        let key = format!("ed25519:{}", self.device);
        json!({&self.user: {key: self.signing.sign(text.as_bytes()).to_base64()}})
    }

    fn device_keys(&self) -> Value {
        let Self { user, device, identity, .. } = self;
        let ed25519 = self.signing.public_key().to_base64();
        let text = format!(
            "{{\"algorithms\":[\"m.olm.v1.curve25519-aes-sha2\",\"m.megolm.v1.aes-sha2\"],\
             \"device_id\":\"{device}\",\"keys\":{{\"curve25519:{device}\":\"{identity}\",\
             \"ed25519:{device}\":\"{ed25519}\"}},\"user_id\":\"{user}\"}}"
        );
        let mut keys: Value = serde_json::from_str(&text).unwrap_or_default();
        keys["signatures"] = self.sign(&text);
        keys
    }

    /// The body of an upload of the device's keys with new one-time keys.
    fn upload(&self, round: usize) -> String {
        let keys: Vec<String> = (0..KEYS_EACH)
            .map(|number| {
                let key = curve_key();
                let signatures = self.sign(&format!("{{\"key\":\"{key}\"}}"));
                let id = round * KEYS_EACH + number;
                format!("\"signed_curve25519:{id:06}\":{{\"key\":\"{key}\",\"signatures\":{signatures}}}")
            })
            .collect();
        format!("{{\"device_keys\":{},\"one_time_keys\":{{{}}}}}", self.keys, keys.join(","))
    }
}

fn curve_key() -> String {
    Curve25519PublicKey::from(&Curve25519SecretKey::new()).to_base64()
}

/// Uploads identity keys for everybody, so that they are as other people's devices are.
pub async fn upload_identities(context: &Context, people: &[&User]) -> Result<()> {
    context.progress.stage("uploading keys");
    context
        .each(&context.server, PREPARERS, people, async |connection, user| {
            let body = Machine::new(user).upload(0);
            let call = Call::post("/_matrix/client/v3/keys/upload", body).by(user);
            connection.prepare(&call).await.with_context(|| format!("keys of {}", escape(&user.id)))
        })
        .await?;
    Ok(())
}
