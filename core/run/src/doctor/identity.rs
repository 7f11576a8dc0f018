//! Who runs this, what signs, whom verifiers believe.

use super::folders::try_folder;
use super::{Check, World};
use crate::dossier;
use crate::error::RunError;
use crate::trust::trusted_keys;
use forgelm_evidence::keys::file::load_key_file;
use forgelm_evidence::keys::lookup::{automatic_key_path, find_signing_key};
use forgelm_evidence::keys::trust::Usage;
use forgelm_evidence::keys::{KeyError, SigningKey};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A shorter secret can be guessed.
const SECRET_BYTES_MIN: usize = 32;

/// The name that records have.
pub(super) fn operator(world: &World<'_>) -> Vec<Check> {
    let (name, env) = ("operator.identity", world.env);
    let who = match dossier::operator(env) {
        Ok(who) => who,
        Err(error) => return vec![Check::failed_by(name, &error)],
    };
    let hint = "for records that others rely on, set `FORGELM_OPERATOR`";
    let check = if env.operator.is_some() {
        Check::pass(name, format!("`{who}`, from `FORGELM_OPERATOR`"))
    } else if env.user.is_some() {
        Check::warn(name, format!("`{who}`, the system's name of the user")).hint(hint)
    } else {
        let detail = format!("`{who}`: the system knows no user, and nobody may be named");
        Check::warn(name, detail).hint(hint)
    };
    vec![check.with("operator", who)]
}

/// The key that a run signs with where its config names none.
enum Key {
    /// It is there: the key, and where it is.
    Found(Box<SigningKey>, String),
    /// The first run makes one there.
    NotYet(PathBuf),
}

/// Looks for it as a run does, but makes none.
fn key(world: &World<'_>) -> Result<Key, RunError> {
    let env = world.env;
    let places = dossier::key_places(None, env);
    if env.signing_key_file.is_some() || env.signing_key.is_some() {
        let found = find_signing_key(&places)?;
        let place = match &found.path {
            Some(path) => format!("`{}`, from `FORGELM_SIGNING_KEY_FILE`", path.display()),
            None => "from `FORGELM_SIGNING_KEY`".to_owned(),
        };
        return Ok(Key::Found(Box::new(found.signer.key.clone()), place));
    }
    let path = automatic_key_path(&env.config_dir);
    match load_key_file(&path, places.passphrase.as_ref()) {
        Ok(file) => Ok(Key::Found(Box::new(file.key), format!("`{}`", path.display()))),
        Err(KeyError::Missing { .. }) => Ok(Key::NotYet(path)),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is there and signs.
pub(super) fn signing_key(world: &World<'_>) -> Vec<Check> {
    const MESSAGE: &[u8] = b"forgelm doctor";
    let name = "signing.key";
    let (key, place) = match key(world) {
        Ok(Key::Found(key, place)) => (key, place),
        Ok(Key::NotYet(path)) => return vec![not_yet(name, &path)],
        Err(error) => return vec![Check::failed_by(name, &error)],
    };
    let keyid = key.id().to_string();
    let check = match key.sign(MESSAGE) {
        Ok(signature) if key.public().verifies(MESSAGE, &signature) => {
            Check::pass(name, format!("{place}: signs, as key {keyid}"))
        }
        Ok(_) => Check::fail(name, format!("{place}: what it signs cannot be verified")),
        Err(error) => Check::failed_by(name, &error.into()),
    };
    vec![check.with("keyid", keyid)]
}

/// No key yet: one is made where that can be done.
fn not_yet(name: &str, path: &Path) -> Check {
    let shown = path.display();
    let folder = path.parent().unwrap_or(Path::new("."));
    let check = match try_folder(folder) {
        Ok(_) => Check::warn(name, format!("none yet; the first run makes `{shown}`"))
            .hint("for what others rely on, make one yourself: `forgelm keygen --out FILE`"),
        Err(error) => Check::fail(name, format!("none, and `{shown}` cannot be made: {error}"))
            .hint("name a key with `FORGELM_SIGNING_KEY_FILE`, or make the folder writable"),
    };
    check.with("path", json!(path))
}

/// The keys that verifiers believe where no command line says it.
pub(super) fn trust_store(world: &World<'_>) -> Vec<Check> {
    let (name, env) = ("signing.trust_store", world.env);
    let keys = match trusted_keys(None, env) {
        Ok(keys) => keys,
        Err(error) => return vec![Check::failed_by(name, &error)],
    };
    let now = env.clock.utc();
    let Some(path) = &env.trusted_keys else {
        let check = match keys.keys() {
            [] => {
                Check::warn(name, "none is named, and this user has no key: verifiers trust nobody")
            }
            _ => Check::warn(name, "none is named: verifiers trust this user's own key alone"),
        };
        return vec![
            check.hint("`forgelm keys trust` begins one, `FORGELM_TRUSTED_KEYS` names it"),
        ];
    };
    let shown = path.display();
    let not_valid: Vec<String> = keys
        .keys()
        .iter()
        .filter(|key| key.state(now) != "valid")
        .map(|key| format!("{} is {}", key.keyid, key.state(now)))
        .collect();
    let n = keys.keys().len();
    let signs = match key(world) {
        Ok(Key::Found(key, _)) => Some(key.id()),
        // Its own line says what is wrong with it.
        Ok(Key::NotYet(_)) | Err(_) => None,
    };
    let check = if n == not_valid.len() {
        Check::fail(name, format!("`{shown}`: none of its {n} keys may sign now"))
            .hint("`forgelm keys trust` adds one")
    } else if let Some(own) = signs.filter(|own| !keys.may_sign(own, Usage::Run, now)) {
        let detail =
            format!("`{shown}`: does not believe runs that this user signs, with key {own}");
        Check::warn(name, detail).hint("`forgelm keys trust` adds a key, `--usage run` for runs")
    } else if not_valid.is_empty() {
        Check::pass(name, format!("`{shown}`: {n} key{}", if n == 1 { "" } else { "s" }))
    } else {
        Check::warn(name, format!("`{shown}`: {n} keys, of which {}", not_valid.join(", ")))
            .hint("`forgelm keys rotate` names the key that follows one")
    };
    vec![check.with("path", json!(path)).with("n_keys", n).with("not_valid", json!(not_valid))]
}

/// The secret that lines of audit logs are authenticated with.
pub(super) fn audit_secret(world: &World<'_>) -> Vec<Check> {
    let name = "audit.secret";
    let Some(secret) = &world.env.audit_secret else {
        let detail = "`FORGELM_AUDIT_SECRET` is not set: lines of audit logs have no HMAC";
        return vec![
            Check::warn(name, detail).hint("the log is a hash chain and signed all the same"),
        ];
    };
    let n_bytes = secret.expose().len();
    let detail = format!("`FORGELM_AUDIT_SECRET` is set, {n_bytes} bytes");
    let check = if n_bytes < SECRET_BYTES_MIN {
        Check::warn(name, format!("{detail}; expected at least {SECRET_BYTES_MIN}"))
            .hint("`openssl rand -hex 32` prints one")
    } else {
        Check::pass(name, detail)
    };
    vec![check.with("n_bytes", n_bytes)]
}
