//! Who is running this, for every record and approval. One resolver for all of them.

/// What the program knows about the operator; it reads the environment, this module does not.
#[derive(Clone, Debug, Default)]
pub struct OperatorCandidates<'a> {
    /// Value of `FORGELM_OPERATOR`.
    pub forgelm_operator: Option<&'a str>,
    /// Name of the user, from the operating system.
    pub user: Option<&'a str>,
    /// Name of the host; empty when unknown.
    pub host: &'a str,
    /// Whether `FORGELM_ALLOW_ANONYMOUS_OPERATOR` is exactly `1`.
    pub allow_anonymous: bool,
}

/// No identity can be found: a configuration error, exit 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no operator identity: the system has no user name\n  hint: set FORGELM_OPERATOR, or \
     FORGELM_ALLOW_ANONYMOUS_OPERATOR=1"
)]
pub struct NoOperator;

/// The operator's identity: `FORGELM_OPERATOR` as it is, else `user@host`, else, when that is
/// permitted, `anonymous@host`.
///
/// # Errors
/// [`NoOperator`].
pub fn resolve_operator(from: &OperatorCandidates<'_>) -> Result<String, NoOperator> {
    if let Some(operator) = from.forgelm_operator.filter(|text| !text.is_empty()) {
        return Ok(operator.to_owned());
    }
    let host = if from.host.is_empty() { "unknown-host" } else { from.host };
    match from.user.filter(|user| !user.is_empty()) {
        Some(user) => Ok(format!("{user}@{host}")),
        None if from.allow_anonymous => Ok(format!("anonymous@{host}")),
        None => Err(NoOperator),
    }
}

#[cfg(test)]
mod tests {
    use super::{NoOperator, OperatorCandidates, resolve_operator};

    #[test]
    fn the_order_is_variable_user_anonymous_error() {
        let all = OperatorCandidates {
            forgelm_operator: Some("ci bot"),
            user: Some("alice"),
            host: "h",
            allow_anonymous: true,
        };
        assert_eq!(resolve_operator(&all), Ok("ci bot".to_owned()));
        let user = OperatorCandidates { forgelm_operator: Some(""), ..all.clone() };
        assert_eq!(resolve_operator(&user), Ok("alice@h".to_owned()));
        let anonymous = OperatorCandidates { user: None, host: "", ..user };
        assert_eq!(resolve_operator(&anonymous), Ok("anonymous@unknown-host".to_owned()));
        let none = OperatorCandidates { allow_anonymous: false, ..anonymous };
        assert_eq!(resolve_operator(&none), Err(NoOperator));
    }
}
