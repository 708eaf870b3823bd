//! The store ports: writes, reads, tokens, scans and the conformance suite every store passes.
