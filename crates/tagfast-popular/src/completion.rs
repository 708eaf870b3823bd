//! Completion of typed text: which tags a text may become, and how well each fits.
//!
//! A tag is found by its canonical name and by its display in lower case. A text that begins a tag
//! fits best, then one that begins a word inside it (`commandline` in `interface::commandline`),
//! then one anywhere inside. Hangul is compared as the keys that a person presses, because a
//! half-typed syllable is a different character from the finished one: `하`, `한ㄱ` and `한그` are
//! on the way to `한글`.
//!
//! The work is bounded by the number of known tags
//! ([`crate::leaderboards::TYPEAHEAD_TAGS_MAX`]), each of which is looked at once.

use std::collections::BTreeMap;

use memchr::memmem::Finder;
use tagfast_domain::TagName;

/// A shorter text completes only the beginning of tags, in ASCII characters: nearly every tag has
/// each character inside. One character of another script is a word often enough.
const INSIDE_CHARS_MIN: usize = 2;
/// Ends each form in the text that is searched for matches inside; no tag contains it.
const END_OF_FORM: char = '\n';

/// Where in a tag a typed text was found; the best place comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchPlace {
    /// At its beginning.
    Start,
    /// At the beginning of a word inside, as after `::`, `-` or a blank.
    Word,
    /// Anywhere else inside.
    Inside,
}

/// The forms of a tenant's tags, in order of use: a smaller number is a more used tag.
#[derive(Default)]
pub(crate) struct CompletionForms {
    /// (form, number of the tag), sorted.
    sorted: Vec<(Box<str>, u32)>,
    /// All forms in order of use, each followed by [`END_OF_FORM`].
    text: String,
    /// (start in `text`, number of the tag), in order.
    starts: Vec<(u32, u32)>,
}

impl CompletionForms {
    /// Takes canonical names and displays, most used first.
    pub(crate) fn of<'a>(tags: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut forms = Self::default();
        for (n, (name, display)) in (0..).zip(tags) {
            let shown = display.to_lowercase();
            forms.add(n, name);
            if shown != name {
                forms.add(n, &shown);
            }
        }
        forms.sorted.sort_unstable();
        forms
    }

    fn add(&mut self, n: u32, form: &str) {
        let form = pressed_keys(form);
        self.starts.push((u32::try_from(self.text.len()).unwrap_or(u32::MAX), n));
        self.text.push_str(&form);
        self.text.push(END_OF_FORM);
        self.sorted.push((form.into_boxed_str(), n));
    }

    /// Memory of the forms, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let sorted = self.sorted.len() * size_of::<(Box<str>, u32)>();
        sorted + self.text.len() * 2 + self.starts.len() * size_of::<(u32, u32)>()
    }

    /// Numbers of the tags that the typed text may become and where it was found: by place, then by
    /// use, at most `limit`. `None` if nothing was typed: every tag fits.
    pub(crate) fn complete(&self, typed: &str, limit: usize) -> Option<Vec<(u32, MatchPlace)>> {
        let typed = typed_forms(typed);
        if typed.iter().any(String::is_empty) {
            return None;
        }
        let mut found: BTreeMap<u32, MatchPlace> = BTreeMap::new();
        for typed in &typed {
            let start = self.sorted.partition_point(|(form, _)| **form < **typed);
            let matching =
                self.sorted[start..].iter().take_while(|(form, _)| form.starts_with(&**typed));
            found.extend(matching.map(|(_, n)| (*n, MatchPlace::Start)));
        }
        if found.len() < limit {
            typed.iter().for_each(|typed| self.find_inside(typed, &mut found));
        }
        let mut best: Vec<_> = found.into_iter().collect();
        best.sort_by_key(|(n, place)| (*place, *n));
        best.truncate(limit);
        Some(best)
    }

    fn find_inside(&self, typed: &str, found: &mut BTreeMap<u32, MatchPlace>) {
        if typed.is_ascii() && typed.len() < INSIDE_CHARS_MIN {
            return;
        }
        let finder = Finder::new(typed);
        let mut form = 0;
        let mut from = 0;
        while let Some(at) = finder.find(&self.text.as_bytes()[from..]).map(|at| from + at) {
            form += self.starts[form..].partition_point(|(start, _)| *start as usize <= at);
            let (start, n) = self.starts[form - 1];
            let before = self.text[start as usize..at].chars().next_back();
            let place = match before {
                None => MatchPlace::Start,
                Some(c) if !c.is_alphanumeric() => MatchPlace::Word,
                Some(_) => MatchPlace::Inside,
            };
            let best = found.entry(n).or_insert(place);
            *best = (*best).min(place);
            // The rest of the form can only hold a better place if this one is inside a word.
            from = match place {
                MatchPlace::Start | MatchPlace::Word => {
                    self.starts.get(form).map_or(self.text.len(), |(next, _)| *next as usize)
                }
                MatchPlace::Inside => at + self.text[at..].chars().next().map_or(1, char::len_utf8),
            };
            form -= 1;
        }
    }
}

/// Forms of the typed text, which need not be a complete tag: it may end in a blank or be empty.
fn typed_forms(typed: &str) -> Vec<String> {
    let mut forms = vec![pressed_keys(&typed.trim_start().to_lowercase())];
    if let Ok(canonical) = TagName::parse(typed) {
        let canonical = pressed_keys(canonical.as_str());
        if canonical != forms[0] {
            forms.push(canonical);
        }
    }
    forms
}

const LEADING: [&str; 19] = [
    "ㄱ", "ㄲ", "ㄴ", "ㄷ", "ㄸ", "ㄹ", "ㅁ", "ㅂ", "ㅃ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅉ", "ㅊ", "ㅋ",
    "ㅌ", "ㅍ", "ㅎ",
];
const VOWELS: [&str; 21] = [
    "ㅏ", "ㅐ", "ㅑ", "ㅒ", "ㅓ", "ㅔ", "ㅕ", "ㅖ", "ㅗ", "ㅗㅏ", "ㅗㅐ", "ㅗㅣ", "ㅛ", "ㅜ",
    "ㅜㅓ", "ㅜㅔ", "ㅜㅣ", "ㅠ", "ㅡ", "ㅡㅣ", "ㅣ",
];
/// The first one: no trailing consonant.
const TRAILING: [&str; 28] = [
    "", "ㄱ", "ㄲ", "ㄱㅅ", "ㄴ", "ㄴㅈ", "ㄴㅎ", "ㄷ", "ㄹ", "ㄹㄱ", "ㄹㅁ", "ㄹㅂ", "ㄹㅅ",
    "ㄹㅌ", "ㄹㅍ", "ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ",
    "ㅎ",
];
/// Characters of the block Hangul Compatibility Jamo that take several keys, with these keys.
const CLUSTERS: [(char, &str); 18] = [
    ('ㄳ', "ㄱㅅ"),
    ('ㄵ', "ㄴㅈ"),
    ('ㄶ', "ㄴㅎ"),
    ('ㄺ', "ㄹㄱ"),
    ('ㄻ', "ㄹㅁ"),
    ('ㄼ', "ㄹㅂ"),
    ('ㄽ', "ㄹㅅ"),
    ('ㄾ', "ㄹㅌ"),
    ('ㄿ', "ㄹㅍ"),
    ('ㅀ', "ㄹㅎ"),
    ('ㅄ', "ㅂㅅ"),
    ('ㅘ', "ㅗㅏ"),
    ('ㅙ', "ㅗㅐ"),
    ('ㅚ', "ㅗㅣ"),
    ('ㅝ', "ㅜㅓ"),
    ('ㅞ', "ㅜㅔ"),
    ('ㅟ', "ㅜㅣ"),
    ('ㅢ', "ㅡㅣ"),
];

/// Replaces each Hangul syllable and jamo by the keys that are pressed for it on the usual
/// keyboard (two-set), so that everything that is on the screen while a word is typed begins the
/// word. Other text stays as it is.
fn pressed_keys(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let mut keys = String::with_capacity(text.len());
    for c in text.chars() {
        let code = c as usize;
        match c {
            '\u{AC00}'..='\u{D7A3}' => {
                let syllable = code - 0xAC00;
                keys.push_str(LEADING[syllable / (VOWELS.len() * TRAILING.len())]);
                keys.push_str(VOWELS[syllable / TRAILING.len() % VOWELS.len()]);
                keys.push_str(TRAILING[syllable % TRAILING.len()]);
            }
            '\u{1100}'..='\u{1112}' => keys.push_str(LEADING[code - 0x1100]),
            '\u{1161}'..='\u{1175}' => keys.push_str(VOWELS[code - 0x1161]),
            '\u{11A8}'..='\u{11C2}' => keys.push_str(TRAILING[code - 0x11A7]),
            c => match CLUSTERS.iter().find(|(cluster, _)| *cluster == c) {
                Some((_, pressed)) => keys.push_str(pressed),
                None => keys.push(c),
            },
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(tags: &[&str], typed: &str) -> Vec<(String, MatchPlace)> {
        let names: Vec<TagName> = tags.iter().map(|tag| TagName::parse(tag).unwrap()).collect();
        let forms =
            CompletionForms::of(names.iter().map(TagName::as_str).zip(tags.iter().copied()));
        let found = forms.complete(typed, 100).unwrap();
        found.into_iter().map(|(n, place)| (tags[n as usize].to_owned(), place)).collect()
    }

    fn found(tags: &[&str], typed: &str) -> Vec<String> {
        completed(tags, typed).into_iter().map(|(tag, _)| tag).collect()
    }

    #[test]
    fn the_beginning_comes_before_a_word_inside_and_that_before_any_place() {
        use MatchPlace::{Inside, Start, Word};
        let tags = ["build", "interface::ui", "UI kit", "my-ui", "uikit", "fruit"];
        let places: Vec<_> = completed(&tags, "ui").into_iter().map(|(_, place)| place).collect();
        assert_eq!(places, [Start, Start, Word, Word, Inside, Inside]);
        assert_eq!(
            found(&tags, "ui"),
            ["UI kit", "uikit", "interface::ui", "my-ui", "build", "fruit"],
            "by use within a place"
        );
        assert_eq!(completed(&["interface::commandline"], "commandline")[0].1, Word);
        assert_eq!(found(&["interface::commandline"], "interface::c").len(), 1);
        assert_eq!(found(&["interface::commandline"], "::c").len(), 1);
        assert_eq!(
            found(&["a::b", "ab"], "b"),
            Vec::<String>::new(),
            "one character is too common"
        );
        assert_eq!(found(&["日本語"], "語"), ["日本語"]);
        // A better place further right counts, in every form.
        assert_eq!(completed(&["buildui::ui"], "ui")[0].1, Word);
        assert_eq!(completed(&["Machine Learning"], "learn")[0].1, Word);
    }

    /// Every state of the screen while a word is typed, key by key, as an input method shows it.
    #[test]
    fn half_typed_hangul_finds_the_word() {
        for (word, screens) in [
            ("한글", "ㅎ 하 한 한ㄱ 한그 한글"),
            ("가나", "ㄱ 가 간 가나"),
            ("닭고기", "ㄷ 다 달 닭 닭ㄱ 닭고 닭곡 닭고기"),
            ("달가", "ㄷ 다 달 닭 달가"),
            ("과학", "ㄱ 고 과 괗 과하 과학"),
            ("의사", "ㅇ 으 의 읫 의사"),
            ("값어치", "ㄱ 가 갑 값 값ㅇ 값어 값엋 값어치"),
            ("까치", "ㄲ 까 깣 까치"),
            ("있다", "ㅇ 이 있 있ㄷ 있다"),
        ] {
            for typed in screens.split(' ') {
                assert_eq!(found(&[word], typed), [word], "{typed} is on the way to {word}");
                let decomposed = tagfast_domain::tag::nfd(typed);
                assert_eq!(found(&[word], &decomposed), [word], "{typed} in decomposed form");
            }
            assert_eq!(completed(&[&format!("언어::{word}")], word)[0].1, MatchPlace::Word);
        }
        assert_eq!(found(&["한글"], "흐"), Vec::<String>::new());
    }

    /// Whatever begins a tag completes to it, in every script.
    #[test]
    fn every_prefix_of_a_form_finds_its_tag() {
        let tags = [
            "Straße::München",
            "日本語 タグ",
            "한국어::조선글",
            "c++ (gnu)",
            "İstanbul",
            "e\u{301}t",
        ];
        for tag in tags {
            for name in [tag.to_owned(), TagName::parse(tag).unwrap().as_str().to_owned()] {
                for (at, _) in name.char_indices().skip(1) {
                    let typed = &name[..at];
                    assert!(found(&tags, typed).contains(&tag.to_owned()), "{typed:?} of {tag:?}");
                }
            }
        }
    }

    /// The search for places inside equals a naive one.
    #[test]
    fn places_equal_a_naive_search() {
        let words = ["ab", "ba", "aab", "a-b", "b::ab", "ab ab", "abba", "x", "bab-ab"];
        for typed in ["ab", "ba", "b", "a-", "bab", "::a", "abab", "ab-ab"] {
            let naive = |tag: &str| {
                let forms = [TagName::parse(tag).unwrap().as_str().to_owned(), tag.to_owned()];
                let place = |form: &str| {
                    let places = (0..form.len()).filter(|at| form[*at..].starts_with(typed));
                    let of = |at: usize| match form[..at].chars().next_back() {
                        None => MatchPlace::Start,
                        Some(c) if !c.is_alphanumeric() => MatchPlace::Word,
                        Some(_) => MatchPlace::Inside,
                    };
                    places.map(of).filter(|p| typed.len() > 1 || *p == MatchPlace::Start).min()
                };
                forms.iter().filter_map(|form| place(form)).min()
            };
            let mut expected: Vec<(MatchPlace, usize)> =
                (0..).zip(words).filter_map(|(n, word)| Some((naive(word)?, n))).collect();
            expected.sort_unstable();
            let expected: Vec<_> =
                expected.into_iter().map(|(place, n)| (words[n].to_owned(), place)).collect();
            assert_eq!(completed(&words, typed), expected, "{typed}");
        }
    }
}
