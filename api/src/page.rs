//! Pages: `limit`, `marker`, and the link to the next one.

use crate::PAGE_MAX;
use crate::call::{Call, Query};
use base::{Error, Result};

/// Which part of a list a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most `PAGE_MAX`; what clients leave out is `PAGE_MAX` too.
    pub limit: usize,
    pub marker: Option<String>,
}

impl Page {
    /// Errors: `Invalid` when `limit` is not a number from 0 on.
    pub fn of(query: &Query) -> Result<Page> {
        let limit = match query.get("limit") {
            None => PAGE_MAX,
            Some(text) => text
                .parse::<u64>()
                .map_err(|_| {
                    Error::invalid(format!(
                        "limit must be an integer from 0 on, not '{}'.",
                        text.escape_default()
                    ))
                })?
                .min(PAGE_MAX as u64) as usize,
        };
        Ok(Page { limit, marker: query.get("marker").filter(|m| !m.is_empty()).map(str::to_string) })
    }

    /// Cuts the page out of a sorted list; true when there is more behind it.
    ///
    /// Errors: `Invalid` when the marker is not in the list.
    pub fn cut<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        id: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, bool)> {
        let mut items = items.into_iter();
        if let Some(marker) = &self.marker
            && !items.by_ref().any(|item| id(&item) == *marker)
        {
            return Err(Error::invalid(format!("marker [{}] not found", marker.escape_default())));
        }
        let page: Vec<T> = items.by_ref().take(self.limit).collect();
        Ok((page, items.next().is_some()))
    }
}

/// The address of the page after `last`: the same query with another marker.
pub fn next(call: &Call, last: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(call.query.0.iter().filter(|(n, _)| n != "marker"));
    query.append_pair("marker", last);
    format!("{}{}?{}", call.base, call.path, query.finish())
}
