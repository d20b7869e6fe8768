//! Values between scripts and the journal: Rhai's `Dynamic` on one side, plain JSON on the other.

use rhai::{Array, Dynamic, FnPtr, ImmutableString};
use serde_json::{Map, Number, Value};

/// How deep lists and maps may lie in each other.
const MAX_DEPTH: usize = 16;

/// The largest value that becomes JSON, as [`size`] counts. More than any state may have, so that one which has grown
/// too large is told its length.
const MAX_SIZE: usize = 1024 * 1024;

/// The JSON of a script's value. Refuses what could not come back the same: functions, times, ranges, blobs, NaN.
/// `name` is what the author calls the value; the error names the part of it that cannot be kept.
pub fn to_json(name: &str, value: &Dynamic) -> Result<Value, String> {
    if size(value, MAX_SIZE) > MAX_SIZE {
        return Err(format!("{name} is larger than {} KiB", MAX_SIZE / 1024));
    }
    json_at(name, value, 0)
}

/// The JSON object of a script's map.
pub fn to_object(name: &str, value: &Dynamic) -> Result<Map<String, Value>, String> {
    match to_json(name, value)? {
        Value::Object(map) => Ok(map),
        _ => Err(format!("{name} has to stay a map")),
    }
}

/// A script's value from JSON; numbers that are no 64-bit integers become floats.
pub fn from_json(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().unwrap_or_default().into(), Into::into),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(from_json).collect::<Array>().into(),
        Value::Object(map) => from_object(map).into(),
    }
}

/// A script's map from a JSON object.
pub fn from_object(map: &Map<String, Value>) -> rhai::Map {
    map.iter().map(|(key, value)| (key.as_str().into(), from_json(value))).collect()
}

/// What a value is, in an author's words: `the number 42`, `a list`.
pub fn describe(value: &Dynamic) -> String {
    match value.type_name() {
        "i64" | "f64" => format!("the number {value}"),
        "bool" => format!("{value}"),
        "()" => "nothing, ()".into(),
        "array" => "a list".into(),
        "map" => "a map".into(),
        "string" => format!("the text {value:?}"),
        "Fn" => "a function".into(),
        other => format!("a value of type {other}"),
    }
}

/// About how many bytes a value has when nothing in it is shared; stops counting behind `limit`.
pub fn size(value: &Dynamic, limit: usize) -> usize {
    size_at(value, limit, 0)
}

fn size_at(value: &Dynamic, limit: usize, depth: usize) -> usize {
    if depth > 64 {
        return limit + 1;
    }
    let own = std::mem::size_of::<Dynamic>();
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return own + text.len();
    }
    let sum = |total: usize, part: usize| {
        let total = total + part;
        if total > limit { Err(total) } else { Ok(total) }
    };
    let counted = if let Some(list) = value.read_lock::<Array>() {
        list.iter().try_fold(own, |total, item| sum(total, size_at(item, limit, depth + 1)))
    } else if let Some(map) = value.read_lock::<rhai::Map>() {
        map.iter().try_fold(own, |total, (key, item)| sum(total, 32 + key.len() + size_at(item, limit, depth + 1)))
    } else if let Some(blob) = value.read_lock::<rhai::Blob>() {
        Ok(own + blob.len())
    } else {
        Ok(own)
    };
    counted.unwrap_or_else(|total| total)
}

fn json_at(name: &str, value: &Dynamic, depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(format!("{name} lies too deep; at most {MAX_DEPTH} levels are kept"));
    }
    if let Some(leaf) = leaf(value) {
        return Ok(leaf);
    }
    if let Some(list) = value.read_lock::<Array>() {
        let items = list.iter().enumerate().map(|(i, item)| json_at(&format!("{name}[{i}]"), item, depth + 1));
        return items.collect::<Result<_, _>>().map(Value::Array);
    }
    if let Some(map) = value.read_lock::<rhai::Map>() {
        let fields = map.iter().map(|(k, v)| Ok((k.to_string(), json_at(&format!("{name}.{k}"), v, depth + 1)?)));
        return fields.collect::<Result<_, String>>().map(Value::Object);
    }
    Err(refusal(name, value))
}

fn leaf(value: &Dynamic) -> Option<Value> {
    if value.is_unit() {
        return Some(Value::Null);
    }
    if let Ok(b) = value.as_bool() {
        return Some(b.into());
    }
    if let Ok(n) = value.as_int() {
        return Some(n.into());
    }
    if let Ok(f) = value.as_float() {
        return Number::from_f64(f).map(Value::Number);
    }
    if let Ok(c) = value.as_char() {
        return Some(c.to_string().into());
    }
    value.read_lock::<ImmutableString>().map(|text| text.as_str().into())
}

fn refusal(name: &str, value: &Dynamic) -> String {
    let what = match value.type_name() {
        _ if value.is::<FnPtr>() => "a function".into(),
        "f64" => "a number that is not finite".into(),
        other => format!("a value of type {other}"),
    };
    format!("{name} holds {what}; only text, numbers, true/false, lists and maps are kept")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_values_come_back_the_same() {
        let value = json!({"n": 1, "f": 1.5, "t": "x", "b": true, "none": null, "list": [1, [2.0]], "map": {"k": "v"}});
        assert_eq!(to_json("v", &from_json(&value)).unwrap(), value);
        assert_eq!(from_json(&json!(1.0)).type_name(), "f64");
        assert_eq!(from_json(&json!(u64::MAX)).type_name(), "f64");
    }

    #[test]
    fn what_would_not_come_back_is_refused_by_name() {
        let mut map = rhai::Map::new();
        map.insert("cb".into(), FnPtr::new("later").unwrap().into());
        let error = to_json("state", &map.into()).unwrap_err();
        assert_eq!(error, "state.cb holds a function; only text, numbers, true/false, lists and maps are kept");
        assert!(to_json("x", &f64::NAN.into()).is_err());
        assert!(to_json("x", &Dynamic::from_blob(vec![1])).is_err());
        let nested = (0..40).fold(Dynamic::UNIT, |inner, _| Dynamic::from_array(vec![inner]));
        assert!(to_json("x", &nested).unwrap_err().contains("too deep"));
    }
}
