//! What a newcomer may rely on: a folder of the host uses only those below it, and its files use each
//! other in no circle. Tests inside a file are free to use what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ItemMod, ItemUse, UseTree, VisRestricted};

/// From the top down. Two on one floor do not use each other either.
const FLOORS: [&[&str]; 12] = [
    &["main"],
    &["commands"],
    &["cli"],
    &["settings"],
    &["serve"],
    &["versions"],
    &["sandbox"],
    &["store", "topics"],
    &["redis"],
    &["talk", "process"],
    &["logging", "budget", "rate", "pem"],
    &["limits"],
];

#[test]
fn a_folder_uses_only_those_below_it() {
    for (file, used) in house() {
        for used in used {
            let (user, used_folder) = (folder(&file), folder(&used));
            assert!(
                user == used_folder || floor(user) < floor(used_folder),
                "`{file}` uses `{used}`, and `{used_folder}` is not below `{user}`"
            );
        }
    }
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut house = house();
    // Whoever uses nobody, or only such files, is in no circle.
    while let Some(file) = house.keys().find(|&file| house[file].is_empty()).cloned() {
        house.remove(&file);
        for used in house.values_mut() {
            used.remove(&file);
        }
    }
    // Each of the others uses another of them.
    let Some(mut file) = house.keys().next() else {
        return;
    };
    let mut way = Vec::new();
    while !way.contains(&file.as_str()) {
        way.push(file);
        file = house[file].first().unwrap();
    }
    way.drain(..way.iter().position(|&other| other == file).unwrap());
    panic!("a circle: {} -> {file}", way.join(" -> "));
}

/// systemd's variables come with its sockets. `client` is a program of its own.
#[test]
fn only_the_command_line_reads_arguments_and_variables() {
    let mut readers = Vec::new();
    let mut folders = vec![Path::new("src").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            if text.contains("env::var") || text.contains("env::args") {
                readers.push(path);
            }
        }
    }
    readers.sort();
    assert_eq!(
        readers,
        ["src/cli.rs", "src/serve/listener.rs"].map(Path::new)
    );
}

fn folder(file: &str) -> &str {
    file.split("::").next().unwrap()
}

fn floor(folder: &str) -> usize {
    FLOORS
        .iter()
        .position(|floor| floor.contains(&folder))
        .unwrap_or_else(|| panic!("`{folder}` stands on no floor of tests/house.rs"))
}

/// Each file of the library and of the program, named as its module is (`serve::server`), with the
/// files that it uses.
fn house() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = BTreeMap::new();
    for root in ["lib", "main"] {
        let source = Path::new("src").join(root).with_extension("rs");
        read(&source, root, &[], &mut files);
    }
    // It declares all others.
    files.remove("lib");
    let names: BTreeSet<_> = files.keys().cloned().collect();
    for (file, uses) in &mut files {
        *uses = uses
            .iter()
            .filter_map(|path| file_of(path, &names))
            .collect();
        uses.remove(file);
    }
    files
}

/// The file that has what this path names.
fn file_of(path: &str, files: &BTreeSet<String>) -> Option<String> {
    let mut module = path;
    while !files.contains(module) {
        (module, _) = module.rsplit_once("::")?;
    }
    Some(module.to_owned())
}

/// Adds the file of a module, with the paths that it uses, and those of the modules that it declares.
fn read(
    source: &Path,
    name: &str,
    module: &[String],
    files: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let text = fs::read_to_string(source).unwrap();
    let mut uses = Uses {
        module,
        paths: BTreeSet::new(),
        modules: Vec::new(),
    };
    uses.visit_file(&syn::parse_file(&text).unwrap());
    for inner in uses.modules {
        let module = [module, &[inner]].concat();
        let source = Path::new("src").join(module.join("/")).with_extension("rs");
        let name = module.join("::");
        read(&source, &name, &module, files);
        uses.paths.insert(name);
    }
    files.insert(name.to_owned(), uses.paths);
}

/// What one file names of this package, outside of its tests.
struct Uses<'a> {
    module: &'a [String],
    /// From the root: `serve::server::run`.
    paths: BTreeSet<String>,
    /// Those that it declares and that have a file each.
    modules: Vec<String>,
}

impl Uses<'_> {
    fn add(&mut self, path: &[String]) {
        let around = self.module.len().saturating_sub(1);
        let start = match path[0].as_str() {
            "crate" | "airlock" => &[],
            "self" => self.module,
            "super" => &self.module[..around],
            _ => return,
        };
        self.paths.insert([start, &path[1..]].concat().join("::"));
    }

    fn add_tree(&mut self, path: &[String], tree: &UseTree) {
        let longer = |name: &Ident| [path, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(tree) => self.add_tree(&longer(&tree.ident), &tree.tree),
            UseTree::Name(name) => self.add(&longer(&name.ident)),
            UseTree::Rename(name) => self.add(&longer(&name.ident)),
            UseTree::Glob(_) => self.add(path),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(path, tree);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if module.attrs.iter().any(is_for_tests) {
            return;
        }
        if module.content.is_none() {
            self.modules.push(module.ident.to_string());
        }
        visit::visit_item_mod(self, module);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|name| name.ident.to_string());
        self.add(&names.collect::<Vec<_>>());
        visit::visit_path(self, path);
    }

    /// `pub(in crate::sandbox)` uses nothing.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<Ident>()
            .is_ok_and(|name| name == "test")
}
