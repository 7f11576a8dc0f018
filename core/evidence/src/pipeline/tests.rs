use std::fs;
use std::path::Path;

use forgelm_artifact::json::{self, Style};
use forgelm_artifact::write::atomic as put;
use serde_json::{Value, json};

use super::{
    HashState, Outcome, PIPELINE_MANIFEST, PipelineOptions, PipelineReport, ViolationKind,
    verify_pipeline,
};
use crate::class::Class;
use crate::digest::{hex, hmac_sha256, sha256, sha256_hex};
use crate::documents::evidence::Builder;
use crate::documents::evidence::tests::evidence;
use crate::dsse::statement::PredicateType;
use crate::keys::trust::TrustedKeys;
use crate::manifest_hash::manifest_hash;
use crate::secret::Secret;
use crate::sign::{FileClaims, sign_file, signable};
use crate::tests::{signer, write_run_of};

const RUN: &str = "pl_2026-01-01_a1b2c3";
const STAGES: [&str; 2] = ["sft_stage", "dpo_stage"];

/// A pipeline of two stages, each a real signed run, with a manifest and a log as the specification has
/// them.
struct Pipeline {
    dir: tempfile::TempDir,
    manifest: Value,
}

impl Pipeline {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (i, _) in STAGES.iter().enumerate() {
            let mut evidence = evidence();
            crate::documents::annex_iv::tests::answer_everything(&mut evidence);
            evidence.run_id = format!("fg-00000000000{i}");
            write_run_of(&dir.path().join(format!("stage{}", i + 1)), Ok(&signer(1)), &evidence);
        }
        let stage = |i: usize| {
            let n = i + 1;
            json!({
                "name": STAGES[i],
                "index": i,
                "trainer_type": if i == 0 { "sft" } else { "dpo" },
                "status": "completed",
                "input_model": if i == 0 { "org/base-7b" } else { "stage1/final_model" },
                "input_source": if i == 0 { "root" } else { "chain" },
                "output_model": format!("stage{n}/final_model"),
                "training_manifest": format!("stage{n}/compliance/annex_iv_metadata.json"),
                "metrics": {"eval_loss": 0.42},
                "gate_decision": "passed",
                "auto_revert_triggered": false,
            })
        };
        let manifest = json!({
            "forgelm_version": "0.1.0",
            "generated_at": "2026-01-01T02:00:00+00:00",
            "pipeline_run_id": RUN,
            "pipeline_config_hash": format!("sha256:{}", "2".repeat(64)),
            "started_at": "2026-01-01T00:00:00+00:00",
            "finished_at": "2026-01-01T02:00:00+00:00",
            "final_status": "completed",
            "stopped_at": null,
            "stages": [stage(0), stage(1)],
            "annex_iv": {"provider_name": "Acme"},
            "metadata": {},
        });
        let pipeline = Self { dir, manifest };
        pipeline.put(&pipeline.manifest);
        pipeline
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a manifest with its hash.
    fn put(&self, manifest: &Value) {
        let mut manifest = manifest.clone();
        manifest["metadata"]["manifest_hash"] = json!(manifest_hash(&manifest));
        self.put_raw(manifest.to_string().as_bytes());
    }

    fn put_raw(&self, bytes: &[u8]) {
        let path = self.path().join(PIPELINE_MANIFEST);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        put(&path, bytes).unwrap();
    }

    fn verify(&self) -> PipelineReport {
        verify_pipeline(self.path(), &options(None))
    }

    /// The kinds of what is found after a change of the manifest, whose hash is right again.
    fn after(&self, change: impl FnOnce(&mut Value)) -> Vec<ViolationKind> {
        let mut manifest = self.manifest.clone();
        change(&mut manifest);
        self.put(&manifest);
        kinds(&self.verify())
    }

    /// The log, with HMACs under the secret where there is one.
    fn log(&self, events: &[Value], secret: Option<&str>) {
        let mut prev = "genesis".to_owned();
        let mut text = String::new();
        for event in events {
            let mut line = json!({
                "timestamp": "2026-01-01T00:00:00.000001+00:00",
                "run_id": RUN,
                "operator": "alice@host",
                "event": event["event"],
                "prev_hash": prev,
            });
            for (key, value) in event.as_object().unwrap() {
                line[key] = value.clone();
            }
            let mut line = json::python(&line, Style::AUDIT_LINE);
            if let Some(secret) = secret {
                let key = sha256(format!("{secret}{RUN}").as_bytes());
                let tag = hex(&hmac_sha256(&key, &[line.as_bytes()]));
                line.pop();
                line = format!("{line}, \"_hmac\": \"{tag}\"}}");
            }
            prev = sha256_hex(line.as_bytes());
            text += &(line + "\n");
        }
        put(&self.path().join("audit_log.jsonl"), text.as_bytes()).unwrap();
    }
}

fn options(secret: Option<&Secret>) -> PipelineOptions<'_> {
    let keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    PipelineOptions { keys, secret, ..PipelineOptions::default() }
}

fn kinds(report: &PipelineReport) -> Vec<ViolationKind> {
    report.violations.iter().map(|violation| violation.kind).collect()
}

/// What the log of a pipeline in which both stages passed says.
fn whole_log() -> Vec<Value> {
    let mut events = vec![json!({"event": "pipeline.started", "stage_count": 2})];
    for (i, name) in STAGES.iter().enumerate() {
        events
            .push(json!({"event": "pipeline.stage_started", "stage_name": name, "stage_index": i}));
        events.push(json!({
            "event": "pipeline.stage_completed", "stage_name": name, "gate_decision": "passed",
        }));
    }
    events.push(json!({"event": "pipeline.completed", "final_status": "completed"}));
    events
}

#[test]
fn a_whole_pipeline_is_accepted_and_says_what_was_looked_at() {
    let pipeline = Pipeline::new();
    let report = pipeline.verify();
    assert_eq!(report.class(), Class::Accepted, "{:#?}", report.to_lines());
    assert_eq!((report.hash_state, report.evidence_verified), (HashState::Verified, 2));
    let json = report.to_json();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(
        keys[..12],
        [
            "success",
            "mode",
            "path",
            "violations",
            "stages_total",
            "stages_examined",
            "evidence_verified",
            "evidence_unverified",
            "hash_state",
            "status_census",
            "stage_dispositions",
            "audit_corroboration",
        ]
    );
    assert_eq!((&json["success"], &json["mode"]), (&json!(true), &json!("pipeline")));
    assert_eq!(json["status_census"], json!({"completed": 2}));
    assert_eq!(
        json["stage_dispositions"][1],
        json!({
            "index": 1, "name": "dpo_stage", "status": "completed", "disposition": "examined",
        })
    );
    assert_eq!(json["audit_corroboration"]["reason"], "audit_log_absent");
    assert_eq!(json["violations"], json!([]));
    // A pointer may be absolute into the folder, or name the other document.
    let here = pipeline.path().join("stage1/compliance/training_manifest.json");
    let after = pipeline.after(|m| m["stages"][0]["training_manifest"] = json!(here));
    assert_eq!(after, []);
}

#[test]
fn what_is_no_manifest_is_1_and_bounded() {
    let pipeline = Pipeline::new();
    let manifest = pipeline.path().join(PIPELINE_MANIFEST);
    let deep = "[".repeat(100_000);
    let twice = r#"{"stages": [], "stages": []}"#;
    for bytes in [&b""[..], b"x", b"[]", b"\xff\xfe{}", deep.as_bytes(), twice.as_bytes()] {
        pipeline.put_raw(bytes);
        let report = pipeline.verify();
        assert_eq!(kinds(&report), [ViolationKind::Input], "{:#?}", report.to_lines());
        assert_eq!(report.class(), Class::NotCompared);
        assert_eq!(report.to_json()["audit_corroboration"], Value::Null);
    }
    fs::OpenOptions::new().write(true).open(&manifest).unwrap().set_len(10 << 30).unwrap();
    assert!(pipeline.verify().violations[0].reason.contains("larger than 8 MiB"));
    fs::remove_file(&manifest).unwrap();
    assert_eq!(kinds(&pipeline.verify()), [ViolationKind::Input]);
    std::os::unix::fs::symlink("/dev/zero", &manifest).unwrap();
    assert!(pipeline.verify().violations[0].reason.contains("symbolic link"));
    fs::remove_file(&manifest).unwrap();
    fs::create_dir(&manifest).unwrap();
    assert_eq!(kinds(&pipeline.verify()), [ViolationKind::Input]);
    let nowhere = verify_pipeline(Path::new("/nowhere"), &options(None));
    assert_eq!(kinds(&nowhere), [ViolationKind::Input]);
}

#[test]
fn each_rule_of_the_structure_has_its_violation() {
    use ViolationKind as K;
    let p = Pipeline::new();
    let set = |pointer: &'static str, value: Value| {
        p.after(move |m| *m.pointer_mut(pointer).unwrap() = value)
    };
    for key in ["forgelm_version", "pipeline_config_hash", "started_at", "final_status"] {
        assert_eq!(
            p.after(|m| drop(m.as_object_mut().unwrap().shift_remove(key))),
            [K::RequiredKey]
        );
        assert_eq!(p.after(|m| m[key] = json!(" ")), [K::RequiredKey], "{key} is blank");
    }
    assert_eq!(
        p.after(|m| drop(m.as_object_mut().unwrap().shift_remove("stages"))).first(),
        Some(&K::RequiredKey)
    );
    assert_eq!(set("/stages", json!({})).first(), Some(&K::Stages));
    assert_eq!(set("/stages/0", json!(7)), [K::Stages, K::ChainLink]);
    assert_eq!(set("/stages/1/index", json!(2)), [K::StageIndex]);
    assert_eq!(set("/stages/1/index", json!("1")), [K::StageIndex]);
    assert_eq!(
        p.after(|m| m["stages"].as_array_mut().unwrap().swap(0, 1)),
        [K::StageIndex, K::ChainLink, K::StageIndex]
    );
    assert_eq!(set("/stages/0/input_source", json!("chain")), [K::ChainLink]);
    assert_eq!(set("/stages/1/input_model", json!("other")), [K::ChainLink]);
    assert_eq!(set("/stages/0/output_model", Value::Null), [K::ChainLink]);
    assert_eq!(set("/stopped_at", json!("nobody")), [K::StoppedAt]);
    assert_eq!(set("/stopped_at", json!("sft_stage")), [K::StoppedAt]);
    let running = |m: &mut Value| {
        m["stages"][1]["status"] = json!("running");
        m["stages"][1]["gate_decision"] = Value::Null;
    };
    assert_eq!(p.after(running), [K::StillRunning]);
    let in_progress = |m: &mut Value| {
        running(m);
        m["final_status"] = json!("in_progress");
    };
    assert_eq!(p.after(in_progress), []);
    assert_eq!(set("/stages/1/status", json!("done")), [K::GateNotCompleted]);
    let unknown = |m: &mut Value| {
        m["stages"][1]["status"] = json!("done");
        m["stages"][1]["gate_decision"] = Value::Null;
    };
    assert_eq!(p.after(unknown), [K::StageStatus]);
    let stopped = |m: &mut Value| {
        m["stages"][1]["status"] = json!("failed");
        m["stages"][1]["gate_decision"] = json!("failed");
        m["final_status"] = json!("stopped_at_stage");
        m["stopped_at"] = json!("dpo_stage");
    };
    assert_eq!(p.after(stopped), []);
    let none = |m: &mut Value| {
        for stage in m["stages"].as_array_mut().unwrap() {
            stage["status"] = json!("skipped_by_filter");
            stage["gate_decision"] = Value::Null;
        }
    };
    assert_eq!(p.after(none), [K::NothingCompleted]);
    // Everything above is 1: no digest was compared.
    assert!(
        [K::StageIndex, K::ChainLink, K::StoppedAt, K::StillRunning, K::EvidenceMissing]
            .iter()
            .all(|kind| kind.class() == Class::NotCompared)
    );
}

#[test]
fn a_changed_manifest_is_6_and_one_without_a_hash_is_marked() {
    let pipeline = Pipeline::new();
    let good = fs::read(pipeline.path().join(PIPELINE_MANIFEST)).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    pipeline.put_raw(text.replace("0.42", "0.24").as_bytes());
    let report = pipeline.verify();
    assert_eq!(
        (kinds(&report), report.class()),
        (vec![ViolationKind::ManifestHash], Class::Different)
    );
    pipeline.put_raw(pipeline.manifest.to_string().as_bytes());
    let report = pipeline.verify();
    assert_eq!((report.hash_state, report.class()), (HashState::Absent, Class::Accepted));
    assert!(report.to_lines()[0].starts_with("OK (UNVERIFIED)"));
    // A signature is over the exact bytes.
    pipeline.put_raw(&good);
    let path = pipeline.path().join(PIPELINE_MANIFEST);
    let builder = Builder { version: "1".to_owned(), commit: None, target: "t".to_owned() };
    let kind = PredicateType::ComplianceManifest;
    let claims = FileClaims {
        kind,
        builder: &builder,
        operator: "alice@host",
        signed_at: "2026-06-01T12:00:00+00:00",
    };
    let strict = || PipelineOptions { require_signature: true, ..options(None) };
    assert_eq!(
        kinds(&verify_pipeline(pipeline.path(), &strict())),
        [ViolationKind::SignatureNotTrusted]
    );
    sign_file(&signable(&path, kind, false, &signer(1)).unwrap(), &claims, &signer(1)).unwrap();
    assert_eq!(kinds(&verify_pipeline(pipeline.path(), &strict())), []);
    let mut spaced = good;
    spaced.push(b'\n');
    pipeline.put_raw(&spaced);
    assert_eq!(kinds(&pipeline.verify()), [ViolationKind::SignatureDiffers]);
}

#[test]
fn the_evidence_of_each_completed_stage_is_there_whole_its_own_and_in_the_folder() {
    use ViolationKind as K;
    let p = Pipeline::new();
    let point = |to: Value| p.after(move |m| m["stages"][0]["training_manifest"] = to);
    let elsewhere = Pipeline::new();
    let outside = elsewhere.path().join("stage1/compliance/annex_iv_metadata.json");
    for to in [
        Value::Null,
        json!(""),
        json!(7),
        json!("../x/annex_iv_metadata.json"),
        json!("stage1/../../x"),
        json!(outside),
        json!("/etc/hostname"),
        json!("stage2/compliance/annex_iv_metadata.json"),
    ] {
        assert_eq!(point(to.clone()), [K::EvidencePointer], "{to}");
    }
    assert_eq!(point(json!("stage3/compliance/annex_iv_metadata.json")), [K::EvidenceMissing]);
    assert_eq!(p.after(|_| {}), []);
    let annex = p.path().join("stage1/compliance/annex_iv_metadata.json");
    let summary = annex.with_file_name("training_manifest.json");
    let (whole, short) = (fs::read(&annex).unwrap(), fs::read(&summary).unwrap());
    let found = || (kinds(&p.verify()), p.verify().class());
    fs::remove_file(&summary).unwrap();
    assert_eq!(found(), (vec![K::EvidenceMissing], Class::NotCompared), "the seed's rule");
    put(&summary, b"{}").unwrap();
    assert_eq!(found(), (vec![K::EvidenceDiffers], Class::Different), "by its signature");
    put(&summary, &short).unwrap();
    fs::remove_file(&annex).unwrap();
    assert_eq!(found(), (vec![K::EvidenceMissing], Class::NotCompared));
    // Runs without a `compliance` section have the summary alone: it counts where it is compared with
    // something, its signature or the digest in the manifest.
    let undocumented = |digest: &Value| {
        let digest = digest.clone();
        p.after(move |m| {
            m["annex_iv"] = Value::Null;
            m["stages"][0]["training_manifest_sha256"] = digest;
        })
    };
    let (right, wrong) = (json!(sha256_hex(&short)), json!("0".repeat(64)));
    assert_eq!(undocumented(&Value::Null), []);
    assert_eq!(undocumented(&wrong), [K::EvidenceDiffers]);
    let signature = summary.with_file_name("training_manifest.json.dsse.json");
    let signed = fs::read(&signature).unwrap();
    fs::remove_file(&signature).unwrap();
    assert_eq!(undocumented(&Value::Null), [K::EvidenceUnverified]);
    assert_eq!(undocumented(&right), []);
    assert_eq!(undocumented(&wrong), [K::EvidenceDiffers]);
    put(&signature, &signed).unwrap();
    p.put(&p.manifest);
    // A link to a genuine file elsewhere, and a folder that is one.
    std::os::unix::fs::symlink(&outside, &annex).unwrap();
    assert_eq!(found().0, [K::EvidencePointer]);
    fs::remove_file(&annex).unwrap();
    put(&annex, &whole).unwrap();
    let stage = p.path().join("stage1");
    fs::rename(&stage, p.path().join("kept")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("stage1"), &stage).unwrap();
    assert_eq!(found().0, [K::EvidencePointer]);
    fs::remove_file(&stage).unwrap();
    fs::rename(p.path().join("kept"), &stage).unwrap();
    // Changed content, with and without the signature that says so.
    let text = String::from_utf8(whole.clone()).unwrap();
    put(&annex, text.replacen("org/base-7b", "org/base-8b", 1).as_bytes()).unwrap();
    assert_eq!(found(), (vec![K::EvidenceDiffers], Class::Different));
    let envelope = annex.with_file_name("annex_iv_metadata.json.dsse.json");
    fs::remove_file(&envelope).unwrap();
    assert_eq!(found(), (vec![K::EvidenceDiffers], Class::Different), "by its hash");
    let mut empty: Value = serde_json::from_slice(&whole).unwrap();
    empty["intended_purpose"] = json!("");
    put(&annex, empty.to_string().as_bytes()).unwrap();
    assert_eq!(found(), (vec![K::EvidenceIncomplete], Class::NotCompared));
    for bad in ["", "[]", "{", &"[".repeat(100_000)] {
        put(&annex, bad.as_bytes()).unwrap();
        assert_eq!(found().0, [K::EvidenceIncomplete], "{bad:.20}");
    }
}

#[test]
fn a_stage_begins_at_the_bytes_that_the_one_before_left() {
    use ViolationKind as K;
    let p = Pipeline::new();
    let file = p.path().join("stage1/final_model/adapter_model.safetensors");
    let right = sha256_hex(&fs::read(&file).unwrap());
    let begun = |sha256: &str| {
        let sha256 = sha256.to_owned();
        p.after(move |m| m["stages"][1]["start_model"] = json!({"adapter_sha256": sha256}))
    };
    assert_eq!(begun(&right), []);
    assert_eq!(begun(&"0".repeat(64)), [K::EvidenceDiffers]);
    // Weights that were left out are not compared, and that is said.
    fs::remove_file(&file).unwrap();
    assert_eq!(begun(&right), []);
    let notes = p.verify().notes;
    assert!(notes.iter().any(|note| note.contains("not compared")), "{notes:?}");
}

/// What counts is what is there: neither a flag without files nor a pass without an end.
#[test]
fn fault_090_a_stage_that_is_recorded_without_files_or_passed_without_an_end_is_told() {
    let p = Pipeline::new();
    fs::remove_dir_all(p.path().join("stage2")).unwrap();
    assert_eq!(kinds(&p.verify()), [ViolationKind::EvidenceMissing]);
    let pending = p.after(|m| m["stages"][1]["status"] = json!("pending"));
    assert_eq!(pending, [ViolationKind::GateNotCompleted]);
    let half = fs::read(p.path().join(PIPELINE_MANIFEST)).unwrap();
    p.put_raw(&half[..half.len() / 2]);
    assert_eq!(kinds(&p.verify()), [ViolationKind::Input], "partly written");
}

#[test]
fn the_log_agrees_or_contradicts_or_shows_nothing() {
    let p = Pipeline::new();
    let secret = Secret::new("s".to_owned()).unwrap();
    let word = |with: Option<&Secret>| {
        let report = verify_pipeline(p.path(), &options(with));
        let found = report.corroboration.clone().unwrap();
        (found.outcome, found.reason, report.class().exit_code())
    };
    let required = |with: Option<&Secret>| {
        let options = PipelineOptions { require_corroboration: true, ..options(with) };
        verify_pipeline(p.path(), &options).class().exit_code()
    };
    let known = Some(&secret);
    let none = |reason| (Outcome::Unattested, reason, 0);
    let against = |reason| (Outcome::Contradicted, reason, 6);
    assert_eq!(word(known), none("audit_log_absent"));
    let whole = whole_log();
    p.log(&whole, Some("s"));
    assert_eq!(word(known), (Outcome::Corroborated, "stage_census_agrees", 0));
    assert_eq!((word(None), required(None), required(known)), (none("no_audit_secret"), 1, 0));
    p.log(&whole, None);
    assert_eq!(word(known), none("audit_log_unsigned"));
    p.log(&whole, Some("other"));
    assert_eq!(word(known), against("audit_log_integrity"));
    p.log(&whole[..5], Some("s"));
    assert_eq!(word(known), none("run_terminal_event_absent"));
    p.log(&[whole[0].clone(), whole[5].clone()], Some("s"));
    assert_eq!(word(known), none("no_events_for_run_id"));
    // A stage passed, and the manifest does not say so.
    let mut more = whole.clone();
    let hidden = json!({
        "event": "pipeline.stage_completed", "stage_name": "hidden", "gate_decision": "passed",
    });
    more.insert(5, hidden);
    p.log(&more, Some("s"));
    assert_eq!(word(known), against("stage_census_mismatch"));
    // The first stage was done again, so that the second one's pass no longer counts.
    let mut again = whole.clone();
    again.insert(5, whole[1].clone());
    again.insert(6, json!({"event": "pipeline.stage_reverted", "stage_name": "sft_stage"}));
    p.log(&again, Some("s"));
    assert_eq!(word(known), (Outcome::Corroborated, "no_passed_stage_assertions", 0));
    p.log(&whole, Some("s"));
    let log = p.path().join("audit_log.jsonl");
    let good = fs::read(&log).unwrap();
    let written = |bytes: &[u8]| {
        put(&log, bytes).unwrap();
        word(known)
    };
    assert_eq!(written(b""), none("audit_log_empty"));
    assert_eq!(written(b"\xff\n"), against("audit_log_encoding"));
    assert_eq!(written(b"[]\n"), against("audit_log_malformed"));
    let mut changed = good.clone();
    changed[10] ^= 1;
    assert_eq!(written(&changed), against("audit_log_integrity"));
    let lines: Vec<&[u8]> = good.split_inclusive(|&b| b == b'\n').collect();
    assert_eq!(written(&[lines[0], &lines[2..].concat()].concat()), against("audit_log_integrity"));
    put(&log, &good).unwrap();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(10 << 30).unwrap();
    assert_eq!(word(known), none("audit_log_oversize"));
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &log).unwrap();
    assert_eq!(word(known), none("audit_log_not_found"));
}

/// A signed head of a trusted key attests a log as the shared secret does.
#[test]
fn a_signed_head_replaces_the_secret() {
    use crate::checkpoint::write_checkpoint;
    use crate::documents::record::Record;
    let p = Pipeline::new();
    p.log(&whole_log(), None);
    let evidence = evidence();
    let record = Record::Training(&evidence);
    write_checkpoint(p.path(), &record, &signer(1), "2026-06-01T12:00:00+00:00").unwrap();
    let required = || PipelineOptions { require_corroboration: true, ..options(None) };
    let report = verify_pipeline(p.path(), &required());
    assert_eq!(report.class(), Class::Accepted, "{:#?}", report.to_lines());
    assert_eq!(report.corroboration.unwrap().reason, "stage_census_agrees");
    let stranger = PipelineOptions { require_corroboration: true, ..PipelineOptions::default() };
    assert_ne!(verify_pipeline(p.path(), &stranger).class(), Class::Accepted);
    // Fewer lines than were signed.
    p.log(&whole_log()[..5], None);
    let report = verify_pipeline(p.path(), &required());
    assert_ne!(report.class(), Class::Accepted);
    // As many, and other ones.
    let mut other = whole_log();
    other[4]["gate_decision"] = json!("failed");
    p.log(&other, None);
    assert_eq!(verify_pipeline(p.path(), &required()).class(), Class::Different);
}
