//! The http and https listeners: `/healthz`, `/readyz` and `/metrics`, and a helpful 404 for everything else.

use std::future::Future;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode};

use crate::reply::{self, Reply};
use crate::serve::{self, Answer, Limits, Listener};

/// The content type of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOTHING_HERE: &str = "There is nothing here. This broker serves /healthz, /readyz and /metrics.\n";

/// Whether the broker can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Good,
    /// It can not, because of this; shown to whoever asks, so it names no secret.
    Bad(String),
}

/// What the pages show; called for each request, so it must not block.
pub trait Pages: Send + Sync + 'static {
    /// All metrics in Prometheus' text format 0.0.4, ending with a line feed.
    fn metrics(&self) -> String;

    /// The answer to `/healthz`: 200 if good, 503 if bad.
    fn health(&self) -> Health;

    /// The answer to `/readyz`: 200 if good; 503 while the broker starts, stops or can not write.
    fn ready(&self) -> Health;
}

/// Serves the pages until `stop` is ready.
pub async fn serve<P: Pages>(
    listener: impl Listener,
    pages: Arc<P>,
    limits: Limits,
    stop: impl Future<Output = ()> + Send,
) {
    serve::run(listener, Site(pages), limits, stop).await;
}

struct Site<P>(Arc<P>);

impl<P: Pages> Answer for Site<P> {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let page: fn(&P) -> Reply = match request.uri().path() {
            "/healthz" => |pages| verdict(pages.health()),
            "/readyz" => |pages| verdict(pages.ready()),
            "/metrics" => metrics,
            _ => return reply::text(StatusCode::NOT_FOUND, NOTHING_HERE),
        };
        // RFC 9110 §9.3.2: hyper leaves the body out of the answer to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let refusal = reply::text(StatusCode::METHOD_NOT_ALLOWED, "This page can only be read: use GET.\n");
            return reply::with(refusal, ALLOW, "GET, HEAD");
        }
        page(&self.0)
    }
}

fn verdict(health: Health) -> Reply {
    match health {
        Health::Good => reply::text(StatusCode::OK, "ok\n"),
        Health::Bad(reason) => reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn metrics<P: Pages>(pages: &P) -> Reply {
    reply::with(reply::text(StatusCode::OK, pages.metrics()), CONTENT_TYPE, PROMETHEUS)
}
