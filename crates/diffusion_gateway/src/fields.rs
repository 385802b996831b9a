//! The fields of a request: a JSON object, or a form. Each is taken once, with its type.

use serde_json::{Map, Value};

use crate::error::{ApiError, Result};
use axum::http::StatusCode;
use diffusion_core::quote::is_plain_key;

/// The fields that nobody has taken yet. `null` is the same as absent.
pub struct Fields {
    values: Map<String, Value>,
    /// A form has texts only, so a text may stand for a number.
    form: bool,
}

impl Fields {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// The text is not one JSON object.
    pub fn of_json(text: &[u8]) -> Result<Self> {
        let expected = "the body: expected one JSON object";
        match serde_json::from_slice(text) {
            Ok(Value::Object(values)) => Ok(Self { values, form: false }),
            Ok(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, expected)),
            // The reason names the place, and no text of the client's, except for an unknown number.
            Err(error) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "{expected}; the JSON is invalid at line {}, column {}",
                    error.line(),
                    error.column()
                ),
            )),
        }
    }

    /// Makes the fields of a form from its texts.
    pub fn of_form(texts: impl IntoIterator<Item = (String, String)>) -> Self {
        let texts = texts.into_iter().map(|(name, text)| (name, Value::String(text)));
        Self {
            values: texts.collect(),
            form: true,
        }
    }

    /// Takes any value.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    ///
    /// # Errors
    /// The value is not a text.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes a number. Its range is checked by the backend.
    ///
    /// # Errors
    /// The value is not a number.
    pub fn number(&mut self, name: &'static str) -> Result<Option<Value>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number = match &value {
            Value::Number(_) => Some(value.clone()),
            Value::String(text) if self.form => serde_json::from_str(text).ok().filter(Value::is_number),
            _ => None,
        };
        number.map(Some).ok_or_else(|| wrong(name, "a number", &value))
    }

    /// Takes an integer.
    ///
    /// # Errors
    /// The value is not an integer of 64 bits.
    pub fn integer(&mut self, name: &'static str) -> Result<Option<i64>> {
        let Some(number) = self.number(name)? else {
            return Ok(None);
        };
        number
            .as_i64()
            .map(Some)
            .ok_or_else(|| wrong(name, "an integer", &number))
    }

    /// Takes true or false.
    ///
    /// # Errors
    /// The value is neither.
    pub fn boolean(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::String(text)) if self.form && text == "true" => Ok(Some(true)),
            Some(Value::String(text)) if self.form && text == "false" => Ok(Some(false)),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes an object.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn object(&mut self, name: &'static str) -> Result<Map<String, Value>> {
        match self.value(name) {
            None => Ok(Map::new()),
            Some(Value::Object(object)) => Ok(object),
            Some(other) => Err(wrong(name, "an object", &other)),
        }
    }

    /// Takes an array. A form has it as JSON.
    ///
    /// # Errors
    /// The value is not an array.
    pub fn array(&mut self, name: &'static str) -> Result<Option<Value>> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let array = match &value {
            Value::Array(_) => Some(value.clone()),
            Value::String(text) if self.form => serde_json::from_str(text).ok().filter(Value::is_array),
            _ => None,
        };
        array.map(Some).ok_or_else(|| wrong(name, "an array", &value))
    }

    /// Takes a text that must be one of `expected`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn choice(&mut self, name: &'static str, expected: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match expected.iter().find(|choice| **choice == text) {
            Some(choice) => Ok(Some(choice)),
            None => Err(ApiError::argument(
                name,
                format!("expected one of {}, got something else", expected.join(", ")),
            )),
        }
    }

    /// Checks that all fields are taken.
    ///
    /// # Errors
    /// The first field that is left over. It is named if it is a plain identifier.
    pub fn end(self) -> Result<()> {
        let unknown = |name: &String| {
            let name = if is_plain_key(name) {
                format!("`{name}`")
            } else {
                "a name that is not quoted here".into()
            };
            ApiError::new(StatusCode::BAD_REQUEST, format!("unknown field: {name}"))
        };
        self.values.keys().next().map_or(Ok(()), |name| Err(unknown(name)))
    }
}

fn wrong(name: &'static str, expected: &str, got: &Value) -> ApiError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(number) if number.is_f64() => "a number with a fraction or out of range",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ApiError::argument(name, format!("expected {expected}, got {got}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::json;

    fn json(value: &Value) -> Fields {
        Fields::of_json(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn fields_have_their_types() {
        let mut fields = json(&json!({ "n": 3, "size": "1x1", "seed": null, "strength": 0.5, "stream": false }));
        assert_eq!(fields.integer("n"), Ok(Some(3)));
        assert_eq!(fields.choice("size", &["auto", "1x1"]), Ok(Some("1x1")));
        assert_eq!(fields.integer("seed"), Ok(None));
        assert_eq!(fields.number("strength"), Ok(Some(json!(0.5))));
        assert_eq!(fields.boolean("stream"), Ok(Some(false)));
        assert_eq!(fields.end(), Ok(()));
    }

    #[test]
    fn a_wrong_type_is_named_without_its_value() {
        for (value, message) in [
            (json!("zanzibar"), "n: expected a number, got a string"),
            (json!(["zanzibar"]), "n: expected a number, got an array"),
            (
                json!(1.5),
                "n: expected an integer, got a number with a fraction or out of range",
            ),
            (json!(true), "n: expected a number, got a bool"),
        ] {
            let error = json(&json!({ "n": value })).integer("n").unwrap_err();
            assert_eq!(
                (error.message.as_str(), error.status, error.param),
                (message, 400, Some("n"))
            );
        }
        let error = json(&json!({ "size": "zanzibar" }))
            .choice("size", &["auto"])
            .unwrap_err();
        assert_eq!(error.message, "size: expected one of auto, got something else");
    }

    #[test]
    fn only_a_form_has_numbers_as_texts() {
        let mut form = Fields::of_form([("n".into(), "3".into()), ("seed".into(), "x".into())]);
        assert_eq!(form.integer("n"), Ok(Some(3)));
        assert!(form.integer("seed").is_err());
        assert!(json(&json!({ "n": "3" })).integer("n").is_err());
    }

    #[test]
    fn arrays_are_json_in_a_form() {
        let array = json!([{ "name": "one" }]);
        assert_eq!(json(&json!({ "loras": array })).array("loras"), Ok(Some(array.clone())));
        assert_eq!(json(&json!({ "loras": null })).array("loras"), Ok(None));
        let form = |text: &str| Fields::of_form([("loras".into(), text.to_owned())]).array("loras");
        assert_eq!(form(&array.to_string()), Ok(Some(array.clone())));
        for text in ["", "zanzibar", "[", "{}", "7"] {
            let error = form(text).unwrap_err();
            assert_eq!(error.message, "loras: expected an array, got a string", "{text}");
        }
        assert!(json(&json!({ "loras": array.to_string() })).array("loras").is_err());
    }

    #[test]
    fn unknown_fields_are_errors_and_only_plain_names_are_quoted() {
        let error = json(&json!({ "sede": 1 })).end().unwrap_err();
        assert_eq!(error.message, "unknown field: `sede`");
        let error = json(&json!({ "Out of memory": 1 })).end().unwrap_err();
        assert!(!error.message.contains("memory"), "{error:?}");
    }

    #[test]
    fn a_body_that_is_no_object_is_an_error() {
        for body in ["", "[]", "{", "\"zanzibar\"", "{\"a\": zanzibar}", &"[".repeat(100_000)] {
            let error = Fields::of_json(body.as_bytes()).err().unwrap();
            assert_eq!(error.status, 400);
            assert!(!error.message.contains("zanzibar"), "{error:?}");
        }
    }
}
