//! Identity follows what people see: invisible characters over all of Unicode.

use icu_properties::props::{
    BidiControl, CanonicalCombiningClass, DefaultIgnorableCodePoint, ExtendedPictographic,
    GeneralCategory, JoiningType,
};
use icu_properties::{CodePointMapData, CodePointSetData};
use tagfast_domain::*;

use crate::support::{patch, write};

const ZWNJ: char = '\u{200C}';
const ZWJ: char = '\u{200D}';
/// Blank-looking characters that Unicode neither ignores nor calls white space.
const BLANKS: [char; 10] = [
    '\u{2800}',
    '\u{13441}',
    '\u{13442}',
    '\u{16FE4}',
    '\u{1D159}',
    '\u{FFF9}',
    '\u{FFFA}',
    '\u{FFFB}',
    '\u{FFFC}',
    '\u{13430}',
];
/// Invisible characters of every kind, none of which means anything between Latin letters.
const DROPPED: [char; 16] = [
    '\u{AD}',
    '\u{34F}',
    '\u{61C}',
    '\u{1160}',
    '\u{17B4}',
    '\u{180E}',
    '\u{200B}',
    ZWNJ,
    ZWJ,
    '\u{200E}',
    '\u{2060}',
    '\u{3164}',
    '\u{FE0F}',
    '\u{FEFF}',
    '\u{E0067}',
    '\u{E0101}',
];

fn name(spelling: &str) -> Result<String, DomainError> {
    TagName::parse(spelling).map(|n| n.to_string())
}

fn category(c: char) -> GeneralCategory {
    CodePointMapData::<GeneralCategory>::new().get(c)
}

fn is_assigned(c: char) -> bool {
    !matches!(category(c), GeneralCategory::Unassigned | GeneralCategory::PrivateUse)
}

fn is_ignorable(c: char) -> bool {
    CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Whether anything of the text is seen.
fn is_seen(text: &str) -> bool {
    text.chars().any(|c| !is_ignorable(c) && !c.is_whitespace() && !BLANKS.contains(&c))
}

/// Every assigned character that may be a tag; of the big uniform blocks each 53rd, or all with the
/// feature `full`.
fn characters() -> impl Iterator<Item = char> {
    let uniform = |c: char| {
        matches!(c, '\u{3400}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7A3}' | '\u{17000}'..='\u{18DFF}'
            | '\u{20000}'..='\u{3FFFF}' | '\u{12000}'..='\u{143FF}' | '\u{A000}'..='\u{A4CF}')
            && !BLANKS.contains(&c)
    };
    let taken =
        move |c: &char| cfg!(feature = "full") || !uniform(*c) || (*c as u32).is_multiple_of(53);
    ('\0'..=char::MAX).filter(taken).filter(|c| is_assigned(*c))
}

/// What holds of every tag that is accepted.
#[track_caller]
fn judge(spelling: &str) -> Option<Tag> {
    let tag = Tag::parse(spelling).ok()?;
    assert!(is_seen(tag.name.as_str()), "{spelling:?} is nothing that is seen: {tag:?}");
    assert!(is_seen(&tag.display), "{spelling:?} shows nothing: {tag:?}");
    assert_eq!(TagName::parse(tag.name.as_str()).as_ref(), Ok(&tag.name), "{spelling:?}");
    assert!(!tag.name.is_former(), "{tag:?} is a name of today");
    let again = Tag::parse(&tag.display).unwrap_or_else(|e| panic!("{spelling:?}: {e}"));
    assert_eq!((&again.name, &again.display), (&tag.name, &tag.display), "{spelling:?}");
    Some(tag)
}

#[test]
fn no_tag_of_all_of_unicode_is_invisible() {
    // Unassigned and private-use characters are refused: `tag.rs` looks at all of them.
    for c in ('\0'..=char::MAX).filter(|c| is_assigned(*c) || is_ignorable(*c)) {
        judge(&c.to_string());
    }
    let unseen: Vec<char> = BLANKS.into_iter().chain(DROPPED).collect();
    for a in &unseen {
        for b in &unseen {
            let spelling = format!("{a}{b} {a}");
            let error = Tag::parse(&spelling).expect_err(&spelling);
            assert!(matches!(error.code(), "empty" | "forbidden_character"), "{error}");
        }
    }
    let error = Tag::parse("\u{200B}\u{AD}\u{200B}").expect_err("nothing is seen");
    let words = "tag is empty: it has only invisible characters (U+200B U+00AD)";
    assert_eq!(error.to_string(), words);
    let error = Tag::parse("null \u{1D159}").expect_err("a blank is refused");
    assert!(error.to_string().contains("U+1D159"), "{error}");
}

#[test]
fn an_invisible_character_never_makes_another_tag() {
    for c in characters() {
        let dropped = is_ignorable(c);
        for spelling in [format!("{c}ab"), format!("a{c}b"), format!("ab{c}"), format!("a{c}{c}b")]
        {
            let Some(tag) = judge(&spelling) else { continue };
            if dropped || BLANKS.contains(&c) {
                let seen = tag.name.as_str();
                assert!(["ab", "a-b"].contains(&seen), "{spelling:?} is {seen:?}");
                assert_eq!(&*tag.display, tag.name.as_str().replace('-', " "), "{spelling:?}");
            }
        }
    }
    // Between, before and behind every character that is seen.
    for c in characters().filter(|c| !is_ignorable(*c)) {
        let plain = [name(&c.to_string()), name(&format!("b{c}"))];
        for i in ['\u{AD}', '\u{3164}', '\u{FE0F}', '\u{E0067}'] {
            let with = [name(&format!("{i}{c}{i}")), name(&format!("b{i}{c}"))];
            assert_eq!(with.clone().map(Result::ok), plain.clone().map(Result::ok), "{c:?} {i:?}");
        }
    }
}

#[test]
fn joiners_stay_only_where_they_mean_something() {
    let virama = |c: char| {
        CodePointMapData::<CanonicalCombiningClass>::new().get(c) == CanonicalCombiningClass::Virama
    };
    let joining = |c: char| CodePointMapData::<JoiningType>::new().get(c);
    let pictograph = |c: char| CodePointSetData::new::<ExtendedPictographic>().contains(c);
    let mut kept = 0;
    for c in characters().filter(|c| !is_ignorable(*c)) {
        let of = |spelling: String| name(&spelling).ok();
        let alone = of(c.to_string());
        for joiner in [ZWJ, ZWNJ] {
            assert_eq!(of(format!("{joiner}{c}")), alone, "{joiner:?} before {c:?}");
            let behind = of(format!("{c}{joiner}"));
            if behind != alone {
                assert!(joiner == ZWJ && virama(c), "{joiner:?} behind {c:?}: {behind:?}");
            }
            let within = judge(&format!("{c}{joiner}{c}"));
            let plain = of(format!("{c}{c}"));
            if within.as_ref().map(|t| t.name.to_string()) != plain {
                let name = within.expect("a joiner never makes a tag refused").name.to_string();
                kept += 1;
                assert_eq!(name.chars().filter(|c| *c == joiner).count(), 1, "{name:?}");
                let (left, right) = name.split_once(joiner).expect("one joiner");
                let seen_through = |c: &char| joining(*c) != JoiningType::Transparent;
                let left = left.chars().rev().find(seen_through).map(joining);
                let right = right.chars().next().map(joining);
                let means = virama(c)
                    || joiner == ZWJ && pictograph(c)
                    || joiner == ZWNJ
                        && matches!(
                            left,
                            Some(JoiningType::DualJoining | JoiningType::LeftJoining)
                        )
                        && matches!(
                            right,
                            Some(JoiningType::DualJoining | JoiningType::RightJoining)
                        );
                assert!(means, "{joiner:?} within {c:?}: {name:?}");
            }
            // Joiners and whatever else is invisible never add up.
            let many = of(format!("{c}\u{200B}{joiner}{joiner}\u{AD}{joiner}{c}"));
            assert_eq!(many, of(format!("{c}{joiner}{c}")), "{joiner:?} many times within {c:?}");
        }
    }
    assert!(kept > 1500, "{kept} joiners have a meaning");
}

#[test]
fn spellings_that_look_alike_are_one_tag() {
    for (spellings, display) in [
        (vec!["critical", "crit\u{200B}ical", "\u{FEFF}critical", "criti\u{AD}cal\u{200E}"], None),
        (vec!["a b", "a\u{200B} \u{2060}b", "a\u{2800}b", "a \u{2800} b", "a\u{13441}b"], None),
        (vec!["caf\u{E9}", "cafe\u{200B}\u{301}", "cafe\u{34F}\u{301}"], Some("caf\u{E9}")),
        (vec!["\u{2764}\u{FE0F}", "\u{2764}", "\u{2764}\u{FE0E}"], Some("\u{2764}\u{FE0F}")),
        (vec!["1\u{FE0F}\u{20E3}", "1\u{20E3}"], Some("1\u{FE0F}\u{20E3}")),
        (
            vec![
                "\u{1F3F3}\u{FE0F}\u{200D}\u{1F308}",
                "\u{1F3F3}\u{200D}\u{1F308}",
                "\u{1F3F3}\u{FE0F}\u{200D}\u{200D}\u{1F308}\u{FE0F}",
            ],
            Some("\u{1F3F3}\u{FE0F}\u{200D}\u{1F308}"),
        ),
        (vec!["\u{845B}", "\u{845B}\u{E0100}", "\u{845B}\u{E0101}"], None),
        // The tag characters of Texas look like nothing behind the black flag.
        (
            vec![
                "\u{1F3F4}",
                "\u{1F3F4}\u{E0075}\u{E0073}\u{E0074}\u{E0078}\u{E007F}",
                "\u{1F3F4}\u{E0067}\u{E0062}",
                "\u{1F3F4}\u{E007F}",
            ],
            None,
        ),
        // Behind a character that does not join, ZWNJ shows nothing.
        (
            vec![
                "\u{6A9}\u{627}\u{631}\u{647}\u{627}",
                "\u{6A9}\u{627}\u{631}\u{200C}\u{647}\u{627}",
            ],
            None,
        ),
        // One place for ZWNJ among marks.
        (vec!["\u{628}\u{200C}\u{64E}\u{62A}", "\u{628}\u{64E}\u{200C}\u{62A}"], None),
        (vec!["\u{AC00}", "\u{1100}\u{1161}", "\u{1100}\u{3164}\u{1161}"], None),
        (vec!["Auflage", "Auf\u{200C}lage"], None),
    ] {
        let first = Tag::parse(spellings[0]).expect("a tag");
        for spelling in &spellings {
            let tag = Tag::parse(spelling).unwrap_or_else(|e| panic!("{spelling:?}: {e}"));
            assert_eq!(tag.name, first.name, "{spelling:?}");
        }
        if let Some(display) = display {
            assert_eq!(&*first.display, display, "{:?}", spellings[0]);
        }
    }
    assert_eq!(&*Tag::parse("crit\u{200B}\u{FE0F}ical").expect("a tag").display, "critical");
}

#[test]
fn what_is_seen_to_differ_stays_apart() {
    for names in [
        // Persian: to want, with and without the divider. Devanagari: conjunct, half form, halant.
        vec![
            "\u{645}\u{6CC}\u{200C}\u{62E}\u{648}\u{627}\u{647}\u{645}",
            "\u{645}\u{6CC}\u{62E}\u{648}\u{627}\u{647}\u{645}",
        ],
        vec![
            "\u{915}\u{94D}\u{937}",
            "\u{915}\u{94D}\u{200D}\u{937}",
            "\u{915}\u{94D}\u{200C}\u{937}",
        ],
        // Sinhala: sri. Malayalam: a chillu in its older spelling. Bengali: RAM and its reph.
        vec!["\u{DC1}\u{DCA}\u{200D}\u{DBB}\u{DD3}", "\u{DC1}\u{DCA}\u{DBB}\u{DD3}"],
        vec!["\u{D28}\u{D4D}\u{200D}", "\u{D28}\u{D4D}"],
        vec!["\u{9B0}\u{200D}\u{9CD}\u{9AF}\u{9BE}\u{9AE}", "\u{9B0}\u{9CD}\u{9AF}\u{9BE}\u{9AE}"],
        // A family, a rocket scientist with a skin tone, flags.
        vec!["\u{1F469}\u{200D}\u{1F467}", "\u{1F469}\u{1F467}"],
        vec!["\u{1F469}\u{1F3FD}\u{200D}\u{1F680}", "\u{1F469}\u{1F3FD}\u{1F680}"],
        vec![
            "\u{1F3F4}",
            "\u{1F3F4}\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
            "\u{1F3F4}\u{E0067}\u{E0062}\u{E0073}\u{E0063}\u{E0074}\u{E007F}",
            "\u{1F3F4}\u{200D}\u{2620}",
        ],
    ] {
        for (n, a) in names.iter().enumerate() {
            let tag = judge(a).expect("a tag");
            assert_eq!(tag.name.as_str(), *a, "it is canonical");
            names[n + 1..].iter().for_each(|b| assert_ne!(name(b).as_deref(), Ok(*a)));
        }
    }
}

#[test]
fn controls_of_direction_are_refused_in_new_data_only() {
    for c in ('\0'..=char::MAX).filter(|c| CodePointSetData::new::<BidiControl>().contains(*c)) {
        let key = ContentKey::parse("acme", "doc", &format!("a{c}b")).expect("an id of old data");
        let user = UserId::parse(&format!("ann{c}")).expect("a user of old data");
        let plain = patch(0, &["a"], &[]);
        let mut imported = plain.clone();
        let Operation::Patch { add, .. } = &mut imported.operation else { panic!("a patch") };
        add[0].origin = Some(Origin { by: user.clone(), at: 0 });
        for adds in [
            Write { key: key.clone(), ..plain.clone() },
            Write { user: user.clone(), ..plain.clone() },
            imported,
        ] {
            let error = adds.check_new_data().expect_err("it adds").to_string();
            assert!(error.contains(&format!("U+{:04X}", c as u32)), "{error}");
        }
        let none = Operation::replace(Vec::new(), &Limits::default()).expect("a set");
        for removes in [patch(0, &[], &["a"]), write(0, none)] {
            let removes = Write { key: key.clone(), user: user.clone(), ..removes };
            assert_eq!(removes.check_new_data(), Ok(()), "{c:?}");
        }
    }
    assert_eq!(patch(0, &["a"], &[]).check_new_data(), Ok(()));
}
