//! What to do about a problem code, in the words of the command line: its flags and commands, not
//! the fields and headers of the API that the program speaks for its user.

/// Advice for codes whose advice in the API speaks of HTTP.
const ADVICE: &[(&str, &str)] = &[
    ("unauthenticated", "give a token with --token or TAGFAST_TOKEN"),
    ("invalid_token", "give a new token with --token or TAGFAST_TOKEN"),
    ("missing_scope", "use a token with that scope: tagfast token issue --scope"),
    ("bad_token", "give receipts exactly as tagfast tag --receipt printed them"),
    ("bad_cursor", "start again without --cursor"),
    ("bad_parameter", "correct the flag; --help of the command says what it takes"),
    ("not_found", "is --url the address of a tagfast server?"),
    ("method_not_allowed", "is --url the address of a tagfast server?"),
    ("dead_letter_not_found", "list them with: tagfast dead-letters list --state all"),
    ("failover_not_found", "list them with: tagfast failovers"),
    (
        "breaker_not_found",
        "list them with: tagfast breakers list; each process has its own (--url)",
    ),
    ("already_running", "wait until it is done; tagfast status shows its progress"),
    ("version_mismatch", "view the content again, and decide again"),
    ("body_too_large", "send less at once, for example with a smaller --batch"),
    ("batch_too_large", "send less at once, for example with a smaller --batch"),
    ("url_too_long", "shorten the query"),
    ("idempotency_key_reused", "use a new --idempotency-key for a new change"),
    ("confirmation_required", "give a condition such as --group, or --all for every open one"),
    ("rate_out_of_range", "choose a --rate within the limit"),
    ("rate_limited", "wait, then run the command again"),
    ("overloaded", "nothing was done: wait, then run the command again"),
    ("unavailable", "run the command again; a change with the same --idempotency-key happens once"),
    ("deadline", "run the command again; a change with the same --idempotency-key happens once"),
    (
        "request_timeout",
        "run the command again; a change with the same --idempotency-key happens once",
    ),
    ("internal", "run the command again; report the trace id if it happens again"),
    ("search_unavailable", "wait, then run the command again; tagfast view and tag work meanwhile"),
    (
        "popular_unavailable",
        "wait, then run the command again; tagfast view and tag work meanwhile",
    ),
    ("dead_letters_unavailable", "wait, then run the command again"),
    ("keys_unavailable", "wait, then run the command again; an operator checks `auth.jwks`"),
    ("bad_time", "write it like 2026-01-31T12:00:00Z"),
];

/// Words of the API that a user of the command line never wrote.
const API_WORDS: &[&str] = &[
    "\"",
    "/v1",
    "/openapi",
    "{",
    "%2F",
    "%2B",
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Retry-After",
    "Allow",
    "JSON",
    "body",
    "header",
    "parameter",
    "field",
    " cursor",
    "`limit`",
    "Percent-encode",
    "client",
];

/// The advice for a problem code: ours, or else that of the API if it is in plain words.
pub(crate) fn of(
    code: &str,
    of_api: impl FnOnce(&str) -> Option<&'static str>,
) -> Option<&'static str> {
    let ours = ADVICE.iter().find(|(of, _)| *of == code).map(|(_, advice)| *advice);
    ours.or_else(|| of_api(code).filter(|advice| !speaks_of_http(advice)))
}

/// Whether a text has a word of the API.
fn speaks_of_http(text: &str) -> bool {
    API_WORDS.iter().any(|word| text.contains(word))
}

/// What a problem says, in the words of the command line: a query parameter is a flag.
pub(crate) fn in_words_of_the_command(detail: &str) -> String {
    let Some((name, rest)) =
        detail.strip_prefix("query parameter ").and_then(|rest| rest.split_once(':'))
    else {
        return detail.to_owned();
    };
    let flag = match name {
        "q" => "the query".to_owned(),
        "prefix" => "the prefix".to_owned(),
        name => format!("--{}", name.replace('_', "-")),
    };
    format!("{flag}:{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_in_the_words_of_the_command_line() {
        for (code, advice) in ADVICE {
            assert!(!speaks_of_http(advice), "{code}: {advice}");
            assert_eq!(of(code, |_| Some("Send `Authorization`.")), Some(*advice));
        }
        assert_eq!(of("new", |_| Some("Send `Retry-After`.")), None);
        assert_eq!(of("new", |_| Some("Shorten it.")), Some("Shorten it."));
        assert_eq!(of("new", |_| None), None);
    }

    #[test]
    fn a_parameter_is_a_flag() {
        for (detail, expect) in [
            ("query parameter limit: it must be 1 to 100", "--limit: it must be 1 to 100"),
            ("query parameter id_prefix: too long", "--id-prefix: too long"),
            ("query parameter q: no", "the query: no"),
            ("something else", "something else"),
        ] {
            assert_eq!(in_words_of_the_command(detail), expect);
        }
    }
}
