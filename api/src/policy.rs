//! Policy rules in oslo.policy's language, compiled once.
//!
//! A check is `@`, `!`, `rule:NAME`, `role:NAME`, `ATTRIBUTE:VALUE` or `'literal':VALUE`, joined by `and`, `or`, `not` and
//! parentheses. `VALUE` may be `%(name)s`: that field of the target. Attributes are of the caller: `user_id`,
//! `project_id`, `domain_id`, `user_domain_id`, `project_domain_id`, `system_scope`, `is_admin`.
//!
//! Source: oslo.policy, "Policy language". Absent: `http:` checks.

use base::context::{Scope, Who};
use base::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One rule of a service's table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub name: &'static str,
    pub check: &'static str,
    pub about: &'static str,
}

/// What a rule is asked about: fields of the thing, such as `project_id` or `target.user.domain_id`.
pub type Target = BTreeMap<String, String>;

/// All rules, compiled.
#[derive(Default)]
pub struct Policy {
    rules: HashMap<String, Check>,
}

#[derive(Debug, Clone, PartialEq)]
enum Check {
    True,
    False,
    Rule(String),
    Role(String),
    Compare(Operand, Operand),
    Not(Box<Check>),
    And(Vec<Check>),
    Or(Vec<Check>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Caller(String),
    Target(String),
    Literal(String),
}

/// `rule:` may lead to others this deep; a circle ends there as a no.
const DEPTH_MAX: usize = 16;

impl Policy {
    /// Compiles the tables of all services, then what an operator overrides.
    ///
    /// Errors: `Invalid`, naming the rule that cannot be read or that no table knows.
    pub fn new<'a>(
        tables: impl IntoIterator<Item = &'a Rule>,
        overrides: &BTreeMap<String, String>,
    ) -> Result<Arc<Policy>> {
        let mut policy = Policy::default();
        for rule in tables {
            policy.rules.insert(rule.name.to_string(), compile(rule.name, rule.check)?);
        }
        for (name, check) in overrides {
            policy.rules.insert(name.clone(), compile(name, check)?);
        }
        Ok(Arc::new(policy))
    }

    pub fn knows(&self, rule: &str) -> bool {
        self.rules.contains_key(rule)
    }

    /// Whether `who` passes `rule` for `target`. A rule that is not there is a no.
    pub fn allows(&self, rule: &str, who: &Who, target: &Target) -> bool {
        self.rules.get(rule).is_some_and(|check| self.eval(check, who, target, 0))
    }

    fn eval(&self, check: &Check, who: &Who, target: &Target, depth: usize) -> bool {
        if depth > DEPTH_MAX {
            return false;
        }
        match check {
            Check::True => true,
            Check::False => false,
            Check::Rule(name) => self.rules.get(name).is_some_and(|c| self.eval(c, who, target, depth + 1)),
            Check::Role(name) => who.roles.iter().any(|r| r.eq_ignore_ascii_case(name)),
            Check::Compare(left, right) => match (value(left, who, target), value(right, who, target)) {
                (Some(left), Some(right)) => left == right,
                (None, None) | (None, Some(_)) | (Some(_), None) => false,
            },
            Check::Not(inner) => !self.eval(inner, who, target, depth + 1),
            Check::And(all) => all.iter().all(|c| self.eval(c, who, target, depth + 1)),
            Check::Or(any) => any.iter().any(|c| self.eval(c, who, target, depth + 1)),
        }
    }
}

/// The error of a rule that did not pass.
pub fn denied(rule: &str) -> Error {
    Error::forbidden(format!("You are not authorized to perform the requested action: {rule}."))
}

fn value(operand: &Operand, who: &Who, target: &Target) -> Option<String> {
    match operand {
        Operand::Literal(text) => Some(text.clone()),
        Operand::Target(name) => target.get(name).cloned(),
        Operand::Caller(name) => match (name.as_str(), who.scope) {
            ("user_id", _) => Some(who.user.to_string()),
            ("user_domain_id", _) => Some(who.user_domain.to_string()),
            ("project_id" | "tenant_id", Scope::Project { project, .. }) => Some(project.to_string()),
            ("project_domain_id", Scope::Project { domain, .. }) => Some(domain.to_string()),
            ("domain_id", Scope::Domain(domain)) => Some(domain.to_string()),
            ("system_scope", Scope::System) => Some("all".into()),
            ("is_admin", _) => {
                Some(if who.roles.iter().any(|r| r == "admin") { "True" } else { "False" }.into())
            }
            _ => None,
        },
    }
}

fn compile(name: &str, text: &str) -> Result<Check> {
    let bad = || Error::invalid(format!("The policy rule {name} cannot be read: {text}"));
    let tokens = tokens(text);
    if tokens.is_empty() {
        return Ok(Check::True);
    }
    let mut at = 0;
    let check = any(&tokens, &mut at).filter(|_| at == tokens.len()).ok_or_else(bad)?;
    Ok(check)
}

/// Words and parentheses; a parenthesis inside `%(name)s` belongs to its word.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        let mut word = word;
        while let Some(rest) = word.strip_prefix('(') {
            out.push("(".to_string());
            word = rest;
        }
        let mut closing = 0;
        while let Some(rest) = word.strip_suffix(')') {
            closing += 1;
            word = rest;
        }
        if !word.is_empty() {
            out.push(word.to_string());
        }
        out.extend(std::iter::repeat_n(")".to_string(), closing));
    }
    out
}

fn any(tokens: &[String], at: &mut usize) -> Option<Check> {
    let mut parts = vec![all(tokens, at)?];
    while tokens.get(*at).is_some_and(|t| t.eq_ignore_ascii_case("or")) {
        *at += 1;
        parts.push(all(tokens, at)?);
    }
    Some(if parts.len() == 1 { parts.remove(0) } else { Check::Or(parts) })
}

fn all(tokens: &[String], at: &mut usize) -> Option<Check> {
    let mut parts = vec![one(tokens, at)?];
    while tokens.get(*at).is_some_and(|t| t.eq_ignore_ascii_case("and")) {
        *at += 1;
        parts.push(one(tokens, at)?);
    }
    Some(if parts.len() == 1 { parts.remove(0) } else { Check::And(parts) })
}

fn one(tokens: &[String], at: &mut usize) -> Option<Check> {
    let token = tokens.get(*at)?;
    *at += 1;
    match token.as_str() {
        "(" => {
            let inner = any(tokens, at)?;
            (tokens.get(*at)? == ")").then(|| *at += 1)?;
            Some(inner)
        }
        "@" => Some(Check::True),
        "!" => Some(Check::False),
        not if not.eq_ignore_ascii_case("not") => Some(Check::Not(Box::new(one(tokens, at)?))),
        word => leaf(word),
    }
}

fn leaf(word: &str) -> Option<Check> {
    let (kind, value) = word.split_once(':').filter(|(k, v)| !k.is_empty() && !v.is_empty())?;
    // A rule's own name may hold colons (`rule:compute:admin`); what stands before the first one is the kind.
    let right = match value.strip_prefix("%(").and_then(|v| v.strip_suffix(")s")) {
        Some(name) => Operand::Target(name.to_string()),
        None => Operand::Literal(value.trim_matches(['\'', '"']).to_string()),
    };
    Some(match kind {
        "rule" => Check::Rule(value.to_string()),
        "role" => Check::Role(value.to_string()),
        "None" => Check::False,
        quoted if quoted.starts_with(['\'', '"']) => {
            Check::Compare(Operand::Literal(quoted.trim_matches(['\'', '"']).to_string()), right)
        }
        attribute => Check::Compare(Operand::Caller(attribute.to_string()), right),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::id::{DomainId, ProjectId};

    fn member() -> Who {
        let scope = Scope::Project { project: ProjectId::ZERO, domain: DomainId::ZERO };
        Who { roles: vec!["member".into(), "reader".into()], scope, ..Who::default() }
    }

    fn check(text: &str, expect: bool) {
        let rules = [Rule { name: "deep", check: "role:reader", about: "" }];
        let overrides = [("it".to_string(), text.to_string())].into();
        let policy = Policy::new(&rules, &overrides).unwrap();
        let target = [("project_id".to_string(), ProjectId::ZERO.to_string())].into();
        assert_eq!(policy.allows("it", &member(), &target), expect, "{text}");
    }

    #[test]
    fn the_language_of_oslo_policy() {
        check("", true);
        check("@", true);
        check("!", false);
        check("role:member", true);
        check("role:Member and not role:admin", true);
        check("role:admin or (role:reader and project_id:%(project_id)s)", true);
        check("role:reader and project_id:%(target.other)s", false);
        check("(role:admin)", false);
        check("rule:deep and project_domain_id:default", true);
        check("rule:missing", false);
        check("rule:it", false);
        check("'default':%(project_id)s", false);
        check("is_admin:False", true);
        check("system_scope:all", false);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in ["role", "role:a or", "(role:a", "role:a )", "and", "not"] {
            let overrides = [("mine".to_string(), text.to_string())].into();
            let error = Policy::new(&[], &overrides).err().unwrap();
            assert!(error.message().contains("mine"), "{text}");
        }
    }
}
