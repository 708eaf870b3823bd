//! `Display` of our errors must not print the source: a log line prints the whole chain and would
//! print it twice.
//!
//! The check reads every `#[error("...")]` of thiserror and refuses a placeholder that names the
//! field marked `#[source]` or `#[from]`.

use anyhow::{Context, Result, bail};
use syn::visit::Visit;

use super::circles::is_test;
use crate::files::text_files;

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for file in text_files()?.iter().filter(|f| f.path.contains("/src/") && f.path.ends_with(".rs"))
    {
        let syntax =
            syn::parse_file(&file.text).with_context(|| format!("cannot parse {}", file.path))?;
        let mut reader = Errors::default();
        reader.visit_file(&syntax);
        let path = &file.path;
        wrong.extend(reader.0.iter().map(|name| format!("{path}: {name} prints its source")));
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// Names of the variants and structs whose message prints their source.
#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn judge(&mut self, name: &syn::Ident, attributes: &[syn::Attribute], fields: &syn::Fields) {
        let message = attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("error"))
            .find_map(|attribute| attribute.meta.require_list().ok())
            .map(|list| list.tokens.to_string());
        let Some(message) = message else { return };
        for (index, field) in fields.iter().enumerate() {
            let is_source = field
                .attrs
                .iter()
                .any(|a| a.path().is_ident("source") || a.path().is_ident("from"));
            let place = field.ident.as_ref().map_or(index.to_string(), ToString::to_string);
            let prints = [format!("{{{place}}}"), format!("{{{place}:")];
            if is_source && prints.iter().any(|placeholder| message.contains(placeholder)) {
                self.0.push(name.to_string());
            }
        }
    }
}

impl<'a> Visit<'a> for Errors {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_variant(&mut self, variant: &'a syn::Variant) {
        self.judge(&variant.ident, &variant.attrs, &variant.fields);
    }

    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        self.judge(&item.ident, &item.attrs, &item.fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_prints_its_source_is_found() {
        let text = r#"
            enum E {
                #[error("a: {0}")] A(#[from] Io),
                #[error("b {file}: {source}")] B { file: String, #[source] source: Io },
                #[error("c {0}")] C(String),
                #[error("d {file}")] D { file: String, #[source] source: Io },
            }
            #[error("s: {0:?}")] struct S(#[source] Io);
            #[cfg(test)] mod tests { enum T { #[error("t: {0}")] T(#[source] Io) } }
        "#;
        let mut errors = Errors::default();
        errors.visit_file(&syn::parse_file(text).expect("Rust"));
        assert_eq!(errors.0, ["A", "B", "S"]);
    }
}
