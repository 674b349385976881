//! Who is who, and who may use how much: projects, users, roles, tokens, catalogue, limits.

pub mod limit;

use store::Schema;

/// The kinds of records that this service keeps.
pub fn records(schema: Schema) -> Schema {
    schema.record::<limit::Limit>()
}
