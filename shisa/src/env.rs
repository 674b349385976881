//! `shisa env`: one entry of `clouds.yaml` as lines for a shell.

use crate::clouds::{AUTHORITY, Clouds, Entry};
use crate::state::Directory;
use base::{Error, Result};

/// Errors: `NotFound` when there is no such entry.
pub fn run(directory: &Directory, name: Option<&str>) -> Result<()> {
    directory.need_ids()?;
    let clouds = Clouds::open(directory.clouds())?;
    let entry = match name {
        Some(name) => clouds.get(name),
        None => clouds.get("demo").or_else(|| clouds.get("admin")),
    };
    let absent = || {
        let (name, path) = (name.unwrap_or("admin"), directory.clouds());
        Error::not_found(format!("{} has no cloud {name}; it has: {}", path.display(), clouds.names()))
    };
    print!("{}", exports(entry.ok_or_else(absent)?));
    Ok(())
}

fn exports(entry: &Entry) -> String {
    let auth = &entry.auth;
    let region = entry.region_name.as_deref().unwrap_or_default();
    let authority = entry.more.get(AUTHORITY).and_then(|path| path.as_str()).unwrap_or_default();
    let values = [
        ("AUTH_URL", auth.auth_url.as_str()),
        ("USERNAME", &auth.username),
        ("PASSWORD", &auth.password),
        ("PROJECT_NAME", &auth.project_name),
        ("USER_DOMAIN_NAME", &auth.user_domain_name),
        ("PROJECT_DOMAIN_NAME", &auth.project_domain_name),
        ("REGION_NAME", region),
        ("IDENTITY_API_VERSION", "3"),
        ("CACERT", authority),
    ];
    let set = values.iter().filter(|(_, value)| !value.is_empty());
    let lines = set.map(|(name, value)| format!("export OS_{name}={}\n", quoted(value)));
    // An OS_CLOUD from before would win over all of these; an authority of another cloud is not this one's.
    std::iter::once("unset OS_CLOUD OS_CACERT\n".to_string()).chain(lines).collect()
}

/// As one word of a POSIX shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    match value.chars().all(plain) {
        true => value.to_string(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(super::quoted("http://127.0.0.1:5000/identity/v3"), "http://127.0.0.1:5000/identity/v3");
        assert_eq!(super::quoted("it's $x"), r"'it'\''s $x'");
    }
}
