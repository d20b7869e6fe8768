//! What modules note of a session, such as that it asked for a list and wants to hear of its changes.

/// The marks of one session: names that modules choose, such as a namespace. They stay as long as its stream, also over a
/// restart of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(Vec<Box<str>>);

impl Marks {
    /// Sets a mark; no harm if it is set.
    pub fn set(&mut self, mark: &'static str) {
        if !self.has(mark) {
            self.0.push(mark.into());
        }
    }

    /// Whether a mark is set.
    pub fn has(&self, mark: &str) -> bool {
        self.0.iter().any(|set| **set == *mark)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|mark| &**mark)
    }
}

impl FromIterator<Box<str>> for Marks {
    fn from_iter<T: IntoIterator<Item = Box<str>>>(marks: T) -> Marks {
        Marks(marks.into_iter().collect())
    }
}
