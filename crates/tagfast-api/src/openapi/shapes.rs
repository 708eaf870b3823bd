//! The shapes of all schemas: what `null` means.
//!
//! A field of an answer is always there (and `null` if it has no value), or it is left out; never
//! both. Rust's `Option` becomes "absent or null" in a derived schema, which would make every
//! client handle a `null` that is never sent. A parameter is given or not: no URL or header can
//! carry `null`. Fields of requests stay as they are: they may be absent and may be `null`.

use std::collections::BTreeSet;

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, ArrayItems, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi, RefOr};

/// Gives every parameter and every field of an answer its shape.
pub(super) fn normalise(api: &mut OpenApi) {
    let mut names = Vec::new();
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter
                    && let Some(schema) = &mut parameter.schema
                {
                    refuse_null(schema);
                }
            }
            for response in operation.responses.responses.values_mut() {
                let RefOr::T(response) = response else { continue };
                for content in response.content.values_mut() {
                    if let RefOr::T(content) = content
                        && let Some(schema) = &mut content.schema
                    {
                        answer_schema(schema, &mut names);
                    }
                }
            }
        }
    }
    // What an answer refers to is an answer too.
    let mut seen = BTreeSet::new();
    let Some(components) = &mut api.components else { return };
    while let Some(name) = names.pop() {
        if seen.insert(name.clone())
            && let Some(schema) = components.schemas.get_mut(&name)
        {
            answer_schema(schema, &mut names);
        }
    }
}

/// The operations of a path.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, patch, delete, .. } = item;
    [get, put, post, patch, delete].into_iter().flatten()
}

/// Takes `null` from the optional fields of a schema and of all schemas in it; collects the names
/// of the schemas that it refers to.
fn answer_schema(schema: &mut RefOr<Schema>, names: &mut Vec<String>) {
    let schema = match schema {
        RefOr::Ref(to) => {
            names.extend(to.ref_location.rsplit('/').next().map(str::to_owned));
            return;
        }
        RefOr::T(schema) => schema,
    };
    match schema {
        Schema::Object(object) => {
            for (name, property) in &mut object.properties {
                if !object.required.contains(name) {
                    refuse_null(property);
                }
                answer_schema(property, names);
            }
            if let Some(rest) = &mut object.additional_properties
                && let AdditionalProperties::RefOr(rest) = &mut **rest
            {
                answer_schema(rest, names);
            }
            if let Some(content) = &mut object.content_schema {
                answer_schema(content, names);
            }
        }
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                answer_schema(items, names);
            }
        }
        Schema::OneOf(one) => one.items.iter_mut().for_each(|item| answer_schema(item, names)),
        Schema::AllOf(all) => all.items.iter_mut().for_each(|item| answer_schema(item, names)),
        Schema::AnyOf(any) => any.items.iter_mut().for_each(|item| answer_schema(item, names)),
        // The enum is open; a kind that is not known has no fields that this could look at.
        _ => {}
    }
}

/// Takes `null` from the values of a schema.
fn refuse_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(inner) = schema else { return };
    match inner {
        Schema::Object(object) => without_null(&mut object.schema_type),
        Schema::Array(array) => without_null(&mut array.schema_type),
        Schema::OneOf(one) => {
            one.items.retain(|item| !is_null(item));
            if let [only] = one.items.as_slice() {
                let (mut only, description) = (only.clone(), one.description.take());
                if let RefOr::Ref(to) = &mut only
                    && let Some(description) = description
                {
                    to.description = description;
                }
                *schema = only;
            }
        }
        Schema::AllOf(_) | Schema::AnyOf(_) => {}
        _ => {}
    }
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    matches!(
        schema,
        RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null)
    )
}

fn without_null(types: &mut SchemaType) {
    let SchemaType::Array(all) = types else { return };
    all.retain(|one| *one != Type::Null);
    if let [only] = all.as_slice() {
        *types = SchemaType::Type(only.clone());
    }
}
