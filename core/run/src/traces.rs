//! What the evidence in a folder says, by digest, of where its model came from: the data it was
//! trained on, the weights it was made from, and the weights it has.
//!
//! Nothing is verified here. Whoever looks for copies of a text must not miss one because a signature
//! is bad.

use forgelm_artifact::hash::Sha256Hex;
use forgelm_evidence::bundle::ATTESTATION;
use forgelm_evidence::dsse::Envelope;
use forgelm_evidence::dsse::statement::Statement;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A document of a run is far smaller.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// Folders nested deeper than this below a place are not looked into.
const DEPTH_MAX: usize = 5;

/// After so many folders the rest is not looked into.
const FOLDERS_MAX: usize = 50_000;

/// A folder with evidence in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// The folder.
    pub dir: PathBuf,
    /// The run, where the evidence names one.
    pub run_id: Option<String>,
    /// Digest of each data set, with its name as configured where that is known.
    pub data: BTreeMap<String, Option<String>>,
    /// Digests of the files that it was made from, where it was merged or quantized.
    pub made_from: BTreeSet<String>,
    /// Digests of the files of its model.
    pub weights: BTreeSet<String>,
    /// What it is: `run`, `merged_model`, `export`.
    pub kind: &'static str,
}

impl Traces {
    /// Reads the evidence in `dir`; `None` where there is none.
    pub fn read(dir: &Path) -> Option<Self> {
        let mut traces = Self { dir: dir.to_owned(), kind: "run", ..Self::default() };
        let documents = dir.join("compliance");
        let provenance = json(&documents.join("data_provenance.json"));
        let ledger = first_lines(&dir.join("step_ledger.jsonl"));
        let made = [("merge_manifest.json", "merged_model"), ("quantize_manifest.json", "export")];
        let mut is_evidence = provenance.is_some() || !ledger.is_empty();
        traces.note_data(provenance.iter().flat_map(fingerprints));
        for start in &ledger {
            traces.note_data(start.get("data_sha256").map(|sha| (None, sha)).into_iter());
        }
        if let Some(predicate) = attestation(dir) {
            is_evidence = true;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            traces.run_id = predicate.get("run_id").and_then(text);
            let sets = predicate.get("dataset").and_then(Value::as_array);
            let sets = sets.into_iter().flatten().filter_map(|set| {
                Some((set.get("path").and_then(Value::as_str), set.get("sha256")?))
            });
            traces.note_data(sets);
        }
        for (name, kind) in made {
            let Some(manifest) = json(&documents.join(name)) else { continue };
            is_evidence = true;
            traces.kind = kind;
            // Everything but what came out: models, the base, the model that was quantized.
            for (key, value) in manifest.as_object().into_iter().flatten() {
                match key.as_str() {
                    "outputs" => digests(value, is_weights, &mut traces.weights),
                    _ => digests(value, |_| true, &mut traces.made_from),
                }
            }
        }
        if !is_evidence {
            return None;
        }
        let report = ["compliance_report.json", "merge_manifest.json", "quantize_manifest.json"];
        if traces.run_id.is_none() {
            let named = report.iter().filter_map(|name| json(&documents.join(name)));
            traces.run_id = named
                .into_iter()
                .find_map(|document| Some(document.get("run_id")?.as_str()?.to_owned()));
        }
        for model in models(dir) {
            if let Some(integrity) = json(&model.join("model_integrity.json")) {
                digests(&integrity, is_weights, &mut traces.weights);
            }
        }
        Some(traces)
    }

    /// Every folder with evidence in or below `places`, each once, sorted; and whether all of them were
    /// looked into. Links are not followed, nor folders that programs keep for themselves (`.git`).
    pub fn below(places: &[PathBuf]) -> (Vec<Self>, bool) {
        let mut walk = Walk::default();
        for place in places {
            walk.look_into(place, 0);
        }
        (walk.found.into_values().collect(), walk.seen.len() < FOLDERS_MAX)
    }

    /// Whether it was trained on data with this digest.
    pub fn has_data(&self, sha256: &str) -> bool {
        self.data.contains_key(sha256)
    }

    fn note_data<'a>(&mut self, sets: impl Iterator<Item = (Option<&'a str>, &'a Value)>) {
        for (name, sha256) in sets {
            if let Some(sha256) = sha256.as_str().filter(|sha| Sha256Hex::parse(sha).is_some()) {
                let known = self.data.entry(sha256.to_owned()).or_default();
                *known = known.take().or_else(|| name.map(str::to_owned));
            }
        }
    }
}

/// A walk through folders.
#[derive(Default)]
struct Walk {
    seen: BTreeSet<PathBuf>,
    found: BTreeMap<PathBuf, Traces>,
}

impl Walk {
    fn look_into(&mut self, dir: &Path, depth: usize) {
        let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        if self.seen.len() >= FOLDERS_MAX {
            return;
        }
        // A place may lie in another, which is entered less deep.
        let is_new = self.seen.insert(real.clone());
        if is_new && let Some(traces) = Traces::read(dir) {
            self.found.insert(real, traces);
        }
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            if depth < DEPTH_MAX && is_looked_into(&entry) {
                self.look_into(&entry.path(), depth + 1);
            }
        }
    }
}

/// A folder; not one that programs keep for themselves, such as `.git`.
fn is_looked_into(entry: &std::fs::DirEntry) -> bool {
    let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
    !is_hidden && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// Folders of a run that hold a tuned model, whatever `training.final_model_dir` was.
pub fn models(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut models: Vec<PathBuf> = folders
        .map(|entry| entry.path())
        .filter(|path| path.join("model_integrity.json").is_file())
        .collect();
    models.sort();
    models
}

/// The name and digest of each data set of `data_provenance.json`.
fn fingerprints(provenance: &Value) -> Vec<(Option<&str>, &Value)> {
    let extras = provenance.get("extra_datasets").and_then(Value::as_array).into_iter().flatten();
    let own = std::iter::once(provenance).chain(extras);
    own.filter_map(|set| {
        let print = set.get("fingerprint")?;
        Some((print.get("path").and_then(Value::as_str), print.get("sha256")?))
    })
    .collect()
}

/// A config or a tokenizer is the same in models that have nothing to do with each other.
fn is_weights(file: &str) -> bool {
    [".safetensors", ".gguf", ".bin"].iter().any(|end| file.ends_with(end))
}

/// Every `sha256` in a document that stands beside the name of such a file.
fn digests(value: &Value, is_meant: fn(&str) -> bool, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let name = members.get("file").or_else(|| members.get("name")).and_then(Value::as_str);
            let sha256 = members.get("sha256").and_then(Value::as_str);
            let sha256 = sha256.filter(|_| is_meant(name.unwrap_or_default()));
            into.extend(sha256.filter(|sha| Sha256Hex::parse(sha).is_some()).map(str::to_owned));
            members.values().for_each(|value| digests(value, is_meant, into));
        }
        Value::Array(items) => items.iter().for_each(|value| digests(value, is_meant, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What the attestation says, whoever signed it.
fn attestation(dir: &Path) -> Option<Value> {
    let envelope = Envelope::parse(&bytes(&dir.join(ATTESTATION))?).ok()?;
    Some(Statement::parse(&envelope.payload).ok()?.predicate)
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&bytes(path)?).ok()
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let (file, _) = forgelm_artifact::open::regular(path).ok()?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The entries of a step ledger that say what steps were made from.
fn first_lines(path: &Path) -> Vec<Value> {
    let Ok(mut lines) = forgelm_artifact::jsonl::Reader::open(path) else { return Vec::new() };
    let mut starts = Vec::new();
    while let Some(Ok(line)) = lines.next_line() {
        if line.text.contains("\"data_sha256\"") {
            starts.extend(serde_json::from_str(line.text).ok());
        }
    }
    starts
}
