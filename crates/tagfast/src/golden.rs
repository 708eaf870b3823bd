//! Pages of `docs/reference` that are made from code.

/// Fails unless the page `name` of `docs/reference` is `text`; with `UPDATE_GOLDEN` set it writes
/// the page.
pub(crate) fn assert_page(name: &str, text: &str) {
    let path = format!("{}/../../docs/reference/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == text,
        "docs/reference/{name} is old: run this test with UPDATE_GOLDEN=1 and look at the difference"
    );
}
