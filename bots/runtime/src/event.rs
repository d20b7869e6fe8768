//! A publication as a topic handler sees it: `#{topic, device, name, value, text, from, time}`.

use serde_json::{Value, json};

/// The longest payload that a handler gets; Rhai's texts end there too.
const MAX_PAYLOAD: usize = 16 * 1024;

/// The handler's value for a publication. `from` is the publisher's bare JID, empty for a nameless one; `time_ms`
/// counts from 1970.
pub fn event(topic: &str, payload: &[u8], from: &str, time_ms: i64) -> Value {
    let text = std::str::from_utf8(payload).ok().filter(|text| text.len() <= MAX_PAYLOAD);
    json!({
        "topic": topic,
        "device": device(topic),
        "name": topic.rsplit('/').next(),
        "value": text.map(value),
        "text": text,
        "from": from,
        "time": time_ms / 1000,
    })
}

/// The device of `d/ID/…`.
fn device(topic: &str) -> Option<&str> {
    topic.strip_prefix("d/")?.split('/').next()
}

/// A number, true or false, a list or a map if the text is JSON, the measured value if that is SenML (RFC 8428 §4.2),
/// else the text itself.
fn value(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(records)) => senml(&records).unwrap_or(Value::Array(records)),
        Ok(value) => value,
        Err(_) => text.into(),
    }
}

fn senml(records: &[Value]) -> Option<Value> {
    let value = |record: &Value| ["v", "vs", "vb"].iter().find_map(|key| record.get(key)).cloned();
    records.iter().find_map(value)
}

/// Whether a topic filter matches a topic (MQTT 5.0 §4.7).
pub fn matches(filter: &str, topic: &str) -> bool {
    tavi_wire::topic::matches(filter, topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_become_values() {
        let value = |payload: &str| event("d/lamp/up/power", payload.as_bytes(), "", 0)["value"].clone();
        assert_eq!(value("21.5"), json!(21.5));
        assert_eq!(value("on"), json!("on"));
        assert_eq!(value("true"), json!(true));
        assert_eq!(value("{\"a\": 1}"), json!({"a": 1}));
        assert_eq!(value("[{\"bn\":\"x\"},{\"n\":\"temperature\",\"v\":4}]"), json!(4));
        assert_eq!(value("[1, 2]"), json!([1, 2]));
        assert_eq!(value("21,5 C"), json!("21,5 C"));
    }

    #[test]
    fn the_handler_learns_where_it_came_from() {
        let seen = event("d/lamp/up/power", b"\xff", "lamp@things.localhost", 5_500);
        let expected = json!({
            "topic": "d/lamp/up/power", "device": "lamp", "name": "power", "value": null, "text": null,
            "from": "lamp@things.localhost", "time": 5
        });
        assert_eq!(seen, expected);
        assert_eq!(event("home/x", b"", "", 0)["device"], json!(null));
    }
}
