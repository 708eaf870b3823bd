//! Conditions of filters and effects of transitions as SQL.

use rusqlite::types::Value;
use tagfast_domain::UnixMillis;
use tagfast_events::DeadLetterFilter;
use tagfast_events::dead_letters::transitions::{JobRequirement, Transition};
use tagfast_events::dead_letters::{Criterion, FilterField};

/// A `WHERE` condition with its values: `first`, then the criteria of a filter.
pub(super) fn condition(first: &str, filter: &DeadLetterFilter) -> (String, Vec<Value>) {
    let (mut sql, mut values) = (first.to_owned(), Vec::new());
    let text = |text: &str| Value::Text(text.to_owned());
    for criterion in filter.criteria() {
        sql.push_str(" AND ");
        match criterion {
            Criterion::Equals(field, word) => {
                let column = match field {
                    FilterField::ConsumerGroup => "grp",
                    FilterField::State => "state",
                    FilterField::Class => "class",
                    FilterField::Code => "code",
                    FilterField::Tenant => "tenant",
                    FilterField::ContentType => "content_type",
                };
                sql.push_str(&format!("{column} = ?"));
                values.push(text(word));
            }
            Criterion::ContentIdWithin(from, to) => {
                sql.push_str("content_id BETWEEN ? AND ?");
                values.extend([text(from), Value::Text(to)]);
            }
            Criterion::FailedFrom(at) => {
                sql.push_str("last_failed_at >= ?");
                values.push(Value::Integer(at));
            }
            Criterion::FailedBefore(at) => {
                sql.push_str("last_failed_at < ?");
                values.push(Value::Integer(at));
            }
            Criterion::Due(due) => {
                sql.push_str("class = 'exhausted' AND (1 = 0");
                for (replays, failed_by) in due {
                    sql.push_str(" OR (replays = ? AND last_failed_at <= ?)");
                    values.extend([Value::Integer(replays.into()), Value::Integer(failed_by)]);
                }
                sql.push(')');
            }
            Criterion::Ids(ids) => {
                sql.push_str(&format!("id IN ({})", vec!["?"; ids.len()].join(",")));
                values.extend(ids.iter().map(|id| text(id)));
            }
        }
    }
    (sql, values)
}

/// The `WHERE` condition of a transition. [`JobRequirement::ActingJob`] takes the job's id as one
/// value.
pub(super) fn guard(transition: &Transition) -> String {
    let state = transition.from.as_str();
    let job = match transition.requires {
        JobRequirement::Unassigned => " AND job IS NULL",
        JobRequirement::ActingJob => " AND job = ?",
        JobRequirement::Any => "",
    };
    format!("state = '{state}'{job}")
}

/// The `SET` list of a transition and its values, given the acting job (if it joins) and the time.
pub(super) fn assignments(
    transition: &Transition,
    job: Option<&str>,
    at: UnixMillis,
) -> (String, Vec<Value>) {
    let joins = job.filter(|_| transition.joins_job);
    let (mut sql, mut values) = ("job = ?".to_owned(), vec![Value::from(joins.map(str::to_owned))]);
    if transition.closes() {
        sql.push_str(", state = ?, closed_at = ?");
        values.push(Value::Text(transition.to.as_str().to_owned()));
        values.push(Value::Integer(at));
    }
    if transition.counts_failure {
        sql.push_str(", replays = replays + 1, attempts = attempts + 1, last_failed_at = ?");
        values.push(Value::Integer(at));
    }
    (sql, values)
}
