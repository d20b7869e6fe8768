//! The admin API over `DATA/admin.sock`: HTTP/1.1 and JSON, nothing decided here.
//!
//! The socket's file mode (0600) is what keeps others out; the caller binds it. Paths, requests and answers are
//! those of `tavi_enrol`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::ALLOW;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tavi_enrol::DeviceId;
use tavi_enrol::admin::{
    AddedDevice, ApiError, DeviceList, DeviceRow, ErrorCode, GrantList, GrantRow, MAX_REQUEST, NewDevice, NewGrant,
    NewPassword, NewUser, Removed, SessionDetail, SessionList, Status, UserList, UserPassword,
};
use tavi_enrol::route::{ListQuery, Route};
use tokio::time::timeout;

use crate::reply::{self, Reply};
use crate::serve::{self, Answer, Limits, Listener};

/// How long a request's body may take to arrive, in total.
const BODY_TIME: Duration = Duration::from_secs(10);

/// What an operation gives: its answer, or the refusal that the caller is told.
pub type Outcome<T> = Result<T, ApiError>;

/// The operations of the admin API. The broker implements them; each answer is given when its change is durable.
///
/// Names and passwords come as they were sent: the implementation normalises and checks them.
pub trait Admin: Send + Sync + 'static {
    /// What the broker is and where it listens.
    fn status(&self) -> impl Future<Output = Outcome<Status>> + Send;

    /// A page of the accounts.
    fn users(&self, query: ListQuery) -> impl Future<Output = Outcome<UserList>> + Send;
    /// Makes an account; [`ErrorCode::Conflict`] if there is one.
    fn add_user(&self, user: NewUser) -> impl Future<Output = Outcome<UserPassword>> + Send;
    /// Changes a password; [`ErrorCode::NotFound`] if there is no such account.
    fn set_password(&self, jid: String, new: NewPassword) -> impl Future<Output = Outcome<UserPassword>> + Send;
    /// Removes an account and ends its sessions.
    fn remove_user(&self, jid: String) -> impl Future<Output = Outcome<Removed>> + Send;

    /// A page of the devices.
    fn devices(&self, query: ListQuery) -> impl Future<Output = Outcome<DeviceList>> + Send;
    /// One device.
    fn device(&self, id: DeviceId) -> impl Future<Output = Outcome<DeviceRow>> + Send;
    /// Adds a device with its public key; [`ErrorCode::Conflict`] if its key or name is known.
    fn add_device(&self, device: NewDevice) -> impl Future<Output = Outcome<AddedDevice>> + Send;
    /// Revokes a device and ends its sessions within two seconds.
    fn remove_device(&self, id: DeviceId) -> impl Future<Output = Outcome<Removed>> + Send;

    /// A page of the grants, of all or of one subject.
    fn grants(&self, query: ListQuery) -> impl Future<Output = Outcome<GrantList>> + Send;
    /// Adds a grant; one that is there already is answered with its row.
    fn add_grant(&self, grant: NewGrant) -> impl Future<Output = Outcome<GrantRow>> + Send;
    /// Removes a grant by the id of its row; takes effect on live sessions at once.
    fn remove_grant(&self, id: String) -> impl Future<Output = Outcome<GrantRow>> + Send;

    /// A page of the MQTT sessions, of all or of one subject.
    fn sessions(&self, query: ListQuery) -> impl Future<Output = Outcome<SessionList>> + Send;
    /// One MQTT session; [`ErrorCode::NotFound`] if there is none.
    fn session(&self, subject: String, client: String) -> impl Future<Output = Outcome<SessionDetail>> + Send;
    /// Ends an MQTT session, its client connected or not.
    fn end_session(&self, subject: String, client: String) -> impl Future<Output = Outcome<Removed>> + Send;
}

/// Serves the admin API until `stop` is ready.
pub async fn serve<A: Admin>(
    listener: impl Listener,
    admin: Arc<A>,
    limits: Limits,
    stop: impl Future<Output = ()> + Send,
) {
    serve::run(listener, Api(admin), limits, stop).await;
}

struct Api<A>(Arc<A>);

impl<A: Admin> Answer for Api<A> {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        match Route::parse(request.uri().path()) {
            Some(route) => self.dispatch(route, request).await.unwrap_or_else(|error| refusal(&error)),
            None => refusal(&no_such_path(request.uri().path())),
        }
    }
}

impl<A: Admin> Api<A> {
    async fn dispatch(&self, route: Route, request: Request<Incoming>) -> Outcome<Reply> {
        let admin = &*self.0;
        let allowed = route.methods();
        match (request.method().clone(), route) {
            (Method::GET, Route::Status) => ok(admin.status().await),
            (Method::GET, Route::Users) => ok(admin.users(list_query(&request)?).await),
            (Method::POST, Route::Users) => created(admin.add_user(body(request).await?).await),
            (Method::PUT, Route::UserPassword(jid)) => ok(admin.set_password(jid, body(request).await?).await),
            (Method::DELETE, Route::User(jid)) => ok(admin.remove_user(jid).await),
            (Method::GET, Route::Devices) => ok(admin.devices(list_query(&request)?).await),
            (Method::POST, Route::Devices) => created(admin.add_device(body(request).await?).await),
            (Method::GET, Route::Device(id)) => ok(admin.device(device_id(&id)?).await),
            (Method::DELETE, Route::Device(id)) => ok(admin.remove_device(device_id(&id)?).await),
            (Method::GET, Route::Grants) => ok(admin.grants(list_query(&request)?).await),
            (Method::POST, Route::Grants) => created(admin.add_grant(body(request).await?).await),
            (Method::DELETE, Route::Grant(id)) => ok(admin.remove_grant(id).await),
            (Method::GET, Route::Sessions) => ok(admin.sessions(list_query(&request)?).await),
            (Method::GET, Route::Session(subject, client)) => ok(admin.session(subject, client).await),
            (Method::DELETE, Route::Session(subject, client)) => ok(admin.end_session(subject, client).await),
            (method, _) => Ok(wrong_method(&method, allowed)),
        }
    }
}

fn ok<T: Serialize>(outcome: Outcome<T>) -> Outcome<Reply> {
    outcome.map(|value| reply::json(StatusCode::OK, &value))
}

fn created<T: Serialize>(outcome: Outcome<T>) -> Outcome<Reply> {
    outcome.map(|value| reply::json(StatusCode::CREATED, &value))
}

fn refusal(error: &ApiError) -> Reply {
    let status = StatusCode::from_u16(error.error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply::json(status, error)
}

fn no_such_path(path: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("the admin API has no {path}"))
        .hint("it has /v1/status, /v1/users, /v1/devices, /v1/grants and /v1/sessions")
}

/// RFC 9110 §15.5.6: a 405 names the methods that there are.
fn wrong_method(method: &Method, allowed: &'static str) -> Reply {
    let error = ApiError::new(ErrorCode::MethodNotAllowed, format!("{method} does not apply here"));
    reply::with(refusal(&error.hint(format!("use {allowed}"))), ALLOW, allowed)
}

fn list_query(request: &Request<Incoming>) -> Outcome<ListQuery> {
    let refused = || {
        ApiError::new(ErrorCode::BadRequest, "the query makes no sense")
            .hint("use after=ITEM, limit=N from 1, subject=S")
    };
    ListQuery::parse(request.uri().query()).ok_or_else(refused)
}

fn device_id(text: &str) -> Outcome<DeviceId> {
    text.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("'{text}' is no device id: {error}")))
}

/// The request's body, bounded in size and time.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Outcome<T> {
    let collected = timeout(BODY_TIME, Limited::new(request.into_body(), MAX_REQUEST).collect()).await;
    let collected = collected.map_err(|_| ApiError::new(ErrorCode::Timeout, "the request's body came too slowly"))?;
    let bytes = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => ApiError::new(ErrorCode::TooLarge, format!("a request's body has at most {MAX_REQUEST} bytes")),
        None => ApiError::new(ErrorCode::BadRequest, "the request's body broke off"),
    })?;
    serde_json::from_slice(&bytes.to_bytes())
        .map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("the request's body is wrong: {error}")))
}
