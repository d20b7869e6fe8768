//! The scenario runner: plays a dialogue file against a real broker.

mod cast;
mod coap_steps;
mod mqtt_steps;
mod script;
mod world_steps;
mod xmpp_steps;

use std::path::Path;

use anyhow::{Context, anyhow};

use self::cast::Stage;
use self::script::{Step, cut};

/// Lines of the broker's log that a failure shows.
const LOG_TAIL: usize = 40;

/// Plays one scenario file from its first step to its last.
///
/// # Errors
/// The first step that does not go as written, with its place, what came instead and the end of the broker's log.
pub async fn play(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut stage = Stage::default();
    for step in script::parse(&text)? {
        if let Err(error) = perform(&mut stage, &step).await {
            let place = format!("{}:{}: {}", file.display(), step.line, step.text);
            return Err(anyhow!("{place}\n  {error:#}\n{}", stage.log_tail(LOG_TAIL)));
        }
    }
    Ok(())
}

/// A step that says `and is refused with X` must fail with X, and every other must not fail.
async fn perform(stage: &mut Stage, step: &Step) -> anyhow::Result<()> {
    let mut step = step.clone();
    let refusal = cut(&mut step.words, "and is refused with {}");
    for word in &mut step.words {
        word.text = stage.resolve(&word.text);
    }
    step.block = stage.resolve(&step.block);
    let outcome = act(stage, step).await;
    let Some(expected) = refusal.map(|mut found| found.remove(0)) else { return outcome };
    match outcome {
        Ok(()) => Err(anyhow!("it was allowed")),
        Err(error) if error.root_cause().to_string() == expected => Ok(()),
        Err(error) => Err(error.context(format!("it was refused, but not with {expected}"))),
    }
}

async fn act(stage: &mut Stage, step: Step) -> anyhow::Result<()> {
    let Some((name, session)) = step.actor.clone() else { return world_steps::act(stage, step).await };
    match session.split([' ', ',']).next() {
        Some("xmpp") => xmpp_steps::act(stage, &(name, session), step).await,
        Some("mqtt") => mqtt_steps::act(stage, &(name, session), step).await,
        Some("coap") => coap_steps::act(stage, &(name, session), step).await,
        _ => Err(anyhow!("a session is (xmpp …), (mqtt …) or (coap …)")),
    }
}
