//! `device token`: signs a token on the machine that has the private key.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tavi_enrol::token::{Audience, Claims, sign};
use tavi_fleet::Client;

use crate::args::{Service, Token};
use crate::keyfile;
use crate::output::{Failure, Output};

#[derive(Serialize)]
struct Signed<'a> {
    token: &'a str,
    audience: String,
    expires: u64,
}

pub async fn run(client: &Client, args: &Token, output: &Output) -> Result<(), Failure> {
    let key = keyfile::read(&args.key)?;
    let domain = domain(client, args).await?;
    let audience = match args.service {
        Service::Mqtt => Audience::Mqtt(&domain),
        Service::Xmpp => Audience::Xmpp(&domain),
    };
    let issued_at = now()?;
    let claims = Claims { device: args.id, audience, issued_at, lifetime: args.lifetime, nonce: nonce()? };
    let token = sign(&key, &claims);
    let signed = Signed { token: &token, audience: audience.to_string(), expires: issued_at + args.lifetime };
    output.show(&signed, |signed| signed.token.into())
}

async fn domain(client: &Client, args: &Token) -> Result<String, Failure> {
    match &args.domain {
        Some(domain) => Ok(domain.clone()),
        None => match client.status().await {
            Ok(status) => Ok(status.domain),
            Err(error) => Err(Failure::from(error).hint("without a broker here, name its domain with --domain")),
        },
    }
}

fn now() -> Result<u64, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map(|time| time.as_secs()).map_err(|_| Failure::new("this machine's clock is before 1970"))
}

fn nonce() -> Result<[u8; 16], Failure> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| Failure::new(format!("the system gives no random bytes: {error}")))?;
    Ok(nonce)
}
