//! `docs/performance.md` is what the committed results say.

use std::path::{Path, PathBuf};

use bench::record::{Document, read_any};
use bench::report::markdown;

#[test]
fn the_page_equals_what_is_generated_from_the_committed_results() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(own.join("results"))
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("an entry can be read").path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        eprintln!("no committed results: the page is not checked");
        return;
    }
    let (mut results, mut primitives) = (Vec::new(), None);
    for path in paths {
        match read_any(&path).expect("a committed result can be read") {
            Document::Results(read) => results.push(*read),
            Document::Primitives(read) => primitives = Some(read),
        }
    }
    let wanted = markdown::render(primitives.as_ref(), &results);
    let page = own.join("../docs/performance.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/performance.md is not what bench/results says; run: UPDATE_GOLDEN=1 cargo test -p \
         bench --test performance_page"
    );
}
