//! The query language: a pure parser that builds the same tree for every engine.
//!
//! ```text
//! query   := and ( "OR" and )*          lowest precedence
//! and     := not ( ("AND")? not )*      a blank means AND
//! not     := "NOT" not | primary        highest precedence
//! primary := "(" query ")" | tag | prefix | field
//! ```
//!
//! How it fails: every error carries its position, in characters and in bytes, and what the parser
//! expected there. The parser never guesses. A query that is right but probably not what its author
//! meant is the business of [`crate::hints`].

use std::fmt;

use tagfast_domain::{ContentType, DomainError, TagName};
use unicode_width::UnicodeWidthChar;

use crate::error::SearchError;

/// Maximum length of a query in bytes.
pub const QUERY_BYTES_MAX: usize = 2048;
/// Maximum number of tags, prefixes and types in a query.
pub const QUERY_TERMS_MAX: usize = 64;
/// Maximum nesting depth of parentheses and NOTs.
pub const QUERY_DEPTH_MAX: usize = 16;
/// Minimum length of a prefix in characters.
pub const PREFIX_CHARS_MIN: usize = 2;
/// Maximum number of prefixes in a query.
pub const QUERY_PREFIXES_MAX: usize = 4;

/// A query as a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Contents with this tag. The name may be a former one: see [`Query::with_former_names`].
    Tag(TagName),
    /// Contents with a tag whose canonical name begins with this text.
    Prefix(String),
    /// Contents of this type.
    Type(ContentType),
    /// Contents that match all parts.
    And(Vec<Query>),
    /// Contents that match at least one part.
    Or(Vec<Query>),
    /// Contents that do not match the part.
    Not(Box<Query>),
}

impl Query {
    /// Whether an engine must look up tags by prefix.
    pub fn has_prefix(&self) -> bool {
        match self {
            Self::Prefix(_) => true,
            Self::Tag(_) | Self::Type(_) => false,
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::has_prefix),
            Self::Not(part) => part.has_prefix(),
        }
    }
}

/// Writes the canonical text of a query; parsing it gives the same tree.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            parts.iter().enumerate().try_for_each(|(n, part)| {
                if n > 0 {
                    write!(f, " {word} ")?;
                }
                match part {
                    Self::And(_) | Self::Or(_) => write!(f, "({part})"),
                    Self::Tag(_) | Self::Prefix(_) | Self::Type(_) | Self::Not(_) => part.fmt(f),
                }
            })
        };
        match self {
            Self::Tag(name) => {
                write!(f, "\"{}\"", name.as_str().replace('\\', "\\\\").replace('"', "\\\""))
            }
            Self::Prefix(prefix) if prefix.chars().all(is_bare) && type_field(prefix).is_none() => {
                write!(f, "{prefix}*")
            }
            Self::Prefix(prefix) => write!(f, "\"{prefix}\"*"),
            Self::Type(content_type) => write!(f, "type:{content_type}"),
            Self::And(parts) => list(f, parts, "AND"),
            Self::Or(parts) => list(f, parts, "OR"),
            Self::Not(part) => match part.as_ref() {
                Self::And(_) | Self::Or(_) => write!(f, "NOT ({part})"),
                Self::Tag(_) | Self::Prefix(_) | Self::Type(_) | Self::Not(_) => {
                    write!(f, "NOT {part}")
                }
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Open,
    Close,
    And,
    Or,
    Not,
    Tag(TagName),
    Prefix(String),
    Type(ContentType),
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// Where it begins and ends in the text of the query.
    pub(crate) byte: usize,
    pub(crate) end: usize,
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

/// Parses a query; `None` if it is blank.
///
/// # Errors
///
/// [`SearchError::Syntax`] if the text breaks the grammar, [`SearchError::Limit`] if it exceeds one
/// of the limits above.
pub fn parse(text: &str) -> Result<Option<Query>, SearchError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(SearchError::Limit {
            limit: "query_bytes",
            allowed: QUERY_BYTES_MAX,
            given: text.len(),
        });
    }
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(None);
    }
    let count = |f: fn(&Kind) -> bool| tokens.iter().filter(|t| f(&t.kind)).count();
    let terms = count(|k| matches!(k, Kind::Tag(_) | Kind::Prefix(_) | Kind::Type(_)));
    if terms > QUERY_TERMS_MAX {
        return Err(SearchError::Limit {
            limit: "query_terms",
            allowed: QUERY_TERMS_MAX,
            given: terms,
        });
    }
    let prefixes = count(|k| matches!(k, Kind::Prefix(_)));
    if prefixes > QUERY_PREFIXES_MAX {
        return Err(SearchError::Limit {
            limit: "query_prefixes",
            allowed: QUERY_PREFIXES_MAX,
            given: prefixes,
        });
    }
    let mut parser = Parser { text, tokens, at: 0, depth: 0 };
    let query = parser.or()?;
    match parser.peek() {
        None => Ok(Some(query)),
        Some(_) => Err(parser.unexpected("AND, OR or the end of the query")),
    }
}

fn syntax(text: &str, byte: usize, expected: impl Into<String>, found: &str) -> SearchError {
    let expected = expected.into();
    let position = text.get(..byte).map_or(0, |s| s.chars().count());
    let message = format!("{found} at position {position}: expected {expected}");
    SearchError::Syntax { position, byte, expected, message }
}

fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '(' | ')' | '"' | '*')
}

pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, SearchError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let offset = |rest: &str| text.len() - rest.len();
    while let Some(c) = rest.chars().next() {
        let byte = offset(rest);
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let kind = match c {
            '(' | ')' => {
                rest = &rest[1..];
                if c == '(' { Kind::Open } else { Kind::Close }
            }
            '"' => {
                let (value, after) = quoted(text, rest, byte)?;
                let written = &text[byte + 1..offset(after) - 1];
                rest = after.strip_prefix('*').unwrap_or(after);
                expect_term_end(text, rest, offset(rest))?;
                if rest.len() < after.len() {
                    prefix(text, byte, &tag(text, byte + 1, written, &value, TagName::parse)?)?
                } else {
                    Kind::Tag(tag(text, byte + 1, written, &value, TagName::lookup)?)
                }
            }
            '*' => return Err(syntax(text, byte, "a tag before '*'", "a lone '*'")),
            _ => {
                let length = rest.find(|c| !is_bare(c)).unwrap_or(rest.len());
                let (word, after) = rest.split_at(length);
                let (kind, after) = bare(text, word, after, byte)?;
                rest = after;
                kind
            }
        };
        tokens.push(Token { kind, byte, end: offset(rest) });
    }
    Ok(tokens)
}

/// Requires a blank, a parenthesis or the end after a term: `a"b"` is neither one tag nor two.
fn expect_term_end(text: &str, rest: &str, byte: usize) -> Result<(), SearchError> {
    match rest.chars().next() {
        Some(c) if !c.is_whitespace() && c != ')' && c != '(' => Err(syntax(
            text,
            byte,
            "a blank, a parenthesis or the end of the query",
            &format!("{c:?}"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn quoted<'a>(text: &str, rest: &'a str, start: usize) -> Result<(String, &'a str), SearchError> {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &rest[at + 1..])),
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                Some(_) | None => {
                    return Err(syntax(text, start + at, "\\\" or \\\\", "a backslash"));
                }
            },
            c => value.push(c),
        }
    }
    Err(syntax(text, text.len(), "a closing '\"'", "the end of the query"))
}

fn bare<'a>(
    text: &str,
    word: &str,
    after: &'a str,
    byte: usize,
) -> Result<(Kind, &'a str), SearchError> {
    if let Some(field) = type_field(word) {
        return content_type(text, after, byte, field);
    }
    if let Some(rest) = after.strip_prefix('*') {
        expect_term_end(text, rest, text.len() - rest.len())?;
        let name = tag(text, byte, word, word, TagName::parse)?;
        return Ok((prefix(text, byte, &name)?, rest));
    }
    let kind = match word {
        "AND" => Kind::And,
        "OR" => Kind::Or,
        "NOT" => Kind::Not,
        _ => Kind::Tag(tag(text, byte, word, word, TagName::lookup)?),
    };
    expect_term_end(text, after, text.len() - after.len())?;
    Ok((kind, after))
}

fn prefix(text: &str, byte: usize, name: &TagName) -> Result<Kind, SearchError> {
    if name.as_str().chars().count() < PREFIX_CHARS_MIN {
        let expected = format!("at least {PREFIX_CHARS_MIN} characters before '*'");
        return Err(syntax(text, byte, expected, "a short prefix"));
    }
    Ok(Kind::Prefix(name.as_str().to_owned()))
}

/// Splits a word that means the field `type:` into the name with its colon and the rest, however
/// the name and the colon are written; `None` for any other word, also for a tag like `type::bug`.
fn type_field(word: &str) -> Option<(&str, &str)> {
    let is_colon = |c: char| matches!(c, ':' | '\u{FF1A}' | '\u{FE55}');
    let at = word.find(is_colon)?;
    let is_type = TagName::parse(&word[..at]).is_ok_and(|name| name.as_str() == "type");
    let end = at + word[at..].chars().next().map_or(0, char::len_utf8);
    (is_type && !word[end..].starts_with(is_colon)).then(|| word.split_at(end))
}

/// Reads the content type after `type:`, bare or in quotes.
fn content_type<'a>(
    text: &str,
    after: &'a str,
    byte: usize,
    (field, name): (&str, &str),
) -> Result<(Kind, &'a str), SearchError> {
    if field != "type:" {
        let expected = "the field 'type:' in lower case; in quotes it is a tag";
        return Err(syntax(text, byte, expected, &format!("{field:?}")));
    }
    let start = byte + field.len();
    if name.is_empty() && after.starts_with('"') {
        let (value, rest) = quoted(text, after, start)?;
        let content_type = parse_type(text, start + 1, &value)?;
        if rest.starts_with('*') {
            return Err(type_prefix(text, text.len() - rest.len()));
        }
        expect_term_end(text, rest, text.len() - rest.len())?;
        return Ok((Kind::Type(content_type), rest));
    }
    if after.starts_with('*') {
        return Err(type_prefix(text, start + name.len()));
    }
    let content_type = parse_type(text, start, name)?;
    expect_term_end(text, after, text.len() - after.len())?;
    Ok((Kind::Type(content_type), after))
}

fn type_prefix(text: &str, byte: usize) -> SearchError {
    syntax(text, byte, "a whole content type; several are joined with OR", "'*'")
}

fn parse_type(text: &str, byte: usize, name: &str) -> Result<ContentType, SearchError> {
    const CHARACTERS: &str = "a content type of a-z, 0-9, '.', '_' and '-'";
    ContentType::parse(name).map_err(|error| {
        if name.is_empty() {
            let expected = "a content type right after 'type:', as in type:jira.issue";
            return syntax(text, byte, expected, "nothing");
        }
        let is_wrong = |c: &char| ContentType::parse(c.encode_utf8(&mut [0; 4])).is_err();
        let Some((at, wrong)) = name.char_indices().find(|(_, c)| is_wrong(c)) else {
            return syntax(text, byte, CHARACTERS, &error.to_string());
        };
        let expected = match ContentType::parse(&name.to_lowercase()) {
            Ok(lower) => format!("lower case, as in type:{lower}"),
            Err(_) => format!("{CHARACTERS}; in quotes the whole word is a tag"),
        };
        syntax(text, byte + at, expected, &format!("{wrong:?}"))
    })
}

/// Canonicalises a tag. `written` is its text in the query, from `byte` on; an error names the
/// character that was typed, not what it canonicalises to.
/// `read` is [`TagName::lookup`], or [`TagName::parse`] where a name of an earlier release cannot
/// stand.
fn tag(
    text: &str,
    byte: usize,
    written: &str,
    value: &str,
    read: fn(&str) -> Result<TagName, DomainError>,
) -> Result<TagName, SearchError> {
    read(value).map_err(|error| {
        let refused = |c: char| match TagName::parse(c.encode_utf8(&mut [0; 4])) {
            Err(DomainError::ForbiddenCharacter { reason, .. }) => Some((c, reason)),
            Err(_) | Ok(_) => None,
        };
        let is_one = matches!(error, DomainError::ForbiddenCharacter { .. });
        let typed = written.char_indices().filter(|_| is_one);
        match typed.into_iter().find_map(|(at, c)| refused(c).map(|refused| (at, refused))) {
            Some((at, (c, reason))) => {
                let found = format!("{c:?} (U+{:04X}), not allowed in a tag ({reason}),", c as u32);
                syntax(text, byte + at, "a valid tag", &found)
            }
            None => syntax(text, byte, "a valid tag", &error.to_string()),
        }
    })
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    fn unexpected(&self, expected: &str) -> SearchError {
        match self.tokens.get(self.at) {
            Some(token) => {
                let found = self.text[token.byte..].split_whitespace().next().unwrap_or_default();
                let found: String = found.chars().take(20).collect();
                syntax(self.text, token.byte, expected, &format!("{found:?}"))
            }
            None => syntax(self.text, self.text.len(), expected, "the end of the query"),
        }
    }

    fn deeper<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, SearchError>,
    ) -> Result<T, SearchError> {
        self.depth += 1;
        if self.depth > QUERY_DEPTH_MAX {
            return Err(SearchError::Limit {
                limit: "query_depth",
                allowed: QUERY_DEPTH_MAX,
                given: self.depth,
            });
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn or(&mut self) -> Result<Query, SearchError> {
        let mut parts = vec![self.and()?];
        while self.peek() == Some(&Kind::Or) {
            self.at += 1;
            parts.push(self.and()?);
        }
        Ok(joined(parts, Query::Or))
    }

    fn and(&mut self) -> Result<Query, SearchError> {
        let mut parts = vec![self.not()?];
        loop {
            match self.peek() {
                Some(Kind::And) => {
                    self.at += 1;
                    parts.push(self.not()?);
                }
                Some(Kind::Open | Kind::Not | Kind::Tag(_) | Kind::Prefix(_) | Kind::Type(_)) => {
                    parts.push(self.not()?);
                }
                Some(Kind::Or | Kind::Close) | None => return Ok(joined(parts, Query::And)),
            }
        }
    }

    fn not(&mut self) -> Result<Query, SearchError> {
        if self.peek() == Some(&Kind::Not) {
            self.at += 1;
            return self.deeper(|p| Ok(Query::Not(Box::new(p.not()?))));
        }
        self.parse_primary()
    }

    fn parse_primary(&mut self) -> Result<Query, SearchError> {
        const EXPECTED: &str = "a tag, type:, NOT or '('";
        let query = match self.peek() {
            Some(Kind::Open) => {
                self.at += 1;
                let inner = self.deeper(Self::or)?;
                if self.peek() != Some(&Kind::Close) {
                    return Err(self.unexpected("AND, OR or ')'"));
                }
                inner
            }
            Some(Kind::Tag(name)) => Query::Tag(name.clone()),
            Some(Kind::Prefix(prefix)) => Query::Prefix(prefix.clone()),
            Some(Kind::Type(content_type)) => Query::Type(content_type.clone()),
            Some(Kind::Close | Kind::And | Kind::Or | Kind::Not) | None => {
                return Err(self.unexpected(EXPECTED));
            }
        };
        self.at += 1;
        Ok(query)
    }
}

fn joined(mut parts: Vec<Query>, join: fn(Vec<Query>) -> Query) -> Query {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            join(parts)
        }
        None => join(parts),
    }
}

/// Renders the query for a terminal, with a caret under the character at `position` (counted in
/// Unicode scalar values).
pub fn caret(query: &str, position: usize) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = query.chars().map(printable).collect();
    let column: usize = line.chars().take(position).map(|c| c.width().unwrap_or(0)).sum();
    format!("{line}\n{:column$}^", "")
}
