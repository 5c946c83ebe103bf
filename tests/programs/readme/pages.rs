//! The pages, taken apart: their code blocks, files and links.

use std::path::Path;

/// Whose lines are run here, from the directory of the package.
pub const PAGES: &[&str] = &["README.md", "docs/cookbook.md"];

/// Whose links are followed besides.
pub const OTHER_PAGES: &[&str] = &[
    "CONTRIBUTING.md",
    "contrib/README.md",
    "docs/performance.md",
];

/// A file that a page shows: its name is before the code block, as in "`hello.py`:".
pub struct File {
    pub name: String,
    pub language: String,
    pub text: String,
}

/// The code blocks of the pages.
#[derive(Default)]
pub struct Blocks {
    /// Lines to paste, of blocks of sh.
    pub lines: Vec<String>,
    pub files: Vec<File>,
}

impl Blocks {
    pub fn read() -> Self {
        let mut blocks = Self::default();
        for page in PAGES {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
            blocks.add(&std::fs::read_to_string(path).unwrap(), page);
        }
        blocks
    }

    /// The files that these lines name, and the files that such a file names.
    pub fn files_for(&self, lines: &[&str]) -> Vec<&File> {
        let mut texts = lines.to_vec();
        let mut found: Vec<&File> = Vec::new();
        while let Some(text) = texts.pop() {
            for file in self.files.iter().filter(|file| uses(text, &file.name)) {
                if found.iter().all(|known| known.name != file.name) {
                    found.push(file);
                    texts.push(&file.text);
                }
            }
        }
        found
    }

    pub fn add(&mut self, page: &str, name: &str) {
        let mut lines = page.lines();
        let mut before = "";
        while let Some(line) = lines.next() {
            let Some(language) = line.strip_prefix("```") else {
                if !line.is_empty() {
                    before = line;
                }
                continue;
            };
            let mut inside = Vec::new();
            loop {
                match lines.next() {
                    Some("```") => break,
                    Some(line) => inside.push(line.to_owned()),
                    None => panic!("{name}: a code block is not closed"),
                }
            }
            match language {
                "sh" => self.lines.extend(inside),
                // A drawing.
                "text" => {}
                language => self.files.push(File {
                    name: named_by(before)
                        .unwrap_or_else(|| panic!("{name}: whose is {inside:?}?")),
                    language: language.to_owned(),
                    text: inside.join("\n") + "\n",
                }),
            }
        }
    }
}

/// Whether a line, or a file, names this file as a word of its own.
pub fn uses(text: &str, file: &str) -> bool {
    text.split_whitespace().any(|word| word == file)
}

/// The name at the end of the line before a file: "Perl. `hello.pl`:".
pub fn named_by(line: &str) -> Option<String> {
    let (_, name) = line.strip_suffix("`:")?.rsplit_once('`')?;
    Some(name.to_owned())
}

#[test]
fn a_page_is_taken_apart() {
    let page = "# Title\n\n```text\n-->\n```\n\nIt is `b`, in `a`:\n\n```ini\n[x]\n\ny\n```\n\n\
        Paste:\n\n```sh\none\ntwo\n```\n";
    let mut blocks = Blocks::default();
    blocks.add(page, "page");
    assert_eq!(blocks.lines, ["one", "two"]);
    let [file] = &blocks.files[..] else {
        panic!("{} files", blocks.files.len());
    };
    let file = (
        file.name.as_str(),
        file.language.as_str(),
        file.text.as_str(),
    );
    assert_eq!(file, ("a", "ini", "[x]\n\ny\n"));
}

#[test]
#[should_panic(expected = "a code block is not closed")]
fn a_block_that_is_not_closed_is_a_failure() {
    Blocks::default().add("```sh\none\n", "page");
}

#[test]
#[should_panic(expected = "whose is")]
fn a_file_without_a_name_is_a_failure() {
    Blocks::default().add("A file:\n\n```ini\n[x]\n```\n", "page");
}

/// Where the links of a page lead: `[text](target)`.
fn targets(page: &str) -> impl Iterator<Item = &str> {
    let behind = page.split("](").skip(1);
    behind.filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// The name that a heading has in a link.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for name in [PAGES, OTHER_PAGES].concat() {
        let page = root.join(name);
        let text = read(&page);
        for target in targets(&text).filter(|target| !target.contains("://")) {
            count += 1;
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            assert!(file.is_file(), "{name}: {target}");
            if !fragment.is_empty() {
                let there = read(&file);
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line) == fragment),
                    "{name}: {target}"
                );
            }
        }
    }
    assert!(count > 20, "only {count} links");
}
