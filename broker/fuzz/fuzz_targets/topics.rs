//! Topic rules over two lines, a filter and a name: what a filter covers it matches, and legal topics are legal filters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tavi_wire::topic::{check_filter, check_topic, covers, matches};

fuzz_target!(|data: &[u8]| {
    let Some((wide, name)) = std::str::from_utf8(data).ok().and_then(|text| text.split_once('\n')) else { return };
    let (filter_ok, topic_ok) = (check_filter(wide).is_ok(), check_topic(name).is_ok());
    if topic_ok {
        assert_eq!(check_filter(name), Ok(()));
        assert!(matches(name, name) && covers(name, name));
    }
    if filter_ok && topic_ok {
        assert_eq!(covers(wide, name), matches(wide, name));
    }
    if filter_ok && check_filter(name).is_ok() {
        let _ = covers(wide, name);
    }
});
