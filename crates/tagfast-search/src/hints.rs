//! Hints: why a query probably does not find what its author meant.
//!
//! A query that is right by the grammar may still find nothing because of how it is written: `and`
//! in lower case is a tag, `status:open` too. Such words may be tags that contents have, so they
//! are no errors. A hint is given for a word that no content has, and for every suspicious word
//! when the whole query finds nothing: no query finds nothing silently.
//!
//! How it fails: an index that does not answer in time leaves out the hints that need its counts.

use std::time::Duration;

use tagfast_domain::{ContentType, TagName, TenantId};

use crate::port::{SearchIndex, SearchRequest};
use crate::query::{Kind, Query, Token, parse, tokens};

/// Maximum number of hints of one answer.
pub const HINTS_MAX: usize = 10;
/// How long an answer waits for the counts that hints need.
const COUNTS_WAIT: Duration = Duration::from_millis(200);

macro_rules! hint_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal;)*) => {
        /// The kind of a hint; its words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum HintCode {
            $($(#[$doc])* $variant,)*
        }

        impl HintCode {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)*
                }
            }
        }
    };
}

hint_codes! {
    /// `and`, `Or`, `ＮＯＴ`: operators are `AND`, `OR` and `NOT`.
    OperatorWord = "operator_word";
    /// `&&`, `|`, `-a`, `!a`, `#a`: the operators of other languages.
    OperatorSymbol = "operator_symbol";
    /// A character that looks like a quote, a parenthesis or `*`.
    LookAlike = "look_alike";
    /// `name:value`, `name=value`: the only field is `type:`.
    UnknownField = "unknown_field";
    /// `?` or `%`: the only wildcard is `*` at the end of a word.
    Wildcard = "wildcard";
    /// An operator, a field or a wildcard within quotes.
    QuotedSyntax = "quoted_syntax";
    /// Parts of the query exclude each other.
    Contradiction = "contradiction";
    /// A tag, prefix or content type that no content has.
    UnusedTerm = "unused_term";
}

/// Why a query probably does not find what its author meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// The kind.
    pub code: HintCode,
    /// The complete sentence for people.
    pub message: String,
}

/// A hint that matters if no content has the term.
struct Suspicion {
    hint: Hint,
    term: Query,
}

/// The hints for a search. `found_nothing` tells whether the query as a whole finds nothing. Asks
/// the index only if the query is suspicious or finds nothing; if the index does not answer, hints
/// that need it are left out.
pub async fn hints(
    index: &dyn SearchIndex,
    tenant: &TenantId,
    request: &SearchRequest,
    found_nothing: bool,
) -> Vec<Hint> {
    let text = request.query.as_deref().unwrap_or_default();
    // The engine has reported an error of the query already.
    let (Ok(query), Ok(tokens)) = (parse(text), tokens(text)) else { return Vec::new() };
    let suspicions: Vec<Suspicion> =
        tokens.iter().filter_map(|token| suspicion(text, token)).collect();
    if suspicions.is_empty() && !found_nothing {
        return Vec::new();
    }
    let mut terms: Vec<Query> = suspicions.iter().map(|s| s.term.clone()).collect();
    if found_nothing {
        query.iter().for_each(|query| wanted_terms(query, &mut terms));
        let of_type = request.content_type.iter().cloned().map(Query::Type);
        of_type.for_each(|term| add_term(term, &mut terms));
    }
    let counts = tokio::time::timeout(COUNTS_WAIT, index.counts(tenant, None, &terms)).await;
    let counts = counts.ok().and_then(Result::ok);
    let is_unused = |n: usize| counts.as_ref().is_some_and(|counts| counts.get(n) == Some(&0));
    let suspicious = suspicions.len();
    let mut hints: Vec<Hint> = suspicions
        .into_iter()
        .enumerate()
        .filter(|(n, _)| found_nothing || is_unused(*n))
        .map(|(_, suspicion)| suspicion.hint)
        .collect();
    if found_nothing {
        hints.extend(query.iter().filter_map(|q| contradiction(q, request.content_type.as_ref())));
        let unused = terms.iter().enumerate().skip(suspicious).filter(|(n, _)| is_unused(*n));
        hints.extend(unused.filter_map(|(_, term)| unused_term(term)));
    }
    hints.dedup();
    hints.truncate(HINTS_MAX);
    hints
}

fn suspicion(text: &str, token: &Token) -> Option<Suspicion> {
    let term = match &token.kind {
        Kind::Tag(name) => Query::Tag(name.clone()),
        Kind::Prefix(prefix) => Query::Prefix(prefix.clone()),
        Kind::Type(_) | Kind::Open | Kind::Close | Kind::And | Kind::Or | Kind::Not => return None,
    };
    let word = &text[token.byte..token.end];
    let hint = match word.strip_prefix('"') {
        Some(rest) => in_quotes(rest.split('"').next().unwrap_or_default()),
        None => operator_word(word)
            .or_else(|| look_alike(text, token, word))
            .or_else(|| operator_symbol(word))
            .or_else(|| wildcard(word))
            .or_else(|| unknown_field(word)),
    }?;
    Some(Suspicion { hint, term })
}

fn hint(code: HintCode, message: String) -> Option<Hint> {
    Some(Hint { code, message })
}

fn operator_word(word: &str) -> Option<Hint> {
    let name = TagName::parse(word).ok()?;
    matches!(name.as_str(), "and" | "or" | "not").then_some(())?;
    let operator = name.as_str().to_uppercase();
    let message = format!("{word:?} is a tag here; the operator is {operator} in capitals");
    hint(HintCode::OperatorWord, message)
}

fn operator_symbol(word: &str) -> Option<Hint> {
    let advice = match word {
        "&" | "&&" | "+" => "write AND",
        "|" | "||" => "write OR",
        _ => match word.chars().next()? {
            '-' | '!' | '~' => "write NOT before a tag",
            '+' => "a blank between tags means AND",
            '#' => "write the tag without '#'",
            '&' | '|' => "write AND or OR, with blanks around it",
            _ if word.contains("&&") || word.contains("||") => {
                "write AND or OR, with blanks around it"
            }
            _ => return None,
        },
    };
    hint(HintCode::OperatorSymbol, format!("{word:?} is a tag here; {advice}"))
}

fn look_alike(text: &str, token: &Token, word: &str) -> Option<Hint> {
    let meant = |at: usize, c: char| match c {
        '\u{FF08}' | '\u{FE59}' => Some('('),
        '\u{FF09}' | '\u{FE5A}' => Some(')'),
        '\u{FF0A}' | '\u{FE61}' | '\u{2217}' => Some('*'),
        '\u{FF02}' | '“' | '”' | '„' | '‟' | '«' | '»' | '「' | '」' | '『' | '』' | '〝'
        | '〟' => Some('"'),
        '\'' | '`' | '‘' | '’' | '‚' | '‛' | '´' | '‹' | '›' | '＇'
            if at == 0 || at + c.len_utf8() == word.len() =>
        {
            Some('"')
        }
        _ => None,
    };
    let found = word.char_indices().find_map(|(at, c)| meant(at, c).map(|meant| (at, c, meant)));
    let (at, typed, meant) = found?;
    let position = text[..token.byte + at].chars().count();
    let message = format!("'{typed}' at position {position} is part of a tag here; write {meant}");
    hint(HintCode::LookAlike, message)
}

fn wildcard(word: &str) -> Option<Hint> {
    let wildcard = word.chars().find(|c| matches!(c, '?' | '\u{FF1F}' | '%'))?;
    let message = format!("'{wildcard}' is no wildcard; the only one is '*' at the end of a word");
    hint(HintCode::Wildcard, message)
}

fn unknown_field(word: &str) -> Option<Hint> {
    let at = word.find([':', '=', '\u{FF1A}', '\u{FF1D}'])?;
    let separator = word[at..].chars().next()?;
    let after = &word[at + separator.len_utf8()..];
    // `role::program` is how tags are grouped.
    if matches!(separator, ':' | '\u{FF1A}') && after.starts_with([':', '\u{FF1A}']) {
        return None;
    }
    let message = match &word[..at] {
        "" => {
            format!("{word:?} is a tag here; the only field is written without blanks: type:jira")
        }
        name => format!("{word:?} is a tag here: '{name}' is no field, the only one is 'type:'"),
    };
    hint(HintCode::UnknownField, message)
}

fn in_quotes(inner: &str) -> Option<Hint> {
    let has_operator = [" AND ", " OR ", " NOT "].iter().any(|word| inner.contains(word));
    let what = if has_operator || inner.starts_with("NOT ") {
        "operators"
    } else if inner.starts_with("type:") && !inner.starts_with("type::") {
        "the field type:"
    } else if inner.ends_with('*') {
        "'*'"
    } else {
        return None;
    };
    let message = format!("\"{inner}\" is one tag: write {what} outside of quotes");
    hint(HintCode::QuotedSyntax, message)
}

/// Adds the tags, prefixes and types that a match needs or may have: those below no NOT.
fn wanted_terms(query: &Query, terms: &mut Vec<Query>) {
    match query {
        Query::Tag(_) | Query::Prefix(_) | Query::Type(_) => add_term(query.clone(), terms),
        Query::And(parts) | Query::Or(parts) => parts.iter().for_each(|p| wanted_terms(p, terms)),
        Query::Not(part) => match part.as_ref() {
            Query::Not(again) => wanted_terms(again, terms),
            Query::Tag(_) | Query::Prefix(_) | Query::Type(_) | Query::And(_) | Query::Or(_) => {}
        },
    }
}

fn add_term(term: Query, terms: &mut Vec<Query>) {
    if !terms.contains(&term) {
        terms.push(term);
    }
}

fn unused_term(term: &Query) -> Option<Hint> {
    let message = match term {
        Query::Tag(name) => format!("no content has the tag {:?}", name.as_str()),
        Query::Prefix(prefix) => format!("no content has a tag that begins with {prefix:?}"),
        Query::Type(name) => format!("no content of the type {:?} has tags", name.as_str()),
        Query::And(_) | Query::Or(_) | Query::Not(_) => return None,
    };
    hint(HintCode::UnusedTerm, message)
}

/// Two parts of one AND of which only one can be true. `of_type` is the type that the request
/// allows beside the query.
fn contradiction(query: &Query, of_type: Option<&ContentType>) -> Option<Hint> {
    let parts = match query {
        Query::And(parts) => parts.as_slice(),
        Query::Tag(_) | Query::Prefix(_) | Query::Type(_) | Query::Or(_) | Query::Not(_) => {
            std::slice::from_ref(query)
        }
    };
    let types = parts.iter().filter_map(|part| match part {
        Query::Type(name) => Some(name),
        Query::Tag(_) | Query::Prefix(_) | Query::And(_) | Query::Or(_) | Query::Not(_) => None,
    });
    let mut types: Vec<&ContentType> = types.chain(of_type).collect();
    types.dedup();
    if let [one, other, ..] = types.as_slice() {
        let message = format!("a content has one type, not both {one} and {other}: use OR");
        return hint(HintCode::Contradiction, message);
    }
    let is_excluded = |part: &&Query| {
        parts.iter().any(|other| matches!(other, Query::Not(not) if not.as_ref() == *part))
    };
    match parts.iter().find(is_excluded) {
        Some(part) => {
            let message = format!("{part} is both required and excluded");
            hint(HintCode::Contradiction, message)
        }
        None => {
            parts.iter().filter(|p| matches!(p, Query::And(_))).find_map(|p| contradiction(p, None))
        }
    }
}
