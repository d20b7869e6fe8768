//! What a script can do, what stops it, and what its author reads.

use super::*;
use crate::journal::{Entry, Given, Journal};
use serde_json::json;
use std::time::Duration;

struct Granted(&'static [&'static str]);

impl Gate for Granted {
    fn hear(&self, _: &str, _: &str) -> bool {
        true
    }

    fn publish(&self, asker: Option<&str>, topic: &str) -> Result<(), String> {
        if topic == "served" && asker.is_none() {
            return Ok(());
        }
        if self.0.contains(&topic) { Ok(()) } else { Err(format!("no grant for {topic}")) }
    }

    fn address(&self, jid: &str) -> Result<(), String> {
        if jid.contains('@') { Ok(()) } else { Err(format!("{jid:?} is no JID")) }
    }
}

/// One for all tests: making one takes a while.
fn engine() -> &'static Engine {
    static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
    ENGINE.get_or_init(Engine::default)
}

fn load(source: &str) -> Script {
    engine().load("t", source).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn refusal(source: &str) -> String {
    let errors = engine().load("t", source).expect_err("the script is refused");
    errors[0].to_string().lines().next().unwrap().to_owned()
}

fn run(script: &Script, function: &str, journal: Journal, state: Value) -> Ran {
    run_at(script, function, (journal, Moment { now_ms: 1_700_000_000_000, random: 7 }), state)
}

fn run_at(script: &Script, function: &str, (journal, moment): (Journal, Moment), state: Value) -> Ran {
    let user = json!({"jid": "anna@example.org", "name": "anna"});
    let Value::Object(state) = state else { panic!("state is a map") };
    engine().run(
        script,
        &Call {
            function,
            args: &[json!("one"), json!("two")],
            user: &user,
            state: &state,
            journal,
            moment,
            gate: Arc::new(Granted(&["d/lamp/cmd/power"])),
        },
    )
}

/// A call of `f` that is about nobody.
fn nobodys(state: &Map<String, Value>) -> Call<'_> {
    let (journal, moment) = (Journal::default(), Moment { now_ms: 0, random: 0 });
    Call { function: "f", args: &[], user: &Value::Null, state, journal, moment, gate: Arc::new(Closed) }
}

fn once(source: &str) -> Ran {
    run(&load(source), "f", Journal::default(), json!({}))
}

fn said(ran: &Ran) -> Vec<&str> {
    let text = |effect: &'_ Effect| match effect {
        Effect::Say { text } | Effect::SendTo { text, .. } => Some(text.clone()),
        Effect::Publish { .. } => None,
    };
    ran.effects.iter().filter_map(text).map(|t| &*t.leak()).collect()
}

fn failure(ran: &Ran) -> String {
    match &ran.end {
        End::Failed(error) => error.to_string().lines().next().unwrap().to_owned(),
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// The entry that answers the open question of `ran`.
fn answer(ran: &Ran, answer: Value) -> Entry {
    let End::Waits(q) = &ran.end else { panic!("nothing was asked: {:?}", ran.end) };
    Entry { kind: q.kind, line: q.line, effects: q.effects, value: Given::Value(answer), change: None }
}

/// Answers the open question of `ran` and runs on.
fn answered(script: &Script, mut ran: Ran, value: Value) -> Ran {
    ran.journal.push(answer(&ran, value)).unwrap();
    run(script, "f", ran.journal, json!({}))
}

#[test]
fn a_dialogue_stops_at_each_question_and_goes_on_from_there() {
    let script = load(
        r#"
        const PRICE = #{ small: 8, large: 14 };
        fn f() {
            say("Welcome");
            let size = ask("Which size?", ["small", "large"]);
            state.size = size;
            say(`That is ${PRICE[size]} EUR`);
            if confirm("Order?") { say("Done"); } else { say("Nothing was ordered."); }
        }"#,
    );
    let first = run(&script, "f", Journal::default(), json!({}));
    assert_eq!(said(&first), ["Welcome"]);
    let second = answered(&script, first, json!("large"));
    assert_eq!(said(&second), ["That is 14 EUR"]);
    assert_eq!(Value::Object(second.state.clone().unwrap()), json!({"size": "large"}));
    let third = answered(&script, second, json!(true));
    assert_eq!(said(&third), ["Done"]);
    assert!(matches!(third.end, End::Done));
}

#[test]
fn no_try_swallows_a_question() {
    let ran = once("fn f() { try { ask(\"?\"); say(\"a\"); } catch { say(\"b\"); } say(\"c\"); }");
    assert!(matches!(ran.end, End::Waits(_)), "{:?}", ran.end);
    assert!(ran.effects.is_empty());
}

#[test]
fn time_and_randomness_are_the_same_when_run_again() {
    let script = load("fn f() { let a = [now(), random(), random(1, 6)]; say(`${a}`); ask(\"?\"); say(`${a}`); }");
    let mut first = run(&script, "f", Journal::default(), json!({}));
    let before = said(&first).concat();
    assert!(before.starts_with("[1700000000, 0."), "{before}");
    first.journal.push(answer(&first, json!("x"))).unwrap();
    let later = Moment { now_ms: 1_800_000_000_000, random: 8 };
    let second = run_at(&script, "f", (first.journal, later), json!({}));
    assert_eq!(said(&second), [before]);
}

#[test]
fn publishing_needs_a_grant_and_the_script_hears_which() {
    let script = load(
        r#"fn f() {
            try { publish("d/lamp/cmd/other", 1); } catch (e) { say(e); }
            publish("d/lamp/cmd/power", "on");
            publish("d/lamp/cmd/power", #{ on: true }, #{ retain: true });
            ask("?");
            say("done");
        }"#,
    );
    let first = run(&script, "f", Journal::default(), json!({}));
    assert_eq!(said(&first), ["publish: no grant for d/lamp/cmd/other"]);
    let payload = |bytes: &str, content_type| Payload { bytes: bytes.into(), content_type };
    let topic = || "d/lamp/cmd/power".to_owned();
    assert_eq!(
        first.effects[1..],
        [
            Effect::Publish { topic: topic(), payload: payload("on", "text/plain"), retain: false },
            Effect::Publish { topic: topic(), payload: payload("{\"on\":true}", "application/json"), retain: true },
        ]
    );
    assert_eq!(answered(&script, first, json!("x")).effects, [Effect::Say { text: "done".into() }]);
}

#[test]
fn state_is_one_map_for_all_functions() {
    let source = "fn add(x) { state.cart.items.push(x); } fn f(a) { state.cart = #{ items: [] }; add(a); add(user.name); state.x = state.nothing; }";
    assert_eq!(Value::Object(once(source).state.unwrap()), json!({"cart": {"items": ["one", "anna"]}, "x": null}));
}

#[test]
fn a_local_variable_goes_before_ours_and_constants_stay() {
    let ran = once("const N = 1; fn f() { let user = 5; let N = 6; say(`${user} ${N}`); }");
    assert_eq!(said(&ran), ["5 6"]);
    let ran = once("const LIST = [1]; fn f() { LIST.push(2); say(`${LIST.len()}`); }");
    assert!(matches!(ran.end, End::Failed(_)) || said(&ran) == ["1"], "{ran:?}");
}

#[test]
fn what_cannot_be_kept_is_refused_when_the_state_is_saved() {
    let ran = once("fn f() { state.cb = |x| x; }");
    let text = "t.rhai: state.cb holds a function; only text, numbers, true/false, lists and maps are kept";
    assert_eq!(failure(&ran), text);
    let grown = "fn f() { for i in 0..30 { let t = \"x\"; t.pad(4000, \"y\"); state[i.to_string()] = t; } }";
    assert!(failure(&once(grown)).contains("state has grown to 117 KiB"), "{}", failure(&once(grown)));
}

#[test]
fn runaways_are_stopped_and_their_line_is_found() {
    let text = failure(&once("fn f() {\n  let x = 0;\n  loop {\n    x += 1;\n  }\n}"));
    assert!(text.contains("stopped after 100,000 steps, last at line 4"), "{text}");
    let text = failure(&once("fn f() {\n  try {\n loop {}\n } catch { say(\"no\"); } }"));
    assert!(text.contains("stopped after 100,000 steps"), "{text}");
    let slow = Engine::new(Limits { operations: u64::MAX, dialogue: u64::MAX, wall: Duration::from_millis(20) });
    let script = slow.load("t", "fn f() {\n  loop {\n  }\n}").unwrap();
    let state = Map::new();
    let call = nobodys(&state);
    assert!(failure(&slow.run(&script, &call)).contains("stopped after 20 ms, last at line 2"));
}

#[test]
fn memory_is_bounded() {
    for hungry in [
        "fn f() { let m = #{}; let i = 0; loop { m[i.to_string()] = i; i += 1; } }",
        "fn f() { let i = 0; loop { state[i.to_string()] = i; i += 1; } }",
        "fn f() { let s = \"x\"; loop { s += s; } }",
        "fn f() { let a = []; loop { a.push(1); } }",
        "fn f() { let a = blob(); loop { a.push(1); } }",
        "fn f() { let m = #{}; let i = 0; loop { let s = \"x\"; s.pad(16000, \"y\"); m[i.to_string()] = s + i; i += 1; } }",
        "fn f() { let s = \"\"; s.pad(16000, \"y\"); s.replace(\"y\", s); }",
        "fn f() { let m = #{}; for i in 0..26 { m.a = m; m.b = m; } }",
        "fn f() { let m = #{}; loop { m = #{ x: m }; } }",
        "fn f() { f(); }",
    ] {
        let text = failure(&once(hungry));
        assert!(text.starts_with("t.rhai:1:"), "{hungry}: {text}");
        assert!(text.contains("too large") || text.contains("deeply") || text.contains("stopped"), "{hungry}: {text}");
    }
}

#[test]
fn a_state_within_itself_is_a_copy() {
    let ran = once("fn f() { state.n = 1; state.own = state; state.own.n = 2; say(`${state}`); }");
    assert_eq!(said(&ran), ["#{\"n\": 1, \"own\": #{\"n\": 2}}"]);
    let ran = once("fn f() { let t = \"a-b-c\"; t.replace(\"-\", \"+\"); t.replace('+', \"\"); say(t); }");
    assert_eq!(said(&ran), ["abc"]);
}

#[test]
fn the_language_has_no_way_out() {
    for closed in ["eval(\"1\")", "sleep(1)", "timestamp()", "exit()", "import \"x\" as x;", "open_file(\"x\")"] {
        let source = format!("fn f() {{ {closed} }}");
        assert!(engine().load("t", &source).is_err(), "{closed} is closed");
    }
    let started = Instant::now();
    for hidden in
        ["Fn(\"sleep\").call(300)", "call(\"sleep\", 300)", "Fn(\"timestamp\").call()", "Fn(\"eval\").call(\"1\")"]
    {
        let ran = once(&format!("fn f() {{ {hidden}; say(\"out\"); }}"));
        assert!(matches!(ran.end, End::Failed(_)), "{hidden}: {ran:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(200), "nobody slept");
}

#[test]
fn authors_read_where_and_what() {
    assert_eq!(
        refusal("fn f() {\n    sya(\"x\");\n}"),
        "t.rhai:2:5: there is no function \"sya\"; did you mean \"say\"?"
    );
    assert_eq!(refusal("fn f() { say(1, 2, 3); }"), "t.rhai:1:10: \"say\" takes 1 value, 3 given");
    assert_eq!(refusal("fn g(a) {} fn f() { g(); }"), "t.rhai:1:21: \"g\" takes 1 value, 0 given");
    assert_eq!(
        refusal("command(\"go\", \"Go\", \"arived\");\nfn arrived() {}"),
        "t.rhai:1:1: command(\"go\", … \"arived\"): no such function in this file; did you mean \"arrived\"?"
    );
    assert_eq!(refusal("fn f() { let x = \"abc; }"), "t.rhai:1:18: this text is never closed; its quote is missing");
    assert_eq!(
        refusal("fn f() { say(usr.name); }"),
        "t.rhai:1:14: there is no variable \"usr\"; did you mean \"user\"?"
    );
    assert!(
        refusal("let count = 1; fn f() { say(count); }").contains("write `const count = …`, or keep it in `state`")
    );
    assert!(refusal("command(\"a\", \"b\", f); fn f() {}").contains("name it as a text: \"f\" in quotes"));
    assert!(refusal("say(\"hi\");").contains("say works only inside a function"));
    assert!(refusal("fn say(x) { }").contains("choose another name"));
    assert!(refusal("fn f() { on_text(\"x\", \"f\"); }").contains("there is no function \"on_text\""));
    assert!(refusal("on_topic(\"a/#\", \"f\"); fn f() { g(); } fn g() { confirm(\"?\"); }").contains("calls confirm"));
    assert!(refusal("on_topic(\"a/#/b\", \"f\"); fn f() {}").contains("'+' must be a whole level"));
    assert_eq!(
        failure(&once("fn f() { say(42); }")),
        "t.rhai:1:10: say wants text, got the number 42; write say(`${x}`)"
    );
    let deep = failure(&once("fn f() {\n g();\n}\nfn g() {\n  throw \"oh\";\n}"));
    assert_eq!(deep, "t.rhai:5:3: oh");
}

#[test]
fn closures_and_the_languages_own_functions_pass_the_checker() {
    let ran = once(
        "fn double(x) { x * 2 } fn f() { let o = #{ inc: |x| x + 1 }; let l = [1, 2].map(|x| double(x)); say(`${l} ${o.inc(4)} ${\"a-b\".split(\"-\").len()}`); }",
    );
    assert_eq!(said(&ran), ["[2, 4] 5 2"]);
}

#[test]
fn a_topic_handler_that_talks_is_about_each_person() {
    let script = load(
        "on_topic(\"a\", \"x\"); on_topic(\"b\", \"y\"); on_topic(\"c\", \"z\");
         fn x(e) { helper(e); } fn helper(e) { if state.dev == e.device { say(\"!\"); } }
         fn y(e) { send_to(\"a@b\", \"!\"); } fn z(e) { [1].for_each(|i| say(\"x\")); }",
    );
    let kinds: Vec<_> = script.topics.iter().map(|t| (t.function.as_str(), t.per_person)).collect();
    assert_eq!(kinds, [("x", true), ("y", false), ("z", true)]);
}

#[test]
fn a_dialogue_that_grows_without_end_is_told_so() {
    let script = load("fn f() { loop { now(); } }");
    let text = failure(&run(&script, "f", Journal::default(), json!({})));
    assert!(text.contains("this dialogue has grown too long (200 answers or 64 KiB)"), "{text}");
}

#[test]
fn another_script_is_noticed_by_the_journal() {
    let first = once("fn f() {\n ask(\"?\");\n}");
    let other = load("fn f() {\n\n\n ask(\"?\");\n}");
    let ran = answered(&other, first, json!("x"));
    assert!(matches!(ran.end, End::Changed(_)), "{:?}", ran.end);
}

#[test]
fn the_stack_of_a_pool_thread_bears_the_deepest_script() {
    let nest = (0..4).fold("n".to_owned(), |inner, _| format!("[#{{ a: ({inner}) + 0 }}.a][0]"));
    let source =
        format!("fn g(n) {{ if n == 0 {{ return 0; }} let x = g(n - 1); {nest} + x }} fn f() {{ say(`${{g(28)}}`); }}");
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || said(&once(&source)).len()).unwrap();
    assert_eq!(thread.join().unwrap(), 1);
}

#[test]
fn the_bound_of_effects_ends_the_run_whatever_it_catches() {
    let ran = once("fn f() { for i in 0..70 { try { say(\"x\"); } catch { } } ask(\"?\"); }");
    assert_eq!(failure(&ran), "t.rhai:1:37: one run may send and publish at most 64 times");
    assert_eq!(ran.effects.len(), 64);
}

#[test]
fn steps_do_not_add_up_over_a_dialogue() {
    let script =
        load("fn f() { let n = 0; while n < 30 { let k = 0; while k < 4000 { k += 1; } ask(`${n}`); n += 1; } }");
    let mut ran = run(&script, "f", Journal::default(), json!({}));
    for n in 0..30 {
        assert!(matches!(&ran.end, End::Waits(q) if q.text == n.to_string()), "{n}: {:?}", ran.end);
        ran = answered(&script, ran, json!("x"));
    }
    assert!(matches!(ran.end, End::Done), "{:?}", ran.end);
}

#[test]
fn a_dialogue_that_costs_too_much_to_repeat_is_told_so() {
    let small = Engine::new(Limits { operations: 10_000, dialogue: 50_000, ..Limits::default() });
    let script = small.load("t", "fn f() { loop { let k = 0; while k < 1500 { k += 1; } now(); } }").unwrap();
    let state = Map::new();
    let call = nobodys(&state);
    let text = failure(&small.run(&script, &call));
    assert!(text.contains("stopped after 10,000 steps, last at line 1"), "now() is no new run: {text}");
    let script = small.load("t", "fn f() { loop { let k = 0; while k < 1500 { k += 1; } ask(\"?\"); } }").unwrap();
    let (mut ran, mut answers) = (small.run(&script, &call), 0);
    while let End::Waits(_) = &ran.end {
        ran.journal.push(answer(&ran, json!("x"))).unwrap();
        ran = small.run(&script, &Call { journal: ran.journal, ..nobodys(&state) });
        answers += 1;
    }
    assert!(failure(&ran).contains("stopped after 50,000 steps in this dialogue"), "{}", failure(&ran));
    assert!((5..30).contains(&answers), "{answers}");
}

#[test]
fn wherever_a_script_hides_it_a_run_holds_what_is_stated() {
    let text = "let s = \"x\"; while s.len() < 8000 { s += s; } s += s.sub_string(0, 7000);";
    for hungry in [
        "fn f() { TEXT let m = #{}; for i in 0..490 { m[i.to_string()] = s + i; } say(`${m.len()}`); }",
        "fn g(s) { for i in 0..490 { this[i.to_string()] = s + i; } } fn f() { TEXT let m = #{}; m.g(s); }",
        "fn h(s) { for i in 0..999 { this.push(s + i); } } fn f() { TEXT let m = []; m.h(s); }",
        "fn d(s, n) { for i in 0..480 { this[i.to_string()] = s + i; } if n > 0 { let m = #{}; m.d(s, n - 1); } } \
         fn f() { TEXT let m = #{}; m.d(s, 13); }",
        "fn big(s) { let m = #{}; for i in 0..100 { m[i.to_string()] = s + i; } m } \
         fn f() { TEXT [big(s), big(s), big(s), big(s), big(s), big(s)]; }",
        "fn f() { TEXT let m = #{}; for i in 0..490 { m[i.to_string()] = s; } let t = `${m}`; }",
        "fn f() { TEXT let m = #{}; for i in 0..490 { m[i.to_string()] = s; } m.to_json(); }",
        "fn f() { TEXT let m = #{}; for i in 0..490 { m[i.to_string()] = s; } publish(\"served\", m); }",
    ] {
        let (ran, before) = (load(&hungry.replace("TEXT", text)), meter::held());
        let ran = run(&ran, "f", Journal::default(), json!({}));
        let text = failure(&ran);
        let bounded = ["a run may hold 4 MiB", "too large", "larger than"].iter().any(|part| text.contains(part));
        assert!(bounded, "{hungry}: {text}");
        assert!(meter::held() - before < 1 << 16, "{hungry} leaves something");
    }
}

#[test]
fn a_list_in_the_state_may_be_as_large_as_the_state() {
    let script =
        load("fn f() { let l = state.notes; l.push(\"y\"); state.notes = l; state.last = 1; say(`${l.len()}`); }");
    let notes = |count: usize| json!({"notes": vec!["y".repeat(2000); count]});
    assert_eq!(said(&run(&script, "f", Journal::default(), notes(31))), ["32"]);
    let text = failure(&run(&script, "f", Journal::default(), notes(33)));
    assert!(text.contains("state has grown to 64 KiB; at most 64 are kept"), "{text}");
    let text = failure(&run(&script, "f", Journal::default(), notes(80)));
    assert!(text.contains("the texts in one list or map together, are longer than 128 KiB"), "{text}");
}

#[test]
fn lists_and_maps_are_printed_as_ever() {
    let ran = once(
        "fn f() { let l = [1, 2.5, \"a\\\"b\", 'c', true, (), [0.1], #{ k: 1e30 }]; say(`${l} ${l.to_string().len()}`); say(#{ a: [1] }.to_json()); }",
    );
    assert!(
        said(&ran)[0].starts_with("[1, 2.5, \"a\\\"b\", 'c', true, (), [0.1], #{\"k\": 1e30}] "),
        "{:?}",
        said(&ran)
    );
    assert_eq!(said(&ran)[1], "{\"a\":[1]}");
}

#[test]
fn a_function_that_is_called_by_its_name_is_seen() {
    for call in ["Fn(\"say\").call(\"x\")", "let f = Fn(\"say\"); f.call(\"x\")", "call(Fn(\"say\"), 1)"] {
        let script = load(&format!("on_topic(\"a\", \"x\"); fn x(e) {{ {call}; }}"));
        assert!(script.topics[0].per_person, "{call}");
    }
    assert!(refusal("fn f() { let n = \"say\"; Fn(n).call(1); }").contains("the function's name as a text in quotes"));
    assert!(refusal("on_topic(\"a\", \"x\"); fn x(e) { Fn(\"ask\").call(\"?\"); }").contains("calls ask"));
    let script = load("fn f() { say(\"x\"); }");
    let state = Map::new();
    let call = nobodys(&state);
    let text = failure(&engine().run(&script, &call));
    assert!(text.contains("this run is about nobody"), "{text}");
}

#[test]
fn filters_that_match_nothing_are_refused_with_their_place() {
    let (long, deep) = (format!("d/{}", "x".repeat(300)), ["a"; 70].join("/"));
    for filter in ["d/../up", "d/./x", &long, &deep, "d/\\u0001", "", "d/#/x", "d/a+/x"] {
        let text = refusal(&format!("\n on_topic(\"{filter}\", \"g\");\nfn g(t) {{}}"));
        assert!(text.starts_with("t.rhai:2:2: on_topic: "), "{text}");
    }
}

#[test]
fn a_person_has_the_bot_do_what_they_may_do_themselves() {
    let source = "fn f() { publish(\"served\", 1); say(\"done\"); }";
    let text = failure(&once(source));
    assert!(text.contains("publish: no grant for served"), "{text}");
    for served in ["anna@example.org", "ANNA@example.org", "@everyone"] {
        assert_eq!(said(&once(&format!("serves(\"{served}\"); {source}"))), ["done"], "{served}");
    }
    assert!(failure(&once(&format!("serves(\"ben@example.org\"); {source}"))).contains("no grant"));
    assert!(refusal("serves(\"example.org\");").contains("serves wants a person such as"));
}

#[test]
fn a_stop_leaves_nothing_of_a_run() {
    let stopping = Engine::default();
    let script = stopping.load("t", "fn f() { state.x = 1; loop { } }").unwrap();
    stopping.stop();
    let state = Map::new();
    let call = nobodys(&state);
    let ran = stopping.run(&script, &call);
    assert!(matches!(ran.end, End::Stopped) && ran.effects.is_empty() && ran.state.is_none(), "{ran:?}");
}
