//! Dialogues with whole bots, with restarts at every point.

use super::*;
use crate::{conversation::UPDATED, prompt::readable};
use proptest::prelude::*;
use serde_json::json;

const ANNA: &str = "anna@example.org";
const DAY_MS: i64 = 24 * 3_600_000;

/// Everything is allowed.
struct Free;

impl Gate for Free {
    fn publish(&self, _: Option<&str>, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn hear(&self, _: &str, _: &str) -> bool {
        true
    }

    fn address(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// One for all tests: making one takes a while.
fn engine() -> Arc<Engine> {
    static ENGINE: std::sync::OnceLock<Arc<Engine>> = std::sync::OnceLock::new();
    ENGINE.get_or_init(Arc::default).clone()
}

fn script(source: &str) -> Script {
    engine().load("t", source).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn bot(source: &str) -> Bot {
    Bot::new(engine(), Arc::new(Free), script(source))
}

fn at(now_ms: i64) -> Moment {
    Moment { now_ms, random: now_ms as u64 }
}

/// Actions as lines of a transcript.
fn lines(actions: &[Action]) -> Vec<String> {
    let line = |action: &Action| match action {
        Action::Message { to, text, expected } => {
            let choices = expected.as_ref().map(|e| e.choices().into_owned()).unwrap_or_default();
            let body = readable(text, &choices).replace('\n', " ");
            if to == ANNA { body } else { format!("to {to}: {body}") }
        }
        Action::Publish { topic, payload, .. } => format!("{topic} = {payload}"),
    };
    actions.iter().map(line).collect()
}

fn hear(bot: &mut Bot, text: &str) -> Vec<String> {
    lines(&bot.hear(ANNA, text, at(1_000)))
}

const PIZZA: &str = r#"
    const PRICE = #{ small: 8, medium: 11, large: 14 };
    command("order", "Order a pizza", "order");
    command("status", "Where is my pizza?", "status");
    fn order() {
        let size = ask("Which size?", ["small", "medium", "large"], #{ timeout: "1h" });
        if size == () { say("Too late."); return; }
        let toppings = [];
        loop {
            let t = ask("A topping?", ["ham", "olives", "done"]);
            if t == "done" || toppings.len() == 4 { break; }
            toppings.push(t);
            state.toppings = toppings;
        }
        let to = ask("Where to?");
        let total = PRICE[size] + toppings.len();
        if !confirm(`${size} for ${total} EUR to ${to}?`) { say("Nothing was ordered."); return; }
        state.order = random(1000, 9999);
        publish("kitchen/orders", #{ id: state.order, size: size, at: now() });
        say(`Order ${state.order} is in the oven.`);
    }
    fn status() { if state.order == () { say("No open order."); } else { say(`Order ${state.order} is on its way.`); } }
    fn on_message(text) { say(`I did not get "${text}"`); }
"#;

#[test]
fn a_pizza_is_ordered() {
    let mut bot = bot(PIZZA);
    assert_eq!(hear(&mut bot, "hello"), ["I did not get \"hello\""]);
    assert_eq!(hear(&mut bot, "status"), ["No open order."]);
    assert_eq!(hear(&mut bot, "/order"), ["Which size? 1. small 2. medium 3. large"]);
    assert_eq!(hear(&mut bot, "huge"), ["Please choose one of these. Which size? 1. small 2. medium 3. large"]);
    assert_eq!(hear(&mut bot, "3"), ["A topping? 1. ham 2. olives 3. done"]);
    hear(&mut bot, "ham");
    assert_eq!(hear(&mut bot, "Done"), ["Where to?"]);
    assert_eq!(hear(&mut bot, "Main Street 1"), ["large for 15 EUR to Main Street 1? 1. Yes 2. No"]);
    let done = hear(&mut bot, "yes");
    assert!(done[0].starts_with("kitchen/orders = {\"at\":1,\"id\":"), "{done:?}");
    assert!(done[1].starts_with("Order "), "{done:?}");
    assert!(hear(&mut bot, "status")[0].ends_with("is on its way."));
    assert_eq!(bot.conversation(ANNA).unwrap().state()["toppings"], json!(["ham"]));
}

#[test]
fn a_dialogue_can_be_left_and_help_is_there() {
    let mut bot = bot(PIZZA);
    hear(&mut bot, "order");
    assert_eq!(hear(&mut bot, "/cancel"), ["Stopped."]);
    assert_eq!(hear(&mut bot, "small"), ["I did not get \"small\""]);
    assert_eq!(hear(&mut bot, "/help"), ["/order - Order a pizza /status - Where is my pizza?"]);
    hear(&mut bot, "order");
    assert_eq!(hear(&mut bot, "/status"), ["No open order."]);
}

#[test]
fn a_question_ends_when_its_time_is_over() {
    let mut bot = bot(PIZZA);
    hear(&mut bot, "order");
    assert_eq!(bot.next_deadline_ms(), Some(1_000 + 3_600_000));
    assert_eq!(lines(&bot.tick(at(3_600_000))), [""; 0]);
    let rows = bot.rows();
    bot.restart(&rows);
    assert_eq!(lines(&bot.tick(at(1_000 + 3_600_000))), ["Too late."]);
    assert_eq!(bot.next_deadline_ms(), None);
    hear(&mut bot, "order");
    let late = bot.hear(ANNA, "small", at(9_000_000));
    assert_eq!(lines(&late), ["Too late.", "I did not get \"small\""]);
}

#[test]
fn a_dialogue_finishes_on_the_version_that_it_began_with() {
    let mut bot = bot(PIZZA);
    hear(&mut bot, "order");
    hear(&mut bot, "small");
    bot.update(script("fn on_message(t) { say(\"I am new\"); }"));
    assert_eq!(hear(&mut bot, "done"), ["Where to?"]);
    assert_eq!(lines(&bot.hear(ANNA, "here", at(DAY_MS))), ["small for 8 EUR to here? 1. Yes 2. No"]);
    assert_eq!(lines(&bot.hear(ANNA, "yes", at(8 * DAY_MS))), [UPDATED]);
    assert_eq!(hear(&mut bot, "hello"), ["I am new"]);
}

#[test]
fn a_version_that_is_gone_is_said_so() {
    let mut first = bot(PIZZA);
    hear(&mut first, "order");
    let mut later = bot("fn on_message(t) { say(\"I am new\"); }");
    later.restart(&first.rows());
    assert_eq!(hear(&mut later, "small"), [UPDATED]);
    assert_eq!(hear(&mut later, "small"), ["I am new"]);
}

const LAMP: &str = r#"
    command("watch", "Watch a device", "watch");
    command("limit", "Tell me above a value", "limit");
    on_topic("d/+/up/temperature", "warm");
    on_topic("d/+/up/#", "count");
    fn watch(id) { state.device = id; say(`Watching ${id}`); }
    fn limit() { state.limit = ask("Which limit?").parse_int(); say(`${state.limit}, last ${state.last}`); }
    fn warm(t) {
        if state.device != t.device { return; }
        state.last = t.value;
        say(`${t.device} has ${t.value} degrees`);
    }
    fn count(t) { send_to("ops@example.org", `${t.name} from ${t.from}`); }
"#;

fn telemetry(bot: &mut Bot, device: &str, value: &str) -> Vec<String> {
    let topic = format!("d/{device}/up/temperature");
    let heard = Heard { topic: &topic, payload: value.as_bytes(), from: "lamp@things.example.org" };
    lines(&bot.topic(heard, at(2_000)))
}

#[test]
fn a_topic_handler_tells_those_whom_it_concerns() {
    let ops = "to ops@example.org: temperature from lamp@things.example.org";
    let mut bot = bot(LAMP);
    assert_eq!(telemetry(&mut bot, "lamp", "20"), [ops]);
    hear(&mut bot, "/watch lamp");
    bot.hear("ben@example.org", "/watch door", at(1_000));
    assert_eq!(telemetry(&mut bot, "lamp", "21.5"), ["lamp has 21.5 degrees", ops]);
    assert_eq!(telemetry(&mut bot, "door", "3"), ["to ben@example.org: door has 3 degrees", ops]);
}

#[test]
fn what_a_topic_handler_saved_is_seen_by_a_dialogue_that_waited() {
    let mut bot = bot(LAMP);
    hear(&mut bot, "/watch lamp");
    hear(&mut bot, "/limit");
    telemetry(&mut bot, "lamp", "22");
    assert_eq!(hear(&mut bot, "30"), ["30, last 22"]);
    let state = bot.conversation(ANNA).unwrap().state().clone();
    assert_eq!(serde_json::Value::Object(state), json!({"device": "lamp", "last": 22, "limit": 30}));
}

#[test]
fn telemetry_while_a_question_is_open_does_not_end_the_dialogue() {
    let mut bot = bot(
        "command(\"fill\", \"f\", \"fill\"); command(\"q\", \"q\", \"q\"); on_topic(\"d/+/up/temperature\", \"g\");
        fn fill() { let s = \"\"; s.pad(8000, \"y\"); for i in 0..7 { state[`k${i}`] = s; } }
        fn q() { let seen = []; for i in 0..20 { ask(`q${i}`); seen.push(state.last); } say(`${seen}`); }
        fn g(t) { state.last = t.value; state.remove(\"gone\"); }",
    );
    hear(&mut bot, "/fill");
    hear(&mut bot, "/q");
    let (mut last, mut expected) = (Vec::new(), Vec::new());
    for n in 0..20 {
        telemetry(&mut bot, "lamp", &format!("{n}.5"));
        expected.push(format!("{n}.5"));
        let rows = bot.rows();
        bot.restart(&rows);
        last = hear(&mut bot, "x");
    }
    assert_eq!(last, [format!("[{}]", expected.join(", "))]);
}

#[test]
fn a_failing_script_apologises_and_its_author_gets_the_place() {
    let mut bot =
        bot("command(\"go2\", \"Go\", \"run2\");\nfn run2() {\n  state.a = 1;\n  say(\"one\");\n  let x = 1 / 0;\n}");
    let said = hear(&mut bot, "go2");
    assert_eq!(said[0], "one");
    assert!(said[1].starts_with("Sorry, something went wrong in this bot (reference "), "{said:?}");
    let failure = &bot.failures[0];
    assert!(said[1].contains(&failure.reference));
    assert!(failure.error.to_string().starts_with("t.rhai:5:"), "{}", failure.error);
    assert_eq!(bot.conversation(ANNA).unwrap().state()["a"], json!(1));
}

#[test]
fn an_idle_dialogue_is_small() {
    let mut bot = bot("command(\"a\", \"A\", \"f\"); fn f() { ask(\"Name?\"); }");
    hear(&mut bot, "a");
    let size = bot.rows()[ANNA].len();
    assert!(size < 200, "{size} bytes");
}

#[test]
fn the_examples_of_the_guide_can_be_loaded() {
    let guide = include_str!("../../README.md");
    let examples: Vec<&str> = guide.split("```rhai\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 2);
    examples.iter().for_each(|example| drop(script(example)));
    let calls = crate::engine::call_names();
    assert!(calls.iter().all(|name| guide.contains(&format!("`{name}("))), "the guide names every call");
}

/// Whatever a person may write, and telemetry, and time.
#[derive(Clone, Debug)]
enum Turn {
    Text(&'static str),
    Telemetry(i8),
    Minutes(u8),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let words = [
        "order",
        "/order",
        "1",
        "2",
        "ham",
        "done",
        "3",
        "yes",
        "no",
        "/status",
        "/cancel",
        "/watch lamp",
        "x",
        "/limit",
    ];
    let turn = prop_oneof![
        8 => proptest::sample::select(words.to_vec()).prop_map(Turn::Text),
        2 => any::<i8>().prop_map(Turn::Telemetry),
        1 => any::<u8>().prop_map(Turn::Minutes),
    ];
    proptest::collection::vec(turn, 1..30)
}

/// The transcript of a bot that is restarted before each turn that `restarts` names.
fn transcript(turns: &[Turn], restarts: impl Fn(usize) -> bool) -> Vec<String> {
    let both = format!("{PIZZA}\n{}", LAMP.replace("fn count", "fn counted").replace("\"count\"", "\"counted\""));
    let mut bot = bot(&both);
    let (mut now, mut all) = (1_000, Vec::new());
    for (n, turn) in turns.iter().enumerate() {
        if restarts(n) {
            let rows = bot.rows();
            bot.restart(&rows);
        }
        now += 1_000;
        all.extend(match turn {
            Turn::Text(text) => lines(&bot.hear(ANNA, text, at(now))),
            Turn::Telemetry(value) => telemetry(&mut bot, "lamp", &value.to_string()),
            Turn::Minutes(minutes) => {
                now += i64::from(*minutes) * 60_000;
                lines(&bot.tick(at(now)))
            }
        });
    }
    all.push(format!("{:?}", bot.conversation(ANNA).map(|c| c.state().clone())));
    all
}

proptest! {
    #[test]
    fn numbers_come_back_from_a_row_as_they_were(bits in proptest::collection::vec(any::<u64>(), 1..50)) {
        let numbers: Vec<f64> = bits.into_iter().map(f64::from_bits).filter(|n| n.is_finite()).collect();
        let state = json!({"numbers": numbers, "whole": [i64::MAX, i64::MIN]});
        let row = serde_json::to_vec(&json!({"s": state})).unwrap();
        let read = Conversation::decode(&Conversation::decode(&row).unwrap().encode()).unwrap();
        let exact = |value: &serde_json::Value| value.as_f64().unwrap().to_bits();
        let back: Vec<u64> = read.state()["numbers"].as_array().unwrap().iter().map(exact).collect();
        prop_assert_eq!(back, numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>());
        prop_assert_eq!(&read.state()["whole"], &json!([i64::MAX, i64::MIN]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_restart_at_any_point_changes_nothing(turns in turns()) {
        let whole = transcript(&turns, |_| false);
        prop_assert_eq!(&whole, &transcript(&turns, |_| true));
        for point in 0..turns.len() {
            prop_assert_eq!(&whole, &transcript(&turns, |n| n == point), "restarted before turn {}", point);
        }
    }
}
