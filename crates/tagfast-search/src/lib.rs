//! The search port, the query language, and the tantivy engine.
