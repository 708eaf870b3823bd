//! Names that an earlier release stored with invisible characters: shown as they are, removed and
//! confirmed by any spelling, never made again.

use proptest::prelude::*;
use tagfast_domain::*;

use crate::support::{LIMITS, T0, cases, epoch, live, patch, replace, write};

const FORMER: &str = "crit\u{200B}ical";
const OTHER: &str = "critical\u{2060}";
/// A former name that is no tag any more.
const BLANK: &str = "\u{200B}";

fn document(names: &[&str]) -> Document {
    let mut names: Vec<&&str> = names.iter().collect();
    names.sort();
    let taggings = names.iter().map(|name| Tagging {
        name: TagName::from_canonical(name),
        display: (**name).into(),
        user: UserId::from_stored("old"),
        at: T0,
        decided_at: epoch(0).first_version(),
        present: true,
    });
    let version = epoch(0).first_version();
    Document { version, taggings: taggings.collect(), ..Document::default() }
}

fn removal(spellings: &[&str]) -> Write {
    let names = spellings.iter().map(|s| TagName::lookup(s).expect("it can be stored")).collect();
    write(1, Operation::patch(Vec::new(), names, &LIMITS).expect("a patch"))
}

fn applied(names: &[&str], write: &Write) -> (Vec<String>, Outcome) {
    let mut doc = document(names);
    let stored = codec::encode(&doc);
    assert_eq!(codec::decode(&stored).as_ref(), Ok(&doc), "stored names are decoded as they are");
    let ctx = ApplyContext { epoch: &epoch(0), now: T0, limits: &LIMITS, call: None };
    let outcome = apply(&mut doc, write, None, &ctx);
    (live(&doc).into_iter().map(str::to_owned).collect(), outcome)
}

#[track_caller]
fn leaves(names: &[&str], write: &Write, left: &[&str]) {
    let (live, outcome) = applied(names, write);
    assert_eq!(live, left, "{names:?} after {:?}", write.operation);
    if let Outcome::Written { effect, .. } = outcome {
        let gone = names.iter().filter(|n| !left.contains(n)).count();
        assert_eq!(effect.removed.len(), gone, "{effect:?}");
    }
}

#[test]
fn a_lookup_names_the_stored_form() {
    for (spelling, name, identity) in [
        ("Critical", "critical", Some("critical")),
        ("Crit\u{200B}ical", FORMER, Some("critical")),
        (BLANK, BLANK, None),
        ("\u{3164}", "\u{1160}", None),
        ("\u{2800}", "\u{2800}", None),
        ("a\u{2800}b", "a\u{2800}b", Some("a-b")),
        ("\u{2764}\u{FE0F}", "\u{2764}\u{FE0F}", Some("\u{2764}")),
        (
            "\u{1F469}\u{200D}\u{1F680}",
            "\u{1F469}\u{200D}\u{1F680}",
            Some("\u{1F469}\u{200D}\u{1F680}"),
        ),
    ] {
        let found = TagName::lookup(spelling).unwrap_or_else(|e| panic!("{spelling:?}: {e}"));
        assert_eq!(found.as_str(), name, "{spelling:?}");
        assert_eq!(found.identity().as_ref().map(TagName::as_str), identity, "{spelling:?}");
        assert_eq!(found.is_former(), identity != Some(name), "{spelling:?}");
    }
    assert!(TagName::lookup("a\u{202E}b").is_err(), "it never was a tag");
}

#[test]
fn removing_takes_the_name_that_the_content_has() {
    leaves(&[FORMER, "ui"], &removal(&[FORMER]), &["ui"]);
    leaves(&[FORMER, "ui"], &removal(&["Critical"]), &["ui"]);
    leaves(&[FORMER, "ui"], &removal(&[OTHER]), &["ui"]);
    leaves(&["critical", "ui"], &removal(&[FORMER]), &["ui"]);
    // The exact name alone, the plain name with all that look like it.
    leaves(&["critical", FORMER], &removal(&[FORMER]), &["critical"]);
    leaves(&["critical", FORMER, OTHER], &removal(&["critical"]), &[]);
    leaves(&["critical", FORMER, OTHER], &removal(&[FORMER, OTHER]), &["critical"]);
    leaves(&[BLANK, "ui"], &removal(&[BLANK]), &["ui"]);
    leaves(&["ui"], &removal(&[FORMER]), &["ui"]);
    // A former name makes way for its tag.
    let rename = |doc: &[&str], left: &[&str]| {
        let add = vec![Tag::parse("critical").expect("a tag")];
        let remove = vec![TagName::lookup(FORMER).expect("a name")];
        leaves(doc, &write(1, Operation::patch(add, remove, &LIMITS).expect("a patch")), left);
    };
    rename(&[FORMER], &["critical"]);
    rename(&["ui"], &["critical", "ui"]);
}

#[test]
fn adding_and_replacing_keep_a_former_name() {
    for add in ["critical", FORMER, "CRITICAL", OTHER] {
        leaves(&[FORMER, "ui"], &patch(1, &[add], &[]), &[FORMER, "ui"]);
        leaves(&[FORMER, "ui"], &replace(1, &[add]), &[FORMER]);
        leaves(&["ui"], &patch(1, &[add], &[]), &["critical", "ui"]);
        leaves(&["critical", FORMER], &replace(1, &[add, "ui"]), &["critical", FORMER, "ui"]);
    }
    let confirmed = applied(&[FORMER], &patch(1, &["critical"], &[]));
    assert!(
        !matches!(&confirmed.1, Outcome::Written { effect, .. } if *effect != Effect::default())
    );
}

proptest! {
    #![proptest_config(cases(300))]

    /// What a user sees after a write does not depend on how the names are stored.
    #[test]
    fn a_former_name_acts_like_its_tag(
        stored in prop::collection::btree_map(0..6u8, any::<bool>(), 0..5),
        add in prop::collection::vec((0..6u8, 0..4usize), 0..3),
        remove in prop::collection::vec(0..6u8, 0..3),
        set in any::<bool>(),
    ) {
        let spelled = |n: u8, form: usize| match form {
            0 => format!("t{n}"),
            1 => format!("T\u{AD}{n}"),
            2 => format!("t{n}\u{FE0F}"),
            _ => format!("\u{200B}t{n}"),
        };
        let tags: Vec<Tag> = add.iter().map(|(n, f)| Tag::parse(&spelled(*n, *f)).unwrap()).collect();
        let gone = remove.iter().filter(|n| add.iter().all(|(a, _)| a != *n));
        let gone = gone.map(|n| TagName::parse(&spelled(*n, 0)).unwrap()).collect();
        let operation = if set {
            Operation::replace(tags, &LIMITS)
        } else {
            Operation::patch(tags, gone, &LIMITS)
        };
        let Ok(operation) = operation else { return Ok(()) };
        let write = write(1, operation);
        let former: Vec<String> =
            stored.iter().map(|(n, f)| if *f { format!("t\u{200B}{n}") } else { format!("t{n}") }).collect();
        let plain: Vec<String> = stored.keys().map(|n| format!("t{n}")).collect();
        let run = |names: &[String]| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            applied(&names, &write).0
        };
        let mut seen: Vec<String> = run(&former).iter().map(|n| n.replace('\u{200B}', "")).collect();
        seen.sort();
        prop_assert_eq!(seen, run(&plain));
    }
}
