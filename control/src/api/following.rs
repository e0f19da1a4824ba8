//! The route of those who follow what happens.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::Query;
use crate::engine::Engine;
use crate::error::Error;
use crate::events::{Event, EventKind};

/// `GET /v1/events?after=N&kind=A,B&follow=true`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only events after this number.
    #[serde(default)]
    after: u64,
    /// Only events of these kinds, separated by commas.
    kind: Option<String>,
    /// Whether the answer goes on with events to come.
    #[serde(default)]
    follow: bool,
}

/// One event, a line of the answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// Grows by one with each event of a daemon; a gap means that events were forgotten before they
    /// were read.
    pub number: u64,
    /// When, in RFC 3339.
    pub time: String,
    /// What kind of thing has happened, one of [`EventKind::ALL`].
    pub kind: String,
    /// The network that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The port that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// What has happened.
    pub text: String,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            number: event.number,
            time: rfc3339(event.at),
            kind: event.kind.label().to_owned(),
            network: event.subject.network,
            port: event.subject.port,
            text: event.text,
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Answers with the events that are kept, a JSON object per line, and with those to come if they
/// are wanted.
pub async fn events(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, Error> {
    let words = query.kind.as_deref().unwrap_or_default().split(',');
    let words = words.filter(|word| !word.is_empty());
    let kinds: Vec<EventKind> = words
        .map(|word| word.parse().map_err(Error::EventKind))
        .collect::<Result<_, _>>()?;
    let reader = Reader {
        // Subscribed before the first look, so that none falls between.
        numbers: engine.events().numbers(),
        after: query.after,
        follow: query.follow,
        begun: false,
        kinds,
        engine,
    };
    let lines = stream::unfold(reader, |mut reader| async move {
        let lines = reader.next().await?;
        Some((Ok::<_, std::convert::Infallible>(lines), reader))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines.fuse())).into_response())
}

struct Reader {
    engine: Arc<Engine>,
    numbers: tokio::sync::watch::Receiver<u64>,
    after: u64,
    follow: bool,
    begun: bool,
    kinds: Vec<EventKind>,
}

impl Reader {
    /// The next events as lines; `None` when no more are wanted or the daemon ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.begun {
                if !self.follow {
                    return None;
                }
                self.numbers.changed().await.ok()?;
            }
            self.begun = true;
            self.numbers.mark_unchanged();
            let events = self.engine.events().after(self.after);
            self.after = events.last().map_or(self.after, |event| event.number);
            let wanted = |event: &Event| self.kinds.is_empty() || self.kinds.contains(&event.kind);
            let mut lines = String::new();
            for event in events.into_iter().filter(wanted) {
                let line = serde_json::to_string(&EventView::from(event)).ok()?;
                lines.push_str(&line);
                lines.push('\n');
            }
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }
}
