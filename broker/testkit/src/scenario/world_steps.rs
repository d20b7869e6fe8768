//! Steps about the world: who is who, who may do what, which bots there are, what happens to the broker.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::cast::{Actor, Stage};
use super::script::{Step, find};

#[derive(Clone, Copy)]
enum Verb {
    Account,
    Device,
    Stranger,
    Grant,
    Bot,
    Config,
    Kill,
    Stop,
}

const VOCABULARY: &[(&str, Verb)] = &[
    ("{} is an account", Verb::Account),
    ("{} is a device", Verb::Device),
    ("{} is a stranger", Verb::Stranger),
    ("{} may {} on {}", Verb::Grant),
    ("the bot {} is", Verb::Bot),
    ("the bot {} becomes", Verb::Bot),
    ("the configuration is", Verb::Config),
    ("the broker is killed and started again", Verb::Kill),
    ("the broker is stopped and started again", Verb::Stop),
];

/// Performs a step that has no session.
pub async fn act(stage: &mut Stage, step: Step) -> anyhow::Result<()> {
    let (verb, words) = find(&step.words, VOCABULARY)?;
    match verb {
        Verb::Account => account(stage, &words[0]),
        Verb::Device => device(stage, &words[0]),
        Verb::Stranger => {
            stage.add(&words[0], Actor { id: String::new(), jid: String::new(), secret: String::new() });
            Ok(())
        }
        Verb::Grant => grant(stage, &words),
        Verb::Bot => stage.add_bot(words[0].clone(), step.block),
        Verb::Config => stage.configure(step.block),
        Verb::Kill => {
            stage.broker()?.kill9()?;
            restart(stage)
        }
        Verb::Stop => {
            stage.broker()?.stop()?;
            restart(stage)
        }
    }
}

fn restart(stage: &mut Stage) -> anyhow::Result<()> {
    stage.hang_up();
    stage.broker()?.start_again()
}

fn account(stage: &mut Stage, name: &str) -> anyhow::Result<()> {
    let id = name.to_lowercase();
    let actor = Actor { jid: format!("{id}@localhost"), secret: format!("the password of {id}"), id };
    stage.broker()?.add_user(&actor.jid, &actor.secret)?;
    stage.add(name, actor);
    Ok(())
}

fn device(stage: &mut Stage, name: &str) -> anyhow::Result<()> {
    let made = stage.broker()?.fleet(&["device", "add", "--name", name])?;
    let field = |key: &str| made[key].as_str().map(ToOwned::to_owned).with_context(|| format!("no {key} in {made}"));
    let actor = Actor { id: field("id")?, jid: field("jid")?, secret: field("secret")? };
    ensure!(actor.jid == format!("{}@things.localhost", actor.id), "the JID is {}", actor.jid);
    stage.add(name, actor);
    Ok(())
}

/// The subject is an actor's name, or what `tavi-fleet` knows: a JID, `@group`, `anon-clear`.
fn grant(stage: &mut Stage, words: &[String]) -> anyhow::Result<()> {
    let subject = stage.actor(&words[0]).map_or_else(|_| words[0].clone(), |actor| actor.jid);
    let made: Value = stage.broker()?.fleet(&["grant", "add", &subject, &words[1], &words[2]])?;
    ensure!(!made.is_null(), "no answer");
    Ok(())
}
