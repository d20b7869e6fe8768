//! What administration does to accounts, whether the broker runs or only its store is open.

use tavi_core::{Host, Parts, accounts::AccountError};
use tavi_enrol::{
    Secret,
    admin::{ApiError, ErrorCode, NewPassword, NewUser, UserList, UserPassword, UserRow},
    route::ListQuery,
};
use tavi_store::{Owner, StoreError, Table};
use tavi_xmpp_proto::jid::BareJid;

type Outcome<T> = Result<T, ApiError>;

/// Makes an account. One call at a time.
pub async fn add(parts: &Parts, user: NewUser) -> Outcome<UserPassword> {
    let jid = address(parts, &user.jid)?;
    let password = chosen_or_made(&user.password)?;
    parts.accounts.sweep(&jid).await.map_err(refusal)?;
    parts.accounts.create(&jid, password.expose()).await.map_err(refusal)?;
    Ok(UserPassword { jid: jid.to_string(), password: user.password.is_none().then_some(password) })
}

/// Changes a password.
pub async fn set_password(parts: &Parts, jid: &str, new: NewPassword) -> Outcome<UserPassword> {
    let jid = address(parts, jid)?;
    let password = chosen_or_made(&new.password)?;
    parts.accounts.set_password(&jid, password.expose()).await.map_err(refusal)?;
    Ok(UserPassword { jid: jid.to_string(), password: new.password.is_none().then_some(password) })
}

/// A page of the accounts.
pub async fn list(parts: &Parts, query: &ListQuery) -> Outcome<UserList> {
    let after = query.after.as_deref().map(|after| address(parts, after)).transpose()?;
    let page = parts.accounts.list(Host::Main, after.as_ref(), query.rows()).await.map_err(store_failed)?;
    let next = page.last().filter(|_| page.len() == query.rows()).map(ToString::to_string);
    let mut users = Vec::with_capacity(page.len());
    for jid in &page {
        users.push(row(parts, jid).await?);
    }
    Ok(UserList { users, next })
}

/// All accounts.
pub async fn list_all(parts: &Parts) -> Outcome<UserList> {
    let (mut all, mut query) = (UserList::default(), ListQuery::default());
    loop {
        let page = list(parts, &query).await?;
        all.users.extend(page.users);
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(all),
        }
    }
}

async fn row(parts: &Parts, jid: &BareJid) -> Outcome<UserRow> {
    let record = parts.store.load(&Owner::account(jid.as_str()), Table::Account, "").await.map_err(store_failed)?;
    let created = record.and_then(|r| std::str::from_utf8(&r.value).ok()?.parse::<u64>().ok()).map(|ms| ms / 1000);
    let sessions = parts.homes.known(jid).map_or(0, |account| account.session_count());
    Ok(UserRow { jid: jid.to_string(), created, sessions: u32::try_from(sessions).ok() })
}

/// A person's address in normal form.
pub fn address(parts: &Parts, text: &str) -> Outcome<BareJid> {
    let domain = parts.hosts.domain();
    let jid: Result<BareJid, _> = text.parse();
    let jid = jid.map_err(|e| ApiError::new(ErrorCode::BadRequest, format!("{text:?} is no address: {e}")))?;
    if jid.local().is_some() && jid.domain() == domain {
        return Ok(jid);
    }
    let message = format!("{text:?} is no address of a person on this broker");
    Err(ApiError::new(ErrorCode::BadRequest, message).hint(format!("use NAME@{domain}")))
}

fn chosen_or_made(password: &Option<Secret>) -> Outcome<Secret> {
    password.clone().map_or_else(new_secret, Ok)
}

/// A secret of 128 random bits.
pub fn new_secret() -> Outcome<Secret> {
    let mut random = zeroize::Zeroizing::new([0; 16]);
    getrandom::fill(&mut *random).map_err(|_| ApiError::new(ErrorCode::Internal, "the system has no randomness"))?;
    Ok(Secret::from_entropy(&random))
}

/// What an administrator is told.
pub fn refusal(error: AccountError) -> ApiError {
    let code = match error {
        AccountError::Exists(_) => ErrorCode::Conflict,
        AccountError::Missing(_) => ErrorCode::NotFound,
        AccountError::NotHere(..) | AccountError::Password => ErrorCode::BadRequest,
        AccountError::Store(error) => return store_failed(error),
    };
    ApiError::new(code, error.to_string())
}

/// The store failed.
pub fn store_failed(error: StoreError) -> ApiError {
    let code = if matches!(error, StoreError::Unavailable(_)) { ErrorCode::Unavailable } else { ErrorCode::Internal };
    ApiError::new(code, error.to_string())
}
