//! Invisible characters: which ones are dropped from a tag, which ones mean something.
//!
//! Identity follows what people see. Dropped are the characters with the property
//! `Default_Ignorable_Code_Point`, as `NFKC_Casefold` of Unicode does (soft hyphen, zero-width
//! space, word joiner, byte order mark, variation selectors, direction marks, Hangul fillers, tag
//! characters, ...), and layout controls of two scripts. They stay where they change what is seen:
//!
//! - ZWNJ after a virama and before an alphabetic one, and between two that would join without it
//!   (`ContextJ` of RFC 5892);
//! - ZWJ after a virama, between a RA and a virama (Bengali and its neighbours tell ya-phalaa from
//!   reph by it), and between emoji;
//! - the tag characters of the flags of England, Scotland and Wales.
//!
//! Bidirectional embeddings, overrides and isolates and unassigned code points are not dropped but
//! refused by the tag's own check. Blanks that Unicode does not call white space count as blanks.
//! Nothing here fails: what remains is judged by the caller.

use std::borrow::Cow;

use icu_properties::props::{
    BidiControl, CanonicalCombiningClass, DefaultIgnorableCodePoint, Emoji, EmojiModifier,
    ExtendedPictographic, GeneralCategory, GeneralCategoryGroup, Ideographic, JoiningType, Script,
};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Zero-width non-joiner.
const ZWNJ: char = '\u{200C}';
/// Zero-width joiner.
const ZWJ: char = '\u{200D}';
/// Asks for the text form of an emoji.
const TEXT_SELECTOR: char = '\u{FE0E}';
/// Asks for the colourful form of an emoji.
const EMOJI_SELECTOR: char = '\u{FE0F}';
/// Makes a keycap of the digit before it.
const KEYCAP: char = '\u{20E3}';
/// The emoji on which the flags of subdivisions are built.
const BLACK_FLAG: char = '\u{1F3F4}';
/// Tag characters that follow [`BLACK_FLAG`] in the flags that Unicode recommends for interchange:
/// England, Scotland, Wales. Any other sequence looks like the black flag alone.
const FLAGS: [&str; 3] = [
    "\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
    "\u{E0067}\u{E0062}\u{E0073}\u{E0063}\u{E0074}\u{E007F}",
    "\u{E0067}\u{E0062}\u{E0077}\u{E006C}\u{E0073}\u{E007F}",
];

/// The part of a tag that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The canonical name: no variation selector is kept.
    Name,
    /// The spelling: a variation selector is kept where it chooses among forms of a character.
    Display,
}

/// Whether the rules of this module look at the character at all.
fn is_special(c: char) -> bool {
    !c.is_ascii() && (is_invisible(c) || is_blank(c) || why_unseen(c).is_some())
}

/// Whether text has a character that these rules drop, replace, refuse or keep by its neighbours.
pub(crate) fn has_special(text: &str) -> bool {
    !text.is_ascii() && text.chars().any(is_special)
}

/// Dropped, unless its neighbours give it a meaning.
pub(crate) fn is_invisible(c: char) -> bool {
    match c {
        '\0'..'\u{AD}' => false,
        // Layout of hieroglyphs, and the filler of the Khitan small script.
        '\u{13430}'..='\u{1343F}' | '\u{16FE4}' => true,
        c => {
            CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
                && !is_bidi_override(c)
                && category(c) != GeneralCategory::Unassigned
        }
    }
}

/// A blank that Unicode does not call white space: of braille and of hieroglyphs.
fn is_blank(c: char) -> bool {
    matches!(c, '\u{2800}' | '\u{13441}' | '\u{13442}')
}

/// Why a character that is not seen is refused: it neither may be dropped nor is it a blank.
/// `None`: it is seen, or the other rules speak of it.
pub(crate) fn why_unseen(c: char) -> Option<&'static str> {
    match c {
        '\u{FFF9}'..='\u{FFFB}' => Some("invisible control of annotations"),
        '\u{FFFC}' => Some("stands for an object that is missing"),
        '\u{1D159}' => Some("looks blank"),
        _ => None,
    }
}

/// Bidirectional embeddings, overrides and isolates: they show text in an order that is not its
/// own.
pub(crate) fn is_bidi_override(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Every control of the direction of text, marks included.
pub(crate) fn is_bidi_control(c: char) -> bool {
    !c.is_ascii() && CodePointSetData::new::<BidiControl>().contains(c)
}

/// The text as people see it: without what is invisible and means nothing, with plain blanks.
pub(crate) fn visible(text: &str, form: Form) -> Cow<'_, str> {
    if !has_special(text) {
        return Cow::Borrowed(text);
    }
    let kept = |c: &char| !is_invisible(*c) || is_candidate(*c, form);
    let text: String =
        text.chars().filter(kept).map(|c| if is_blank(c) { ' ' } else { c }).collect();
    let mut seen = Seen { out: String::with_capacity(text.len()), joiner: false, divider: false };
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        seen.push(c, rest.chars().next());
        if c == BLACK_FLAG
            && let Some(tags) = FLAGS.iter().find(|tags| rest.starts_with(**tags))
        {
            seen.out.push_str(tags);
            rest = &rest[tags.len()..];
        }
    }
    seen.join(None);
    Cow::Owned(seen.out)
}

/// Whether the neighbours of an invisible character decide on it.
fn is_candidate(c: char, form: Form) -> bool {
    matches!(c, ZWJ | ZWNJ)
        || is_flag_tag(c)
        || form == Form::Display && (is_variation_selector(c) || c == '\u{180E}')
}

fn is_flag_tag(c: char) -> bool {
    matches!(c, '\u{E0020}'..='\u{E007F}')
}

fn is_variation_selector(c: char) -> bool {
    matches!(
        c,
        '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}'
            | '\u{180B}'..='\u{180D}' | '\u{180F}'
    )
}

/// The text so far, and the joiners that wait for the character after them.
struct Seen {
    out: String,
    /// A ZWJ waits.
    joiner: bool,
    /// A ZWNJ waits. It moves behind marks that joining sees through, so that it has one place.
    divider: bool,
}

impl Seen {
    fn last(&self) -> Option<char> {
        self.out.chars().next_back()
    }

    fn push(&mut self, c: char, next: Option<char>) {
        match c {
            ZWJ => self.joiner = true,
            ZWNJ => self.divider = true,
            // Those of a flag are taken together with their flag.
            c if is_flag_tag(c) => {}
            c if is_variation_selector(c) || c == '\u{180E}' => {
                if self.last().is_some_and(|base| selects_form(base, c, next)) {
                    self.out.push(c);
                }
            }
            c => {
                self.join(Some(c));
                self.out.push(c);
            }
        }
    }

    /// Decides on the joiners before the character `next`; `None` is the end.
    fn join(&mut self, next: Option<char>) {
        let joiner = std::mem::take(&mut self.joiner);
        let Some(last) = self.last() else {
            self.divider = false;
            return;
        };
        if joiner && !self.divider_means(last, next) && self.joiner_means(last, next) {
            self.divider = false;
            self.out.push(ZWJ);
            return;
        }
        if next.is_some_and(|c| joining(c) == JoiningType::Transparent && !is_virama(c)) {
            return;
        }
        if self.divider_means(last, next) {
            self.out.push(ZWNJ);
        }
        self.divider = false;
    }

    fn divider_means(&self, last: char, next: Option<char>) -> bool {
        let Some(next) = next.filter(|_| self.divider) else { return false };
        let before = self.out.chars().rev().find(|c| joining(*c) != JoiningType::Transparent);
        is_virama(last) && is_alphabetic(next)
            || before.is_some_and(|c| joins(c, JoiningType::LeftJoining))
                && joins(next, JoiningType::RightJoining)
    }

    fn joiner_means(&self, last: char, next: Option<char>) -> bool {
        let of_emoji = |c: &char| {
            is_variation_selector(*c) || CodePointSetData::new::<EmojiModifier>().contains(*c)
        };
        let before = self.out.chars().rev().find(|c| !of_emoji(c));
        is_virama(last)
            || is_ra(last) && next.is_some_and(is_virama)
            || before.is_some_and(is_pictograph) && next.is_some_and(is_pictograph)
    }
}

/// Whether a variation selector chooses among forms of the character before it.
fn selects_form(base: char, selector: char, next: Option<char>) -> bool {
    match selector {
        TEXT_SELECTOR | EMOJI_SELECTOR => {
            CodePointSetData::new::<Emoji>().contains(base)
                && (!base.is_ascii() || next == Some(KEYCAP))
        }
        '\u{180B}'..='\u{180F}' => {
            CodePointMapData::<Script>::new().get(base) == Script::Mongolian && is_alphabetic(base)
        }
        _ => CodePointSetData::new::<Ideographic>().contains(base),
    }
}

fn is_pictograph(c: char) -> bool {
    CodePointSetData::new::<ExtendedPictographic>().contains(c)
}

/// RA of the scripts in which ZWJ before a virama keeps it from becoming a reph: Bengali, Assamese,
/// Odia, Telugu, Kannada.
fn is_ra(c: char) -> bool {
    matches!(c, '\u{9B0}' | '\u{9F0}' | '\u{B30}' | '\u{C30}' | '\u{CB0}')
}

fn is_virama(c: char) -> bool {
    CodePointMapData::<CanonicalCombiningClass>::new().get(c) == CanonicalCombiningClass::Virama
}

fn is_alphabetic(c: char) -> bool {
    let character = category(c);
    GeneralCategoryGroup::Letter.contains(character)
}

fn category(c: char) -> GeneralCategory {
    CodePointMapData::<GeneralCategory>::new().get(c)
}

fn joining(c: char) -> JoiningType {
    CodePointMapData::<JoiningType>::new().get(c)
}

/// Whether a character joins on this side.
fn joins(c: char, side: JoiningType) -> bool {
    let of = joining(c);
    of == JoiningType::DualJoining || of == side
}
