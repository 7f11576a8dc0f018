//! No file names a place on somebody's machine.

use crate::tree::Tree;

/// Spelled in halves, so that this file is clean too.
const PLACES: [&str; 5] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("C:\\Us", "ers"),
];

fn problems(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.texts() {
        for (number, line) in text.lines().enumerate() {
            // a path starts where no other path goes on: `a/work/b` is ours
            let names_one = PLACES.iter().find(|place| {
                line.match_indices(**place).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}<>*".contains(c))
                })
            });
            if let Some(place) = names_one {
                let number = number + 1;
                found.push(format!(
                    "{name}:{number}: `{place}` is a place on one machine: use a relative path"
                ));
            }
        }
    }
    found
}

#[test]
fn no_file_names_a_place_on_a_machine() {
    crate::must_be_empty(&problems(&Tree::of_repository()));
}

#[test]
fn canary_a_path_of_a_machine_is_found() {
    let planted = format!("a\nsee {}me/x\nframe/{}rk/y", "/ho", "wo");
    let files = [("docs/x.md", planted.as_str())];
    crate::must_find(&problems(&Tree::planted(&files)), &["docs/x.md:2"]);
}
