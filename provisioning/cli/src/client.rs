//! The admin API's client: one request, one answer, over the socket in the broker's data folder.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tavi_enrol::DeviceId;
use tavi_enrol::admin::{
    AddedDevice, ApiError, DeviceList, DeviceRow, ErrorCode, GrantList, GrantRow, MAX_ANSWER, NewDevice, NewGrant,
    NewPassword, NewUser, Removed, SOCKET_NAME, SessionDetail, SessionList, Status, UserList, UserPassword,
};
use tavi_enrol::route::{ListQuery, Route};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::socket;

/// How long one request may take in total.
const TIME: Duration = Duration::from_secs(30);

/// Speaks to the broker that runs on one data folder. Every call needs a tokio runtime and opens a connection.
#[derive(Debug, Clone)]
pub struct Client {
    folder: PathBuf,
}

/// What a call gives.
pub type Answer<T> = Result<T, ClientError>;

impl Client {
    /// A client for the broker on this data folder; nothing is connected yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// What the broker is and where it listens.
    ///
    /// # Errors
    /// Like each call here: [`ClientError`].
    pub async fn status(&self) -> Answer<Status> {
        self.get(Route::Status).await
    }

    /// All accounts.
    pub async fn users(&self) -> Answer<UserList> {
        let (mut all, mut query) = (UserList::default(), ListQuery::default());
        loop {
            let page = self.users_page(&query).await?;
            all.users.extend(page.users);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// A page of the accounts.
    pub async fn users_page(&self, query: &ListQuery) -> Answer<UserList> {
        self.list(Route::Users, query).await
    }

    /// Makes an account.
    pub async fn add_user(&self, user: &NewUser) -> Answer<UserPassword> {
        self.call(Method::POST, Route::Users, json(user)?).await
    }

    /// Changes an account's password.
    pub async fn set_password(&self, jid: &str, new: &NewPassword) -> Answer<UserPassword> {
        self.call(Method::PUT, Route::UserPassword(jid.into()), json(new)?).await
    }

    /// Removes an account.
    pub async fn remove_user(&self, jid: &str) -> Answer<Removed> {
        self.delete(Route::User(jid.into())).await
    }

    /// All devices.
    pub async fn devices(&self) -> Answer<DeviceList> {
        let (mut all, mut query) = (DeviceList::default(), ListQuery::default());
        loop {
            let page = self.devices_page(&query).await?;
            all.devices.extend(page.devices);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// A page of the devices.
    pub async fn devices_page(&self, query: &ListQuery) -> Answer<DeviceList> {
        self.list(Route::Devices, query).await
    }

    /// One device.
    pub async fn device(&self, id: DeviceId) -> Answer<DeviceRow> {
        self.get(Route::Device(id.to_string())).await
    }

    /// Adds a device.
    pub async fn add_device(&self, device: &NewDevice) -> Answer<AddedDevice> {
        self.call(Method::POST, Route::Devices, json(device)?).await
    }

    /// Removes a device.
    pub async fn remove_device(&self, id: DeviceId) -> Answer<Removed> {
        self.delete(Route::Device(id.to_string())).await
    }

    /// All grants.
    pub async fn grants(&self) -> Answer<GrantList> {
        let (mut all, mut query) = (GrantList::default(), ListQuery::default());
        loop {
            let page = self.grants_page(&query).await?;
            all.grants.extend(page.grants);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// A page of the grants.
    pub async fn grants_page(&self, query: &ListQuery) -> Answer<GrantList> {
        self.list(Route::Grants, query).await
    }

    /// Adds a grant.
    pub async fn add_grant(&self, grant: &NewGrant) -> Answer<GrantRow> {
        self.call(Method::POST, Route::Grants, json(grant)?).await
    }

    /// Removes the grant with this row id.
    pub async fn remove_grant(&self, id: &str) -> Answer<GrantRow> {
        self.delete(Route::Grant(id.into())).await
    }

    /// A page of the MQTT sessions.
    pub async fn sessions_page(&self, query: &ListQuery) -> Answer<SessionList> {
        self.list(Route::Sessions, query).await
    }

    /// One MQTT session.
    pub async fn session(&self, subject: &str, client: &str) -> Answer<SessionDetail> {
        self.get(Route::Session(subject.into(), client.into())).await
    }

    /// Ends an MQTT session; what is stored for it goes.
    pub async fn end_session(&self, subject: &str, client: &str) -> Answer<Removed> {
        self.delete(Route::Session(subject.into(), client.into())).await
    }

    async fn get<T: DeserializeOwned>(&self, route: Route) -> Answer<T> {
        self.call(Method::GET, route, Bytes::new()).await
    }

    async fn list<T: DeserializeOwned>(&self, route: Route, query: &ListQuery) -> Answer<T> {
        self.request(Method::GET, format!("{route}{query}"), Bytes::new()).await
    }

    async fn delete<T: DeserializeOwned>(&self, route: Route) -> Answer<T> {
        self.call(Method::DELETE, route, Bytes::new()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, route: Route, body: Bytes) -> Answer<T> {
        self.request(method, route.to_string(), body).await
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, uri: String, body: Bytes) -> Answer<T> {
        let stream = self.connect().await?;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let (head, bytes) = timeout(TIME, exchange(stream, request)).await.map_err(|_| ClientError::Silent)??;
        if head.status().is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| ClientError::Broken(error.to_string()));
        }
        Err(match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => ClientError::Refused(error),
            Err(_) => ClientError::Broken(format!("the answer was {}", head.status())),
        })
    }

    async fn connect(&self) -> Answer<UnixStream> {
        let folder = || self.folder.clone();
        let connected = timeout(TIME, socket::connect(&self.folder)).await.map_err(|_| ClientError::Silent)?;
        connected.map_err(|error| match error.kind() {
            _ if !self.folder.is_dir() => ClientError::NoFolder(folder()),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(folder()),
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.folder.join(SOCKET_NAME)),
            _ => ClientError::Unreachable(self.folder.join(SOCKET_NAME), error),
        })
    }

    /// The data folder that this client looks for the socket in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Answer<(Response<()>, Bytes)> {
    let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends by itself once the answer is read or the sender is dropped.
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    let bytes = Limited::new(body, MAX_ANSWER).collect().await;
    let bytes = bytes.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
    Ok((Response::from_parts(head, ()), bytes))
}

/// The body of a request, wiped after it was sent: it may hold a password.
fn json(value: &impl Serialize) -> Answer<Bytes> {
    let bytes = serde_json::to_vec(value).map_err(|error| ClientError::Broken(error.to_string()))?;
    Ok(Bytes::from_owner(Zeroizing::new(bytes)))
}

/// Why a call did not succeed. The texts say what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The operator's: no such folder.
    #[error("there is no data folder {}: give the one of a running broker, or start one with `tavi serve --data {}`", .0.display(), .0.display())]
    NoFolder(PathBuf),
    /// The operator's: nobody serves the socket.
    #[error("no broker is running on {}: start it with `tavi serve --data {}`", .0.display(), .0.display())]
    NotRunning(PathBuf),
    /// The operator's: the socket belongs to another user.
    #[error("this user may not use {}: run this as the user who runs the broker", .0.display())]
    Denied(PathBuf),
    /// The system's.
    #[error("{} can not be reached: {}", .0.display(), .1)]
    Unreachable(PathBuf, #[source] io::Error),
    /// The broker refused, and says why.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// No answer in 30 s; whether the broker acted is not known.
    #[error("the broker did not answer within {} s; whether it acted is not known: look with `list`", TIME.as_secs())]
    Silent,
    /// No whole answer; whether the broker acted is not known.
    #[error("the broker's answer broke off or makes no sense ({0}); whether it acted is not known: look with `list`")]
    Broken(String),
}

impl ClientError {
    /// Whether it is certain that the broker changed nothing.
    pub fn nothing_changed(&self) -> bool {
        match self {
            Self::NoFolder(_) | Self::NotRunning(_) | Self::Denied(_) | Self::Unreachable(..) => true,
            Self::Refused(error) => !matches!(error.error, ErrorCode::Internal | ErrorCode::Unknown),
            Self::Silent | Self::Broken(_) => false,
        }
    }

    /// Whether nobody serves the folder, so that its store may be opened directly.
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::NoFolder(_) | Self::NotRunning(_))
    }
}
