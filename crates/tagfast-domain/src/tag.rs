//! Tag identity: two inputs with one canonical name are one tag.
//!
//! Canonical form, in order: NFKC, full case fold, NFKC, trim, whitespace runs to `-`; repeated
//! until it no longer changes (folding can make a sequence that composes anew), so that
//! canonicalising is idempotent. Forbidden characters are checked after it. The tables are those of
//! [`UNICODE_VERSION`]; golden vectors fail when a dependency's tables change, because a changed
//! canonical form would split or merge tags that are stored.

use std::sync::Arc;

use icu_casemap::CaseMapper;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use icu_properties::{CodePointMapData, props::GeneralCategory};

use crate::content::{forbidden, text_newtype};
use crate::limits::{TAG_BYTES, TAG_CHARACTERS};
use crate::{DomainError, UnixMillis, UserId};

/// The version of the Unicode tables behind canonical names.
pub const UNICODE_VERSION: &str = "18.0.0";

/// More rounds than any assigned sequence needs; a sequence that still changes is refused.
const MAX_ROUNDS: usize = 4;

text_newtype! {
    /// The canonical name of a tag: its identity.
    TagName
}

/// A tag as somebody wrote it: its identity and the spelling to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The identity.
    pub name: TagName,
    /// The spelling, NFC, outer blanks trimmed, inner runs of blanks one space.
    pub display: Arc<str>,
    /// Who tagged and when, where an import carries it over from elsewhere; else the writer and
    /// the commit's time.
    pub origin: Option<Origin>,
}

/// Who added a tagging and when, as an import or a restore of exported data knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The adder.
    pub by: UserId,
    /// When.
    pub at: UnixMillis,
}

impl TagName {
    /// Canonicalises any spelling.
    pub fn parse(input: &str) -> Result<Self, DomainError> {
        if is_canonical_ascii(input) {
            return Ok(Self(input.into()));
        }
        canonical(input).map(|name| Self(name.into()))
    }

    /// Takes a name that is canonical already, as the stores keep it; not for input from outside.
    pub fn from_canonical(name: &str) -> Self {
        Self(name.into())
    }
}

impl Tag {
    /// Canonicalises a spelling and keeps it for display.
    pub fn parse(input: &str) -> Result<Self, DomainError> {
        let name = TagName::parse(input)?;
        if *name.0 == *input {
            // Canonical names are NFC without blanks: the spelling is the name.
            return Ok(Self { display: Arc::clone(&name.0), name, origin: None });
        }
        let display = display(input);
        check(&display)?;
        if *display == *name.0 {
            return Ok(Self { display: Arc::clone(&name.0), name, origin: None });
        }
        Ok(Self { name, display: display.into(), origin: None })
    }
}

/// Most tags of most clients: nothing to change and nothing to look up.
fn is_canonical_ascii(input: &str) -> bool {
    let plain = |b: u8| {
        b.is_ascii_graphic()
            && !b.is_ascii_uppercase()
            && !matches!(b, b'<' | b'>' | b'"' | b'\\' | b',')
    };
    !input.is_empty() && input.len() <= TAG_CHARACTERS && input.bytes().all(plain)
}

fn display(input: &str) -> String {
    let nfc = if input.is_ascii() {
        std::borrow::Cow::Borrowed(input)
    } else {
        ComposingNormalizerBorrowed::new_nfc().normalize(input)
    };
    let mut out = String::with_capacity(nfc.len());
    for word in nfc.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

fn canonical(input: &str) -> Result<String, DomainError> {
    // The bound of work: no input of more bytes can have a canonical form within the limits' reach.
    if input.len() > TAG_BYTES * 8 {
        return Err(DomainError::TooManyBytes {
            what: "tag",
            allowed: TAG_BYTES,
            given: input.len(),
        });
    }
    let mut name =
        if input.is_ascii() { hyphenate(&input.to_ascii_lowercase()) } else { round(input) };
    if !name.is_ascii() {
        for n in 0.. {
            let next = round(&name);
            if next == name {
                break;
            }
            if n == MAX_ROUNDS {
                return Err(DomainError::Undecodable {
                    what: "tag",
                    reason: "its canonical form is not stable",
                });
            }
            name = next;
        }
    }
    check(&name)?;
    Ok(name)
}

fn round(s: &str) -> String {
    let nfkc = ComposingNormalizerBorrowed::new_nfkc();
    let folded = CaseMapper::new().fold_string(&nfkc.normalize(s)).into_owned();
    hyphenate(&nfkc.normalize(&folded))
}

fn hyphenate(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for word in s.split_whitespace() {
        if !out.is_empty() {
            out.push('-');
        }
        out.push_str(word);
    }
    out
}

fn check(form: &str) -> Result<(), DomainError> {
    if form.is_empty() {
        return Err(DomainError::Empty { what: "tag" });
    }
    let characters = if form.is_ascii() { form.len() } else { form.chars().count() };
    if characters > TAG_CHARACTERS {
        return Err(DomainError::TooManyCharacters {
            what: "tag",
            allowed: TAG_CHARACTERS,
            given: characters,
        });
    }
    if form.len() > TAG_BYTES {
        return Err(DomainError::TooManyBytes {
            what: "tag",
            allowed: TAG_BYTES,
            given: form.len(),
        });
    }
    form.chars().try_for_each(check_character)
}

fn check_character(c: char) -> Result<(), DomainError> {
    let refuse = |reason| Err(forbidden("tag", c, reason));
    match c {
        '<' | '>' | '"' | '\\' | ',' => return refuse("one of < > \" \\ ,"),
        '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => return refuse("bidi override"),
        c if c.is_control() => return refuse("control character"),
        c if c.is_ascii() => return Ok(()),
        _ => {}
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    if category == GeneralCategory::PrivateUse {
        return refuse("private use");
    }
    if category == GeneralCategory::Unassigned {
        return refuse("unassigned in Unicode 18.0.0");
    }
    Ok(())
}

/// Decomposed form, for tests of equality under normalisation forms.
#[doc(hidden)]
pub fn nfd(s: &str) -> String {
    DecomposingNormalizerBorrowed::new_nfd().normalize(s).into_owned()
}
