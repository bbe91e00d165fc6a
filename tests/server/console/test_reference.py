"""The API's reference: every call is there, with its fields, and nothing comes from elsewhere."""

from covey_server.console.queries.reference import read_reference

DOCUMENT = {
    "paths": {
        "/api/v1/things/{id}": {
            "post": {
                "tags": ["things"],
                "summary": "Make a thing",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewThing"}}}},
                "responses": {"201": {}, "422": {}},
            }
        },
        "/healthz": {"get": {"responses": {"200": {}}}},
    },
    "components": {
        "schemas": {
            "NewThing": {
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "description": "what it is called"},
                    "labels": {"type": "array", "items": {"type": "string"}},
                    "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                },
            }
        }
    },
}


def test_a_call_is_shown_with_its_parameters_and_the_fields_of_its_body() -> None:
    things, other = read_reference(DOCUMENT)
    (call,) = things.operations
    assert (call.method, call.path, call.summary, call.answers) == ("POST", "/api/v1/things/{id}", "Make a thing", ("201", "422"))
    assert [(field.name, field.where, field.kind, field.is_required) for field in call.fields] == [
        ("id", "path", "string", True),
        ("name", "body", "string", True),
        ("labels", "body", "list of string", False),
        ("size", "body", "integer or null", False),
    ]
    assert call.fields[1].meaning == "what it is called"
    assert (other.name, other.operations[0].path) == ("other", "/healthz")
