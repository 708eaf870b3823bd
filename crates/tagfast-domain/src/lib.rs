//! Tags, content, limits, versions, documents and events as pure types.
