//! Bots written in Rhai: engine, limits, author API, durable conversations.
