//! The admin API as a client sees it, over a real socket, with an `Admin` that knows one user.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{Stop, ask, send};
use tavi_enrol::admin::*;
use tavi_enrol::route::ListQuery;
use tavi_enrol::{DeviceId, Secret};
use tavi_web::Limits;
use tavi_web::admin::{Admin, Outcome, serve};
use tokio::net::{UnixListener, UnixStream};

/// Knows `ann@localhost`, no devices, and gives each grant the id 7.
struct Fake;

fn missing<T>(what: &str) -> Outcome<T> {
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no {what}")))
}

impl Admin for Fake {
    async fn status(&self) -> Outcome<Status> {
        let listeners = [(String::from("mqtt"), String::from("127.0.0.1:1883"))].into();
        Ok(Status { version: "0.1.0".into(), domain: "localhost".into(), uptime: 5, listeners })
    }

    async fn users(&self, query: ListQuery) -> Outcome<UserList> {
        let ann = UserRow { jid: "ann@localhost".into(), created: None, sessions: Some(1) };
        Ok(UserList { users: vec![ann], next: query.after })
    }

    async fn add_user(&self, user: NewUser) -> Outcome<UserPassword> {
        match user.jid.as_str() {
            "ann@localhost" => Err(ApiError::new(ErrorCode::Conflict, "ann exists").hint("tavi user passwd")),
            jid => {
                let made = user.password.is_none().then(|| Secret::from_entropy(&[0; 16]));
                Ok(UserPassword { jid: jid.into(), password: made })
            }
        }
    }

    async fn set_password(&self, jid: String, new: NewPassword) -> Outcome<UserPassword> {
        assert_eq!(new.password.map(|secret| secret.expose().len()), Some(4));
        Ok(UserPassword { jid, password: None })
    }

    async fn remove_user(&self, jid: String) -> Outcome<Removed> {
        if jid == "ann@localhost" { Ok(Removed { removed: jid }) } else { missing(&jid) }
    }

    async fn devices(&self, _: ListQuery) -> Outcome<DeviceList> {
        Ok(DeviceList::default())
    }

    async fn device(&self, id: DeviceId) -> Outcome<DeviceRow> {
        missing(&id.text())
    }

    async fn add_device(&self, device: NewDevice) -> Outcome<AddedDevice> {
        missing(&device.public_key.to_string())
    }

    async fn remove_device(&self, id: DeviceId) -> Outcome<Removed> {
        Ok(Removed { removed: id.to_string() })
    }

    async fn grants(&self, _: ListQuery) -> Outcome<GrantList> {
        Ok(GrantList::default())
    }

    async fn add_grant(&self, grant: NewGrant) -> Outcome<GrantRow> {
        Ok(GrantRow { id: "7".into(), grant, note: None })
    }

    async fn remove_grant(&self, id: String) -> Outcome<GrantRow> {
        missing(&id)
    }

    async fn sessions(&self, query: ListQuery) -> Outcome<SessionList> {
        Ok(SessionList { sessions: Vec::new(), next: query.after })
    }

    async fn session(&self, subject: String, client: String) -> Outcome<SessionDetail> {
        missing(&format!("{subject} {client}"))
    }

    async fn end_session(&self, subject: String, client: String) -> Outcome<Removed> {
        Ok(Removed { removed: format!("{subject} {client}") })
    }
}

struct Broker {
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _stop: Stop,
}

impl Broker {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET_NAME);
        let listener = UnixListener::bind(&socket).unwrap();
        let stop = Stop::spawn(|stop| serve(listener, Arc::new(Fake), Limits::default(), stop));
        Self { socket, _folder: folder, _stop: stop }
    }

    async fn connect(path: &Path) -> UnixStream {
        UnixStream::connect(path).await.unwrap()
    }

    async fn ask(&self, request: &str) -> (u16, String) {
        split(&ask(Self::connect(&self.socket).await, request).await)
    }

    async fn send(&self, request: &str, body: &str) -> (u16, String) {
        split(&send(Self::connect(&self.socket).await, request, body).await)
    }
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    (head[9..12].parse().unwrap(), body.into())
}

#[tokio::test]
async fn people_are_listed_added_changed_and_removed() {
    let broker = Broker::start();
    let list = (200, String::from(r#"{"users":[{"jid":"ann@localhost","sessions":1}]}"#));
    assert_eq!(broker.ask("GET /v1/users").await, list);
    let (status, body) = broker.send("POST /v1/users", r#"{"jid":"bob@localhost"}"#).await;
    assert_eq!((status, body.contains("aaaaaaaaaa")), (201, true));
    let chosen = broker.send("POST /v1/users", r#"{"jid":"bob@localhost","password":"moon"}"#).await;
    assert_eq!(chosen, (201, String::from(r#"{"jid":"bob@localhost"}"#)));
    let changed = broker.send("PUT /v1/users/bob%40localhost/password", r#"{"password":"moon"}"#).await;
    assert_eq!(changed, (200, String::from(r#"{"jid":"bob@localhost"}"#)));
    assert_eq!(broker.ask("DELETE /v1/users/ann@localhost").await.0, 200);
    assert_eq!(broker.ask("DELETE /v1/users/eve@localhost").await.0, 404);
}

#[tokio::test]
async fn a_refusal_says_what_and_what_to_do() {
    let broker = Broker::start();
    let refused = broker.send("POST /v1/users", r#"{"jid":"ann@localhost"}"#).await;
    assert_eq!(
        refused,
        (409, String::from(r#"{"error":"conflict","message":"ann exists","hint":"tavi user passwd"}"#))
    );
}

#[tokio::test]
async fn devices_and_grants_have_their_paths() {
    let broker = Broker::start();
    let id = "61e02c02-b7d0-849a-bcbd-b5e93fbe5b76";
    assert_eq!(broker.ask("GET /v1/status").await.0, 200);
    assert_eq!(broker.ask("GET /v1/devices").await, (200, String::from(r#"{"devices":[]}"#)));
    assert_eq!(broker.ask(&format!("GET /v1/devices/{id}")).await.0, 404);
    assert_eq!(broker.ask(&format!("DELETE /v1/devices/{id}")).await.0, 200);
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let (status, body) = broker.send("POST /v1/devices", &format!(r#"{{"public_key":"{key}"}}"#)).await;
    assert_eq!((status, body.contains(key)), (404, true));
    assert_eq!(broker.ask("GET /v1/grants").await, (200, String::from(r#"{"grants":[]}"#)));
    let grant = r#"{"subject":"anon-clear","actions":"publish","filter":"a/+"}"#;
    let (status, body) = broker.send("POST /v1/grants", grant).await;
    assert_eq!((status, body.as_str()), (201, &*format!("{{\"id\":\"7\",{}", &grant[1..])));
    assert_eq!(broker.ask("DELETE /v1/grants/7").await.0, 404);
}

#[tokio::test]
async fn wrong_requests_are_the_callers_fault() {
    let broker = Broker::start();
    let bad_id = broker.ask("GET /v1/devices/pump").await;
    assert_eq!((bad_id.0, bad_id.1.contains("no device id")), (400, true));
    for body in ["", "{", "[]", r#"{"jid":1}"#, r#"{"jid":"a@b","admin":true}"#] {
        let (status, answer) = broker.send("POST /v1/users", body).await;
        assert_eq!((status, answer.contains("bad-request")), (400, true), "{body}");
    }
    let filter = r#"{"subject":"anon-clear","actions":"publish","filter":"a#"}"#;
    let (status, answer) = broker.send("POST /v1/grants", filter).await;
    assert_eq!((status, answer.contains("topic filter is illegal")), (400, true), "{answer}");
    assert_eq!(broker.ask("PATCH /v1/users").await.0, 405);
    assert_eq!(broker.ask("DELETE /v1/status").await.0, 405);
    let (status, answer) = broker.ask("GET /v2/users").await;
    assert_eq!((status, answer.contains("/v1/users")), (404, true));
}

#[tokio::test]
async fn a_body_has_a_largest_size() {
    let broker = Broker::start();
    let large = format!(r#"{{"jid":"{}"}}"#, "x".repeat(MAX_REQUEST));
    let (status, answer) = broker.send("POST /v1/users", &large).await;
    assert_eq!((status, answer.contains("too-large")), (413, true));
}

#[tokio::test]
async fn a_request_that_breaks_off_changes_nothing_and_hurts_nobody() {
    let broker = Broker::start();
    let half = b"POST /v1/users HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{\"jid\"";
    let mut stream = Broker::connect(&broker.socket).await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, half).await.unwrap();
    drop(stream);
    assert_eq!(broker.ask("GET /v1/users").await.0, 200);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_subject_and_client() {
    let broker = Broker::start();
    let next = r#"{"sessions":[],"next":"ann@localhost/tele/phone"}"#;
    let list = broker.ask("GET /v1/sessions?after=ann%40localhost%2Ftele%2Fphone&limit=3").await;
    assert_eq!(list, (200, next.into()));
    let ended = broker.ask("DELETE /v1/sessions/ann%40localhost/tele%2Fphone").await;
    assert_eq!(ended, (200, r#"{"removed":"ann@localhost tele/phone"}"#.into()));
    assert_eq!(broker.ask("GET /v1/sessions/ann%40localhost/x").await.0, 404);
    assert_eq!(broker.ask("DELETE /v1/sessions").await.0, 405);
}
