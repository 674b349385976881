//! How many files a process may have open.
//!
//! Many systems begin a process with 1,024, because of old programs, and let it have many more: a keeper, a plane and a
//! door take what they may have. What they start inherits that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as this process may have without a right that it lacks.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("no more than {:?} files can be open at once: {error}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.unwrap_or(1 << 20);
        setrlimit(Resource::Nofile, Rlimit { current: Some(hard / 2), ..limit }).unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard / 2));
        raise();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }
}
