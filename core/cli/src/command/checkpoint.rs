//! `forgelm checkpoint`.

use super::Context;
use crate::args::CheckpointCommand;
use forgelm_run::checkpoint;
use forgelm_run::exit::Exit;
use serde_json::{Value, json};

/// Runs one of the commands.
pub fn checkpoint(command: &CheckpointCommand, context: &mut Context) -> Exit {
    let CheckpointCommand::Merge { checkpoint, output } = command;
    let about = json!({"checkpoint": checkpoint, "output": output.as_ref().unwrap_or(checkpoint)});
    let merged = checkpoint::merge(checkpoint, output.as_deref(), &context.environment());
    match merged {
        Ok(n_shards) => {
            let place = output.as_ref().unwrap_or(checkpoint).display();
            let mut envelope = about;
            envelope["success"] = json!(true);
            envelope["error"] = Value::Null;
            envelope["n_shards"] = json!(n_shards);
            let shards = if n_shards == 1 { "shard" } else { "shards" };
            context.result(&format!("{place}: whole, out of {n_shards} {shards}"), &envelope);
            Exit::Success
        }
        Err(error) => context.refused_with(error.exit(), &error.chain(), &about),
    }
}
