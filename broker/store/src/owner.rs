//! The partition key: whose rows a commit changes.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

/// Whose rows: a bare JID, a topic, a durable MQTT session or one of the broker's own partitions. At most 4,095 bytes.
///
/// A letter and a colon in front keep the kinds apart: `a:` account, bot or device (bare JID), `t:` topic, `m:` MQTT
/// session, `r:` room, `s:` the system's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The partition of an account, a device or a bot; `bare` is its bare JID.
    pub fn account(bare: &str) -> Owner {
        Owner(format!("a:{bare}").into())
    }

    /// The partition of a topic.
    pub fn topic(topic: &str) -> Owner {
        Owner(format!("t:{topic}").into())
    }

    /// The partition of a durable MQTT session: client ids are unique per principal only. Neither part holds U+0000.
    pub fn mqtt(principal: &str, client_id: &str) -> Owner {
        Owner(format!("m:{principal}\0{client_id}").into())
    }

    /// The partition of a room; `bare` is its bare JID.
    pub fn room(bare: &str) -> Owner {
        Owner(format!("r:{bare}").into())
    }

    /// A partition of the broker itself, such as `grants`.
    pub fn system(name: &str) -> Owner {
        Owner(format!("s:{name}").into())
    }

    /// The owner whose key is `key`, as [`Owner::as_str`] gave it.
    pub fn from_key(key: &str) -> Owner {
        Owner(key.into())
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the kind letter.
    pub fn name(&self) -> &str {
        self.0.get(2..).unwrap_or_default()
    }
}

impl Deref for Owner {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Owner {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
