//! Which error of a port becomes which problem. Every match names every variant, so that a new
//! error of a port cannot become a wrong answer silently.

use tagfast_domain::{DomainError, Refusal};
use tagfast_events::DeadLetterStoreError;
use tagfast_popular::PopularError;
use tagfast_resilience::{ErrorChain, jittered_retry_after};
use tagfast_search::SearchError;
use tagfast_store::StoreError;

use super::codes::Code;
use super::document::Problem;
use crate::services::OperationsError;

impl From<DomainError> for Problem {
    fn from(error: DomainError) -> Self {
        let code = match &error {
            DomainError::Empty { .. } | DomainError::OnlyInvisible { .. } => Code::Empty,
            DomainError::TooManyCharacters { .. } | DomainError::TooManyBytes { .. } => {
                Code::TooLong
            }
            DomainError::ForbiddenCharacter { .. } => Code::ForbiddenCharacter,
            DomainError::ReservedTenant(_) => Code::ReservedTenant,
            DomainError::AddedAndRemoved(_) => Code::AddedAndRemoved,
            DomainError::NothingToDo => Code::NothingToDo,
            DomainError::TooManyTagsInWrite { .. } => Code::TooManyTagsInWrite,
            DomainError::Undecodable { .. } => Code::Undecodable,
        };
        let problem = Self::new(code, error.to_string());
        match error.limit() {
            Some((name, allowed, given)) => problem.limit(name, allowed, given),
            None => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        let unknown = error.is_outcome_unknown();
        let code = match &error {
            StoreError::Refused(Refusal::TooManyTags { .. }) => Code::TooManyTags,
            StoreError::Refused(Refusal::VersionMismatch { .. }) => Code::VersionMismatch,
            StoreError::Refused(Refusal::WriteIdReused | Refusal::KeyReused) => {
                Code::IdempotencyKeyReused
            }
            StoreError::NotInThisMode(_) => Code::NotInThisMode,
            StoreError::Overloaded { .. } => Code::Overloaded,
            StoreError::Deadline { .. } => Code::Deadline,
            StoreError::DiskFull => Code::DiskFull,
            StoreError::Unavailable { .. } => Code::Unavailable,
            StoreError::ReplicationLag { .. } => Code::ReplicationLag,
            StoreError::Damaged { what, source } => {
                tracing::error!(what, source = ?source, "stored data is damaged");
                Code::Damaged
            }
            StoreError::Internal(source) => {
                let error = ErrorChain(source.as_ref());
                tracing::error!(%error, "internal error of the store");
                Code::Internal
            }
        };
        // The name of a damaged file is for the operator only; the log has it.
        let detail =
            if code == Code::Damaged { "stored data is damaged".to_owned() } else { detail };
        let mut problem = Self::new(code, detail).may_be_written(unknown);
        match &error {
            StoreError::Refused(Refusal::TooManyTags { allowed, given }) => {
                problem = problem.limit("tags_per_content", *allowed as u64, *given as u64);
            }
            StoreError::Refused(Refusal::VersionMismatch { current }) => {
                problem = problem.current_version(*current);
            }
            StoreError::Overloaded { queue, limit, .. } => {
                problem = problem.limit(queue, *limit as u64, *limit as u64 + 1);
            }
            StoreError::Refused(Refusal::WriteIdReused | Refusal::KeyReused)
            | StoreError::NotInThisMode(_)
            | StoreError::Deadline { .. }
            | StoreError::DiskFull
            | StoreError::Unavailable { .. }
            | StoreError::ReplicationLag { .. }
            | StoreError::Damaged { .. }
            | StoreError::Internal(_) => {}
        }
        match error.retry_after() {
            Some(after) => problem.retry_after(after),
            None => problem,
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        let detail = error.to_string();
        match error {
            SearchError::Syntax { position, byte, expected, .. } => {
                Self::new(Code::QuerySyntax, detail).syntax(position, byte, expected)
            }
            SearchError::Limit { limit, allowed, given } => {
                Self::new(Code::QueryLimit, detail).limit(limit, allowed as u64, given as u64)
            }
            SearchError::PrefixTooBroad { allowed, .. } => Self::new(Code::PrefixTooBroad, detail)
                .limit("prefix_tags", allowed as u64, allowed as u64 + 1),
            SearchError::Unavailable(source) => {
                tracing::warn!(error = %ErrorChain(source.as_ref()), "search is unavailable");
                Self::new(Code::SearchUnavailable, "the search index cannot answer now")
                    .retry_after(jittered_retry_after())
            }
            SearchError::Unusable(problem) => {
                tracing::debug!(code = problem.code, "the search index cannot be used");
                Self::new(Code::SearchUnavailable, detail).retry_after(jittered_retry_after())
            }
            SearchError::Refused { reason, retry_after } => {
                tracing::debug!(reason, "the search index was not called");
                Self::new(
                    Code::SearchUnavailable,
                    format!("the search index was not called: {reason}"),
                )
                .retry_after(retry_after.max(jittered_retry_after()))
            }
        }
    }
}

impl From<PopularError> for Problem {
    fn from(error: PopularError) -> Self {
        match error {
            PopularError::UnknownWindow(_) => Self::new(Code::BadParameter, error.to_string()),
            PopularError::Unavailable(source) => {
                let error = ErrorChain(source.as_ref());
                tracing::warn!(%error, "popular tags are unavailable");
                Self::new(Code::PopularUnavailable, "the counts of tags cannot be read now")
                    .retry_after(jittered_retry_after())
            }
        }
    }
}

impl From<DeadLetterStoreError> for Problem {
    fn from(error: DeadLetterStoreError) -> Self {
        tracing::warn!(error = %ErrorChain(&error), "dead letters are unavailable");
        Self::new(Code::DeadLettersUnavailable, "the dead-letter store cannot be reached now")
            .retry_after(jittered_retry_after())
    }
}

impl From<OperationsError> for Problem {
    fn from(error: OperationsError) -> Self {
        match &error {
            OperationsError::AlreadyRunning(_) => {
                Self::new(Code::AlreadyRunning, error.to_string())
            }
            OperationsError::SearchUnavailable(why) => {
                Self::new(Code::SearchUnavailable, why.clone()).retry_after(jittered_retry_after())
            }
            OperationsError::Failed(source) => {
                Self::new(Code::OperationFailed, ErrorChain(source.as_ref()).to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn callers_refused_together_do_not_come_back_together() {
        let all: BTreeSet<Duration> = (0..1000).map(|_| jittered_retry_after()).collect();
        assert!(all.len() > 600, "{}", all.len());
        assert!(all.iter().all(|d| (Duration::from_secs(1)..=Duration::from_secs(3)).contains(d)));
    }

    #[test]
    fn domain_errors_keep_their_codes() {
        let errors = [
            DomainError::Empty { what: "tag" },
            DomainError::TooManyBytes { what: "tag", allowed: 1, given: 2 },
            DomainError::ReservedTenant("_a".into()),
            DomainError::AddedAndRemoved("a".into()),
            DomainError::NothingToDo,
            DomainError::TooManyTagsInWrite { allowed: 1, given: 2 },
            DomainError::Undecodable { what: "tag", reason: "x" },
            DomainError::ForbiddenCharacter {
                what: "tag",
                character: "U+0000".into(),
                reason: "x",
            },
        ];
        for error in errors {
            assert_eq!(Problem::from(error.clone()).code().definition().code, error.code());
        }
    }
}
