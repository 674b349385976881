//! Views: what a resource shows, written field by field straight into the bytes of an answer.
//!
//! Nothing is built in between: a list of a thousand resources is one buffer. Who may see a field, or at which
//! microversion there is one, is an `if` around its `put`. A field that the caller did not ask for is not rendered.

use crate::PAGE_MAX;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A JSON object that is being written.
pub struct View<'a> {
    out: &'a mut Vec<u8>,
    /// The fields to write; empty: all.
    only: &'a [&'a str],
    empty: bool,
    #[cfg(debug_assertions)]
    seen: std::collections::BTreeSet<String>,
}

const PLAIN: &str = "views are plain data without secrets";

impl View<'_> {
    /// Writes a field. Each is put once: only debug builds look for earlier ones.
    pub fn put(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) {
        if self.begin(name) {
            serde_json::to_writer(&mut *self.out, value).expect(PLAIN);
        }
    }

    /// Writes a field of any name, such as a user's word.
    pub fn named(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        if self.wants(name) {
            serde_json::to_writer(&mut *self.out, name).expect(PLAIN);
            self.out.push(b':');
            serde_json::to_writer(&mut *self.out, value).expect(PLAIN);
        }
    }

    /// Writes a field that is a list of objects.
    pub fn objects<T>(
        &mut self,
        name: &'static str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(T, &mut View),
    ) {
        self.objects_of(name, &[], items, &mut write);
    }

    /// As `objects`, of each only these fields; none: all.
    pub fn objects_of<T>(
        &mut self,
        name: &'static str,
        only: &[&str],
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(T, &mut View),
    ) {
        if !self.begin(name) {
            return;
        }
        self.out.push(b'[');
        let mut items = items.into_iter();
        if let Some(first) = items.next() {
            let begin = self.out.len();
            object(self.out, only, |view| write(first, view));
            // The others are about as long: a long list is not copied while it grows.
            self.out.reserve((self.out.len() - begin + 1).saturating_mul(items.size_hint().0.min(PAGE_MAX)));
        }
        for item in items {
            self.out.push(b',');
            object(self.out, only, |view| write(item, view));
        }
        self.out.push(b']');
    }

    /// Writes a field that is an object.
    pub fn object(&mut self, name: &'static str, write: impl FnOnce(&mut View)) {
        self.object_of(name, &[], write);
    }

    /// As `object`, of it only these fields; none: all.
    pub fn object_of(&mut self, name: &'static str, only: &[&str], write: impl FnOnce(&mut View)) {
        if self.begin(name) {
            object(self.out, only, write);
        }
    }

    /// Writes a field's name, if the field is wanted.
    fn begin(&mut self, name: &'static str) -> bool {
        debug_assert!(!name.contains(['"', '\\']), "{name} would have to be escaped");
        let wanted = self.wants(name);
        if wanted {
            self.out.push(b'"');
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        }
        wanted
    }

    /// Whether the field is to be written; then what parts it from the one before is.
    fn wants(&mut self, name: &str) -> bool {
        #[cfg(debug_assertions)]
        assert!(self.seen.insert(name.into()), "{name} is put twice");
        let wanted = self.only.is_empty() || self.only.contains(&name);
        if wanted && !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        wanted
    }
}

/// Writes an object, of it only these fields; none: all.
pub fn object(out: &mut Vec<u8>, only: &[&str], write: impl FnOnce(&mut View)) {
    out.push(b'{');
    write(&mut View {
        out,
        only,
        empty: true,
        #[cfg(debug_assertions)]
        seen: Default::default(),
    });
    out.push(b'}');
}

/// A view as a value: for what looks into it, such as a filter.
pub fn value(write: impl FnOnce(&mut View)) -> Map<String, Value> {
    let mut out = Vec::new();
    object(&mut out, &[], write);
    serde_json::from_slice(&out).expect("a view is an object")
}

/// A list that is made while it is written.
pub struct List<F>(pub F);

impl<F, I> Serialize for List<F>
where
    F: Fn() -> I,
    I: IntoIterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq((self.0)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(only: &[&str], expect: &str) {
        let mut out = Vec::new();
        object(&mut out, only, |view| {
            view.put("id", &7);
            view.put("tags", &List(|| ["a", "b\""].iter()));
            view.named("\"", "");
            view.object("of", |of| of.put("id", &Value::Null));
            view.objects_of("many", &["n"], 0..2, |n, view| {
                view.put("id", &n);
                view.put("n", &n);
            });
        });
        assert_eq!(String::from_utf8(out).unwrap(), expect, "{only:?}");
    }

    #[test]
    fn a_view_is_written_as_json_with_the_fields_that_are_wanted() {
        check(&[], r#"{"id":7,"tags":["a","b\""],"\"":"","of":{"id":null},"many":[{"n":0},{"n":1}]}"#);
        check(&["of", "id"], r#"{"id":7,"of":{"id":null}}"#);
        check(&["other"], "{}");
        assert_eq!(Value::Object(value(|view| view.put("a", &[1]))), json!({"a": [1]}));
    }
}
