//! `forgelm keys`: the trust store, looked at and changed.

use super::Context;
use crate::args::{KeysCommand, RevokeKeyArgs, RotateKeysArgs, StoreArgs, TrustKeyArgs};
use forgelm_artifact::UtcTime;
use forgelm_evidence::Secret;
use forgelm_evidence::keys::file::{load_key_file, load_named_public_key};
use forgelm_evidence::keys::lookup::find_signing_key;
use forgelm_evidence::keys::store::change;
use forgelm_evidence::keys::succession::Saying;
use forgelm_evidence::keys::trust::{Revocation, TrustedKey, TrustedKeys, Usage};
use forgelm_run::dossier::{builder, key_places, to_evidence};
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Why a command did nothing.
enum Refusal {
    Said(String),
    Failed(RunError),
}

impl<E: Into<RunError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs one of the commands.
pub fn keys(command: &KeysCommand, context: &mut Context) -> Exit {
    let env = context.environment();
    let done = match command {
        KeysCommand::List { store } => list(store, &env),
        KeysCommand::Show { key, store } => show(key, store, &env),
        KeysCommand::Trust(args) => trust(args, &env),
        KeysCommand::Revoke(args) => revoke(args, &env),
        KeysCommand::Rotate(args) => rotate(args, &env),
    };
    match done {
        Ok(done) => {
            for warning in &done.warnings {
                context.warning(warning);
            }
            context.result(&done.text, &done.document);
            Exit::Success
        }
        Err(Refusal::Said(text)) => context.refused(Exit::Config, &text),
        Err(Refusal::Failed(error)) => context.failed(&error),
    }
}

struct Done {
    text: String,
    document: Value,
    warnings: Vec<String>,
}

/// The store that is meant: there is none by default.
fn store_path(store: &StoreArgs, env: &Environment) -> Result<PathBuf, Refusal> {
    let named = store.trusted_keys.clone().or_else(|| env.trusted_keys.clone());
    named.ok_or_else(|| {
        let text = "no trust store is named\n  hint: `--trusted-keys FILE`, or the variable \
                    `FORGELM_TRUSTED_KEYS`; `forgelm keys trust` begins one";
        Refusal::Said(text.to_owned())
    })
}

fn list(store: &StoreArgs, env: &Environment) -> Result<Done, Refusal> {
    let path = store_path(store, env)?;
    let (keys, now) = (TrustedKeys::load(&path)?, env.clock.utc());
    let mut text = format!("{}: {}\n", path.display(), count(keys.keys().len(), "key"));
    for key in keys.keys() {
        let _ = writeln!(text, "{}  {}  {}", key.keyid, key.state(now), words(key));
    }
    for (usage, n) in keys.thresholds() {
        let _ = writeln!(text, "`{}` needs {}", usage.word(), count(n, "signature"));
    }
    let document = json!({
        "success": true,
        "path": path,
        "keys": keys.keys().iter().map(|key| entry(key, now)).collect::<Vec<_>>(),
        "thresholds": keys.to_json().get("thresholds"),
        "statements_verified": keys.n_statements(),
    });
    Ok(Done { text, document, warnings: Vec::new() })
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Usages and label.
fn words(key: &TrustedKey) -> String {
    let usages: Vec<&str> = key.usages.iter().map(|usage| usage.word()).collect();
    let label = key.label.as_ref().map(|label| format!("  {}", shown(label)));
    format!("{}{}", usages.join(","), label.unwrap_or_default())
}

/// A label of a store, which anyone may have written.
fn shown(label: &str) -> String {
    label.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn entry(key: &TrustedKey, now: UtcTime) -> Value {
    let mut entry = key.to_json();
    entry["state"] = json!(key.state(now));
    entry
}

fn show(name: &str, store: &StoreArgs, env: &Environment) -> Result<Done, Refusal> {
    let path = store_path(store, env)?;
    let (keys, now) = (TrustedKeys::load(&path)?, env.clock.utc());
    let key = keys.named(name)?;
    let mut text = format!("key id      {}\nstate       {}\n", key.keyid, key.state(now));
    let _ = writeln!(text, "may sign    {}", words(key));
    let mut line = |what: &str, value: Option<String>| {
        let _ = value.map(|value| writeln!(text, "{what:<12}{value}"));
    };
    line("from", key.not_before.map(|at| at.to_string()));
    line("until", key.not_after.map(|at| at.to_string()));
    let revoked = key.revocation.as_ref();
    line("revoked", revoked.map(|r| format!("{} as {}", r.at, shown(&r.reason))));
    line("followed by", key.successor.as_ref().map(ToString::to_string));
    text.push_str(&key.public_key.to_pem());
    let mut document = entry(key, now);
    document["success"] = json!(true);
    document["path"] = json!(path);
    document["public_key_pem"] = json!(key.public_key.to_pem());
    Ok(Done { text, document, warnings: Vec::new() })
}

fn trust(args: &TrustKeyArgs, env: &Environment) -> Result<Done, Refusal> {
    let path = store_path(&args.store, env)?;
    let (public, named) = load_named_public_key(&args.public_key)?;
    let mut key = TrustedKey::unlimited(public, args.label.clone().or(named));
    key.usages = args.usage.iter().filter_map(|word| Usage::parse(word)).collect();
    key.not_before = args.not_before;
    key.not_after = args.not_after;
    let added = key.clone();
    change(&path, true, |store| store.trust(added))?;
    let text = format!("{}: trusts {} for {}", path.display(), key.keyid, words(&key));
    let mut document = entry(&key, env.clock.utc());
    document["success"] = json!(true);
    document["path"] = json!(path);
    Ok(Done { text, document, warnings: Vec::new() })
}

fn revoke(args: &RevokeKeyArgs, env: &Environment) -> Result<Done, Refusal> {
    let path = store_path(&args.store, env)?;
    let now = env.clock.utc();
    let revocation = Revocation::new(args.at.unwrap_or(now), &args.reason);
    let signer = match &args.signing_key {
        Some(key) => Some(find_signing_key(&key_places(Some(key.clone()), env))?.signer),
        None => None,
    };
    let (builder, at) = (builder(), revocation.at);
    let saying = Saying { builder: &builder, now };
    let (keyid, warnings) = change(&path, false, |store| {
        let keyid = store.named(&args.key)?.keyid.clone();
        store.revoke(&keyid, revocation, signer.as_deref(), &saying)?;
        Ok((keyid, short_of_signers(store, now)))
    })?;
    let kept = match args.reason.as_str() {
        "compromised" => "nothing that it signed is valid",
        _ => "what it signed before is valid still",
    };
    let text = format!("{}: {keyid} is revoked at {at} as {}: {kept}", path.display(), args.reason);
    let document = json!({
        "success": true,
        "path": path,
        "keyid": keyid.as_str(),
        "revoked_at": at.to_string(),
        "revocation_reason": args.reason,
        "is_signed": signer.is_some(),
        "warnings": warnings,
    });
    Ok(Done { text, document, warnings })
}

/// Usages whose threshold the keys that are left cannot reach.
fn short_of_signers(store: &TrustedKeys, now: UtcTime) -> Vec<String> {
    let of = |usage: &Usage| {
        let counts = |key: &&TrustedKey| key.usages.contains(usage) && key.state(now) == "valid";
        store.keys().iter().filter(counts).count()
    };
    let is_used = |usage: &Usage| store.keys().iter().any(|key| key.usages.contains(usage));
    let all = Usage::ALL.iter().map(|(usage, _)| *usage).filter(is_used);
    let short = all.filter(|usage| of(usage) < store.threshold(*usage));
    short
        .map(|usage| {
            let (n, needed) = (of(&usage), store.threshold(usage));
            let (needed, n) = (count(needed, "signature"), count(n, "key"));
            format!("`{}` needs {needed}; may sign it by now: {n}", usage.word())
        })
        .collect()
}

fn rotate(args: &RotateKeysArgs, env: &Environment) -> Result<Done, Refusal> {
    let path = store_path(&args.store, env)?;
    let now = env.clock.utc();
    let passphrase = env.signing_key_passphrase.as_ref().and_then(to_evidence);
    let of_new = match &args.new_passphrase_env {
        None => passphrase.clone(),
        Some(name) => {
            Some(forgelm_world::variable(name).and_then(Secret::new).ok_or_else(|| {
                let text =
                    format!("--new-passphrase-env: the variable `{name}` is not set, or empty");
                Refusal::Said(text)
            })?)
        }
    };
    let old = load_key_file(&args.old_key, passphrase.as_ref())?;
    let new = load_key_file(&args.new_key, of_new.as_ref())?;
    let (builder, label) = (builder(), args.label.clone().or(new.label));
    let saying = Saying { builder: &builder, now };
    let (old_id, new_id) = (old.key.id(), new.key.id());
    let (usages, until) = change(&path, false, |store| {
        let until = args.at.unwrap_or(now);
        let usages = store.rotate(&old.key, &new.key, label, until, &saying)?;
        // A limit that the key had already stays, when it is earlier.
        Ok((usages, store.find(&old_id).and_then(|key| key.not_after).unwrap_or(until)))
    })?;
    let usages: Vec<&str> = usages.iter().map(|usage| usage.word()).collect();
    let text = format!(
        "{}: {new_id} follows {old_id}, which is trusted until {until}, for {}",
        path.display(),
        usages.join(",")
    );
    let document = json!({
        "success": true,
        "path": path,
        "old_keyid": old_id.as_str(),
        "new_keyid": new_id.as_str(),
        "not_after": until.to_string(),
        "usages": usages,
    });
    Ok(Done { text, document, warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use crate::args::parse_time;

    #[test]
    fn a_date_is_its_first_moment() {
        let day = parse_time("2027-01-01").unwrap();
        assert_eq!(day, parse_time("2027-01-01T00:00:00Z").unwrap());
        for bad in ["2027-01", "soon", "", "2027-13-01", "2027-01-01 00:00:00Z"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
