//! Who may approve: the rules of a request, judged without a look at the world.

use std::fmt;

use forgelm_artifact::UtcTime;
use serde_json::{Value, json};

use super::requests::Request;
use crate::keys::KeyId;

/// The rules of one request. They stand in the event that asks, before anybody answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How many different people must approve.
    pub quorum: u64,
    /// One of these is named with each approval; empty: none is asked for.
    pub roles: Vec<String>,
    /// Days after which nobody can approve any more.
    pub expires_days: Option<u64>,
    /// Whether the operator who trained, and the key that signed the run, may not approve.
    pub require_different_operator: bool,
    /// The keys that may approve; none: people approve by their operator's name.
    pub approvers: Option<Vec<Approver>>,
}

/// A key that may approve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    /// Its id.
    pub keyid: KeyId,
    /// Its name in the trust store.
    pub label: Option<String>,
}

impl Policy {
    /// As the log has it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |of: &Approver| json!({"keyid": of.keyid.as_str(), "label": of.label});
        let approvers = self.approvers.as_ref().map(|all| all.iter().map(row).collect::<Vec<_>>());
        json!({
            "quorum": self.quorum,
            "roles": self.roles,
            "expires_days": self.expires_days,
            "require_different_operator": self.require_different_operator,
            "approvers": approvers,
        })
    }

    /// Reads what [`Policy::to_json`] wrote. Anything unknown or missing is refused: a rule that is
    /// not understood is not a rule that is kept.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(value: &Value) -> Result<Self, String> {
        const KEYS: [&str; 5] =
            ["quorum", "roles", "expires_days", "require_different_operator", "approvers"];
        let members = value.as_object().ok_or("`policy` is not an object")?;
        if let Some(key) = members.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("`policy` has the unknown rule {}", forgelm_artifact::Quoted(key)));
        }
        let bad = |key: &str| format!("`policy.{key}` is not as expected");
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let expires_days = match &value["expires_days"] {
            Value::Null => None,
            days => Some(days.as_u64().ok_or_else(|| bad("expires_days"))?),
        };
        let approvers = match &value["approvers"] {
            Value::Null => None,
            Value::Array(rows) => Some(
                rows.iter().map(approver).collect::<Option<_>>().ok_or_else(|| bad("approvers"))?,
            ),
            _ => return Err(bad("approvers")),
        };
        Ok(Self {
            quorum: value["quorum"].as_u64().filter(|n| *n > 0).ok_or_else(|| bad("quorum"))?,
            roles: texts(&value["roles"]).ok_or_else(|| bad("roles"))?,
            expires_days,
            require_different_operator: value["require_different_operator"]
                .as_bool()
                .ok_or_else(|| bad("require_different_operator"))?,
            approvers,
        })
    }

    /// When a request of `requested_at` can no longer be approved.
    #[must_use]
    pub fn expires_at(&self, requested_at: UtcTime) -> Option<UtcTime> {
        const MICROSECONDS_PER_DAY: i64 = 86_400_000_000;
        let days = i64::try_from(self.expires_days?).unwrap_or(i64::MAX);
        Some(UtcTime(requested_at.0.saturating_add(days.saturating_mul(MICROSECONDS_PER_DAY))))
    }
}

fn approver(row: &Value) -> Option<Approver> {
    let label = row["label"].as_str().map(str::to_owned);
    Some(Approver { keyid: KeyId::parse(row["keyid"].as_str()?)?, label })
}

/// Somebody who wants to decide.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Their operator's name.
    pub operator: &'a str,
    /// The role that they say they have.
    pub role: Option<&'a str>,
    /// The key that signs their decision.
    pub keyid: Option<&'a KeyId>,
    /// The key that signed the run.
    pub run_keyid: Option<&'a str>,
}

/// Why somebody may not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// They trained the model.
    Oneself {
        /// Their name.
        operator: String,
    },
    /// Their key signed the run.
    OwnKey,
    /// A role is asked for.
    Role {
        /// As given.
        given: Option<String>,
        /// Those that count.
        expected: Vec<String>,
    },
    /// A signed decision is asked for.
    NoKey,
    /// Their key is none of the approvers'.
    UnknownKey {
        /// Its id.
        keyid: String,
    },
    /// They have approved already.
    Again {
        /// Who.
        approver: String,
        /// When.
        at: String,
    },
}

impl Refusal {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Oneself { .. } => {
                "somebody else approves; `evaluation.approval.require_different_operator: false` \
                 would have allowed it, before training"
            }
            Self::OwnKey => "an approver has a key of their own: `forgelm keygen --out KEY`",
            Self::Role { .. } => "name the role in which you decide with `--role`",
            Self::NoKey => "sign the decision with `--approver-key KEY`",
            Self::UnknownKey { .. } => {
                "the approvers' keys were fixed when the run began, out of \
                 `evaluation.approval.approvers`"
            }
            Self::Again { .. } => "another approver is needed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oneself { operator } => write!(f, "`{operator}` trained this model"),
            Self::OwnKey => f.write_str("the approver's key is the one that signed the run"),
            Self::Role { given: None, expected } => {
                write!(f, "no role was given; expected one of {}", expected.join(", "))
            }
            Self::Role { given: Some(given), expected } => {
                let given = forgelm_artifact::Quoted(given);
                write!(
                    f,
                    "the role {given} does not count; expected one of {}",
                    expected.join(", ")
                )
            }
            Self::NoKey => f.write_str("decisions on this model must be signed"),
            Self::UnknownKey { keyid } => write!(f, "key {keyid} is none of the approvers'"),
            Self::Again { approver, at } => write!(f, "`{approver}` approved at {at} already"),
        }
    }
}

/// Why `candidate` may not decide on `request`; none if they may.
#[must_use]
pub fn refusal(request: &Request, candidate: &Candidate<'_>) -> Option<Refusal> {
    let policy = &request.policy;
    if policy.require_different_operator {
        if candidate.operator == request.operator {
            return Some(Refusal::Oneself { operator: request.operator.clone() });
        }
        if candidate.keyid.is_some_and(|id| Some(id.as_str()) == candidate.run_keyid) {
            return Some(Refusal::OwnKey);
        }
    }
    let is_of_role = |role: &str| policy.roles.iter().any(|known| known == role);
    if !policy.roles.is_empty() && !candidate.role.is_some_and(is_of_role) {
        let given = candidate.role.map(str::to_owned);
        return Some(Refusal::Role { given, expected: policy.roles.clone() });
    }
    if let Some(approvers) = &policy.approvers {
        let Some(keyid) = candidate.keyid else { return Some(Refusal::NoKey) };
        if !approvers.iter().any(|approver| approver.keyid == *keyid) {
            return Some(Refusal::UnknownKey { keyid: keyid.to_string() });
        }
    }
    let earlier = request.approvals.iter().find(|approval| {
        let same_key =
            candidate.keyid.is_some_and(|id| approval.keyid.as_deref() == Some(id.as_str()));
        // Where keys decide, a name is only a name.
        same_key || (policy.approvers.is_none() && approval.approver == candidate.operator)
    });
    earlier.map(|approval| Refusal::Again {
        approver: approval.approver.clone(),
        at: approval.at.clone(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Approver, Candidate, Policy, Refusal, refusal};
    use crate::approval::requests::Approval;
    use crate::approval::requests::tests::request;
    use crate::keys::KeyId;
    use forgelm_artifact::UtcTime;
    use serde_json::json;

    pub(crate) fn policy() -> Policy {
        Policy {
            quorum: 1,
            roles: Vec::new(),
            expires_days: None,
            require_different_operator: true,
            approvers: None,
        }
    }

    fn key(n: u8) -> KeyId {
        KeyId::parse(&format!("{n:02x}").repeat(32)).unwrap()
    }

    fn by(operator: &str) -> Candidate<'_> {
        Candidate { operator, role: None, keyid: None, run_keyid: None }
    }

    #[test]
    fn fault_101_who_trained_does_not_approve_unless_that_was_allowed() {
        let mut request = request("fg-1");
        let oneself = Refusal::Oneself { operator: "alice@host".to_owned() };
        assert_eq!(refusal(&request, &by("alice@host")), Some(oneself));
        assert_eq!(refusal(&request, &by("bob@host")), None);
        let (own, other) = (key(1), key(2));
        let run_keyid = Some(own.as_str());
        let with = |keyid| Candidate { keyid: Some(keyid), run_keyid, ..by("bob@host") };
        assert_eq!(refusal(&request, &with(&own)), Some(Refusal::OwnKey));
        assert_eq!(refusal(&request, &with(&other)), None);
        request.policy.require_different_operator = false;
        assert_eq!(refusal(&request, &by("alice@host")), None);
    }

    #[test]
    fn roles_and_keys_are_asked_for_where_the_policy_has_them() {
        let mut request = request("fg-1");
        request.policy.roles = vec!["reviewer".to_owned(), "safety officer".to_owned()];
        let in_role = |role| Candidate { role: Some(role), ..by("bob") };
        assert!(matches!(refusal(&request, &by("bob")), Some(Refusal::Role { given: None, .. })));
        assert!(matches!(refusal(&request, &in_role("Reviewer")), Some(Refusal::Role { .. })));
        assert_eq!(refusal(&request, &in_role("reviewer")), None);
        request.policy.approvers = Some(vec![Approver { keyid: key(1), label: None }]);
        assert_eq!(refusal(&request, &in_role("reviewer")), Some(Refusal::NoKey));
        let (one, two) = (key(1), key(2));
        let signed = |keyid| Candidate { keyid: Some(keyid), ..in_role("reviewer") };
        assert_eq!(refusal(&request, &signed(&one)), None);
        assert!(matches!(refusal(&request, &signed(&two)), Some(Refusal::UnknownKey { .. })));
    }

    #[test]
    fn nobody_counts_twice() {
        let mut request = request("fg-1");
        request.policy.quorum = 2;
        let (one, two) = (key(1), key(2));
        request.approvals.push(Approval {
            approver: "bob".to_owned(),
            role: None,
            keyid: Some(one.to_string()),
            at: "then".to_owned(),
            decision: None,
            prev_hash: String::new(),
            line: 9,
        });
        let signed = |operator, keyid| Candidate { keyid: Some(keyid), ..by(operator) };
        assert!(matches!(refusal(&request, &by("bob")), Some(Refusal::Again { .. })));
        let other_name = refusal(&request, &signed("carol", &one));
        assert!(matches!(other_name, Some(Refusal::Again { .. })), "the same key");
        assert!(matches!(refusal(&request, &signed("bob", &two)), Some(Refusal::Again { .. })));
        assert_eq!(refusal(&request, &signed("carol", &two)), None);
        // Where keys decide, two people may share a name.
        let approver = |keyid: &KeyId| Approver { keyid: keyid.clone(), label: None };
        request.policy.approvers = Some(vec![approver(&one), approver(&two)]);
        assert_eq!(refusal(&request, &signed("bob", &two)), None);
    }

    #[test]
    fn policies_come_back_as_written_and_unknown_rules_are_refused() {
        let policy = Policy {
            quorum: 2,
            roles: vec!["a".to_owned()],
            expires_days: Some(7),
            approvers: Some(vec![Approver { keyid: key(3), label: Some("x".to_owned()) }]),
            ..policy()
        };
        assert_eq!(Policy::parse(&policy.to_json()), Ok(policy.clone()));
        let day = 86_400_000_000;
        assert_eq!(policy.expires_at(UtcTime(5)), Some(UtcTime(5 + 7 * day)));
        let huge = Policy { expires_days: Some(u64::MAX), ..policy.clone() };
        assert_eq!(huge.expires_at(UtcTime(5)), Some(UtcTime(i64::MAX)));
        for (key, value) in [
            ("quorum", json!(0)),
            ("roles", json!("a")),
            ("roles", json!([1])),
            ("expires_days", json!(-1)),
            ("require_different_operator", json!(null)),
            ("approvers", json!([{"keyid": "x"}])),
            ("more", json!(1)),
        ] {
            let mut bad = policy.to_json();
            bad[key] = value;
            assert!(Policy::parse(&bad).is_err(), "{bad}");
        }
    }
}
