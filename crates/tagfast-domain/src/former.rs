//! Writes that meet former names: taggings that an earlier release stored under a name with
//! invisible characters.
//!
//! A stored name is never rewritten. A write names tags by what people see today, so before it is
//! applied its names are resolved against the document: adding a tag that the content has under a
//! former name changes nothing, a set keeps such a tagging, removing a tag removes every name of
//! it, and removing a former name by itself removes that one. A pure function of the document and
//! the write, so that every store resolves alike; nothing here fails.

use std::borrow::Cow;

use crate::{Document, Operation, Tag, TagName, Write};

/// The write with the names that the document has. Borrowed in the usual case, in which neither
/// has a former name.
pub(crate) fn resolve<'w>(doc: &Document, write: &'w Write) -> Cow<'w, Write> {
    let names = Names::of(doc);
    let operation = match &write.operation {
        Operation::Patch { add, remove } => {
            if names.former.is_empty() && !remove.iter().any(TagName::is_former) {
                return Cow::Borrowed(write);
            }
            names.patch(add, remove)
        }
        Operation::Replace { tags } => {
            if names.former.is_empty() {
                return Cow::Borrowed(write);
            }
            names.replace(tags)
        }
    };
    Cow::Owned(Write { operation, ..write.clone() })
}

/// The live names of a document.
struct Names<'d> {
    doc: &'d Document,
    /// The former ones, each with the name that it has today.
    former: Vec<(&'d TagName, Option<TagName>)>,
}

impl<'d> Names<'d> {
    fn of(doc: &'d Document) -> Self {
        let former = doc.live().map(|t| &t.name).filter(|n| n.is_former());
        Self { doc, former: former.map(|n| (n, n.identity())).collect() }
    }

    fn has(&self, name: &TagName) -> bool {
        self.doc.live().any(|t| t.name == *name)
    }

    /// The former names of a tag that the document has.
    fn former_of(&self, name: &TagName) -> impl Iterator<Item = &'d TagName> {
        self.former.iter().filter(move |(_, is)| is.as_ref() == Some(name)).map(|(n, _)| *n)
    }

    fn patch(&self, add: &[Tag], remove: &[TagName]) -> Operation {
        let mut removed: Vec<TagName> = Vec::with_capacity(remove.len());
        for name in remove {
            if name.is_former() && self.has(name) {
                removed.push(name.clone());
                continue;
            }
            let today = name.identity().unwrap_or_else(|| name.clone());
            if !add.iter().any(|t| t.name == today) {
                removed.extend(self.former_of(&today).cloned());
                if self.has(&today) || self.former_of(&today).next().is_none() {
                    removed.push(today);
                }
            }
        }
        let mut unique: Vec<TagName> = Vec::with_capacity(removed.len());
        for name in removed {
            if !unique.contains(&name) {
                unique.push(name);
            }
        }
        let add = add.iter().map(|tag| {
            let mut kept = self.former_of(&tag.name).filter(|n| !unique.contains(n));
            match kept.next() {
                Some(name) if !self.has(&tag.name) => Tag { name: name.clone(), ..tag.clone() },
                Some(_) | None => tag.clone(),
            }
        });
        Operation::Patch { add: add.collect(), remove: unique }
    }

    fn replace(&self, tags: &[Tag]) -> Operation {
        let mut kept: Vec<Tag> = Vec::with_capacity(tags.len());
        for tag in tags {
            if self.has(&tag.name) || self.former_of(&tag.name).next().is_none() {
                kept.push(tag.clone());
            }
            let names = self.former_of(&tag.name);
            kept.extend(names.map(|name| Tag { name: name.clone(), ..tag.clone() }));
        }
        Operation::Replace { tags: kept }
    }
}
