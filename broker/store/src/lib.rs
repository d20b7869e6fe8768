//! Store traits, batch model, memory backend and the conformance suite.
