pub mod image;
pub fn records(schema: store::Schema) -> store::Schema {
    schema.record::<image::Image>()
}
