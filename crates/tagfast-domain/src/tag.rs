//! Tag identity: two inputs with one canonical name are one tag.
//!
//! Canonical form, in order: NFKC, full case fold, NFKC, drop what is invisible and means nothing
//! (`invisible.rs`), trim, whitespace runs to `-`; repeated until it no longer changes
//! (folding and dropping can produce a sequence that composes again), so that canonicalisation is
//! idempotent. Forbidden characters are checked afterwards. The tables are those of
//! [`UNICODE_VERSION`]; golden vectors fail when a dependency's tables change, because a changed
//! canonical form would split or merge stored tags.
//!
//! A former name is a canonical name that an earlier release made and stored, when invisible
//! characters were kept. It is never made again, never rewritten, and remains readable, searchable
//! and removable: [`TagName::lookup`] names it, [`TagName::identity`] says which tag it is today.

use std::sync::Arc;

use icu_casemap::CaseMapper;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use icu_properties::{CodePointMapData, props::GeneralCategory};

use crate::content::{forbidden, text_newtype};
use crate::invisible::{self, Form};
use crate::limits::{TAG_BYTES, TAG_CHARACTERS};
use crate::{DomainError, UnixMillis, UserId};

/// The version of the Unicode tables behind canonical names.
pub const UNICODE_VERSION: &str = "18.0.0";

/// More rounds than any assigned sequence needs; a sequence that still changes after them is
/// refused.
const FOLD_ROUNDS_MAX: usize = 8;
/// Characters that an error about an invisible tag names at most.
const NAMED_CHARACTERS_MAX: usize = 4;

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
        canonical(input, Rules::Current).map(|name| Self(name.into()))
    }

    /// The name under which a spelling is looked up: its former name where that differs from the
    /// canonical one, so that a tag of an earlier release is found by exactly its own name. A
    /// former name must be resolved against what is stored, by [`TagName::identity`] where it is
    /// not found; it must never be stored.
    ///
    /// # Errors
    ///
    /// As [`TagName::parse`], for a spelling that never was a tag.
    pub fn lookup(input: &str) -> Result<Self, DomainError> {
        let name = Self::parse(input);
        if !invisible::has_special(input) {
            return name;
        }
        match canonical(input, Rules::Former) {
            Ok(former) if !name.as_ref().is_ok_and(|n| *n.0 == *former) => Ok(Self(former.into())),
            Ok(_) | Err(_) => name,
        }
    }

    /// The name that this name has today: another one for a former name, `None` for a former name
    /// that is no tag any more.
    pub fn identity(&self) -> Option<Self> {
        if invisible::has_special(&self.0) { Self::parse(&self.0).ok() } else { Some(self.clone()) }
    }

    /// Whether the name is a former one: [`TagName::identity`] differs from it.
    pub fn is_former(&self) -> bool {
        invisible::has_special(&self.0) && self.identity().as_ref() != Some(self)
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
        let mut display = display(input);
        if invisible::has_special(input) && TagName::parse(&display).as_ref() != Ok(&name) {
            // A joiner between compatibility forms means something after NFKC only.
            display = name.0.to_string();
        }
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
    if input.is_ascii() {
        return joined(input, ' ');
    }
    let nfc = ComposingNormalizerBorrowed::new_nfc();
    let mut shown = nfc.normalize(input).into_owned();
    // What was dropped may have kept its neighbours from composing.
    for _ in 0..FOLD_ROUNDS_MAX {
        let next = nfc.normalize(&invisible::visible(&shown, Form::Display)).into_owned();
        if next == shown {
            break;
        }
        shown = next;
    }
    joined(&shown, ' ')
}

/// Which canonical form is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Today's.
    Current,
    /// That of earlier releases: invisible characters are part of the name.
    Former,
}

fn canonical(input: &str, rules: Rules) -> Result<String, DomainError> {
    // Bounds the work: no longer input has a canonical form within the limits.
    if input.len() > TAG_BYTES * 8 {
        return Err(DomainError::TooManyBytes {
            what: "tag",
            allowed: TAG_BYTES,
            given: input.len(),
        });
    }
    let mut name = if input.is_ascii() {
        joined(&input.to_ascii_lowercase(), '-')
    } else {
        round(input, rules)
    };
    if !name.is_ascii() {
        for n in 0.. {
            let next = round(&name, rules);
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
    if name.is_empty() && invisible::has_special(input) {
        return Err(only_invisible(input));
    }
    if rules == Rules::Current
        && let Some((c, reason)) = name.chars().find_map(|c| Some((c, invisible::why_unseen(c)?)))
    {
        return Err(forbidden("tag", c, reason));
    }
    check(&name)?;
    Ok(name)
}

fn only_invisible(input: &str) -> DomainError {
    let mut codes: Vec<String> = Vec::new();
    for c in input.chars().filter(|c| !c.is_ascii_whitespace()) {
        let code = format!("U+{:04X}", u32::from(c));
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    if codes.len() > NAMED_CHARACTERS_MAX {
        codes.truncate(NAMED_CHARACTERS_MAX);
        codes.push("...".to_owned());
    }
    DomainError::OnlyInvisible { what: "tag", characters: codes.join(" ") }
}

fn round(s: &str, rules: Rules) -> String {
    let nfkc = ComposingNormalizerBorrowed::new_nfkc();
    let folded = CaseMapper::new().fold_string(&nfkc.normalize(s)).into_owned();
    let normal = nfkc.normalize(&folded);
    match rules {
        Rules::Current => joined(&invisible::visible(&normal, Form::Name), '-'),
        Rules::Former => joined(&normal, '-'),
    }
}

/// The words of a text, with one character between them.
fn joined(s: &str, between: char) -> String {
    let mut out = String::with_capacity(s.len());
    for word in s.split_whitespace() {
        if !out.is_empty() {
            out.push(between);
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
        c if invisible::is_bidi_override(c) => return refuse("bidi override"),
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
