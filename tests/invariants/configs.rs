//! The runnable examples are valid, and need nothing that is not built.

use forgelm_config::{load, not_available};

use crate::tree::Tree;

/// The problems of one config, with the features that it asks for and does not get.
fn problems(name: &str, text: &str) -> Vec<String> {
    match load(text, name) {
        Ok(loaded) => {
            let mut found: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            found.extend(
                not_available(&loaded.run, &loaded.written, name).iter().map(ToString::to_string),
            );
            found
        }
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_examples_are_valid_and_say_nothing() {
    let tree = Tree::of_repository();
    let examples: Vec<(&str, &str)> = tree
        .texts()
        .filter(|(name, _)| name.starts_with("configs/") && name.ends_with(".yaml"))
        .filter(|(name, _)| *name != "configs/reference.yaml")
        .collect();
    assert!(examples.iter().any(|(name, _)| *name == "configs/quickstart.yaml"));
    for (name, text) in examples {
        crate::must_be_empty(&problems(name, text));
    }
}

#[test]
fn the_quickstart_pins_its_model() {
    let tree = Tree::of_repository();
    let text = tree.text("configs/quickstart.yaml").unwrap_or_default();
    let pinned = load(text, "quickstart.yaml").ok().and_then(|loaded| loaded.run.model.revision);
    assert!(pinned.is_some_and(|revision| revision.starts_with("sha256:")));
}

#[test]
fn canary_a_bad_example_is_found() {
    let rest = "data: {dataset_name_or_path: a}\ntraining: {report_to: none}\n";
    let bad = format!("model: {{name_or_path: a, load_in_4bit: yes please}}\n{rest}");
    crate::must_find(&problems("configs/a.yaml", &bad), &["configs/a.yaml:1", "load_in_4bit"]);
    let unbuilt = format!(
        "model: {{name_or_path: a, load_in_4bit: false, multimodal: {{enabled: true}}}}\n{rest}"
    );
    crate::must_find(&problems("configs/a.yaml", &unbuilt), &["not available yet"]);
}
