//! `forgelm plugin new`: a folder that builds as it is and passes `forgelm plugin check`.
//!
//! The templates are the files of `ffi/templates`, whole plugins named `my_plugin`; what is written is
//! them with that name replaced, and what they need to build on a machine without ForgeLM's sources.

use super::sdk;
use crate::args::{PluginKind, PluginLanguage};
use crate::command::Context;
use forgelm_artifact::write::StagedDir;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::json;
use std::path::Path;

/// A file to be: its name below the new folder, with `/`, and its text.
pub struct File {
    name: String,
    text: String,
}

impl File {
    /// Of this name.
    pub fn new(name: &str, text: String) -> Self {
        Self { name: name.to_owned(), text }
    }
}

/// The name in the templates, in place of the plugin's.
const NAME: &str = "my_plugin";
/// Bytes of a name, at most.
const NAME_MAX: usize = 64;

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../../../../ffi/templates/", $name))
    };
}

const LICENSE: &str = include_str!("../../../../../LICENSE");
const HEADER: &str = include_str!("../../../../../ffi/include/forgelm_plugin.h");
const README: &str = template!("README.md");

/// Makes the folder `name` in the current one.
pub fn new(kind: PluginKind, language: PluginLanguage, name: &str, context: &mut Context) -> Exit {
    if let Err(problem) = check_name(name) {
        return context.refused(Exit::Config, &problem);
    }
    if Path::new(name).symlink_metadata().is_ok() {
        let problem = format!("`{name}` is there already; nothing was written");
        return context.refused(Exit::Config, &problem);
    }
    let files = files(kind, language, name);
    if let Err(error) = write(name, &files) {
        return context.failed(&error);
    }
    let (build, library) = (language.build(), language.library(name));
    let text = format!(
        "{name}/ is {} for ForgeLM in {}\n  cd {name}\n  {build}\n  forgelm plugin check {library}",
        kind.with_article(),
        language.shown(),
    );
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let shown = json!({
        "success": true,
        "folder": name,
        "files": names,
        "build": build,
        "library": library,
    });
    context.result(&text, &shown);
    Exit::Success
}

fn write(folder: &str, files: &[File]) -> Result<(), RunError> {
    let mut staged = StagedDir::new(Path::new(folder))?;
    for file in files {
        staged.write(&file.name, file.text.as_bytes())?;
    }
    Ok(staged.commit()?)
}

/// The name stands in a config, in sources and in names of files and of a package.
fn check_name(name: &str) -> Result<(), String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(is_part)
        && name.len() <= NAME_MAX;
    if !is_good {
        return Err(format!(
            "`{}` is not a name for a plugin; expected a small letter, then small letters, digits and \
             `_`, {NAME_MAX} at most",
            name.escape_debug()
        ));
    }
    match name.starts_with("forgelm") || name == "serde_json" {
        true => {
            Err(format!("`{name}` is the name of what plugins are made with; expected another"))
        }
        false => Ok(()),
    }
}

fn files(kind: PluginKind, language: PluginLanguage, name: &str) -> Vec<File> {
    let source = |rust, c, cpp| match language {
        PluginLanguage::Rust => rust,
        PluginLanguage::C => c,
        PluginLanguage::Cpp => cpp,
    };
    let source = match kind {
        PluginKind::Trainer => source(
            template!("rust/trainer.rs"),
            template!("c/trainer.c"),
            template!("cpp/trainer.cpp"),
        ),
        PluginKind::Quantizer => source(
            template!("rust/quantizer.rs"),
            template!("c/quantizer.c"),
            template!("cpp/quantizer.cpp"),
        ),
        PluginKind::Evaluator => source(
            template!("rust/evaluator.rs"),
            template!("c/evaluator.c"),
            template!("cpp/evaluator.cpp"),
        ),
        PluginKind::MergeMethod => source(
            template!("rust/merge_method.rs"),
            template!("c/merge_method.c"),
            template!("cpp/merge_method.cpp"),
        ),
        PluginKind::Reward => source(
            template!("rust/reward.rs"),
            template!("c/reward.c"),
            template!("cpp/reward.cpp"),
        ),
    };
    let named = |file: &str, text: &str| File::new(file, text.replace(NAME, name));
    let (source_file, library) = (language.source(name), language.library(name));
    let readme = README
        .replace("{{kind}}", &capitalized(kind.with_article()))
        .replace("{{language}}", language.shown())
        .replace("{{source}}", &source_file)
        .replace("{{build}}", language.build())
        .replace("{{use}}", &used(kind))
        .replace("{{library}}", &library)
        .replace("{{page}}", page(kind))
        .replace("{{vendored}}", source_of_ours(language));
    let mut files = vec![
        named(&source_file, source),
        named("README.md", &readme),
        File::new("LICENSE.forgelm", LICENSE.to_owned()),
    ];
    let makefile = match language {
        PluginLanguage::Rust => {
            files.push(named("Cargo.toml", template!("rust/Cargo.toml.in")));
            files.push(File::new(".gitignore", "/target\n".to_owned()));
            files.extend(sdk::files());
            return files;
        }
        PluginLanguage::C => template!("c/Makefile"),
        PluginLanguage::Cpp => template!("cpp/Makefile"),
    };
    files.push(named("Makefile", makefile));
    files.push(File::new(".gitignore", "*.so\n".to_owned()));
    files.push(File::new("forgelm_plugin.h", HEADER.to_owned()));
    files
}

/// How one is asked for.
fn used(kind: PluginKind) -> String {
    let config = |work: &str, line: &str| {
        format!(
            "{work} that is to use the plugin names its library:\n\n```yaml\nplugins:\n  paths: \
             [my_plugin/{{{{library}}}}]\n  {line}\n```"
        )
    };
    match kind {
        PluginKind::Trainer => config("A run", "trainer: my_plugin"),
        PluginKind::Evaluator => config("A run", "evaluators: [{name: my_plugin}]"),
        PluginKind::Reward => config("A run", "rewards: [{name: my_plugin}]"),
        PluginKind::Quantizer => {
            "A model is written with it by\n\n```sh\nFORGELM_PLUGIN_PATH=my_plugin/{{library}} \\\n  \
             forgelm quantize --model MODEL --method my_plugin --output small\n```"
                .to_owned()
        }
        PluginKind::MergeMethod => config("A merge", "merge_method: my_plugin"),
    }
}

/// The page about its kind.
fn page(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Trainer => "trainers.md",
        PluginKind::Evaluator => "evaluators.md",
        PluginKind::Reward => "rewards.md",
        PluginKind::Quantizer => "quantize.md",
        PluginKind::MergeMethod => "merge.md",
    }
}

fn source_of_ours(language: PluginLanguage) -> &'static str {
    match language {
        PluginLanguage::Rust => "forgelm_sdk",
        PluginLanguage::C | PluginLanguage::Cpp => "forgelm_plugin.h",
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn no_file_of_a_new_folder_has_a_word_of_the_templates_left() {
        for kind in PluginKind::value_variants() {
            for language in PluginLanguage::value_variants() {
                for file in files(*kind, *language, "softmax") {
                    for word in [NAME, "FORGELM_VERSION"] {
                        assert!(!file.text.contains(word), "{}: {word}", file.name);
                    }
                    // Elsewhere it is code.
                    let is_text = file.name == "README.md";
                    assert!(!is_text || !file.text.contains("{{"), "{}", file.text);
                }
            }
        }
    }

    #[test]
    fn names_are_small_words() {
        for name in ["a", "my_loss2", "x_"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = "a".repeat(65);
        for name in ["", "2x", "My", "a-b", "a/b", "..", "a b", "é", "_a", &long] {
            assert!(check_name(name).expect_err(name).contains("expected a small letter"));
        }
        for name in ["forgelm_sdk", "serde_json"] {
            assert!(check_name(name).expect_err(name).contains("expected another"));
        }
    }
}
