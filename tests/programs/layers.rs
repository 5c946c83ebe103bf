//! The house of src/: bin -> cli -> { accept | serve } -> queue -> system -> error. Imports point down,
//! and go round in no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 6] = ["error", "system", "queue", "accept", "serve", "cli"];

/// How high a room is. Accept and serve are strangers: neither may import the other.
fn floor(room: &str) -> usize {
    match room {
        "serve" => 3,
        _ => ROOMS.iter().position(|other| *other == room).unwrap(),
    }
}

/// Every source file, by the path of its module: `accept::listen`.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    let mut left = vec![root.clone()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
            continue;
        }
        let inside = path.strip_prefix(&root).unwrap().with_extension("");
        let mut parts: Vec<_> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        if ROOMS.contains(&parts[0]) {
            parts.pop_if(|last| *last == "mod");
            let text = fs::read_to_string(&path).unwrap();
            // What a comment mentions is no import.
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            modules.insert(parts.join("::"), code.collect::<Vec<_>>().join("\n"));
        }
    }
    modules
}

/// What stands behind each `crate::` of a file; the branches of `crate::{..}` one by one.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, start) in text.match_indices("crate::") {
        spread(&text[at + start.len()..], "", &mut found);
    }
    found
}

/// Adds the paths at the start of `text`. Returns how much of it they are.
fn spread(text: &str, before: &str, found: &mut Vec<String>) -> usize {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_path(c)).unwrap_or(text.len());
    let path = format!("{before}{}", &text[..end]);
    if !text[end..].starts_with('{') {
        found.push(path);
        return end;
    }
    let mut at = end + 1;
    while !text[at..].starts_with('}') {
        let branch = text[at..].find(|c: char| is_path(c) || c == '}').unwrap();
        at += branch;
        if !text[at..].starts_with('}') {
            at += spread(&text[at..], &path, found);
        }
    }
    at + 1
}

/// The module that an import is of: the longest one whose path it begins with.
fn module_of(import: &str, modules: &BTreeMap<String, String>) -> Option<String> {
    let parts: Vec<_> = import.split("::").collect();
    let paths = (1..=parts.len())
        .rev()
        .map(|count| parts[..count].join("::"));
    paths.into_iter().find(|path| modules.contains_key(path))
}

#[test]
fn imports_point_down() {
    for (module, text) in modules() {
        assert!(!text.contains("super::super"), "{module} climbs");
        let room = module.split("::").next().unwrap();
        for import in imports(&text) {
            let other = import.split("::").next().unwrap();
            let is_down = other == room || !ROOMS.contains(&other) || floor(other) < floor(room);
            assert!(is_down, "{module} imports {import}");
        }
    }
}

#[test]
fn imports_go_round_in_no_circle() {
    let modules = modules();
    let mut arrows: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    for (module, text) in &modules {
        // What tests import ties nothing together.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let others = imports(code).into_iter();
        let others = others.filter_map(|import| module_of(&import, &modules));
        arrows.insert(module, others.filter(|other| other != module).collect());
    }
    // A module without arrows is in no circle, nor is what points to such modules alone.
    while let Some(free) = arrows
        .iter()
        .find(|(_, others)| others.is_empty())
        .map(|(module, _)| *module)
    {
        arrows.remove(free);
        for others in arrows.values_mut() {
            others.remove(free);
        }
    }
    assert!(arrows.is_empty(), "{arrows:#?}");
}

#[test]
fn doors_are_doors() {
    let bin: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src", "bin"].iter().collect();
    for door in fs::read_dir(bin).unwrap() {
        let path = door.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 10, "{}: {lines} lines", path.display());
    }
}
