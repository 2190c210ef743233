//! A JSON Schema of a file, for editors.

use serde_json::{Map, Value, json};

use crate::settings::keys::{self, Form, Key, Table};
use crate::settings::service::NEEDS_GUEST;
use crate::settings::values::Written;

/// The schema. What it accepts may still be refused: bounds of texts ("64KiB") are beyond it.
pub fn schema() -> Value {
    let keys = keys::all();
    let properties = |table| -> Map<String, Value> {
        let here = keys.iter().filter(|key| key.table == table);
        here.map(|key| (key.name.clone(), of_key(key))).collect()
    };
    let table = |table| {
        json!({
            "type": "object",
            "properties": properties(table),
            "additionalProperties": false,
        })
    };
    let mut service = table(Table::Service);
    // A flag may be false.
    let needs_guest = keys
        .iter()
        .filter(|key| key.form() != Form::Flag && NEEDS_GUEST.contains(&key.option_name()));
    let needs_guest = needs_guest.map(|key| (key.name.clone(), json!(["guest"])));
    let mut door = table(Table::Door);
    door["required"] = json!(["address"]);
    let mut store = table(Table::Store);
    store["required"] = json!(["url"]);
    service["properties"]["store"]["additionalProperties"]["anyOf"][1] = store;
    service["properties"]["door"] = json!({ "type": "array", "items": door });
    service["dependentRequired"] = Map::from_iter(needs_guest).into();
    let mut schema = table(Table::Top);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "The settings of Airlock".into();
    schema["required"] = json!(["service"]);
    schema["properties"]["log"] = table(Table::Log);
    schema["properties"]["limits"] = table(Table::Limits);
    schema["properties"]["service"] = json!({
        "type": "object",
        "minProperties": 1,
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]{1,64}$" },
        "additionalProperties": service,
    });
    schema
}

fn of_key(key: &Key) -> Value {
    let mut schema = match key.form() {
        Form::Flag => json!({ "type": "boolean" }),
        Form::Choice(choices) => json!({ "enum": choices }),
        Form::One(written) => of_value(&written),
        Form::Many(written) => {
            let one = of_value(&written);
            json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
        }
        // The second way to write one is added where tables are.
        Form::Stores(written) => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[A-Za-z0-9_-]{1,64}$" },
            "additionalProperties": { "anyOf": [of_value(&written), {}] },
        }),
        Form::Variables => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[^=]+$" },
            "additionalProperties": { "type": "string" },
        }),
    };
    let mut description = key.help();
    if let Some(reason) = key.reason() {
        description.push_str(&format!(". {reason}"));
    }
    match key.default() {
        Some(default) if !key.option.get_default_values().is_empty() => {
            schema["default"] = default.into();
        }
        // In words.
        Some(default) => description.push_str(&format!(" (default: {default})")),
        None => {}
    }
    schema["description"] = description.into();
    schema
}

fn of_value(written: &Written) -> Value {
    let text = written
        .pattern
        .map(|pattern| json!({ "type": "string", "pattern": pattern }));
    let number = written.numbers.as_ref().map(|numbers| {
        let (least, most) = (numbers.start(), numbers.end());
        json!({ "type": "integer", "minimum": least, "maximum": most })
    });
    match (text, number) {
        (Some(text), Some(number)) => json!({ "anyOf": [text, number] }),
        (text, number) => text.or(number).unwrap_or_default(),
    }
}
