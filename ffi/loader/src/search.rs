//! Where plugins are looked for.

use crate::error::{LibraryError, Problem};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// How the libraries that ship with the program are called.
const BUNDLED_PREFIX: &str = "libforgelm_plugin_";
const EXTENSION: &str = "so";

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The folder of the program.
    pub program_dir: Option<PathBuf>,
    /// `FORGELM_PLUGIN_PATH`, in parts; left empty when the program has more rights than its user.
    pub variable: Vec<PathBuf>,
    /// `plugins.paths` of the config.
    pub config: Vec<PathBuf>,
}

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Whether it ships with the program.
    pub is_bundled: bool,
}

/// The libraries to load: those that ship with the program, those of the config,
/// those of the variable; each folder in the order of names.
///
/// # Errors
/// If a place cannot be read, or everybody may write to it.
pub fn find(places: &Places) -> Result<Vec<Found>, LibraryError> {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |path: PathBuf, is_bundled: bool| {
        if !found.iter().any(|other| other.path == path) {
            found.push(Found { path, is_bundled });
        }
    };
    if let Some(dir) = places.program_dir.as_deref().map(bundled_dir) {
        let bundled = libraries(&dir, |name| name.starts_with(BUNDLED_PREFIX))?;
        bundled.into_iter().for_each(|path| add(path, true));
    }
    for place in places.config.iter().chain(&places.variable) {
        if place.is_dir() {
            libraries(place, |_| true)?.into_iter().for_each(|path| add(path, false));
        } else {
            check_rights(place)?;
            let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty());
            check_rights(folder.unwrap_or(Path::new(".")))?;
            add(place.clone(), false);
        }
    }
    Ok(found)
}

/// Where the program's own libraries are: `../lib/forgelm` of an installed tree, cargo's `deps`
/// (`cargo test` puts the newest ones only there), else beside the program.
fn bundled_dir(program_dir: &Path) -> PathBuf {
    let installed = program_dir.join("../lib/forgelm");
    let deps = program_dir.join("deps");
    [installed, deps].into_iter().find(|dir| dir.is_dir()).unwrap_or(program_dir.to_owned())
}

fn libraries(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, LibraryError> {
    check_rights(dir)?;
    let unreadable = |error| LibraryError { path: dir.to_owned(), problem: Problem::Read(error) };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_library = path.extension().is_some_and(|extension| extension == EXTENSION);
        if is_library && is_wanted(name) {
            check_rights(&path)?;
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Code that everybody may replace is not loaded.
fn check_rights(path: &Path) -> Result<(), LibraryError> {
    let wrong = |problem| LibraryError { path: path.to_owned(), problem };
    let mode =
        fs::metadata(path).map_err(|error| wrong(Problem::Read(error)))?.permissions().mode();
    if mode & 0o002 == 0 { Ok(()) } else { Err(wrong(Problem::Writable { mode: mode & 0o7777 })) }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test prepares files")]
mod tests {
    use super::*;

    fn names(found: &[Found]) -> Vec<String> {
        found
            .iter()
            .map(|found| found.path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn only_our_own_libraries_are_found_beside_the_program_and_they_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["bin", "more", "own"] {
            fs::create_dir(at(folder)).unwrap();
        }
        for file in [
            "bin/libforgelm_plugin_trainer.so",
            "bin/libother.so",
            "more/b.so",
            "more/a.so",
            "more/readme.txt",
            "own/x.so",
        ] {
            fs::write(at(file), "").unwrap();
        }
        let places = Places {
            program_dir: Some(at("bin")),
            variable: vec![at("more")],
            config: vec![at("own/x.so")],
        };
        let found = find(&places).unwrap();
        assert_eq!(names(&found), ["libforgelm_plugin_trainer.so", "x.so", "a.so", "b.so"]);
        assert!(found[0].is_bundled && !found[1].is_bundled);
        // In cargo's folder the newest are in `deps`.
        fs::create_dir(at("bin/deps")).unwrap();
        fs::write(at("bin/deps/libforgelm_plugin_merge.so"), "").unwrap();
        let places = Places { program_dir: Some(at("bin")), ..Places::default() };
        assert_eq!(names(&find(&places).unwrap()), ["libforgelm_plugin_merge.so"]);
    }

    #[test]
    fn what_everybody_may_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("x.so");
        fs::write(&library, "").unwrap();
        let of = |place: &Path| Places { config: vec![place.to_owned()], ..Places::default() };
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&library, 0o666);
        for place in [&*library, dir.path()] {
            let said = find(&of(place)).unwrap_err().to_string();
            assert!(said.contains("x.so: everybody may write there (mode 0666)"), "{said}");
        }
        set(&library, 0o644);
        find(&of(&library)).unwrap();
        set(dir.path(), 0o1777);
        for place in [&*library, dir.path()] {
            let said = find(&of(place)).unwrap_err().to_string();
            assert!(said.contains("everybody may write there (mode 1777)"), "{said}");
        }
        let said = find(&of(&dir.path().join("none.so"))).unwrap_err().to_string();
        assert!(said.contains("none.so: cannot be read"), "{said}");
    }
}
