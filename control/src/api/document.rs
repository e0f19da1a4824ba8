//! The API's own document (OpenAPI 3.1), served at `/v1/openapi.json`: from the routes, the handlers
//! and their types, so that it cannot say what is not there.

use aide::generate::GenContext;
use aide::openapi::{
    Info, MediaType, OpenApi, Operation, Parameter, ParameterData, ParameterSchemaOrContent,
    PathItem, PathStyle, ReferenceOr, Response, SchemaObject,
};
use aide::transform::TransformOperation;
use aide::{OperationOutput, generate};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::Value;

/// Before the routes are there.
pub fn empty() -> OpenApi {
    // By itself the library forgets which answers it has inferred with the first router.
    generate::infer_responses(true);
    OpenApi {
        info: Info {
            title: "Causeway".to_owned(),
            summary: Some("The daemon of a userspace switch and NAT".to_owned()),
            description: Some(
                "JSON over HTTP on a unix socket. Who may open the socket may do everything. Fields \
                 are only added; a client ignores what it does not know."
                    .to_owned(),
            ),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Info::default()
        },
        ..OpenApi::default()
    }
}

/// What an operation does, in a line.
pub fn says(
    summary: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.summary(summary)
}

/// The same of one that answers with a JSON object a line, without an end perhaps.
pub fn lines<T: JsonSchema>(
    summary: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.summary(summary).response::<200, Lines<T>>()
}

/// The same of one that answers with a capture.
pub fn pcapng(
    summary: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.summary(summary).response::<200, Pcapng>()
}

/// Answers of a JSON object a line.
pub struct Lines<T>(std::marker::PhantomData<T>);

impl<T: JsonSchema> OperationOutput for Lines<T> {
    type Inner = T;

    fn operation_response(ctx: &mut GenContext, _operation: &mut Operation) -> Option<Response> {
        let schema = ctx.schema.subschema_for::<T>();
        let said = "One such JSON object a line";
        Some(response(said, "application/x-ndjson", Some(schema)))
    }
}

/// Answers of a pcapng file.
pub struct Pcapng;

impl OperationOutput for Pcapng {
    type Inner = Vec<u8>;

    fn operation_response(_ctx: &mut GenContext, _operation: &mut Operation) -> Option<Response> {
        let said = "Frames of 1 to N interfaces, with what became of each as a comment";
        Some(response(said, "application/x-pcapng", None))
    }
}

fn response(description: &str, media: &str, schema: Option<Schema>) -> Response {
    let media_type = MediaType {
        schema: schema.map(|json_schema| SchemaObject {
            json_schema,
            example: None,
            external_docs: None,
        }),
        ..MediaType::default()
    };
    Response {
        description: description.to_owned(),
        content: [(media.to_owned(), media_type)].into_iter().collect(),
        ..Response::default()
    }
}

/// Forms of texts in requests that types do not tell, by the key: a pattern where all that match are
/// taken, and an example.
const FORMS: [(&str, Option<&str>, &str); 9] = [
    ("name", Some(NAME), "web"),
    ("network", Some(NAME), "web"),
    ("endpoint", Some(NAME), "web1"),
    (
        "mac",
        Some("^([0-9a-f]{2}:){5}[0-9a-f]{2}$"),
        "02:42:0a:58:00:09",
    ),
    ("subnet", None, "10.88.0.0/24"),
    ("gateway", None, "10.88.0.1"),
    ("spec", None, "8080:80/tcp"),
    ("vlans", None, "10-20"),
    ("group", None, "239.1.1.1"),
];
/// What [`crate::model::Name`] takes.
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$";

/// Adds what follows from the paths, the names of operations and the variable parts, and the forms of
/// texts.
pub fn complete(document: &mut OpenApi) {
    let components = document.components.iter_mut();
    for schema in components.flat_map(|it| it.schemas.values_mut()) {
        tell_forms(&mut schema.json_schema);
    }
    let paths = document.paths.iter_mut().flat_map(|paths| &mut paths.paths);
    for (path, item) in paths {
        let ReferenceOr::Item(item) = item else {
            continue;
        };
        for (method, operation) in operations(item) {
            operation.operation_id = Some(operation_id(method, path));
            operation.tags = vec![tag(path).to_owned()];
            for name in variables(path) {
                operation.parameters.push(ReferenceOr::Item(variable(name)));
            }
        }
    }
}

/// Only requests refuse what they do not know.
fn tell_forms(schema: &mut Schema) {
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        return;
    }
    let properties = schema
        .as_object_mut()
        .and_then(|schema| schema.get_mut("properties"));
    let Some(Value::Object(fields)) = properties else {
        return;
    };
    for (key, pattern, example) in FORMS {
        if let Some(Value::Object(field)) = fields.get_mut(key) {
            if let Some(pattern) = pattern {
                field.insert("pattern".to_owned(), pattern.into());
            }
            field.insert("examples".to_owned(), vec![example].into());
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    all.into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// `patch_networks_name` of `PATCH /v1/networks/{name}`
fn operation_id(method: &str, path: &str) -> String {
    let words = words(path).map(|word| word.trim_matches(['{', '}']).replace('-', "_"));
    std::iter::once(method.to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

/// The first word.
fn tag(path: &str) -> &str {
    words(path).next().unwrap_or_default()
}

/// What a path consists of, its version left out.
fn words(path: &str) -> impl Iterator<Item = &str> {
    path.trim_start_matches("/v1").split('/').skip(1)
}

fn variables(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|word| word.strip_prefix('{')?.strip_suffix('}'))
}

fn variable(name: &str) -> Parameter {
    let json_schema = match name {
        "id" => json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        name => match FORMS.iter().find(|form| form.0 == name) {
            Some((_, Some(pattern), example)) => {
                json_schema!({ "type": "string", "pattern": pattern, "examples": [example] })
            }
            Some((_, None, _)) | None => json_schema!({ "type": "string", "minLength": 1 }),
        },
    };
    Parameter::Path {
        parameter_data: ParameterData {
            name: name.to_owned(),
            description: None,
            required: true,
            deprecated: None,
            format: ParameterSchemaOrContent::Schema(SchemaObject {
                json_schema,
                example: None,
                external_docs: None,
            }),
            example: None,
            examples: Default::default(),
            explode: None,
            extensions: Default::default(),
        },
        style: PathStyle::Simple,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NAME_LEN_MAX;

    #[test]
    fn the_pattern_of_names_has_their_length() {
        assert!(NAME.ends_with(&format!("{{0,{}}}$", NAME_LEN_MAX - 1)));
    }

    #[test]
    fn operations_are_named_after_method_and_path() {
        assert_eq!(operation_id("get", "/v1/status"), "get_status");
        assert_eq!(operation_id("get", "/metrics"), "get_metrics");
        assert_eq!(
            operation_id("patch", "/v1/publications/{id}/targets/{endpoint}"),
            "patch_publications_id_targets_endpoint"
        );
        assert_eq!(
            operation_id("get", "/v1/mac-nat/{port}"),
            "get_mac_nat_port"
        );
    }
}
