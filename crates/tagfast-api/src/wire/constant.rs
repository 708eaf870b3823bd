//! Fields of one value: `const` in the OpenAPI document. They tell the alternatives of a union
//! apart.

use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// A boolean that always has this value. A field of this type is `#[schema(inline)]` and has no doc
/// comment, which would turn the constant into a part of something else.
pub(crate) struct Fixed<const VALUE: bool>;

impl<const VALUE: bool> Serialize for Fixed<VALUE> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(VALUE)
    }
}

impl<const VALUE: bool> PartialSchema for Fixed<VALUE> {
    fn schema() -> RefOr<Schema> {
        // The keyword is of JSON Schema, which the builder does not know.
        let keyword: Extensions = [("const", json!(VALUE))].into_iter().collect();
        let schema = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Boolean))
            .description(Some(format!("`{VALUE}`")))
            .extensions(Some(keyword));
        RefOr::T(Schema::Object(schema.build()))
    }
}

impl<const VALUE: bool> ToSchema for Fixed<VALUE> {}
