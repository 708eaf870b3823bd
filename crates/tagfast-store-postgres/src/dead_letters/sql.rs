//! Conditions of filters and effects of transitions as SQL.

use tagfast_domain::UnixMillis;
use tagfast_events::DeadLetterFilter;
use tagfast_events::dead_letters::transitions::{JobRequirement, Transition};
use tagfast_events::dead_letters::{Criterion, FilterField};
use tokio_postgres::types::ToSql;

/// Values of a statement's parameters.
pub(super) type SqlValues = Vec<Box<dyn ToSql + Sync + Send>>;

/// The values as the client takes them.
pub(super) fn as_params(values: &SqlValues) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect()
}

/// PostgreSQL's `text` cannot hold NUL characters.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// Adds a value; returns its placeholder.
pub(super) fn bind(values: &mut SqlValues, value: impl ToSql + Sync + Send + 'static) -> String {
    values.push(Box::new(value));
    format!("${}", values.len())
}

/// A `WHERE` condition: `first`, then the criteria of a filter.
pub(super) fn condition(first: &str, filter: &DeadLetterFilter, values: &mut SqlValues) -> String {
    let mut sql = first.to_owned();
    for criterion in filter.criteria() {
        let criterion = match criterion {
            Criterion::Equals(field, word) => {
                let column = match field {
                    FilterField::ConsumerGroup => "grp",
                    FilterField::State => "state",
                    FilterField::Class => "class",
                    FilterField::Code => "code",
                    FilterField::Tenant => "tenant",
                    FilterField::ContentType => "content_type",
                };
                format!("{column} = {}", bind(values, without_nul(word)))
            }
            Criterion::ContentIdWithin(from, to) => {
                let (from, to) = (bind(values, without_nul(from)), bind(values, without_nul(&to)));
                format!("content_id BETWEEN {from} AND {to}")
            }
            Criterion::FailedFrom(at) => format!("last_failed_at >= {}", bind(values, at)),
            Criterion::FailedBefore(at) => format!("last_failed_at < {}", bind(values, at)),
            Criterion::Due(due) => {
                let one = |(replays, failed_by): (u32, UnixMillis)| {
                    format!("(replays = {replays} AND last_failed_at <= {failed_by})")
                };
                let any: Vec<String> = due.into_iter().map(one).collect();
                let any = if any.is_empty() { "false".to_owned() } else { any.join(" OR ") };
                format!("class = 'exhausted' AND ({any})")
            }
            Criterion::Ids(ids) => format!("id = ANY({})", bind(values, ids.to_vec())),
        };
        sql.push_str(" AND ");
        sql.push_str(&criterion);
    }
    sql
}

/// The `WHERE` condition of a transition by a job; `None`: by an operator.
pub(super) fn guard(transition: &Transition, job: Option<&str>, values: &mut SqlValues) -> String {
    let state = transition.from.as_str();
    let job = match transition.requires {
        JobRequirement::Unassigned => " AND job IS NULL".to_owned(),
        JobRequirement::ActingJob => format!(" AND job = {}", bind(values, job.map(str::to_owned))),
        JobRequirement::Any => String::new(),
    };
    format!("state = '{state}'{job}")
}

/// The `SET` list of a transition by a job at a time; `None`: by an operator.
pub(super) fn assignments(
    transition: &Transition,
    job: Option<&str>,
    at: UnixMillis,
    values: &mut SqlValues,
) -> String {
    let mut sql = match job.filter(|_| transition.joins_job) {
        Some(job) => format!("job = {}", bind(values, job.to_owned())),
        None => "job = NULL".to_owned(),
    };
    if transition.closes() {
        let (state, at) = (transition.to.as_str(), bind(values, at));
        sql.push_str(&format!(", state = '{state}', closed_at = {at}"));
    }
    if transition.counts_failure {
        let at = bind(values, at);
        sql.push_str(&format!(
            ", replays = replays + 1, attempts = attempts + 1, last_failed_at = {at}"
        ));
    }
    sql
}
