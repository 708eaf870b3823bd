//! Damaged documents: what a strict reader must refuse.

use std::fmt::Write as _;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A document with the order of its keys, in which fields are declared as they are written.
enum Node {
    /// Text, a number, a truth value or null, as JSON.
    Plain(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Node;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Plain("null".to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Plain(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Plain(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Plain(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Plain(Value::from(value).to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Plain(Value::from(value).to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Object(entries))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// What is done to one object of the document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// The array of its values.
    Array,
    /// Its first key once more.
    Twice,
}

impl Node {
    fn objects(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Array(items) => items.iter().map(Self::objects).sum(),
            Self::Object(entries) => 1 + entries.iter().map(|(_, n)| n.objects()).sum::<usize>(),
        }
    }

    /// Writes the document; `at` counts down to the object that is damaged.
    fn write(&self, out: &mut String, at: &mut usize, damage: Damage) {
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n > 0 { "," } else { "" });
                    item.write(out, at, damage);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                let here = *at == 0;
                *at = at.wrapping_sub(1);
                let array = here && damage == Damage::Array;
                out.push(if array { '[' } else { '{' });
                for (n, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if n > 0 { "," } else { "" });
                    if !array {
                        let _ = write!(out, "{}:", Value::from(key.as_str()));
                    }
                    value.write(out, at, damage);
                }
                if here
                    && damage == Damage::Twice
                    && let Some((key, value)) = entries.first()
                {
                    let _ = write!(out, ",{}:", Value::from(key.as_str()));
                    value.write(out, &mut usize::MAX.clone(), damage);
                }
                out.push(if array { ']' } else { '}' });
            }
        }
    }
}

fn damaged(document: &str, damage: Damage) -> Vec<String> {
    let node: Node =
        serde_json::from_str(document).unwrap_or_else(|e| panic!("{document} is no JSON: {e}"));
    let mut whole = String::with_capacity(document.len());
    node.write(&mut whole, &mut usize::MAX.clone(), damage);
    let written = |n: usize| {
        let mut out = String::with_capacity(document.len());
        node.write(&mut out, &mut n.clone(), damage);
        out
    };
    // An object without a key has none to give twice.
    (0..node.objects()).map(written).filter(|out| *out != whole).collect()
}

/// The document once for each of its objects, with the array of the object's values, in their
/// order, in its place.
///
/// # Panics
///
/// The document is not JSON.
pub fn arrays_for_objects(document: &str) -> Vec<String> {
    damaged(document, Damage::Array)
}

/// The document once for each of its objects, with the object's first key given twice.
///
/// # Panics
///
/// The document is not JSON.
pub fn repeated_keys(document: &str) -> Vec<String> {
    damaged(document, Damage::Twice)
}
