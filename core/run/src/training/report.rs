//! How a run ended, for programs: an exit code and a JSON object. The terminal and the library for C
//! hand out the same.

use super::{Completed, Outcome};
use crate::exit::Exit;
use forgelm_evidence::documents::evidence::Gate;
use serde_json::{Map, Value, json};

/// What became of the model of a run that left its evidence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kept,
    Staged,
    Reverted,
}

impl Outcome {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Completed(_) | Self::Compared { .. } | Self::AlreadyComplete { .. } => {
                Exit::Success
            }
            Self::Staged(_) | Self::Waiting { .. } => Exit::AwaitingApproval,
            Self::Reverted(_) | Self::AlreadyReverted { .. } | Self::AlreadyRejected { .. } => {
                Exit::Gate
            }
            Self::Interrupted { .. } => Exit::Interrupted,
        }
    }

    /// The result. Where the exit code is 3 or 7, whoever prints it adds `error`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let nothing_done = |is_reverted: bool, run_id: &str| {
            json!({
                "success": false,
                "metrics": {},
                "final_model_path": null,
                "reverted": is_reverted,
                "awaiting_approval": false,
                "run_id": run_id,
            })
        };
        match self {
            Self::Completed(completed) => of_evidence(completed, End::Kept),
            Self::Staged(completed) => of_evidence(completed, End::Staged),
            Self::Reverted(completed) => of_evidence(completed, End::Reverted),
            Self::Compared { step } => json!({"success": true, "step": step}),
            Self::Waiting { run_id, staging, .. } => json!({
                "success": true,
                "metrics": {},
                "final_model_path": staging,
                "reverted": false,
                "awaiting_approval": true,
                "run_id": run_id,
                "staging_path": staging,
            }),
            Self::AlreadyRejected { run_id, .. } => nothing_done(false, run_id),
            Self::AlreadyReverted { run_id, .. } => nothing_done(true, run_id),
            Self::AlreadyComplete { final_model } => json!({
                "success": true,
                "metrics": {},
                "final_model_path": final_model,
                "reverted": false,
                "awaiting_approval": false,
                "already_complete": true,
            }),
            Self::Interrupted { checkpoint, step } => json!({
                "success": false,
                "checkpoint": checkpoint,
                "step": step,
            }),
        }
    }
}

fn of_evidence(completed: &Completed, end: End) -> Value {
    let mut result = json!({
        "success": end != End::Reverted,
        "metrics": completed.metrics,
        "final_model_path": (end != End::Reverted).then_some(&completed.final_model),
        "reverted": end == End::Reverted,
        "awaiting_approval": end == End::Staged,
        "run_id": completed.run_id,
        "config_hash": completed.config_hash,
        "resource_usage": completed.resource_usage,
        "compliance_exported": completed.export_error.is_none(),
    });
    if end != End::Reverted {
        result["error"] = Value::Null;
    }
    if let Some(members) = result.as_object_mut() {
        members.extend(gate_members(&completed.gates, &completed.evaluations));
    }
    if let Some(error) = &completed.export_error {
        result["export_error"] = json!(error);
    }
    if end == End::Staged {
        result["staging_path"] = json!(completed.final_model);
    }
    if let Some(cost) = completed.resource_usage.get("estimated_cost_usd") {
        result["estimated_cost_usd"] = cost.clone();
    }
    result
}

/// `gate_failures`, and what each gate found under its own key: `benchmark`, `safety`, `judge`.
fn gate_members(gates: &[Gate], evaluations: &Map<String, Value>) -> Map<String, Value> {
    let failures = gates.iter().filter(|gate| !gate.passed);
    let failures: Vec<Value> =
        failures.map(|gate| json!({"gate": gate.gate, "reason": gate.reason})).collect();
    let found = evaluations.iter().filter_map(|(key, value)| {
        let key = if key == "llm_judge" { "judge" } else { key.as_str() };
        let gate = gates.iter().find(|gate| gate.gate == key)?;
        let mut value = value.clone();
        value.as_object_mut()?.insert("passed".to_owned(), json!(gate.passed));
        Some((key.to_owned(), value))
    });
    std::iter::once(("gate_failures".to_owned(), Value::Array(failures))).chain(found).collect()
}

#[cfg(test)]
mod tests {
    use super::gate_members;
    use forgelm_evidence::documents::evidence::Gate;
    use serde_json::json;

    #[test]
    fn what_a_gate_found_stands_beside_its_verdict() {
        let gate = |name: &str, passed: bool| Gate {
            gate: name.to_owned(),
            passed,
            reason: (!passed).then(|| "too low".to_owned()),
            checks: vec![],
        };
        let found = json!({"benchmark": {"average": 0.5}, "llm_judge": {"average_score": 4.0}});
        let gates = [gate("benchmark", true), gate("judge", false)];
        let members = gate_members(&gates, found.as_object().unwrap());
        assert_eq!(members["benchmark"], json!({"average": 0.5, "passed": true}));
        assert_eq!(members["judge"], json!({"average_score": 4.0, "passed": false}));
        assert_eq!(members["gate_failures"], json!([{"gate": "judge", "reason": "too low"}]));
    }
}
