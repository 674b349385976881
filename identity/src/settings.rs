//! What an operator may set. The names of Keystone's `[security_compliance]` are kept.

use crate::user::{Password, User};
use base::{Error, Result, Secret, Timestamp};

#[derive(Clone, Debug)]
pub struct Settings {
    /// bcrypt's cost: each step doubles the work of a login.
    pub bcrypt_cost: u32,
    /// Threads that hash; logins beyond wait, but only `WAITING_MAX` of them.
    pub hash_threads: usize,
    pub token_expires_s: i64,
    /// How long after its end a token may be validated with `allow_expired`.
    pub allow_expired_s: i64,
    /// Wrong passwords in a row that lock a user out; 0: never.
    pub lockout_failure_attempts: u32,
    pub lockout_duration_s: i64,
    /// Passwords back that a new one must differ from; 0 and 1: none.
    pub unique_last_password_count: usize,
    pub minimum_password_age_days: i64,
    /// 0: passwords do not expire.
    pub password_expires_days: i64,
    /// What a password must match.
    pub password_regex: Option<String>,
    pub password_regex_description: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bcrypt_cost: 12,
            hash_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            token_expires_s: 3600,
            allow_expired_s: 172_800,
            lockout_failure_attempts: 0,
            lockout_duration_s: 1800,
            unique_last_password_count: 0,
            minimum_password_age_days: 0,
            password_expires_days: 0,
            password_regex: None,
            password_regex_description: String::new(),
        }
    }
}

/// Bytes of a password; Keystone's `max_password_length`.
const PASSWORD_MAX: usize = 4096;
const DAY_S: i64 = 86_400;

impl Settings {
    /// Passwords kept for the history.
    pub fn history(&self) -> usize {
        self.unique_last_password_count.max(1)
    }

    pub fn password(&self, hash: Secret, created: Timestamp, by_admin: bool) -> Password {
        let days = self.password_expires_days;
        let expires = (days > 0).then(|| created.plus_secs(days * DAY_S).floor());
        Password { hash, created, expires, by_admin }
    }

    /// Errors: `Invalid` when the password is not one that may be set.
    pub fn accepts(&self, password: &str) -> Result<()> {
        if password.len() > PASSWORD_MAX {
            return Err(Error::invalid(format!("A password has at most {PASSWORD_MAX} bytes.")));
        }
        let regex = self.password_regex.as_deref().map(regex_lite::Regex::new).transpose();
        let regex = regex.map_err(|e| Error::internal("password_regex cannot be read").because(e))?;
        match regex.is_none_or(|r| r.is_match(password)) {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "The password does not match the requirements: {}.",
                self.password_regex_description
            ))),
        }
    }

    /// Errors: `Invalid` when the user's own last change is too recent.
    pub fn old_enough(&self, user: &User, now: Timestamp) -> Result<()> {
        let Some(last) = user.password().filter(|p| !p.by_admin) else { return Ok(()) };
        let days = self.minimum_password_age_days;
        match days > 0 && now < last.created.plus_secs(days * DAY_S) {
            true => {
                Err(Error::invalid(format!("Cannot change password before minimum age {days} days is met.")))
            }
            false => Ok(()),
        }
    }

    pub fn counts_failures(&self, user: &User) -> bool {
        self.lockout_failure_attempts > 0 && !user.option("ignore_lockout_failure_attempts")
    }

    pub fn is_locked(&self, user: &User, now: Timestamp) -> bool {
        self.counts_failures(user)
            && user.failures >= self.lockout_failure_attempts
            && now < user.failed_at.plus_secs(self.lockout_duration_s)
    }
}
