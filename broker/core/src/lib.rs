//! Tavi's vocabulary and seams: envelopes, publications, router, topics, sessions, hooks, permits.
