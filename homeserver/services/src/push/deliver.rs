//! A pusher's turn: tells its gateway what is owed, oldest first, until nothing is owed or the gateway fails.

use super::gateway::GatewayError;
use super::lease::Written;
use super::notification::Target;
use super::owed::Owed;
use super::term::Term;
use serde_json::Value;
use waxwing_model::LogPosition;
use waxwing_storage::{PusherKey, PusherRow, PusherTry};

/// How long is waited after the first failure, and at most, milliseconds. In between it doubles.
const FIRST_WAIT: u64 = 1000;
const LONGEST_WAIT: u64 = 60 * 60 * 1000;
/// A gateway that fails for so long gets nothing of what came meanwhile, milliseconds: by then it is old news.
const GIVE_UP_AFTER: u64 = 24 * 60 * 60 * 1000;

/// How a step of a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There may be more.
    Done,
    /// The turn is over.
    Over,
}

/// What a request is about, for the metrics.
#[derive(Clone, Copy)]
enum About {
    Event,
    Count,
}

impl Term {
    /// Delivers what the pusher owes.
    pub(super) async fn deliver(&self, key: &PusherKey) -> Result<(), Written> {
        while let Some(row) = self.fleet.get(key).filter(PusherRow::owes) {
            if self.step(&row).await? == Step::Over {
                break;
            }
        }
        Ok(())
    }

    async fn step(&self, row: &PusherRow) -> Result<Step, Written> {
        let upto = self.cursor();
        let Some(target) = Target::of(row) else {
            tracing::warn!(app_id = row.key.app_id, "a pusher cannot be read");
            self.delivered(row, upto.0, row.badge).await?;
            return Ok(Step::Over);
        };
        let user = &row.key.user_id;
        let Owed { items, badge } = self.parts.owed(user, row.position, upto).await?;
        let mut items = items.into_iter().peekable();
        while let Some(item) = items.next() {
            let Some(told) = self.parts.told(user, &item, upto).await? else { continue };
            let position = if items.peek().is_some() { item.position } else { upto.0 };
            let body = target.about(&told, badge);
            return self.send(row, &target, (About::Event, &body), position, badge, upto).await;
        }
        if target.wants_badge() && row.badge.is_some_and(|before| before != badge) {
            let body = target.count(badge);
            return self.send(row, &target, (About::Count, &body), upto.0, badge, upto).await;
        }
        self.delivered(row, upto.0, row.badge).await?;
        Ok(Step::Done)
    }

    async fn send(
        &self,
        row: &PusherRow,
        target: &Target,
        (about, body): (About, &Value),
        position: i64,
        badge: u64,
        upto: LogPosition,
    ) -> Result<Step, Written> {
        match self.parts.gateways.notify(&target.url, body).await {
            Ok(rejected) if rejected.contains(&row.key.pushkey) => {
                metrics::counter!("waxwing_push_rejected_total").increment(1);
                tracing::info!(user = %row.key.user_id, app_id = row.key.app_id, "a gateway rejects a pushkey");
                let key = row.key.clone();
                self.write("pushkey rejected", move |tx| {
                    let key = key.clone();
                    Box::pin(async move { tx.pusher_remove(&key).await.map(drop) })
                })
                .await?;
                Ok(Step::Over)
            }
            Ok(_) => {
                let about = match about {
                    About::Event => "event",
                    About::Count => "count",
                };
                metrics::counter!("waxwing_push_sent_total", "about" => about).increment(1);
                self.delivered(row, position, Some(badge)).await?;
                Ok(Step::Done)
            }
            Err(error) => self.failed(row, target, &error, upto).await,
        }
    }

    async fn delivered(&self, row: &PusherRow, position: i64, badge: Option<u64>) -> Result<(), Written> {
        // In memory first: should the database fail now, it is not sent again while this node runs.
        self.fleet.delivered(&row.key, position, badge);
        let key = row.key.clone();
        self.write("push delivered", move |tx| {
            let key = key.clone();
            Box::pin(async move { tx.pusher_delivered(&key, position, badge).await })
        })
        .await
    }

    async fn failed(
        &self,
        row: &PusherRow,
        target: &Target,
        error: &GatewayError,
        upto: LogPosition,
    ) -> Result<Step, Written> {
        metrics::counter!("waxwing_push_failed_total").increment(1);
        let failing = next_try(row.failing, self.parts.core.now());
        let host = target.url.host_str().unwrap_or_default();
        tracing::info!(host, %error, wait_ms = failing.interval, "a push gateway did not take a notification");
        let too_long = failing.retry_at - failing.interval - failing.failing_since >= GIVE_UP_AFTER;
        let position = if too_long { upto.0 } else { row.position };
        let key = row.key.clone();
        self.fleet.failed(&key, position, failing);
        self.write("push failed", move |tx| {
            let key = key.clone();
            Box::pin(async move { tx.pusher_failed(&key, position, failing).await })
        })
        .await?;
        Ok(Step::Over)
    }
}

/// When a gateway that failed at `now` is tried again.
fn next_try(before: Option<PusherTry>, now: u64) -> PusherTry {
    let interval = before.map_or(FIRST_WAIT, |before| (before.interval * 2).clamp(FIRST_WAIT, LONGEST_WAIT));
    PusherTry {
        failing_since: before.map_or(now, |before| before.failing_since.min(now)),
        retry_at: now + interval,
        interval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_an_hour() {
        let mut failing = next_try(None, 5_000);
        assert_eq!(failing, PusherTry { failing_since: 5_000, retry_at: 6_000, interval: 1000 });
        for _ in 0..20 {
            failing = next_try(Some(failing), failing.retry_at);
        }
        assert_eq!((failing.failing_since, failing.interval), (5_000, LONGEST_WAIT));
    }
}
