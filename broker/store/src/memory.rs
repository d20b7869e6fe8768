//! The store in memory: for tests, and the plainest statement of what a backend must do.

use crate::*;

/// A store that forgets everything when it is dropped.
#[derive(Default)]
pub struct MemoryStore {}
