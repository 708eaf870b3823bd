//! Identity of tags: canonical names, spellings, refusals.

use proptest::prelude::*;
use tagfast_domain::tag::nfd;
use tagfast_domain::{DomainError, Tag, TagName, UNICODE_VERSION};

use crate::support::cases;

fn unescape(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once("\\u{") {
        out.push_str(before);
        let (code, after) = after.split_once('}').expect("a closed escape");
        out.push(u32::from_str_radix(code, 16).ok().and_then(char::from_u32).expect("a character"));
        rest = after;
    }
    out + rest
}

/// A changed line means that stored tags split or merge: it needs a migration, or former names that
/// are still found (`former.rs`), not only a new golden file.
#[test]
fn canonical_names_are_frozen() {
    let mut lines = 0;
    for line in include_str!("../golden/canonical.tsv").lines().filter(|l| !l.starts_with('#')) {
        let (spelling, canonical) = line.split_once('\t').expect("two columns");
        let (spelling, canonical) = (unescape(spelling), unescape(canonical));
        let tag = Tag::parse(&spelling).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(tag.name.as_str(), canonical, "{line}");
        assert_eq!(
            TagName::parse(&canonical).map(|n| n.to_string()),
            Ok(canonical),
            "{line}: canonical is canonical"
        );
        lines += 1;
    }
    assert!(lines > 190, "{lines} golden lines");
}

/// A checksum over every code point, alone and after an `a`: it changes when a dependency's tables
/// change.
#[test]
fn the_tables_of_all_code_points_are_frozen() {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut accepted = 0;
    let mut eat = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for c in '\0'..=char::MAX {
        for spelling in [c.to_string(), format!("a{c}")] {
            match TagName::parse(&spelling) {
                Ok(name) => {
                    accepted += 1;
                    eat(name.as_str().as_bytes());
                }
                Err(e) => eat(e.code().as_bytes()),
            }
            eat(&[0]);
        }
    }
    assert_eq!(UNICODE_VERSION, "18.0.0");
    assert_eq!(
        (accepted, hash),
        (345_109, 10_742_164_548_530_765_637),
        "the tables are not those of Unicode {UNICODE_VERSION} any more"
    );
}

#[test]
fn new_scripts_of_the_version_we_name_are_assigned() {
    // SAUDI RIYAL SIGN came with Unicode 17, SEAL CHARACTERs with Unicode 18.
    for c in ['\u{20C1}', '\u{3D000}'] {
        assert!(
            Tag::parse(&c.to_string()).is_ok(),
            "{c:?} is assigned in Unicode {UNICODE_VERSION}"
        );
    }
    match Tag::parse("\u{378}") {
        Err(DomainError::ForbiddenCharacter { reason, .. }) => {
            assert!(reason.ends_with(UNICODE_VERSION), "{reason}")
        }
        other => panic!("U+0378 is not assigned: {other:?}"),
    }
}

#[test]
fn forbidden_characters_are_named() {
    for (spelling, character) in [
        ("a<b", "U+003C '<'"),
        ("a,b", "U+002C ','"),
        ("\"", "U+0022 '\"'"),
        ("a\\b", "U+005C '\\'"),
        ("a>", "U+003E '>'"),
        ("＜", "U+003C '<'"),
        ("a\u{0}b", "U+0000"),
        ("a\u{7f}", "U+007F"),
        ("a\u{1b}b", "U+001B"),
        ("a\u{202E}b", "U+202E"),
        ("a\u{2067}b", "U+2067"),
        ("\u{E000}", "U+E000"),
        ("\u{10FFFD}", "U+10FFFD"),
        ("\u{378}", "U+0378"),
        ("\u{FFFE}", "U+FFFE"),
    ] {
        match Tag::parse(spelling) {
            Err(DomainError::ForbiddenCharacter { what: "tag", character: c, .. }) => {
                assert_eq!(c, character)
            }
            other => panic!("{spelling:?} must be refused: {other:?}"),
        }
    }
    for blank in ["", " ", "\t\n", "\u{3000}\u{A0}"] {
        assert_eq!(Tag::parse(blank), Err(DomainError::Empty { what: "tag" }), "{blank:?}");
    }
}

#[test]
fn lengths_count_characters_and_bytes_of_both_forms() {
    for (fits, too_long) in [
        ("x".repeat(64), "x".repeat(65)),
        ("語".repeat(64), "語".repeat(65)),
        ("😀".repeat(64), "😀".repeat(65)),
        ("ß".repeat(32), "ß".repeat(33)),
        (format!("  {}  ", "y".repeat(64)), format!("{} z", "y".repeat(63))),
    ] {
        assert!(Tag::parse(&fits).is_ok(), "{fits}");
        let error = Tag::parse(&too_long).expect_err(&too_long);
        assert_eq!(error.limit().map(|l| (l.0, l.1)), Some(("tag_characters", 64)), "{too_long}");
        assert_eq!(error.code(), "too_long");
    }
    // 64 letters with a mark each are 128 characters, and 64 after composition.
    assert!(Tag::parse(&"e\u{301}".repeat(64)).is_ok());
    // One character that becomes 18: the canonical form counts too.
    assert!(Tag::parse(&"\u{FDFA}".repeat(3)).is_ok());
    assert!(Tag::parse(&"\u{FDFA}".repeat(4)).is_err());
    let huge = Tag::parse(&"x".repeat(1 << 20)).expect_err("a megabyte");
    assert_eq!(huge.limit().map(|l| l.2), Some(1 << 20));
}

#[test]
fn the_spelling_is_kept_for_display() {
    for (spelling, display) in [
        ("Needs  Review", "Needs Review"),
        ("  C++ ", "C++"),
        ("Cafe\u{301}", "Café"),
        ("a\tb", "a b"),
        ("ＵＩ", "ＵＩ"),
        ("ui", "ui"),
    ] {
        let tag = Tag::parse(spelling).expect("a tag");
        assert_eq!(&*tag.display, display);
        assert_eq!(
            Tag::parse(&tag.display).expect("a tag").name,
            tag.name,
            "the display is a spelling of its tag"
        );
    }
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn canonicalising_is_idempotent(spelling in prop::collection::vec(any::<char>(), 1..20)) {
        let spelling: String = spelling.into_iter().collect();
        if let Ok(tag) = Tag::parse(&spelling) {
            prop_assert_eq!(TagName::parse(tag.name.as_str()), Ok(tag.name.clone()));
            let again = Tag::parse(&tag.display).expect("a display is a spelling");
            prop_assert_eq!(&again.name, &tag.name);
            prop_assert_eq!(&again.display, &tag.display);
        }
    }

    #[test]
    fn normal_forms_and_cases_are_one_tag(spelling in "[\\p{L}\\p{N}\\p{M} +#.:_-]{1,14}") {
        let Ok(tag) = Tag::parse(&spelling) else { return Ok(()) };
        let decomposed = nfd(&spelling);
        prop_assert_eq!(Tag::parse(&decomposed).map(|t| t.name), Ok(tag.name.clone()), "NFD of {:?}", spelling);
        // Full case folding makes upper and lower case one, but for the letters whose mappings
        // Unicode gives a context or a dot (final sigma and dotted I): those fold by themselves in
        // the golden file.
        for other in [spelling.to_lowercase(), spelling.to_uppercase()] {
            let special = |c: char| matches!(c, 'İ' | 'ı' | '\u{307}' | '\u{345}');
            if !spelling.chars().any(special) {
                prop_assert_eq!(Tag::parse(&other).map(|t| t.name), Ok(tag.name.clone()), "{:?} of {:?}", other, spelling);
            }
        }
    }

    #[test]
    fn full_width_is_plain_ascii(spelling in "[!#-+--;=?-\\[\\]-~]{1,20}") {
        let wide: String = spelling.chars().map(|c| char::from_u32(u32::from(c) + 0xFEE0).expect("full width")).collect();
        prop_assert_eq!(Tag::parse(&wide).map(|t| t.name), Tag::parse(&spelling).map(|t| t.name));
    }

    /// The path for plain ASCII and the path through the tables agree.
    #[test]
    fn the_short_way_is_the_long_way(spelling in "[ -~]{1,70}") {
        // A mark that composes with nothing before it, and is cut off again.
        let long = TagName::parse(&format!("{spelling} \u{20DD}"));
        let short = TagName::parse(&spelling);
        if let (Ok(short), Ok(long)) = (&short, &long) {
            prop_assert_eq!(long.as_str().strip_suffix("-\u{20DD}"), Some(short.as_str()));
        } else if let Ok(short) = &short {
            prop_assert!(short.as_str().chars().count() > 62, "{:?}", long);
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Tag::parse(&String::from_utf8_lossy(&bytes));
    }
}
