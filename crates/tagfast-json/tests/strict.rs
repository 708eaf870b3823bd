//! Everything that a derived structure may be inside of, with arrays for objects.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tagfast_json::testing::{arrays_for_objects, repeated_keys};
use tagfast_json::{Strict, from_slice, from_str, from_value};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: i64,
    y: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped(Point);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Dot(Point),
    Line(Point, Point),
    Circle { centre: Point, radius: f64 },
    Nothing,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Place {
    Name(String),
    Point(Strict<Point>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    title: std::borrow::Cow<'a, str>,
    direct: Point,
    optional: Option<Point>,
    wrapped: Wrapped,
    list: Vec<Point>,
    pair: (u8, Point),
    named: HashMap<String, Point>,
    numbered: BTreeMap<u32, Point>,
    shapes: Vec<Shape>,
    places: Vec<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missing: Option<Point>,
}

fn document() -> String {
    let point = |x, y| Point { x, y };
    let document = Document {
        title: "a \"title\"\n".into(),
        direct: point(1, -2),
        optional: Some(point(3, 4)),
        wrapped: Wrapped(point(5, 6)),
        list: vec![point(7, 8), point(9, 10)],
        pair: (1, point(11, 12)),
        named: HashMap::from([("one".to_owned(), point(13, 14))]),
        numbered: BTreeMap::from([(1, point(15, 16)), (2, point(17, 18))]),
        shapes: vec![
            Shape::Dot(point(19, 20)),
            Shape::Line(point(21, 22), point(23, 24)),
            Shape::Circle { centre: point(25, 26), radius: 1.5 },
            Shape::Nothing,
        ],
        places: vec![Place::Name("here".to_owned()), Place::Point(Strict(point(27, 28)))],
        missing: None,
    };
    serde_json::to_string(&document).expect("JSON")
}

#[test]
fn a_document_is_read_as_it_was_written() {
    let text = document();
    let read: Document<'_> = from_str(&text).expect("it is strict");
    assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
    let value: Value = from_slice(text.as_bytes()).expect("it is JSON");
    assert_eq!(value, serde_json::from_str::<Value>(&text).expect("JSON"));
    let plain = r#"{"title":"plain","direct":{"x":1,"y":2}}"#;
    assert!(from_str::<Document<'_>>(plain).is_err(), "fields that are missing are missing");
    assert_eq!(
        from_value::<Point>(value["direct"].clone()).expect("a point"),
        Point { x: 1, y: -2 }
    );
}

#[test]
fn an_array_never_stands_for_an_object() {
    let text = document();
    let arrays = arrays_for_objects(&text);
    assert!(arrays.len() > 20, "{arrays:?}");
    let mut loosely = 0;
    for array in &arrays {
        let error = from_str::<Document<'_>>(array).map(drop).expect_err(array).to_string();
        let clear = ["expected an object", "sequence, expected a map", "expected value", "variant"];
        assert!(clear.iter().any(|words| error.contains(words)), "{array}: {error}");
        loosely += usize::from(serde_json::from_str::<Document<'_>>(array).is_ok());
    }
    assert!(loosely > 10, "a loose reader takes {loosely} of them");
    let error = from_str::<Vec<Point>>("[[1,2]]").expect_err("an array").to_string();
    assert_eq!(error, "invalid type: sequence, expected an object at line 1 column 1");
    assert!(from_value::<Point>(serde_json::json!([1, 2])).is_err());
}

#[test]
fn a_key_is_given_once() {
    for twice in repeated_keys(&document()) {
        let error = from_str::<Document<'_>>(&twice).map(drop).expect_err(&twice).to_string();
        assert!(
            ["duplicate field", "given twice", "expected value", "expected `}`", "untagged"]
                .iter()
                .any(|words| error.contains(words)),
            "{twice}: {error}"
        );
        let error = from_str::<Value>(&twice).expect_err(&twice).to_string();
        assert!(error.contains("given twice"), "{error}");
    }
}

#[test]
fn text_behind_a_document_is_refused() {
    assert!(from_str::<Point>(r#"{"x":1,"y":2} {}"#).is_err());
    assert!(from_slice::<Point>(b"\xff").is_err());
}
