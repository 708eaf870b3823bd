//! Sealed strings: bound to a tenant, a purpose and a key; nothing else opens them.

use proptest::prelude::*;
use tagfast_domain::TenantId;
use tagfast_store::seal::SEALED_BYTES;
use tagfast_store::{SealError, SealKind, Sealer};

const KINDS: [SealKind; 4] =
    [SealKind::Consistency, SealKind::Receipt, SealKind::SearchCursor, SealKind::ListCursor];

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).expect("a tenant")
}

/// A sealer with one fixed key.
pub(crate) fn sealer(key: u8) -> Sealer {
    Sealer::new(&[[key; 32]])
}

#[test]
fn a_sealed_string_is_frozen() {
    let acme = tenant("acme");
    let sealed = sealer(1).seal(SealKind::SearchCursor, &acme, b"body");
    assert_eq!(sealed, "MWJvZHlgHHkrTXPW4psyW1mPWCbB");
    assert_eq!(
        sealer(1).open(SealKind::SearchCursor, &acme, &sealed).as_deref(),
        Ok(b"body".as_slice())
    );
}

#[test]
fn another_tenant_cannot_open_it() {
    let sealed = sealer(1).seal(SealKind::Consistency, &tenant("acme"), b"body");
    // "acmeb" + "ody" and "acme" + "body" must not be the same input of the MAC.
    for other in ["acm", "acmeb", "acme0", "default"] {
        assert_eq!(
            sealer(1).open(SealKind::Consistency, &tenant(other), &sealed),
            Err(SealError::WrongMac),
            "{other}"
        );
    }
}

#[test]
fn another_purpose_cannot_open_it() {
    let acme = tenant("acme");
    for made in KINDS {
        let sealed = sealer(1).seal(made, &acme, b"body");
        for wanted in KINDS {
            let opened = sealer(1).open(wanted, &acme, &sealed);
            assert_eq!(
                opened,
                if made == wanted { Ok(b"body".to_vec()) } else { Err(SealError::WrongKind) }
            );
        }
    }
}

#[test]
fn keys_can_be_rotated() {
    let acme = tenant("acme");
    let old = sealer(1).seal(SealKind::Receipt, &acme, b"body");
    let both = Sealer::new(&[[2; 32], [1; 32]]);
    assert!(both.open(SealKind::Receipt, &acme, &old).is_ok(), "an old key still opens");
    let new = both.seal(SealKind::Receipt, &acme, b"body");
    assert_eq!(new, sealer(2).seal(SealKind::Receipt, &acme, b"body"), "the first key signs");
    assert_eq!(sealer(1).open(SealKind::Receipt, &acme, &new), Err(SealError::WrongMac));
    assert_eq!(
        sealer(2).open(SealKind::Receipt, &acme, &old),
        Err(SealError::WrongMac),
        "a retired key opens nothing"
    );
}

#[test]
fn any_flipped_bit_is_noticed() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let acme = tenant("acme");
    let sealed = sealer(1).seal(SealKind::Consistency, &acme, b"some longer body \0\xFF");
    let bytes = URL_SAFE_NO_PAD.decode(&sealed).expect("base64url");
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let opened = sealer(1).open(SealKind::Consistency, &acme, &URL_SAFE_NO_PAD.encode(altered));
        assert!(opened.is_err(), "bit {bit} was flipped unnoticed");
    }
    for length in 0..bytes.len() {
        let cut = URL_SAFE_NO_PAD.encode(&bytes[..length]);
        assert!(
            sealer(1).open(SealKind::Consistency, &acme, &cut).is_err(),
            "cut to {length} bytes"
        );
    }
    for altered in
        [format!("{sealed}A"), format!("{sealed}="), format!(" {sealed}"), sealed.to_uppercase()]
    {
        assert!(sealer(1).open(SealKind::Consistency, &acme, &altered).is_err(), "{altered}");
    }
}

#[test]
fn what_is_too_long_is_not_looked_at() {
    let acme = tenant("acme");
    let long = "A".repeat(SEALED_BYTES + 1);
    assert_eq!(sealer(1).open(SealKind::Receipt, &acme, &long), Err(SealError::TooLong));
    assert_eq!(sealer(1).open(SealKind::Receipt, &acme, ""), Err(SealError::Malformed));
}

#[test]
fn keys_are_not_shown() {
    let shown = format!("{:?}", Sealer::new(&[[0xAB; 32], [0xCD; 32]]));
    assert!(!shown.to_lowercase().contains("ab, ") && !shown.contains("171"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_body_comes_back(body in prop::collection::vec(any::<u8>(), 0..600), key in any::<u8>(), kind in 0usize..4) {
        let acme = tenant("acme");
        let sealed = sealer(key).seal(KINDS[kind], &acme, &body);
        prop_assert!(sealed.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "fit for a header");
        prop_assert_eq!(sealer(key).open(KINDS[kind], &acme, &sealed), Ok(body));
    }

    #[test]
    fn no_string_panics(text in "\\PC{0,200}", base64ish in "[A-Za-z0-9_-]{0,300}") {
        for kind in KINDS {
            prop_assert!(sealer(1).open(kind, &tenant("acme"), &text).is_err());
            prop_assert!(sealer(1).open(kind, &tenant("acme"), &base64ish).is_err());
        }
    }
}
