//! Rules of the gates after training, of compliance, and of the sections of the root.

use super::engine::moving_ref;
use super::{Findings, Scope};
use crate::diagnostic::{Code, Diagnostic};
use crate::run::Run;
use crate::section::{Evaluation, MergeMethod, RiskTier, SafetyScoring, TeacherBackend};

/// Severity thresholds need categories: not written they are turned on.
pub fn settle_categories(path: &str, evaluation: &mut Evaluation, findings: &mut Findings<'_>) {
    let Some(safety) = evaluation.safety.as_mut().filter(|s| s.enabled) else {
        return;
    };
    if safety.severity_thresholds.is_none() || safety.track_categories {
        return;
    }
    let thresholds = format!("{path}.safety.severity_thresholds");
    let track = format!("{path}.safety.track_categories");
    if findings.written.contains(&track) {
        let message =
            format!("`{track}` is false and `{thresholds}`{} needs it", findings.at(&thresholds));
        findings.error(
            Code::Conflict,
            &[&track, &thresholds],
            message,
            "write `track_categories: true`",
        );
    } else {
        safety.track_categories = true;
        let message = format!("`{thresholds}` turns `{track}` on");
        findings.warn(Code::Doubtful, &[&thresholds, &track], message);
    }
}

/// Rules within one `evaluation` section.
pub fn check_scope(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let Some((evaluation, path)) = &scope.evaluation else {
        return;
    };
    safety(evaluation, path, findings);
    judge(evaluation, path, findings);
    if let Some(benchmark) = &evaluation.benchmark
        && benchmark.enabled
        && benchmark.tasks.is_empty()
    {
        let (enabled, tasks) =
            (format!("{path}.benchmark.enabled"), format!("{path}.benchmark.tasks"));
        let message = format!("`{enabled}` is true and `{tasks}` is empty");
        findings.error(Code::Conflict, &[&enabled, &tasks], message, "name at least one task");
    }
    if let Some(benchmark) = &evaluation.benchmark {
        texts_at_once(&benchmark.batch_size.0, &format!("{path}.benchmark.batch_size"), findings);
    }
    if evaluation.approval.is_some() && !evaluation.require_human_approval {
        let (key, other) = (format!("{path}.approval"), format!("{path}.require_human_approval"));
        let message = format!("`{key}` has no effect: `{other}` is not true");
        findings.warn(Code::IgnoredKey, &[&key, &other], message);
    }
    if evaluation.auto_revert
        && evaluation.max_acceptable_loss.is_none()
        && evaluation.baseline_loss.is_none()
    {
        let key = format!("{path}.auto_revert");
        let message = format!(
            "`{key}` without `max_acceptable_loss` or `baseline_loss`: the baseline will be measured"
        );
        findings.warn(Code::Doubtful, &[&key], message);
    }
}

/// `auto`, or how many.
fn texts_at_once(written: &str, key: &str, findings: &mut Findings<'_>) {
    if written == "auto" || written.parse().is_ok_and(|n: usize| (1..=65_536).contains(&n)) {
        return;
    }
    let message = format!("`{key}` is `{written}`; expected `auto` or a number from 1 to 65536");
    findings.error(Code::OutOfRange, &[key], message, "write `auto`");
}

fn safety(evaluation: &Evaluation, path: &str, findings: &mut Findings<'_>) {
    let Some(safety) = evaluation.safety.as_ref() else {
        return;
    };
    if let Some(revision) = &safety.classifier_revision {
        moving_ref(&format!("{path}.safety.classifier_revision"), revision, findings);
    }
    if safety.enabled
        && safety.min_safety_score.is_some()
        && safety.scoring != SafetyScoring::ConfidenceWeighted
    {
        let score = format!("{path}.safety.min_safety_score");
        let scoring = format!("{path}.safety.scoring");
        let message = format!(
            "`{score}` is set and `{scoring}`{} is `{}`",
            findings.at(&scoring),
            safety.scoring
        );
        findings.error(
            Code::Conflict,
            &[&score, &scoring],
            message,
            "write `scoring: confidence_weighted`",
        );
    }
}

fn judge(evaluation: &Evaluation, path: &str, findings: &mut Findings<'_>) {
    let Some(judge) = evaluation.llm_judge.as_ref() else {
        return;
    };
    let pin = format!("{path}.llm_judge.judge_model_revision");
    if let Some(revision) = &judge.judge_model_revision {
        let remote = [
            (judge.judge_api_key_env.is_some(), "judge_api_key_env"),
            (judge.judge_api_base.is_some(), "judge_api_base"),
        ];
        if let Some((_, key)) = remote.into_iter().find(|(is_set, _)| *is_set) {
            let env = format!("{path}.llm_judge.{key}");
            let message = format!(
                "`{pin}` pins a local judge and `{env}`{} makes it a remote one",
                findings.at(&env)
            );
            findings.error(Code::Conflict, &[&pin, &env], message, "remove one of the two");
        }
        moving_ref(&pin, revision, findings);
    }
    let score = judge.min_score;
    if judge.enabled && (score <= 2.0 || score >= 9.0) {
        let key = format!("{path}.llm_judge.min_score");
        let message = format!("`{key}` is {score}: nearly every model passes or fails");
        findings.warn(Code::Doubtful, &[&key], message);
    }
}

/// Rules of sections that only the root has.
pub fn check_root(run: &Run, findings: &mut Findings<'_>) {
    tiers(run, findings);
    merge(run, findings);
    synthetic(run, findings);
    secrets(run, findings);
    signing(run, findings);
}

fn tiers(run: &Run, findings: &mut Findings<'_>) {
    const CLASSIFICATION: &str = "compliance.risk_classification";
    const CATEGORY: &str = "risk_assessment.risk_category";
    let tiers = [
        (run.compliance.as_ref().map(|c| c.risk_classification), CLASSIFICATION),
        (run.risk_assessment.as_ref().map(|r| r.risk_category), CATEGORY),
    ];
    if let [(Some(a), _), (Some(b), _)] = tiers
        && a != b
        && findings.written.contains(CLASSIFICATION)
        && findings.written.contains(CATEGORY)
    {
        let message = format!(
            "`{CLASSIFICATION}` is `{a}` and `{CATEGORY}`{} is `{b}`; the stricter one governs",
            findings.at(CATEGORY)
        );
        findings.warn(Code::Doubtful, &[CLASSIFICATION, CATEGORY], message);
    }
    let tier = run.risk_tier();
    let Some((_, key)) = tiers.into_iter().find(|&(t, _)| t == Some(tier)) else {
        return;
    };
    if !tier.is_strict() {
        return;
    }
    let safety = run.evaluation.as_ref().and_then(|e| e.safety.as_ref()).filter(|s| s.enabled);
    let enabled = "evaluation.safety.enabled";
    match safety {
        None => {
            let message =
                format!("`{key}` is `{tier}` and `{enabled}`{} is not true", findings.at(enabled));
            findings.error(
                Code::Conflict,
                &[key, enabled],
                message,
                "this tier needs the safety evaluation: write `enabled: true` under \
                 `evaluation.safety`",
            );
        }
        Some(safety) if !safety.track_categories => {
            let message = format!("`{key}` is `{tier}` and `track_categories` is off");
            findings.warn(Code::Doubtful, &[key], message);
        }
        Some(_) => {}
    }
    if !run.evaluation.as_ref().is_some_and(|e| e.auto_revert) {
        let message = format!("`{key}` is `{tier}` and `evaluation.auto_revert` is off");
        findings.warn(Code::Doubtful, &[key], message);
    }
    if tier == RiskTier::Unacceptable {
        let message = format!(
            "`{key}` is `{tier}`: Article 5 of Regulation (EU) 2024/1689 prohibits such practices"
        );
        findings.warn(Code::Doubtful, &[key], message);
    }
}

fn merge(run: &Run, findings: &mut Findings<'_>) {
    let Some(merge) = run.merge.as_ref().filter(|m| m.enabled) else {
        return;
    };
    let (models, method) = ("merge.models", "merge.method");
    let n_models = merge.models.len();
    if n_models < 2 {
        let message = format!(
            "`{models}` has {n_models}; expected at least 2 with `merge.enabled`{}",
            findings.at("merge.enabled")
        );
        findings.error(
            Code::Conflict,
            &[models, "merge.enabled"],
            message,
            "add entries of `path:` and `weight:`",
        );
        return;
    }
    if run.plugins.as_ref().is_some_and(|plugins| plugins.merge_method.is_some()) {
        // How many models it takes and what their weights mean is its own business.
        return no_method_of_ours(findings);
    }
    if merge.method == MergeMethod::Slerp && n_models > 2 {
        let message = format!(
            "`{models}` has {n_models}; expected exactly 2 for `{method}: slerp`{}",
            findings.at(method)
        );
        let hint = "merge two of them, or write `method: linear`";
        findings.error(Code::Conflict, &[models, method], message, hint);
    }
    let sum: f64 = merge.models.iter().map(|model| model.weight).sum();
    if sum == 0.0 {
        let message = format!("the weights of `{models}` sum to 0; expected another sum");
        let hint = "shares are weights over their sum: make it a positive number";
        findings.error(Code::Conflict, &[models], message, hint);
    }
    let is_summed_by_sign = matches!(merge.method, MergeMethod::Ties | MergeMethod::Dare);
    for (i, model) in merge.models.iter().enumerate() {
        if model.weight < 0.0 && is_summed_by_sign {
            let key = format!("{models}[{i}].weight");
            let message =
                format!("`{key}` is {}: {} turns the change round", model.weight, merge.method);
            findings.warn(Code::Doubtful, &[&key], message);
        }
    }
}

/// What says how our methods merge has no effect on one of a library; said, not swallowed.
fn no_method_of_ours(findings: &mut Findings<'_>) {
    let of_ours = ["method", "ties_", "slerp_", "dare_"];
    let is_of_ours = |path: &&str| {
        let key = path.strip_prefix("merge.");
        key.is_some_and(|key| of_ours.iter().any(|prefix| key.starts_with(prefix)))
    };
    let paths = findings.written.paths().filter(is_of_ours).map(str::to_owned);
    for path in paths.collect::<Vec<_>>() {
        let named = "plugins.merge_method";
        let message = format!("`{path}` has no effect: `{named}` names the method");
        findings.warn(Code::IgnoredKey, &[&path, named], message);
    }
}

fn synthetic(run: &Run, findings: &mut Findings<'_>) {
    let Some(synthetic) = run.synthetic.as_ref() else {
        return;
    };
    if let Some(revision) = &synthetic.teacher_revision {
        let (pin, backend) = ("synthetic.teacher_revision", "synthetic.teacher_backend");
        if synthetic.teacher_backend != TeacherBackend::Local {
            let message = format!(
                "`{pin}` pins a local teacher and `{backend}`{} is `{}`",
                findings.at(backend),
                synthetic.teacher_backend
            );
            findings.error(
                Code::Conflict,
                &[pin, backend],
                message,
                "write `teacher_backend: local`",
            );
        }
        moving_ref(pin, revision, findings);
    }
    if !synthetic.enabled {
        return;
    }
    let enabled = "synthetic.enabled";
    if synthetic.teacher_model.is_empty() && synthetic.teacher_backend != TeacherBackend::File {
        let message = format!("`{enabled}` is true and `synthetic.teacher_model` is empty");
        findings.error(
            Code::Conflict,
            &[enabled, "synthetic.teacher_model"],
            message,
            "name the teacher, or write `teacher_backend: file`",
        );
    }
    let (backend, base) = ("synthetic.teacher_backend", "synthetic.api_base");
    if synthetic.teacher_backend == TeacherBackend::Api && synthetic.api_base.is_empty() {
        let message = format!("`{enabled}` is true, `{backend}` is `api`, and `{base}` is empty");
        findings.error(
            Code::Conflict,
            &[enabled, backend, base],
            message,
            "write the address of the API, such as `https://api.openai.com/v1`",
        );
    }
    if synthetic.teacher_backend == TeacherBackend::File
        && synthetic.seed_file.is_empty()
        && !synthetic.seed_prompts.is_empty()
    {
        let message = format!("`{backend}` is `file` and `synthetic.seed_file` is empty");
        findings.error(
            Code::Conflict,
            &[backend, "synthetic.seed_file"],
            message,
            "name the file of prompts with their answers",
        );
    }
    if synthetic.seed_file.is_empty() && synthetic.seed_prompts.is_empty() {
        let message = format!("`{enabled}` is true and there are no prompts");
        findings.error(
            Code::Conflict,
            &[enabled, "synthetic.seed_file", "synthetic.seed_prompts"],
            message,
            "write `seed_file` or `seed_prompts`",
        );
    }
}

/// A secret in the file works, and lies in a repository tomorrow.
fn secrets(run: &Run, findings: &mut Findings<'_>) {
    let token = run.auth.as_ref().and_then(|a| a.hf_token.as_ref());
    let key = run.synthetic.as_ref().and_then(|s| s.api_key.as_ref());
    let pairs = [
        (token, "auth.hf_token", "set the environment variable HUGGINGFACE_TOKEN"),
        (key, "synthetic.api_key", "name an environment variable in `synthetic.api_key_env`"),
    ];
    for (secret, path, hint) in pairs {
        if secret.is_some_and(|s| !s.is_empty()) {
            let message = format!("`{path}` is a secret written in the file");
            findings
                .add(&[path], Diagnostic::warning(Code::SecretInFile, path, message).hint(hint));
        }
    }
}

fn signing(run: &Run, findings: &mut Findings<'_>) {
    let Some(signing) = run.signing.as_ref() else {
        return;
    };
    let tier = run.risk_tier();
    if !signing.enabled && tier.is_strict() {
        let message = format!("`signing.enabled` is false and the tier is `{tier}`");
        findings.error(
            Code::Conflict,
            &["signing.enabled"],
            message,
            "manifests of this tier are signed: write `enabled: true`",
        );
    }
    if signing.key_file.is_some() && signing.key_env.is_some() {
        let message = format!(
            "`signing.key_file` and `signing.key_env`{} both name the key",
            findings.at("signing.key_env")
        );
        findings.error(
            Code::Conflict,
            &["signing.key_file", "signing.key_env"],
            message,
            "keep one of the two",
        );
    }
    if signing.require_timestamp && (signing.timestamp_url.is_none() || !signing.enabled) {
        findings.error(
            Code::Conflict,
            &["signing.require_timestamp"],
            "`signing.require_timestamp` is true, and nobody is asked for time stamps".to_owned(),
            "name the authority in `timestamp_url`, with `enabled: true`",
        );
    }
    if signing.command.is_some() != signing.public_key.is_some() {
        findings.error(
            Code::Conflict,
            &["signing.command", "signing.public_key"],
            "`signing.command` and `signing.public_key` belong together".to_owned(),
            "name the program that signs and the public key of what it signs",
        );
    }
    if signing.command.is_some() && (signing.key_file.is_some() || signing.key_env.is_some()) {
        findings.error(
            Code::Conflict,
            &["signing.command"],
            "`signing.command` signs with a key elsewhere, and a key is named too".to_owned(),
            "keep `command` with `public_key`, or `key_file` or `key_env`",
        );
    }
}
