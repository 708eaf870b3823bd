//! What the pure core costs per operation: canonicalising, decoding, encoding, applying. Prints
//! nanoseconds, the best of many short rounds, since everything else on the machine only adds.

use std::hint::black_box;
use std::time::Instant;

use tagfast_domain::*;

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn measure<T>(name: &str, mut operation: impl FnMut() -> T) {
    const ITERATIONS: u32 = 200;
    let round = |operation: &mut dyn FnMut() -> T| {
        let start = Instant::now();
        for _ in 0..ITERATIONS {
            black_box(operation());
        }
        start.elapsed().as_nanos() / u128::from(ITERATIONS)
    };
    let best = (0..1500).map(|_| round(&mut operation)).min().unwrap_or_default();
    println!("{name:32} {best:>7} ns");
}

fn write(n: u64, tag: &str) -> Write {
    Write {
        id: WriteId(u128::from(n).to_be_bytes()),
        key: ContentKey::parse("acme", "jira.issue", "PROJ-1").expect("a content"),
        user: UserId::parse("ann").expect("a user"),
        operation: Operation::patch(
            vec![Tag::parse(tag).expect("a tag")],
            vec![],
            &Limits::default(),
        )
        .expect("a patch"),
        if_match: None,
    }
}

/// A content with `tags` tags, each added by its own write.
fn document(tags: u64) -> Document {
    let epoch = Epoch { id: EpochId([1; 16]), ordinal: EpochOrdinal(1_800_000_000_000) };
    let limits = Limits::default();
    let mut doc = Document::default();
    for n in 0..tags {
        let now = 1_800_000_000_000 + n as i64 * 120_000;
        apply(
            &mut doc,
            &write(n, &format!("some-tag-{n}")),
            None,
            &ApplyContext { epoch: &epoch, now, limits: &limits, call: None },
        );
    }
    doc
}

fn main() {
    measure("tag, canonical ASCII", || Tag::parse(black_box("implemented-in::c++")));
    measure("tag, ASCII to fold", || Tag::parse(black_box("Needs Review")));
    measure("tag, German", || Tag::parse(black_box("Größe")));
    measure("tag, Japanese", || Tag::parse(black_box("日本語")));
    for tags in [5, 100] {
        let doc = document(tags);
        let bytes = codec::encode(&doc);
        measure(&format!("decode, {tags} tags, {} bytes", bytes.len()), || {
            codec::decode(black_box(&bytes))
        });
        measure(&format!("encode, {tags} tags"), || codec::encode(black_box(&doc)));
        let epoch = Epoch { id: EpochId([1; 16]), ordinal: EpochOrdinal(1_800_000_000_000) };
        let limits = Limits { tags_per_content: 200 };
        let next = write(1000, "one-more");
        let now = 1_800_000_900_000;
        let context = ApplyContext { epoch: &epoch, now, limits: &limits, call: None };
        measure(&format!("clone and apply, {tags} tags"), || {
            apply(&mut doc.clone(), &next, None, &context)
        });
    }
}
