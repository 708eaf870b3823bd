//! Tag identity: two inputs with one canonical name are one tag.
//!
//! Canonical form, in order: NFKC, full case fold, NFKC, trim, whitespace runs to `-`; repeated
//! until it no longer changes (folding can produce a sequence that composes again), so that
//! canonicalisation is idempotent. Forbidden characters are checked afterwards. The tables are
//! those of [`UNICODE_VERSION`]; golden vectors fail when a dependency's tables change, because a
//! changed canonical form would split or merge stored tags.

use std::sync::Arc;

use icu_casemap::CaseMapper;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use icu_properties::{CodePointMapData, props::GeneralCategory};

use crate::content::{forbidden, text_newtype};
use crate::limits::{TAG_BYTES, TAG_CHARACTERS};
use crate::{DomainError, UnixMillis, UserId};

/// The version of the Unicode tables behind canonical names.
pub const UNICODE_VERSION: &str = "18.0.0";

/// More rounds than any assigned sequence needs; a sequence that still changes after them is
/// refused.
const FOLD_ROUNDS_MAX: usize = 4;

text_newtype! {
    /// The canonical name of a tag: its identity.
    TagName
}

/// A tag as a user wrote it: its identity and the spelling to display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The identity.
    pub name: TagName,
    /// The spelling: NFC, outer whitespace trimmed, inner whitespace runs collapsed to one space.
    pub display: Arc<str>,
    /// The original user and time, carried over by an import. `None`: the writing user and the
    /// commit time.
    pub origin: Option<Origin>,
}

/// The user and time of an imported tagging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The user who added it.
    pub by: UserId,
    /// When it was added, Unix ms.
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

    /// A name that is already canonical, as a store holds it. Must not be used for external input.
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

/// Fast path for most tags: ASCII that needs neither folding nor a table lookup.
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
    // Bounds the work: no longer input has a canonical form within the limits.
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
            if n == FOLD_ROUNDS_MAX {
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
