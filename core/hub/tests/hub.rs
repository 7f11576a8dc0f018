//! Models from a hub: the cache shared with Python, and a small server that stands for the hub.

#![expect(clippy::unwrap_used, reason = "a test")]

use forgelm_artifact::hash::sha256_bytes;
use forgelm_artifact::{Class, write};
use forgelm_hub::{
    HubError, HubEvent, HubOptions, ModelFiles, ResolutionSource, Source, resolve, resolve_dataset,
};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";
const ROWS: &[u8] = b"{\"text\": \"a row\"}\n";
const WEIGHTS: &[u8] = b"these stand for weights";

fn source() -> Source {
    Source::parse("org/model").unwrap()
}

fn put(path: PathBuf, bytes: &[u8]) {
    write::create_dir_all_durable(path.parent().unwrap()).unwrap();
    write::atomic(&path, bytes).unwrap();
}

/// A cache with a snapshot, as the Python library leaves it.
fn cache(dir: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let repository = dir.join("models--org--model");
    put(repository.join("refs/main"), COMMIT.as_bytes());
    let snapshot = repository.join("snapshots").join(COMMIT);
    for (name, bytes) in files {
        put(snapshot.join(name), bytes);
    }
    snapshot
}

fn offline(dir: &Path, revision: Option<&str>) -> HubOptions {
    let revision = revision.map(str::to_owned);
    HubOptions { offline: true, revision, ..HubOptions::new(dir.join("own"), dir.to_owned()) }
}

#[test]
fn offline_the_cache_answers() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", CONFIG), ("model.safetensors", WEIGHTS)];
    let snapshot = cache(dir.path(), &files);
    for revision in [None, Some("main"), Some(COMMIT)] {
        let mut n_warnings = 0;
        let model = resolve(&source(), &offline(dir.path(), revision), &mut |event| {
            n_warnings += usize::from(matches!(event, HubEvent::Warning { .. }));
        })
        .unwrap();
        assert_eq!(model.files, ModelFiles::Folder(snapshot.clone()));
        assert_eq!(model.revision.resolution_source, ResolutionSource::Cache);
        assert_eq!(model.revision.revision_resolved.as_deref(), Some(COMMIT));
        assert_eq!(n_warnings, usize::from(revision != Some(COMMIT)));
    }
    for (revision, how) in [
        (Some("v2"), ResolutionSource::PinnedUnverified),
        (Some("fedcba9876543210fedcba9876543210fedcba98"), ResolutionSource::PinnedUnverified),
    ] {
        let error = resolve(&source(), &offline(dir.path(), revision), &mut |_| {}).unwrap_err();
        let HubError::NotCached { record, .. } = &error else { panic!("{error}") };
        assert_eq!((record.resolution_source, &record.revision_resolved), (how, &None));
        assert_eq!(error.class(), Class::Runtime);
    }
}

#[test]
fn a_snapshot_with_a_shard_missing_is_not_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let index = br#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#;
    let mut files = vec![
        ("config.json", CONFIG),
        ("model.safetensors.index.json", &index[..]),
        ("s1.safetensors", WEIGHTS),
    ];
    cache(dir.path(), &files);
    assert!(resolve(&source(), &offline(dir.path(), None), &mut |_| {}).is_err());
    files.push(("s2.safetensors", WEIGHTS));
    cache(dir.path(), &files);
    assert!(resolve(&source(), &offline(dir.path(), None), &mut |_| {}).is_ok());
}

/// What the stand-in for the hub says.
#[derive(Clone, Copy)]
enum Hub {
    Honest,
    /// Sends other bytes than the hash that it gives.
    Damaged,
    /// Answers everything with this status.
    Status(u16),
}

/// Serves one model on a local port for as long as the test runs.
fn serve(hub: Hub) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, hub));
        }
    });
    address
}

fn answer(mut stream: TcpStream, hub: Hub) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let mut start = 0;
    for line in lines.map(Result::unwrap).take_while(|line| !line.is_empty()) {
        let line = line.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.split('-').next().unwrap().parse().unwrap();
        }
    }
    let path = request.split(' ').nth(1).unwrap();
    let siblings = r#"[{"rfilename":"config.json"},{"rfilename":"model.safetensors"},
        {"rfilename":"../x"},{"rfilename":"onnx/model.onnx"},{"rfilename":"data/train.jsonl"},
        {"rfilename":"../evil.jsonl"},{"rfilename":".hidden/a.jsonl"},{"rfilename":"README.md"}]"#;
    let info = format!(r#"{{"siblings":{siblings},"sha":"{COMMIT}"}}"#);
    let (etag, body) = if path.ends_with("/config.json") {
        ("0".repeat(40), CONFIG.to_vec())
    } else if path.ends_with("/model.safetensors") {
        let body = match hub {
            Hub::Damaged => WEIGHTS.to_ascii_uppercase(),
            Hub::Honest | Hub::Status(_) => WEIGHTS.to_vec(),
        };
        (sha256_bytes(WEIGHTS).to_string(), body)
    } else if path.ends_with("/train.jsonl") {
        ("1".repeat(40), ROWS.to_vec())
    } else {
        (String::new(), info.into_bytes())
    };
    let status = match hub {
        Hub::Status(status) => format!("{status} No"),
        Hub::Honest | Hub::Damaged => "200 OK".to_owned(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n\
         content-range: bytes 0-0/{}\r\nconnection: close\r\n\r\n",
        body.len() - start,
        body.len()
    );
    // The client may hang up as soon as it has the head.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[start..]));
}

fn online(dir: &Path, hub: Hub, revision: Option<&str>) -> HubOptions {
    let revision = revision.map(str::to_owned);
    HubOptions { offline: false, endpoint: Some(serve(hub)), revision, ..offline(dir, None) }
}

#[test]
fn a_model_is_fetched_into_the_shared_cache_and_found_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut fetched = Vec::new();
    let model = resolve(&source(), &online(dir.path(), Hub::Honest, None), &mut |event| {
        if let HubEvent::Fetching { what } = event {
            fetched.push(what);
        }
    })
    .unwrap();
    assert_eq!(fetched, ["org/model/config.json", "org/model/model.safetensors"]);
    assert_eq!(model.revision.resolution_source, ResolutionSource::Resolved);
    assert_eq!(model.revision.revision_resolved.as_deref(), Some(COMMIT));
    let snapshot = dir.path().join("models--org--model/snapshots").join(COMMIT);
    assert_eq!(model.files, ModelFiles::Folder(snapshot.clone()));
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), WEIGHTS);
    let again = resolve(&source(), &offline(dir.path(), None), &mut |_| {}).unwrap();
    assert_eq!(again.files, model.files);
    // Asked again, the hub confirms the commit and sends nothing.
    let pinned = online(dir.path(), Hub::Honest, Some(COMMIT));
    let again = resolve(&source(), &pinned, &mut |event| {
        assert!(!matches!(event, HubEvent::Fetching { .. }), "{event:?}");
    })
    .unwrap();
    assert_eq!(again.revision.resolution_source, ResolutionSource::PinnedResolved);
}

#[test]
fn fault_107_wrong_bytes_refusals_and_no_hub_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = online(dir.path(), Hub::Damaged, None);
    let error = resolve(&source(), &damaged, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::DownloadHash { .. }), "{error}");
    assert_eq!(error.class(), Class::Integrity);
    assert!(resolve(&source(), &offline(dir.path(), None), &mut |_| {}).is_err(), "nothing stays");
    for (status, hint) in [(401, "token"), (403, "terms"), (404, "the name"), (429, "later")] {
        let refused = online(dir.path(), Hub::Status(status), None);
        let error = resolve(&source(), &refused, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
    // Port 9 of this machine answers nobody: the cache does, once it has the model.
    let unreachable = HubOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..damaged };
    let error = resolve(&source(), &unreachable, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    cache(dir.path(), &[("config.json", CONFIG), ("model.safetensors", WEIGHTS)]);
    let model = resolve(&source(), &unreachable, &mut |_| {}).unwrap();
    assert_eq!(model.revision.resolution_source, ResolutionSource::Cache);
}

#[test]
fn a_data_set_is_fetched_into_the_shared_cache_and_found_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut fetched = Vec::new();
    let options = online(dir.path(), Hub::Honest, None);
    let data = resolve_dataset("org/set", &options, &mut |event| {
        if let HubEvent::Fetching { what } = event {
            fetched.push(what);
        }
    })
    .unwrap();
    // What leads out of the folder, is hidden or is no data is not asked for.
    assert_eq!(fetched, ["org/set/data/train.jsonl"]);
    let snapshot = dir.path().join("datasets--org--set/snapshots").join(COMMIT);
    assert_eq!(data.folder, snapshot);
    assert_eq!(std::fs::read(snapshot.join("data/train.jsonl")).unwrap(), ROWS);
    assert_eq!(data.revision.revision_resolved.as_deref(), Some(COMMIT));
    for revision in [None, Some(COMMIT)] {
        let again =
            resolve_dataset("org/set", &offline(dir.path(), revision), &mut |_| {}).unwrap();
        assert_eq!(again.folder, snapshot);
        assert_eq!(again.revision.resolution_source, ResolutionSource::Cache);
    }
    // A fetch that was cut is not a data set.
    let again = Some(COMMIT);
    write::remove_file(&snapshot.join("data/train.jsonl")).unwrap();
    put(snapshot.join("data/other.jsonl"), ROWS);
    assert!(resolve_dataset("org/set", &offline(dir.path(), again), &mut |_| {}).is_err());
}

#[test]
fn a_data_set_that_python_fetched_is_found_offline() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("datasets--org--set");
    put(repository.join("refs/main"), COMMIT.as_bytes());
    let snapshot = repository.join("snapshots").join(COMMIT);
    put(snapshot.join("README.md"), b"words");
    assert!(resolve_dataset("org/set", &offline(dir.path(), None), &mut |_| {}).is_err());
    put(snapshot.join("data/train-00000-of-00001.parquet"), b"PAR1");
    let data = resolve_dataset("org/set", &offline(dir.path(), None), &mut |_| {}).unwrap();
    assert_eq!(data.folder, snapshot);
    let error = resolve_dataset("a/b/c", &offline(dir.path(), None), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Source { .. }), "{error}");
}
