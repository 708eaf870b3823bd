//! Import circles between the modules of a crate.
//!
//! A file that imports from a file which imports from it cannot be read alone. The check reads each
//! crate's sources, follows `mod`, draws an arrow for each path that leads into another file
//! (through re-exports to the file that defines the item), and refuses every strongly connected
//! component. Unit tests are left out: they look at their own module from inside.
//!
//! # How it fails
//! Paths are resolved by name, without types: a method call draws no arrow, and what a macro
//! generates is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use crate::run::root;

/// One file of a crate.
#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    /// Modules in files of their own, by name.
    children: BTreeMap<String, usize>,
    /// Names that `use` brings in, with the path they stand for.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths that the file names, each with the inline modules around it.
    paths: BTreeSet<Vec<String>>,
    /// Macros of the file that can be named as items of the crate's root.
    macros: BTreeSet<String>,
}

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let mut crates: Vec<PathBuf> = std::fs::read_dir(root().join("crates"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    crates.push(root().join("xtask"));
    crates.sort();
    for folder in crates {
        for entry in ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file)) {
            if entry.exists() {
                let modules = Modules::read(&entry)?;
                wrong.extend(modules.circles());
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

struct Modules(Vec<Module>);

impl Modules {
    fn read(entry: &Path) -> Result<Self> {
        let mut modules = Self(Vec::new());
        modules.add(entry, None)?;
        Ok(modules)
    }

    fn add(&mut self, file: &Path, parent: Option<usize>) -> Result<usize> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let syntax =
            syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        let mut reader = Reader::default();
        reader.visit_file(&syntax);
        let id = self.0.len();
        self.0.push(Module {
            file: file.to_owned(),
            parent,
            imports: reader.imports,
            paths: reader.paths,
            macros: reader.macros,
            ..Module::default()
        });
        for name in reader.modules {
            let folder = folder_of(file);
            let candidates = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
            let child = candidates.iter().find(|path| path.exists());
            let child = child.with_context(|| format!("{} has no {name}", file.display()))?;
            let child = self.add(child, Some(id))?;
            self.0[id].children.insert(name, child);
        }
        Ok(id)
    }

    /// The file that defines what `path` names, seen from module `from`; `None` for other crates.
    fn resolve(&self, from: usize, path: &[String], depth: u8) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let at = match first.as_str() {
            "crate" => 0,
            "self" => from,
            "super" => self.0[from].parent?,
            name if self.0[from].children.contains_key(name) => self.0[from].children[name],
            // A name that an import of this file brought in.
            name => {
                let import = self.0[from].imports.get(name)?;
                if depth == 0 || import.first().is_some_and(|f| f == name) {
                    return None;
                }
                let whole: Vec<String> = import.iter().chain(rest).cloned().collect();
                return self.resolve(from, &whole, depth - 1);
            }
        };
        self.descend(at, rest, depth)
    }

    fn descend(&self, at: usize, rest: &[String], depth: u8) -> Option<usize> {
        let Some((name, rest)) = rest.split_first() else { return Some(at) };
        if name == "super" {
            return self.descend(self.0[at].parent?, rest, depth);
        }
        if let Some(child) = self.0[at].children.get(name) {
            return self.descend(*child, rest, depth);
        }
        if let Some(import) = self.0[at].imports.get(name)
            && depth > 0
        {
            return self.resolve(at, import, depth - 1);
        }
        let exports = |module: &Module| module.macros.contains(name);
        if at == 0 { self.0.iter().position(exports).or(Some(0)) } else { Some(at) }
    }

    fn arrows(&self) -> Vec<BTreeSet<usize>> {
        let arrows = |from: usize| {
            self.0[from]
                .paths
                .iter()
                .filter_map(|path| self.resolve(from, path, 8))
                .filter(|to| *to != from)
                .collect()
        };
        (0..self.0.len()).map(arrows).collect()
    }

    /// A line for each set of files that lead to each other.
    fn circles(&self) -> Vec<String> {
        let arrows = self.arrows();
        let reach = |from: usize| {
            let mut reached = BTreeSet::new();
            let mut next = vec![from];
            while let Some(at) = next.pop() {
                next.extend(arrows[at].iter().filter(|to| reached.insert(**to)));
            }
            reached
        };
        let reached: Vec<BTreeSet<usize>> = (0..self.0.len()).map(reach).collect();
        let mut reported = BTreeSet::new();
        let mut lines = Vec::new();
        for id in 0..self.0.len() {
            let circle: BTreeSet<usize> =
                reached[id].iter().copied().filter(|to| reached[*to].contains(&id)).collect();
            if circle.len() < 2 || !reported.insert(circle.clone()) {
                continue;
            }
            let name = |id: usize| {
                let file = &self.0[id].file;
                file.strip_prefix(root()).unwrap_or(file).display().to_string()
            };
            let mut line = String::from("a circle of imports:");
            for from in &circle {
                let to: Vec<String> =
                    arrows[*from].intersection(&circle).map(|t| name(*t)).collect();
                line.push_str(&format!("\n    {} -> {}", name(*from), to.join(", ")));
            }
            lines.push(line);
        }
        lines
    }
}

/// Where the modules of `file` are.
fn folder_of(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default();
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    if ["lib", "main", "mod"].iter().any(|root| stem == *root) { folder } else { folder.join(stem) }
}

/// Collects modules, imports and paths of a file.
#[derive(Default)]
struct Reader {
    modules: Vec<String>,
    imports: BTreeMap<String, Vec<String>>,
    paths: BTreeSet<Vec<String>>,
    macros: BTreeSet<String>,
    /// Inline modules around the present place: their `super` is this file.
    inline: usize,
}

impl Reader {
    fn tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| {
            let mut path = prefix.to_vec();
            path.push(name.to_string());
            path
        };
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => {
                let last = prefix.last().cloned().unwrap_or_default();
                self.import(last, prefix.to_vec());
            }
            syn::UseTree::Name(name) => self.import(name.ident.to_string(), with(&name.ident)),
            syn::UseTree::Rename(rename) => {
                self.import(rename.rename.to_string(), with(&rename.ident));
            }
            syn::UseTree::Glob(_) => self.path(prefix.to_vec()),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(prefix, tree));
            }
        }
    }

    fn import(&mut self, name: String, path: Vec<String>) {
        if self.inline == 0 {
            self.imports.insert(name, path.clone());
        }
        self.path(path);
    }

    fn path(&mut self, mut path: Vec<String>) {
        // Within inline modules the first `super`s lead to this file.
        for _ in 0..self.inline {
            if path.first().is_some_and(|first| first == "super") {
                path.remove(0);
            }
        }
        if !path.is_empty() {
            self.paths.insert(path);
        }
    }
}

pub(super) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|l| l.tokens.to_string().starts_with("test"))
    })
}

impl<'a> Visit<'a> for Reader {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        if item.content.is_none() {
            self.modules.push(item.ident.to_string());
            return;
        }
        self.inline += 1;
        syn::visit::visit_item_mod(self, item);
        self.inline -= 1;
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.segments.len() > 1 {
            self.path(path.segments.iter().map(|s| s.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_macro(&mut self, item: &'a syn::ItemMacro) {
        if let Some(name) = &item.ident
            && item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"))
        {
            self.macros.insert(name.to_string());
        }
        syn::visit::visit_item_macro(self, item);
    }

    /// Arguments of macros are tokens, not syntax: paths from the crate's root are found all the
    /// same.
    fn visit_macro(&mut self, item: &'a syn::Macro) {
        self.tokens(item.tokens.clone());
        syn::visit::visit_macro(self, item);
    }
}

impl Reader {
    fn tokens(&mut self, tokens: TokenStream) {
        let mut words: Vec<String> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Group(group) => {
                    words.push(String::new());
                    self.tokens(group.stream());
                }
                TokenTree::Ident(ident) => words.push(ident.to_string()),
                TokenTree::Punct(punct) => words.push(punct.to_string()),
                TokenTree::Literal(_) => words.push(String::new()),
            }
        }
        // `$crate` stands for the crate that uses the macro.
        let is_root = |at: &usize| words[*at] == "crate" && (*at == 0 || words[*at - 1] != "$");
        for start in (0..words.len()).filter(is_root) {
            let mut path = vec!["crate".to_owned()];
            for step in words[start + 1..].chunks_exact(3) {
                if step[0] != ":" || step[1] != ":" {
                    break;
                }
                path.push(step[2].clone());
            }
            // `pub(crate)` is no path.
            if path.len() > 1 {
                self.path(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let folder = std::env::temp_dir().join(format!(
            "xtask-circles-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        for (file, text) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        let circles = Modules::read(&folder.join("lib.rs")).expect("modules").circles();
        std::fs::remove_dir_all(folder).expect("the folder goes");
        circles
    }

    #[test]
    fn two_files_that_import_each_other_are_a_circle() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "pub struct B; fn f() { crate::a::g() }"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a.rs -> "), "{found:?}");
    }

    #[test]
    fn an_item_of_the_root_that_a_re_exported_module_uses_is_a_circle() {
        let found = circles(&[
            ("lib.rs", "mod a; pub use a::A; pub struct Options;"),
            ("a.rs", "use crate::Options; pub struct A(Options);"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn re_exports_are_followed_and_tests_left_out() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
            ("a.rs", "pub struct A; #[cfg(test)] mod tests { use crate::B; use super::*; }"),
            ("b/mod.rs", "mod c; pub use c::C; pub struct B(crate::A, C);"),
            ("b/c.rs", "use crate::A; pub struct C(A);"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn exported_macros_and_texts_draw_no_arrow_to_the_root() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; pub use b::B;"),
            ("a.rs", "#[macro_export] macro_rules! m { () => { $crate::B } }"),
            ("b.rs", "pub struct B; fn f() { crate::m!(); println!(\"a crate :: B\") }"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn circles_through_inline_modules_and_macros_are_seen() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod inner { use super::super::b::B; fn f(_: B) {} } pub fn g() {}"),
            ("b.rs", "pub struct B; fn f() { println!(\"{:?}\", crate::a::g()) }"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
