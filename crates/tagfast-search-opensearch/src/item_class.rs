//! What an item of a bulk response says, by status and type of its error.
//!
//! A record is suspected only for what this table lists; everything else is the server's fault. A
//! suspicion alone parks nothing: the same index must take another document at that moment
//! (`sink.rs`).

/// What an item of a bulk response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemClass {
    /// The document was written.
    Written,
    /// The index holds this version or a newer one.
    Superseded,
    /// The server does not like this document: perhaps the record is to blame.
    Record,
    /// The server has too much to do.
    Overload,
    /// The index or the server is to blame.
    Systemic,
}

/// Types of errors with status 400 that a document can cause.
const OF_A_DOCUMENT: [&str; 5] = [
    // A field has a value that its type does not take.
    "mapper_parsing_exception",
    "document_parsing_exception",
    // A field that the mapping does not have.
    "strict_dynamic_mapping_exception",
    // A term that Lucene does not take (more than 32,766 bytes), and much else.
    "illegal_argument_exception",
    // An id that is too long.
    "action_request_validation_exception",
];
/// Types of errors with status 429 or 503 that say that the server has too much to do. A block
/// because the disk is full comes with 429 as well, and a shard that is missing with 503.
const OF_OVERLOAD: [&str; 3] = [
    "es_rejected_execution_exception",
    "rejected_execution_exception",
    "circuit_breaking_exception",
];

/// Decides what an item says; `kind` is the type of its error, empty without one.
pub fn classify_item(status: u16, kind: &str) -> ItemClass {
    match status {
        200 | 201 => ItemClass::Written,
        409 if kind == "version_conflict_engine_exception" => ItemClass::Superseded,
        400 if OF_A_DOCUMENT.contains(&kind) => ItemClass::Record,
        429 | 503 if OF_OVERLOAD.contains(&kind) => ItemClass::Overload,
        _ => ItemClass::Systemic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what the table lists can blame a record, whatever a server makes up.
    #[test]
    fn a_record_is_suspected_for_listed_errors_alone() {
        let kinds = OF_A_DOCUMENT.iter().chain(&OF_OVERLOAD).chain(&[
            "",
            "version_conflict_engine_exception",
            "cluster_block_exception",
            "index_not_found_exception",
            "index_closed_exception",
            "unavailable_shards_exception",
            "security_exception",
            "made_up_exception",
        ]);
        for kind in kinds {
            for status in 100..600 {
                let suspected = classify_item(status, kind) == ItemClass::Record;
                assert_eq!(
                    suspected,
                    status == 400 && OF_A_DOCUMENT.contains(kind),
                    "{status} {kind}"
                );
            }
        }
        assert_eq!(classify_item(429, "cluster_block_exception"), ItemClass::Systemic);
        assert_eq!(classify_item(503, "unavailable_shards_exception"), ItemClass::Systemic);
        assert_eq!(classify_item(409, "made_up_exception"), ItemClass::Systemic);
    }
}
