//! The structure of agent/src: circles of imports, arrows that run upwards, sizes, and what is public.
//!
//! The test prints its table. `HOUSE_OF=DIRECTORY` measures another checkout, without judging it:
//! `HOUSE_OF=/tmp/before cargo xtask test -- --no-capture -E 'test(house)'`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use harness::{table, tools::workspace};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// The modules at the top of the crate, from the lowest layer to the highest. A module may import its own layer and those below.
const LAYERS: [&[&str]; 12] = [
    &["clock", "digest", "error", "exposition", "output"],
    &["aws", "x509"],
    &["config", "credential", "progress", "schedule"],
    &["node", "state"],
    &["conf", "included", "issue"],
    &["cli", "connection", "server", "trust"],
    &["peers", "roundtrip"],
    &["reason"],
    &["status"],
    &["reconcile"],
    &["client", "wiring", "daemon"],
    &["commands", "lib", "main"],
];
/// The imports of a higher layer that the design accepts. `[nats.settings]` is a tree of settings, agent.toml is read like
/// every other file, `nats.include` names secrets, and a generation keeps the bundle of its leaf.
const ACCEPTED_UPWARDS: [(&str, &str); 5] = [
    ("config", "conf::tree"),
    ("config", "included"),
    ("config", "state::durable"),
    ("config::settings", "conf::tree"),
    ("state::generation", "trust"),
];

/// A file of agent/src, without its tests.
struct Module {
    syntax: syn::File,
    lines: usize,
}

#[derive(Default)]
struct Figures {
    imports: BTreeMap<String, BTreeSet<String>>,
    functions: Vec<(usize, String)>,
    reconciler_fields: usize,
    reconciler_methods: usize,
    reconciler_lines: usize,
    credential: BTreeSet<String>,
    pem: BTreeSet<String>,
    public_modules: usize,
    public_items: usize,
    texts_that_decide: BTreeSet<String>,
    readme_lines: usize,
    readme_words: usize,
}

fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg") && attribute.to_token_stream().to_string().contains("(test)"))
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Every module of the product, by its path without `crate::`. Modules that only tests compile are left out.
fn modules(source: &Path) -> BTreeMap<String, Module> {
    let mut found = BTreeMap::new();
    let mut of_tests = BTreeSet::new();
    let mut directories = vec![source.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let (name, module) = module(source, &path, &mut of_tests);
                found.insert(name, module);
            }
        }
    }
    let is_of_tests = |name: &str| of_tests.iter().any(|test| name == test || name.starts_with(&format!("{test}::")));
    found.retain(|name, _module| !is_of_tests(name));
    found
}

fn module(source: &Path, path: &Path, of_tests: &mut BTreeSet<String>) -> (String, Module) {
    let name = path.strip_prefix(source).unwrap().with_extension("").display().to_string().replace('/', "::");
    let text = std::fs::read_to_string(path).unwrap();
    let mut syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syntax.items.retain(|item| {
        let keep = !is_of_tests(attributes(item));
        if let (false, syn::Item::Mod(tests)) = (keep, item) {
            let parent = if name == "lib" { String::new() } else { format!("{name}::") };
            of_tests.insert(format!("{parent}{}", tests.ident));
        }
        keep
    });
    let lines = syntax.items.last().map_or(0, |item| item.span().end().line);
    (name, Module { syntax, lines })
}

/// The paths in `tokens` that begin with `crate` or `super`. A group of a `use` counts as a path for each member.
fn paths(tokens: TokenStream, found: &mut Vec<Vec<String>>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at] {
            TokenTree::Ident(ident) if ident == "crate" || ident == "super" => at = path(&trees, at, &[], found),
            TokenTree::Group(group) => {
                paths(group.stream(), found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads a path from `at`, with the segments `before` the path. Returns where the path ends.
fn path(trees: &[TokenTree], mut at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let is_colon = |at: usize| matches!(trees.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    let mut segments = before.to_vec();
    while let Some(TokenTree::Ident(ident)) = trees.get(at) {
        segments.push(ident.to_string());
        at += 1;
        if !(is_colon(at) && is_colon(at + 1)) {
            break;
        }
        at += 2;
        if let Some(TokenTree::Group(group)) = trees.get(at) {
            let members: Vec<TokenTree> = group.stream().into_iter().collect();
            for member in members.split(|tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == ',')) {
                path(member, 0, &segments, found);
            }
            return at + 1;
        }
    }
    found.push(segments);
    at
}

/// The module that a path of the module `from` names, or `None` for the module itself.
fn target(from: &str, path: &[String], modules: &BTreeMap<String, Module>) -> Option<String> {
    let mut absolute: Vec<&str> = if path.first()? == "crate" { Vec::new() } else { from.split("::").collect() };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => _ = absolute.pop(),
            name => absolute.push(name),
        }
    }
    let prefixes = (1..=absolute.len()).rev().map(|length| absolute[..length].join("::"));
    prefixes.into_iter().find(|prefix| modules.contains_key(prefix)).filter(|name| name != from)
}

impl<'ast> Visit<'ast> for Figures {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, function.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_visibility(&mut self, visibility: &'ast syn::Visibility) {
        self.public_items += usize::from(matches!(visibility, syn::Visibility::Public(_)));
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.public_modules += usize::from(matches!(module.vis, syn::Visibility::Public(_)));
        visit::visit_item_mod(self, module);
    }

    // Public fields belong to their type, so they don't count as items.
    fn visit_fields(&mut self, _fields: &'ast syn::Fields) {}

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.reconciler_fields += if item.ident == "Reconciler" { item.fields.len() } else { 0 };
        visit::visit_item_struct(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.self_ty.to_token_stream().to_string() == "Reconciler" {
            self.reconciler_methods += item.items.iter().filter(|item| matches!(item, syn::ImplItem::Fn(_))).count();
        }
        visit::visit_item_impl(self, item);
    }
}

impl Figures {
    fn of(root: &Path) -> Self {
        let modules = modules(&root.join("agent/src"));
        let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
        let mut figures = Self {
            readme_lines: readme.lines().count(),
            readme_words: readme.split_whitespace().count(),
            ..Self::default()
        };
        for (name, module) in &modules {
            figures.visit_file(&module.syntax);
            let code = module.syntax.to_token_stream();
            let mut found = Vec::new();
            paths(code.clone(), &mut found);
            let targets: BTreeSet<String> = found.iter().filter_map(|path| target(name, path, &modules)).collect();
            figures.imports.insert(name.clone(), targets);
            if name == "reconcile" {
                figures.reconciler_lines = module.lines;
            }
            figures.note_words(name, &code.to_string());
        }
        figures.functions.sort_unstable();
        figures
    }

    fn function(&mut self, signature: &syn::Signature, span: proc_macro2::Span) {
        let lines = span.end().line - signature.fn_token.span.start().line + 1;
        self.functions.push((lines, signature.ident.to_string()));
    }

    /// Notes a module that defines a type of the credential, reads PEM, or compares the text of an error.
    fn note_words(&mut self, module: &str, code: &str) {
        let has = |words: &[&str]| words.iter().any(|word| code.contains(word));
        let credential = ["ClusterCredential", "CredentialSource", "CredentialVersion", "ClusterSecret"];
        let definitions = ["struct", "enum", "trait", "impl"];
        if definitions.iter().any(|keyword| credential.iter().any(|name| code.contains(&format!("{keyword} {name}")))) {
            self.credential.insert(module.to_owned());
        }
        let libraries = ["PemObject", "parse_x509_pem", "from_pem_slice", "pem_slice_iter", "KeyPair :: from_pem"];
        if has(&libraries) || (has(&["-----BEGIN"]) && has(&["BASE64_STANDARD"])) {
            self.pem.insert(module.to_owned());
        }
        if has(&[
            "chain_of (error) ==",
            "== chain_of",
            "== \"confirmed\"",
            "to_string () . contains",
            "to_string () ==",
        ]) {
            self.texts_that_decide.insert(module.to_owned());
        }
    }

    /// Groups of modules that import each other, directly or through others.
    fn circles(&self) -> Vec<BTreeSet<String>> {
        let reached = |from: &str| {
            let mut found = BTreeSet::new();
            let mut open: Vec<&str> = vec![from];
            while let Some(module) = open.pop() {
                for next in self.imports.get(module).into_iter().flatten() {
                    if found.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
            found
        };
        let reachable: BTreeMap<&str, BTreeSet<String>> =
            self.imports.keys().map(|module| (module.as_str(), reached(module))).collect();
        let mut circles: Vec<BTreeSet<String>> = Vec::new();
        for (module, targets) in reachable.iter().filter(|(module, targets)| targets.contains(**module)) {
            let mutual = |other: &&String| reachable[other.as_str()].contains(*module);
            let circle = targets.iter().filter(mutual).cloned().collect();
            if !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    /// Imports of a module in a higher layer.
    fn upwards(&self) -> BTreeSet<(String, String)> {
        let layer = |module: &str| {
            let top = module.split("::").next().unwrap_or_default();
            LAYERS.iter().position(|layer| layer.contains(&top))
        };
        let arrows = self.imports.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)));
        let upwards = arrows.filter(|(from, to)| layer(from).zip(layer(to)).is_some_and(|(from, to)| from < to));
        upwards.map(|(from, to)| (from.clone(), to.clone())).collect()
    }

    fn table(&self) -> String {
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let p99 = self.functions[self.functions.len() * 99 / 100].0;
        let (longest, name) = self.functions.last().unwrap();
        let circles: Vec<String> = self.circles().iter().map(list).collect();
        let upwards: Vec<String> = self.upwards().iter().map(|(from, to)| format!("{from} → {to}")).collect();
        let rows = [
            ["circles of imports".to_owned(), self.circles().len().to_string(), circles.join("; ")],
            ["imports of a higher layer".to_owned(), upwards.len().to_string(), upwards.join(", ")],
            ["fields of Reconciler".to_owned(), self.reconciler_fields.to_string(), String::new()],
            ["methods of Reconciler".to_owned(), self.reconciler_methods.to_string(), String::new()],
            ["lines of reconcile.rs".to_owned(), self.reconciler_lines.to_string(), "without tests".to_owned()],
            ["modules of the credential".to_owned(), self.credential.len().to_string(), list(&self.credential)],
            ["modules that read PEM".to_owned(), self.pem.len().to_string(), list(&self.pem)],
            [
                "modules that compare texts".to_owned(),
                self.texts_that_decide.len().to_string(),
                list(&self.texts_that_decide),
            ],
            ["lines of README".to_owned(), self.readme_lines.to_string(), String::new()],
            ["words of README".to_owned(), self.readme_words.to_string(), String::new()],
            ["functions".to_owned(), self.functions.len().to_string(), String::new()],
            ["lines of a function, p99".to_owned(), p99.to_string(), String::new()],
            ["lines of the longest".to_owned(), longest.to_string(), name.clone()],
            ["modules".to_owned(), self.imports.len().to_string(), String::new()],
            ["public modules".to_owned(), self.public_modules.to_string(), String::new()],
            ["public items".to_owned(), self.public_items.to_string(), String::new()],
        ];
        table::render(&["figure", "count", "which"].map(str::to_owned), &rows)
    }
}

#[test]
fn the_house_has_no_circle_of_imports_and_no_import_of_a_higher_layer() {
    let other = std::env::var_os("HOUSE_OF").map(PathBuf::from);
    let figures = Figures::of(&other.clone().unwrap_or_else(workspace));
    println!("{}", figures.table());
    if other.is_some() {
        return;
    }
    assert_eq!(figures.circles(), Vec::<BTreeSet<String>>::new());
    let accepted = ACCEPTED_UPWARDS.map(|(from, to)| (from.to_owned(), to.to_owned()));
    assert_eq!(figures.upwards(), BTreeSet::from(accepted));
    let placed: BTreeSet<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    let top: BTreeSet<&str> = figures.imports.keys().map(|module| module.split("::").next().unwrap()).collect();
    assert_eq!(placed, top, "LAYERS names every module at the top of the crate");
}

#[test]
fn a_circle_of_imports_is_found_through_groups_and_macros() {
    let files = [
        ("a", "use crate::{b::{One, Two}, c};"),
        ("b", "fn two() { format!(\"{}\", crate::c::three()); }"),
        ("c", "use super::d::Four;"),
        ("d", "fn four() {} #[cfg(test)] mod tests { use crate::a; }"),
        ("e", "fn five() -> super::b::Two { crate::a::one() }"),
    ];
    let circles = |files: &[(&str, &str)]| {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("agent/src");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(directory.path().join("README.md"), "").unwrap();
        for (name, text) in files {
            std::fs::write(source.join(name).with_extension("rs"), text).unwrap();
        }
        Figures::of(directory.path()).circles()
    };
    assert_eq!(circles(&files), Vec::<BTreeSet<String>>::new());
    let mut closed = files;
    closed[3].1 = "fn four() { crate::a::one() }";
    assert_eq!(circles(&closed), [BTreeSet::from(["a", "b", "c", "d"].map(str::to_owned))]);
}
