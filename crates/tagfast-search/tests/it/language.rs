//! The query language: precedence, error positions, limits, and no input that makes it panic.

use proptest::prelude::*;
use tagfast_search::query::{Query, parse};
use tagfast_search::{SearchError, caret};

fn tree(text: &str) -> String {
    parse(text)
        .unwrap_or_else(|e| panic!("{text}: {e}"))
        .map_or_else(String::new, |q| q.to_string())
}

#[test]
fn precedence_and_blanks() {
    for (text, canonical) in [
        ("", ""),
        ("  ", ""),
        ("ui", "\"ui\""),
        ("UI Api", "\"ui\" AND \"api\""),
        ("a OR b c", "\"a\" OR (\"b\" AND \"c\")"),
        (
            "critical AND (ui OR api) AND NOT wontfix",
            "\"critical\" AND (\"ui\" OR \"api\") AND NOT \"wontfix\"",
        ),
        ("NOT NOT a", "NOT NOT \"a\""),
        ("NOT (a b)", "NOT (\"a\" AND \"b\")"),
        ("\"OR\" or", "\"or\" AND \"or\""),
        ("type:jira.issue ui", "type:jira.issue AND \"ui\""),
        ("area:ui", "\"area:ui\""),
        ("\"type:x\"", "\"type:x\""),
        ("type:\"jira.issue\"", "type:jira.issue"),
        ("lang::ru*", "lang::ru*"),
        ("日本語 c++", "\"日本語\" AND \"c++\""),
        ("(a)(b)", "\"a\" AND \"b\""),
        ("type::bug", "\"type::bug\""),
        ("\"type:x\"*", "\"type:x\"*"),
        ("\"a (b\"*", "\"a-(b\"*"),
        ("\"lang::ru\"*", "lang::ru*"),
    ] {
        assert_eq!(tree(text), canonical, "{text}");
    }
}

#[test]
fn errors_have_golden_positions() {
    for (text, position, byte, expected) in [
        ("a AND", 5, 5, "a tag, type:, NOT or '('"),
        ("(a OR b", 7, 7, "AND, OR or ')'"),
        ("a)", 1, 1, "AND, OR or the end of the query"),
        ("OR a", 0, 0, "a tag, type:, NOT or '('"),
        ("a \"b", 4, 4, "a closing '\"'"),
        ("日本 (a", 5, 9, "AND, OR or ')'"),
        ("*", 0, 0, "a tag before '*'"),
        ("x a*", 2, 2, "at least 2 characters before '*'"),
        ("ab*c", 3, 3, "a blank, a parenthesis or the end of the query"),
        ("a\"b\"", 1, 1, "a blank, a parenthesis or the end of the query"),
        ("ok a<b", 4, 4, "a valid tag"),
        ("a \"b\\\"", 6, 6, "a closing '\"'"),
        ("\"a\"* \"b\"", 0, 0, "at least 2 characters before '*'"),
        ("\"ab\"*c", 5, 5, "a blank, a parenthesis or the end of the query"),
        ("ui, api", 2, 2, "a valid tag"),
        ("日本，語", 2, 6, "a valid tag"),
        ("a \"日 ＜\"", 5, 7, "a valid tag"),
        ("ui type:", 8, 8, "a content type right after 'type:', as in type:jira.issue"),
        ("type: jira", 5, 5, "a content type right after 'type:', as in type:jira.issue"),
        ("type:(jira)", 5, 5, "a content type right after 'type:', as in type:jira.issue"),
        ("type:\"\"", 6, 6, "a content type right after 'type:', as in type:jira.issue"),
        ("type:*", 5, 5, "a whole content type; several are joined with OR"),
        ("type:x*", 6, 6, "a whole content type; several are joined with OR"),
        ("type:\"x\"*", 8, 8, "a whole content type; several are joined with OR"),
        ("type:JIRA", 5, 5, "lower case, as in type:jira"),
        ("type:jira.Issue", 10, 10, "lower case, as in type:jira.issue"),
        ("type:\"JIRA\"", 6, 6, "lower case, as in type:jira"),
        ("TYPE:x", 0, 0, "the field 'type:' in lower case; in quotes it is a tag"),
        ("ui Type:\"x\"", 3, 3, "the field 'type:' in lower case; in quotes it is a tag"),
        ("ｔｙｐｅ:x", 0, 0, "the field 'type:' in lower case; in quotes it is a tag"),
        ("type：x", 0, 0, "the field 'type:' in lower case; in quotes it is a tag"),
        ("\"a\\x\"", 2, 2, "\\\" or \\\\"),
        ("a NOT", 5, 5, "a tag, type:, NOT or '('"),
    ] {
        match parse(text) {
            Err(SearchError::Syntax { position: p, byte: b, expected: e, .. }) => {
                assert_eq!((p, b, e.as_str()), (position, byte, expected), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// The error names the character that was typed, not the one that it means.
#[test]
fn a_refused_character_is_named_as_it_was_typed() {
    for forbidden in ['，', '﹐', '＜', '＞', '＂', '＼', '<', '\u{202E}', '\u{0007}'] {
        for (before, after) in [("", ""), ("ui ", " api"), ("日本", "語"), ("(a OR b", ")")] {
            let text = format!("{before}{forbidden}{after}");
            let Err(SearchError::Syntax { position, message, .. }) = parse(&text) else {
                panic!("{text:?} is refused");
            };
            assert_eq!(position, before.chars().count(), "{message}");
            let code = format!("U+{:04X}", forbidden as u32);
            assert!(message.contains(&code), "{text:?}: {message}");
        }
    }
}

/// Every word that means the field `type:` is a type or an error, never silently a tag.
#[test]
fn no_spelling_of_the_type_field_is_a_tag() {
    for field in ["type", "TYPE", "Type", "tYpE", "ｔｙｐｅ", "ＴＹＰＥ"] {
        for colon in [":", "：", "﹕"] {
            for value in ["", "x", "X", "x*", "*", "\"x\"", "\"X\"", "a/b", "日本", "x?", "x,y"] {
                let text = format!("{field}{colon}{value}");
                match parse(&text) {
                    Ok(Some(Query::Type(name))) => {
                        assert_eq!((field, colon, name.as_str()), ("type", ":", "x"), "{text}")
                    }
                    Ok(other) => panic!("{text}: {other:?}"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
}

#[test]
fn limits_are_named() {
    let limit = |text: &str| match parse(text) {
        Err(SearchError::Limit { limit, allowed, .. }) => (limit, allowed),
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(&"a ".repeat(1025)), ("query_bytes", 2048));
    assert_eq!(limit(&"a ".repeat(65)), ("query_terms", 64));
    assert_eq!(limit("aa* bb* cc* dd* ee*"), ("query_prefixes", 4));
    assert_eq!(limit(&format!("{}a{}", "(".repeat(17), ")".repeat(17))), ("query_depth", 16));
    assert_eq!(limit(&"(".repeat(2000)), ("query_depth", 16));
    assert_eq!(limit(&"NOT ".repeat(500)), ("query_depth", 16));
}

#[test]
fn the_caret_stands_under_the_character() {
    assert_eq!(caret("a )", 2), "a )\n  ^");
    assert_eq!(caret("日本 )", 3), "日本 )\n     ^");
}

fn trees() -> impl Strategy<Value = Query> {
    let tag =
        "[a-z][a-z0-9:+-]{0,6}".prop_map(|t| Query::Tag(t.parse().expect("canonical already")));
    let leaf = prop_oneof![
        4 => tag,
        1 => "[a-z(*)日-]{2,4}".prop_map(Query::Prefix),
        1 => "[a-z]{1,5}".prop_map(|t| Query::Type(t.parse().expect("a valid type"))),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Query::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Query::Or),
            inner.prop_map(|q| Query::Not(Box::new(q))),
        ]
    })
}

proptest! {
    #[test]
    fn the_canonical_text_parses_to_the_same_tree(query in trees()) {
        match parse(&query.to_string()) {
            Ok(parsed) => prop_assert_eq!(parsed, Some(query)),
            Err(SearchError::Limit { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn nothing_makes_it_panic(text in "\\PC*") {
        if let Err(SearchError::Syntax { position, byte, .. }) = parse(&text) {
            prop_assert!(byte <= text.len() && text.is_char_boundary(byte));
            prop_assert_eq!(text[..byte].chars().count(), position);
            let _ = caret(&text, position);
        }
    }

    #[test]
    fn operators_in_any_order_do_not_panic(text in "([()*\"\\\\ ]|AND|OR|NOT|a|type:|日){0,40}") {
        let _ = parse(&text);
    }
}
