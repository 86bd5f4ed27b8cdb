//! The repository as text: its files, and what stands in documents and sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::{fs, iter};

/// The files and folders of the repository, by path from its top; with the text of documents and sources.
pub struct Tree {
    paths: BTreeSet<String>,
    texts: BTreeMap<String, String>,
}

/// The top of the repository.
pub fn top() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the top")
}

impl Tree {
    /// Reads them.
    pub fn read() -> Self {
        let top = top();
        let mut tree = Self {
            paths: BTreeSet::new(),
            texts: BTreeMap::new(),
        };
        tree.walk(top, top);
        tree
    }

    fn walk(&mut self, top: &Path, folder: &Path) {
        for entry in fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry"))
        {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name == "target" || (name.starts_with('.') && name != ".ci") {
                continue;
            }
            let short = path
                .strip_prefix(top)
                .expect("below the top")
                .to_string_lossy()
                .into_owned();
            if entry.file_type().expect("its kind").is_dir() {
                self.walk(top, &path);
            } else if name.ends_with(".rs") || name.ends_with(".md") {
                let text = fs::read_to_string(&path).expect("text");
                self.texts.insert(short.clone(), text);
            }
            self.paths.insert(short);
        }
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> &str {
        self.texts
            .get(path)
            .unwrap_or_else(|| panic!("{path} is missing"))
    }

    fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self
            .texts
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()));
        all.filter(move |(path, _)| path.ends_with(end))
    }

    /// All documents.
    pub fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ending(".md")
    }

    /// All source files.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ending(".rs")
    }

    /// The sources of the host, without its tests.
    pub fn in_the_program(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sources()
            .filter(|(path, _)| path.starts_with("host/") && path.contains("/src/"))
    }

    /// Whether there is such a file or folder: the whole of its path, or the end of it.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.contains(path) || self.paths.iter().any(|known| is_end(known, path))
    }

    /// Whether that is meant to be a path of this repository.
    pub fn is_path(&self, span: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        let folder = span.split_once('/').map_or("", |(first, _)| first);
        let is_file = [".rs", ".md", ".toml", ".wit"]
            .iter()
            .any(|end| span.ends_with(end));
        span.chars().all(plain)
            && !span.starts_with('.')
            && !span.starts_with('/')
            && (is_file || self.paths.contains(folder))
            || span.starts_with(".ci/")
    }

    /// Whether a file of that name has that function, or mentions that type or constant.
    pub fn has_item(&self, file: &str, name: &str) -> bool {
        let function = [format!("fn {name}("), format!("fn {name}<")];
        self.sources()
            .filter(|(path, _)| *path == file || is_end(path, file))
            .any(
                |(_, text)| match name.starts_with(|c: char| c.is_ascii_uppercase()) {
                    true => text.contains(name),
                    false => function.iter().any(|words| text.contains(words)),
                },
            )
    }

    /// The promises that tests cite: number, and `file::function`.
    pub fn citations(&self) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        for (path, text) in self.sources() {
            let mut ids: Vec<&str> = Vec::new();
            for line in text.lines().map(str::trim) {
                if let Some(list) = line.strip_prefix("// P-") {
                    ids.extend(list.split(", P-"));
                } else if let Some((_, rest)) = line.split_once("fn ") {
                    let name = rest.split(['(', '<']).next().unwrap_or("");
                    let test = format!("{path}::{name}");
                    all.extend(ids.drain(..).map(|id| (format!("P-{id}"), test.clone())));
                }
            }
        }
        all
    }
}

fn is_end(path: &str, end: &str) -> bool {
    path.strip_suffix(end)
        .is_some_and(|rest| rest.ends_with('/'))
}

/// A document without its blocks of code.
pub fn outside_fences(text: &str) -> String {
    let pieces = text.split("```").step_by(2);
    pieces.collect()
}

/// The same on one line, because a name may be broken there.
pub fn prose(text: &str) -> String {
    outside_fences(text).replace('\n', " ")
}

/// What stands between backticks.
pub fn spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The targets of links within the repository.
pub fn links(text: &str) -> Vec<&str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target)
        .filter(|target| !target.contains(':'))
        .collect()
}

/// The documents below `docs/` that a source names.
pub fn documents_in(text: &str) -> impl Iterator<Item = String> {
    let named = text.split("docs/").skip(1).filter_map(|rest| {
        let (stem, _) = rest.split_once(".md")?;
        let is_path = |c: char| c.is_ascii_alphanumeric() || "-_/".contains(c);
        (!stem.is_empty() && stem.chars().all(is_path)).then_some(stem)
    });
    named.map(|stem| format!("docs/{stem}.md"))
}

/// The anchors that a reader of Markdown gives the headings of a document.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let outside = outside_fences(text);
    let headings = outside.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The folder of a document.
pub fn document_folder(document: &str) -> &Path {
    Path::new(document).parent().unwrap_or(Path::new(""))
}

/// A relative path, from the top.
pub fn joined(folder: &Path, path: &Path) -> String {
    let mut whole = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    whole.to_string_lossy().into_owned()
}

/// The paths that a file routes.
pub fn routes(text: &str) -> Vec<&str> {
    let calls = text.split(".route(").skip(1).map(str::trim_start);
    let paths = calls.filter_map(|call| call.strip_prefix('"')?.split_once('"'));
    paths.map(|(path, _)| path).collect()
}

/// The verbs that a file of the command line declares, with the verb that they belong to.
pub fn verbs((path, text): (&str, &str)) -> Vec<(String, String)> {
    let Some((_, body)) = text
        .split_once("Subcommand)]\n")
        .filter(|_| path.contains("cli"))
    else {
        return Vec::new();
    };
    let body = body.split("\n}\n").next().unwrap_or("");
    let stem = Path::new(path)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let parent = match body.contains("enum Verb ") && stem == "verbs" {
        true => String::new(),
        false => format!(" {stem}"),
    };
    let mut hidden = false;
    let mut verbs = Vec::new();
    for line in body.lines().skip(1) {
        let variant = line
            .strip_prefix("    ")
            .filter(|rest| rest.starts_with(char::is_uppercase));
        if let Some(variant) = variant.filter(|_| !std::mem::take(&mut hidden)) {
            let name = variant
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or("");
            verbs.push((parent.clone(), kebab(name)));
        }
        hidden |= line.contains("hide = true");
    }
    verbs
}

fn kebab(name: &str) -> String {
    let dash = |c: char| {
        iter::once('-')
            .filter(move |_| c.is_uppercase())
            .chain(c.to_lowercase())
    };
    name.chars()
        .flat_map(dash)
        .collect::<String>()
        .trim_start_matches('-')
        .to_owned()
}
