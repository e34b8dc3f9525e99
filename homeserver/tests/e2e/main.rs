//! Whole servers over loopback: the built program in the three shapes in which organisations run it (SQLite;
//! PostgreSQL; two nodes over one PostgreSQL), driven by people's real end-to-end encrypted clients and by requests
//! that no good client makes.

/// A test for each shape: `async fn NAME(site: Site)`.
macro_rules! in_each_shape {
    ($($name:ident),* $(,)?) => {
        in_each_shape!(@ sqlite Sqlite $($name)*);
        in_each_shape!(@ postgres Postgres $($name)*);
        in_each_shape!(@ two_nodes TwoNodes $($name)*);
    };
    (@ $module:ident $shape:ident $($name:ident)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(site) = crate::site::Site::start(crate::site::Shape::$shape).await {
                    super::$name(site).await;
                }
            })*
        }
    };
}

mod accounts;
mod appservices;
mod bad_input;
mod coverage;
mod dawdlers;
mod elsewhere;
mod endpoints;
mod ends;
mod federation;
mod from_memory;
mod gateway;
mod hostile;
mod http;
mod identity;
mod intruders;
mod keys;
mod latency;
mod letters;
mod media;
mod nats;
mod nats_server;
mod neighbours;
mod node;
mod older;
mod overload;
mod policy;
mod postgres;
mod presence;
mod proxy;
mod purges;
mod push;
mod reading;
mod redactions;
mod rooms;
mod rotation;
mod searching;
mod site;
mod sliding;
mod smtp;
mod spaces;
mod standing;
mod syncing;
mod tenants;
mod threads;
mod upgrade;
