//! Rooms and people: dialogues over a real node.
