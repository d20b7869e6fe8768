//! Steps of CoAP clients.

use anyhow::{bail, ensure};

use super::cast::{Key, Session, Stage};
use super::script::{Step, bytes, find};
use crate::coap::{CoapClient, Method, Response};

#[derive(Clone, Copy)]
enum Verb {
    Get,
    GetSize,
    Observe,
    Sees,
    SeesEnd,
    Put,
    PutSize,
    Delete,
    Bytes,
}

const VOCABULARY: &[(&str, Verb)] = &[
    ("gets {} and sees {}", Verb::Get),
    ("gets {} and sees {} bytes", Verb::GetSize),
    ("gets {}", Verb::Get),
    ("observes {} and sees {}", Verb::Observe),
    ("observes {}", Verb::Observe),
    ("sees {} on {}", Verb::Sees),
    ("sees the end of {}", Verb::SeesEnd),
    ("puts {} to {}", Verb::Put),
    ("puts {} bytes to {}", Verb::PutSize),
    ("deletes {}", Verb::Delete),
    ("sends the bytes {}", Verb::Bytes),
];

/// Performs a step of an actor's CoAP session, which opens with its first step.
pub async fn act(stage: &mut Stage, key: &Key, step: Step) -> anyhow::Result<()> {
    let (verb, words) = find(&step.words, VOCABULARY)?;
    if stage.session(key).is_err() {
        let address = stage.broker()?.address("coap")?;
        stage.keep(key, Session::Coap(CoapClient::connect(address).await?));
    }
    let Session::Coap(client) = stage.session(key)? else { bail!("not a CoAP session") };
    perform(client, verb, &words).await
}

async fn perform(client: &CoapClient, verb: Verb, words: &[String]) -> anyhow::Result<()> {
    match verb {
        Verb::Get => content(&client.request(Method::Get, &words[0], &[]).await?, words.get(1)),
        Verb::GetSize => {
            let response = client.request(Method::Get, &words[0], &[]).await?;
            content(&response, None)?;
            ensure!(response.payload.len() == words[1].parse::<usize>()?, "{} bytes came", response.payload.len());
            Ok(())
        }
        Verb::Observe => {
            let response = client.observe(&words[0]).await?;
            ensure!(response.code != "2.05" || response.observe.is_some(), "the server does not observe");
            content(&response, words.get(1))
        }
        Verb::Sees => {
            let wanted = |got: &Response| (got.payload == words[0].as_bytes() && got.code == "2.05").then_some(());
            client.notification(&words[1], wanted).await
        }
        Verb::SeesEnd => client.notification(&words[0], |got| (got.code == "4.04").then_some(())).await,
        Verb::Put => changed(&client.request(Method::Put, &words[1], words[0].as_bytes()).await?),
        Verb::PutSize => {
            changed(&client.request(Method::Put, &words[1], &vec![b'x'; words[0].parse::<usize>()?]).await?)
        }
        Verb::Delete => changed(&client.request(Method::Delete, &words[0], &[]).await?),
        Verb::Bytes => client.send_bytes(&bytes(&words[0])?).await,
    }
}

/// A code that is no success is the error's whole text.
fn success(response: &Response) -> anyhow::Result<()> {
    ensure!(response.code.starts_with("2."), "{}", response.code);
    Ok(())
}

fn content(response: &Response, wanted: Option<&String>) -> anyhow::Result<()> {
    success(response)?;
    let holds = wanted.is_none_or(|wanted| response.payload == wanted.as_bytes());
    ensure!(holds, "{:?} came", String::from_utf8_lossy(&response.payload));
    Ok(())
}

fn changed(response: &Response) -> anyhow::Result<()> {
    success(response)?;
    ensure!(["2.01", "2.02", "2.04"].contains(&response.code.as_str()), "{} came", response.code);
    Ok(())
}
