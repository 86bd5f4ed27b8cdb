//! What documents say of the tree is so: names, promises, maps, routes, verbs, links, tables. Needs no binary.

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tree::{Tree, document_folder, outside_fences, prose, spans};

/// Lines of a source file. A longer one says why in its head: `// over 600 lines: …`.
const LINES_MAX: usize = 600;

/// Characters of a sentence in a table.
const SENTENCE_MAX: usize = 200;

/// Files that documents name and that are a user's.
const NOT_OURS: &[&str] = &["skep.toml"];

/// Fails with all that was found, one a line.
fn none(found: Vec<String>, advice: &str) {
    assert!(found.is_empty(), "{}\n{advice}", found.join("\n"));
}

#[test]
fn what_documents_name_exists() {
    let tree = Tree::read();
    let mut found = Vec::new();
    for (document, text) in tree.documents() {
        for span in spans(&prose(text)) {
            let exists = match span.split_once(".rs::") {
                Some((file, name)) => tree.has_item(&format!("{file}.rs"), name),
                None => !tree.is_path(span) || NOT_OURS.contains(&span) || tree.has(span),
            };
            if !exists {
                found.push(format!("{document}: `{span}`"));
            }
        }
    }
    for (source, text) in tree.sources() {
        for path in tree::documents_in(text).filter(|path| !tree.has(path)) {
            found.push(format!("{source}: {path}"));
        }
    }
    none(found, "no such file, or no such function in it");
}

#[test]
fn every_promise_has_a_test_that_cites_it() {
    let tree = Tree::read();
    let mut promised = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut number = None;
    for line in tree.text("GUARANTEES.md").lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            let (id, _) = heading.split_once(' ').expect("a number and a title");
            assert!(numbers.insert(id), "{id} stands twice");
            number = Some(id);
        } else if line.starts_with("## ") {
            number = None;
        } else if let (Some(id), Some(item)) = (number, line.strip_prefix("- `"))
            && let Some((file, name)) = item.split('`').next().unwrap_or("").split_once(".rs::")
        {
            promised.insert((id.to_owned(), format!("{file}.rs::{name}")));
        }
    }
    let with_a_test: BTreeSet<&str> = promised.iter().map(|(id, _)| id.as_str()).collect();
    let bare = numbers.iter().filter(|id| !with_a_test.contains(**id));
    none(
        bare.map(|id| (*id).to_owned()).collect(),
        "name a test of this promise",
    );
    let cited = tree.citations();
    let missing = promised
        .difference(&cited)
        .map(|(id, test)| format!("{test}: `// {id}` is missing"));
    let strange = cited
        .difference(&promised)
        .map(|(id, test)| format!("{test}: {id} does not name it"));
    none(
        missing.chain(strange).collect(),
        "GUARANTEES.md and the comments at tests differ",
    );
}

#[test]
fn every_module_stands_in_the_map_of_its_crate() {
    let tree = Tree::read();
    let mut found = Vec::new();
    for (path, text) in tree
        .sources()
        .filter(|(path, _)| path.ends_with("src/lib.rs"))
    {
        let head: Vec<&str> = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        let maps = ["//! * `", "//! * [`", "//! - `", "//! - [`"];
        if !head
            .iter()
            .any(|line| maps.iter().any(|begin| line.starts_with(begin)))
        {
            continue;
        }
        let head = head.join("\n");
        for line in text.lines().filter_map(|line| line.strip_suffix(';')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [.., "mod", name] = words[..] else {
                continue;
            };
            let named = |end| head.contains(&format!("`{name}{end}"));
            if !line.starts_with(' ') && name != "tests" && !named("`") && !named("::") {
                found.push(format!("{path}: `{name}`"));
            }
        }
    }
    none(found, "the map at the head of this file lacks the module");
}

#[test]
fn every_route_verb_and_variable_is_documented() {
    let tree = Tree::read();
    let readme = tree.text("README.md");
    let mut found = Vec::new();
    let plain = without_names(readme);
    let routes: Vec<&str> = tree
        .in_the_program()
        .flat_map(|(_, text)| tree::routes(text))
        .collect();
    assert!(routes.len() > 20, "{routes:?}");
    for route in routes {
        let route = without_names(route);
        if !["`", "?"]
            .iter()
            .any(|end| plain.contains(&format!(" {route}{end}")))
        {
            found.push(format!("README.md: {route}"));
        }
    }
    let verbs: Vec<(String, String)> = tree.in_the_program().flat_map(tree::verbs).collect();
    assert!(verbs.len() > 25, "{verbs:?}");
    for (parent, verb) in verbs {
        let shown = readme.lines().any(|line| {
            let (_, typed) = line
                .split_once(&format!("`skep{parent}"))
                .unwrap_or_default();
            typed
                .split(|c: char| c != '-' && !c.is_alphanumeric())
                .any(|word| word == verb)
        });
        if !shown {
            found.push(format!("README.md: skep{parent} {verb}"));
        }
    }
    let contributing = tree.text("CONTRIBUTING.md");
    for (path, text) in tree.sources() {
        for name in text
            .split("\"SKEP_")
            .skip(1)
            .filter_map(|rest| rest.split_once('"'))
        {
            let name = format!("SKEP_{}", name.0);
            let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            if is_name
                && !name.contains("__")
                && !contributing.contains(&name)
                && path != "tests/tidy/main.rs"
            {
                found.push(format!("CONTRIBUTING.md: {name}, of {path}"));
            }
        }
    }
    none(found, "the document does not say it");
}

/// Without what stands between braces: `/v1/groups/{group}` and `/v1/groups/{id}` are one route.
fn without_names(text: &str) -> String {
    let mut pieces = text.split('{');
    let first = pieces.next().unwrap_or("").to_owned();
    pieces.fold(first, |whole, piece| {
        whole + "{}" + piece.split_once('}').map_or("", |(_, rest)| rest)
    })
}

#[test]
fn no_file_is_long_without_a_reason() {
    let tree = Tree::read();
    let mut found = Vec::new();
    for (path, text) in tree.sources() {
        let lines = text.lines().count();
        let says_why = text
            .lines()
            .take(10)
            .any(|line| line.starts_with("// over 600 lines: "));
        if lines > LINES_MAX && !says_why {
            found.push(format!("{path}: {lines} lines"));
        }
    }
    none(
        found,
        "divide the file, or say why it is one: `// over 600 lines: …`",
    );
}

#[test]
fn sentences_in_tables_are_short() {
    let tree = Tree::read();
    let mut found = Vec::new();
    for (document, text) in tree.documents() {
        for line in outside_fences(text)
            .lines()
            .filter(|line| line.starts_with('|'))
        {
            // Names of tests and targets of links are no part of a sentence.
            let mut line = line.replace("**", "");
            for span in spans(&line.clone())
                .into_iter()
                .filter(|span| span.contains("::"))
            {
                line = line.replace(span, "");
            }
            for target in tree::links(&line.clone()) {
                line = line.replace(target, "");
            }
            let cells = line.split(" | ").flat_map(|cell| cell.split(". "));
            for sentence in cells.flat_map(|cell| cell.split("; ")) {
                if sentence.chars().count() > SENTENCE_MAX {
                    found.push(format!("{document}: {sentence}"));
                }
            }
        }
    }
    none(found, "say it in two sentences, or outside of the table");
}

#[test]
fn no_link_is_dead() {
    let tree = Tree::read();
    let headings: BTreeMap<&str, BTreeSet<String>> = tree
        .documents()
        .map(|(document, text)| (document, tree::anchors(text)))
        .collect();
    let mut found = Vec::new();
    for (document, text) in tree.documents() {
        for target in tree::links(&prose(text)) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => document.to_owned(),
                path => tree::joined(document_folder(document), Path::new(path)),
            };
            let known = anchor.is_empty()
                || headings
                    .get(path.as_str())
                    .is_some_and(|of| of.contains(anchor));
            if !tree.has(&path) || !known {
                found.push(format!("{document}: {target}"));
            }
        }
    }
    none(found, "the link leads nowhere");
}

#[test]
fn generated_tables_are_those_of_the_code() {
    for (document, source, table) in [
        (
            "docs/reference/failures.md",
            "host/types/src/code.rs",
            skep_types::code::markdown(),
        ),
        (
            "docs/reference/limits.md",
            "host/server/src/budget.rs",
            skep_server::budget::markdown(),
        ),
    ] {
        let begin = format!(
            "<!-- Written from {source}; tests/tidy compares them, and writes with SKEP_WRITE_DOCS=1. -->\n"
        );
        let end = "<!-- End of what is written. -->\n";
        let path = tree::top().join(document);
        let text = std::fs::read_to_string(&path).expect("the document");
        let (before, rest) = text.split_once(&begin).expect("where the table begins");
        let (shown, after) = rest.split_once(end).expect("where the table ends");
        if std::env::var_os("SKEP_WRITE_DOCS").is_some() {
            let text = format!("{before}{begin}{table}{end}{after}");
            std::fs::write(&path, text).expect("the document is written");
            continue;
        }
        assert!(
            shown == table,
            "{document} does not show the table of {source}; run \
             `SKEP_WRITE_DOCS=1 cargo test -p skep-tests --test tidy` and commit"
        );
    }
}
