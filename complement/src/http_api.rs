//! The part of the container engine's HTTP interface that Complement uses, and no more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::archive;
use crate::engine::{Engine, Wish};
use crate::error::Error;
use crate::labels::{Filter, Labels, parse_change};

type Reply = Result<Response<Full<Bytes>>, Error>;

/// Of a request. The largest are the archives with a certificate in them.
const LARGEST_BODY: usize = 16 * 1024 * 1024;
const API_VERSION: &str = "1.47";
/// How long a container may take to stop where the call does not say.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the task is aborted.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Without this the kernel holds small answers back for 40 ms.
        let _ = stream.set_nodelay(true);
        let engine = engine.clone();
        let service = service_fn(move |request| respond(engine.clone(), request));
        tokio::spawn(async move {
            // Complement going away in the middle of a call is no concern of ours.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(
    engine: Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let reply = match Call::read(request).await {
        Ok(call) => call.answer(&engine).await,
        Err(error) => Err(error),
    };
    Ok(reply.unwrap_or_else(|error| json_reply(error.status, &json!({ "message": error.message }))))
}

struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    async fn read(request: Request<Incoming>) -> Result<Self, Error> {
        let (head, body) = request.into_parts();
        let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
        let mut path: Vec<_> = head.uri.path().split('/').skip(1).map(str::to_owned).collect();
        if path.first().is_some_and(|first| is_version(first)) {
            path.remove(0);
        }
        let body = Limited::new(body, LARGEST_BODY).collect().await;
        let body = body.map_err(|error| Error::bad_request(error.to_string()))?.to_bytes();
        Ok(Self { method: head.method, path, query: query.into_owned().collect(), body })
    }

    async fn answer(&self, engine: &Engine) -> Reply {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        match (self.method.as_str(), &path[..]) {
            ("HEAD" | "GET", ["_ping"]) => Ok(ping()),
            ("GET", ["networks"]) => self.networks(engine),
            ("POST", ["networks", "create"]) => self.network_create(engine),
            ("DELETE", ["networks", id]) => {
                engine.network_remove(id).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            ("GET", ["images", "json"]) => self.images(engine),
            // A tag has a slash in it.
            ("DELETE", ["images", name @ ..]) => {
                let id = engine.image_remove(&name.join("/")).await?;
                Ok(json_reply(StatusCode::OK, &json!([{ "Deleted": id }])))
            }
            ("POST", ["commit"]) => self.commit(engine).await,
            ("GET", ["containers", "json"]) => self.containers(engine).await,
            ("POST", ["containers", "create"]) => self.container_create(engine).await,
            ("DELETE", ["containers", id]) => {
                engine.container_remove(id, self.flag("force")).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            ("PUT", ["containers", id, "archive"]) => self.archive(engine, id),
            ("GET", ["containers", id, "json"]) => inspect(engine, id).await,
            ("GET", ["containers", id, "logs"]) => logs(engine, id),
            ("POST", ["containers", id, verb]) => self.act(engine, id, verb).await,
            _ => Err(self.unknown()),
        }
    }

    fn unknown(&self) -> Error {
        Error::unknown_call(&format!("{} /{}", self.method, self.path.join("/")))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("1" | "true"))
    }

    fn filter(&self) -> Result<Filter, Error> {
        let Some(filters) = self.parameter("filters") else { return Ok(Filter::default()) };
        Filter::parse(filters).map_err(|error| Error::bad_request(format!("{error:#}")))
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::bad_request(error.to_string()))
    }

    fn networks(&self, engine: &Engine) -> Reply {
        let found = engine.networks(&self.filter()?);
        let found = found.iter().map(|one| json!({ "Name": one.name, "Id": one.id, "Labels": one.labels }));
        Ok(json_reply(StatusCode::OK, &found.collect()))
    }

    fn network_create(&self, engine: &Engine) -> Reply {
        let NewNetwork { name, labels } = self.json()?;
        let id = engine.network_create(&name, labels)?;
        Ok(json_reply(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" })))
    }

    fn images(&self, engine: &Engine) -> Reply {
        let found = engine.images(&self.filter()?);
        let found =
            found.iter().map(|one| json!({ "Id": one.id, "Labels": one.labels, "RepoTags": [one.tag] }));
        Ok(json_reply(StatusCode::OK, &found.collect()))
    }

    async fn commit(&self, engine: &Engine) -> Reply {
        let container = self.parameter("container").unwrap_or_default();
        let repository = self.parameter("repo").unwrap_or_default();
        let tag = self.parameter("tag").unwrap_or("latest");
        let changes = self.query.iter().filter(|(key, _)| key == "changes");
        let changes = changes.map(|(_, change)| parse_change(change)).collect::<anyhow::Result<_>>();
        let changes = changes.map_err(|error| Error::bad_request(format!("{error:#}")))?;
        let id = engine.commit(container, format!("{repository}:{tag}"), changes).await?;
        Ok(json_reply(StatusCode::CREATED, &json!({ "Id": id })))
    }

    async fn containers(&self, engine: &Engine) -> Reply {
        let mut found = Vec::new();
        for one in engine.containers(&self.filter()?) {
            let state = one.state().await;
            if self.flag("all") || !state.ports.is_empty() {
                let names = [format!("/{}", one.name)];
                found.push(
                    json!({ "Id": one.id, "Names": names, "Labels": one.labels, "State": state.status }),
                );
            }
        }
        Ok(json_reply(StatusCode::OK, &found.into()))
    }

    async fn container_create(&self, engine: &Engine) -> Reply {
        let new: NewContainer = self.json()?;
        if !new.host_config.mounts.is_empty() {
            return Err(Error::bad_request("this runner mounts nothing into a container"));
        }
        let mut warnings = Vec::new();
        if new.host_config.nano_cpus != 0 || new.host_config.memory != 0 {
            warnings.push("this runner does not limit processor or memory");
        }
        let (network, endpoint) =
            new.networking_config.endpoints_config.into_iter().next().unwrap_or_default();
        let id = engine.container_create(Wish {
            name: self.parameter("name").unwrap_or_default().to_owned(),
            image: new.image,
            env: new.env,
            labels: new.labels,
            network,
            aliases: endpoint.aliases,
        });
        Ok(json_reply(StatusCode::CREATED, &json!({ "Id": id.await?, "Warnings": warnings })))
    }

    fn archive(&self, engine: &Engine, id: &str) -> Reply {
        let container = engine.container(id)?;
        let unpacked = archive::unpack(&self.body, &container.root);
        unpacked.map_err(|error| Error::bad_request(format!("{error:#}")))?;
        Ok(empty(StatusCode::OK))
    }

    async fn act(&self, engine: &Engine, id: &str, verb: &str) -> Reply {
        let changed = match verb {
            "start" => engine.container_start(id).await?,
            "stop" => {
                let seconds = self.parameter("t").and_then(|seconds| seconds.parse().ok());
                engine.container_stop(id, seconds.map_or(STOP_PATIENCE, Duration::from_secs)).await?
            }
            "kill" if self.parameter("signal").is_none_or(|signal| signal.ends_with("KILL")) => {
                let killed = engine.container(id)?.kill().await;
                if !killed {
                    return Err(Error::conflict(format!("container {id} is not running")));
                }
                killed
            }
            "pause" | "unpause" => {
                let changed = engine.container(id)?.pause(verb == "pause").await;
                if !changed {
                    return Err(Error::conflict(format!("container {id} is not running")));
                }
                changed
            }
            _ => return Err(self.unknown()),
        };
        Ok(empty(if changed { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NewNetwork {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NewContainer {
    image: String,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
    #[serde(default, deserialize_with = "or_default")]
    host_config: HostConfig,
    #[serde(default, deserialize_with = "or_default")]
    networking_config: NetworkingConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default, deserialize_with = "or_default")]
    mounts: Vec<Value>,
    #[serde(default)]
    nano_cpus: i64,
    #[serde(default)]
    memory: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkingConfig {
    #[serde(default, deserialize_with = "or_default")]
    endpoints_config: BTreeMap<String, Endpoint>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(default, deserialize_with = "or_default")]
    aliases: Vec<String>,
}

/// Go writes an empty list or map as null.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn is_version(segment: &str) -> bool {
    segment.strip_prefix("v1.").is_some_and(|minor| minor.chars().all(|c| c.is_ascii_digit()))
}

async fn inspect(engine: &Engine, id: &str) -> Reply {
    let container = engine.container(id)?;
    let state = container.state().await;
    let published = |(inner, outer): &(u16, u16)| {
        (format!("{inner}/tcp"), json!([{ "HostIp": "127.0.0.1", "HostPort": outer.to_string() }]))
    };
    let ports: serde_json::Map<_, _> = state.ports.iter().map(published).collect();
    let running = !ports.is_empty();
    Ok(json_reply(
        StatusCode::OK,
        &json!({
            "Id": container.id,
            "Name": format!("/{}", container.name),
            "State": { "Status": state.status, "Running": running, "Paused": state.status == "paused" },
            "Config": { "Labels": container.labels, "Volumes": null },
            "NetworkSettings": { "Ports": ports },
        }),
    ))
}

/// Frames of the engine's stream format: which stream, and how long. Both of a server's streams are one log here.
fn logs(engine: &Engine, id: &str) -> Reply {
    const STDOUT: u8 = 1;
    let log = engine.container_log(id)?;
    let mut framed = Vec::with_capacity(log.len() + 8);
    for chunk in log.chunks(32 * 1024) {
        framed.extend([STDOUT, 0, 0, 0]);
        framed.extend((chunk.len() as u32).to_be_bytes());
        framed.extend(chunk);
    }
    Ok(reply(StatusCode::OK, "application/vnd.docker.multiplexed-stream", framed.into()))
}

fn ping() -> Response<Full<Bytes>> {
    let mut response = reply(StatusCode::OK, "text/plain", Bytes::from_static(b"OK"));
    for (name, value) in [("Api-Version", API_VERSION), ("Ostype", "linux")] {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn json_reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    reply(status, "application/json", body.to_string().into())
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_are_stripped() {
        assert!(is_version("v1.47"));
        assert!(!is_version("volumes"));
        assert!(!is_version("v1.x"));
    }

    #[test]
    fn nulls_of_go_are_defaults() {
        let text = r#"{"Image":"i","Env":null,"Labels":null,"HostConfig":{"Mounts":null,"CapAdd":["NET_ADMIN"]},
            "NetworkingConfig":{"EndpointsConfig":{"net":{"Aliases":["hs1"],"IPAMConfig":null}}}}"#;
        let new: NewContainer = serde_json::from_str(text).unwrap();
        assert!(new.env.is_empty() && new.labels.is_empty() && new.host_config.mounts.is_empty());
        assert_eq!(new.networking_config.endpoints_config["net"].aliases, ["hs1"]);
    }
}
