//! Reads one level of JSON: the fields of an object, each as the text it came in.
//!
//! Every refusal names the field and says the shape of the value. No message of serde or of a parser that could quote
//! the value is passed on; serde_json's syntax errors name a kind and a place and are. Deep nesting costs nothing:
//! serde_json skips over a value in a loop, not by recursion.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::rejection::Fault;

/// The most fields of one object, known or not.
const FIELDS_MAX: usize = 256;

/// A JSON object's fields, one level deep.
pub(crate) struct Object<'a> {
    path: &'static str,
    fields: Vec<(Cow<'a, str>, Value<'a>)>,
}

/// One JSON value, as the text it came in.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a>(&'a RawValue);

/// Says what a value must be and is; becomes a [`Fault`] when the field's name is known.
pub(crate) type Refusal = String;

struct Fields<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

#[derive(Deserialize)]
struct FieldName<'a>(#[serde(borrow)] Cow<'a, str>);

// === impl Object ===

impl<'a> Object<'a> {
    /// Reads the fields of the object that stands at `path`.
    pub(crate) fn read(path: &'static str, text: &'a str) -> Result<Self, Fault> {
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Fault::new(
                path,
                match serde_json::from_str(text) {
                    Ok(raw) => Value(raw).refuse("must be a JSON object"),
                    Err(error) => not_json(&error),
                },
            ));
        }
        match serde_json::from_str::<Fields<'a>>(text) {
            Ok(Fields(fields)) => Ok(Self { path, fields }),
            Err(error) if error.classify() == Category::Data => {
                Err(Fault::new(path, format!("must hold at most {FIELDS_MAX} fields")))
            }
            Err(error) => Err(Fault::new(path, not_json(&error))),
        }
    }

    /// The field's value; `null` is the same as absent. One that is given twice is refused: two JSON parsers could
    /// read two different messages.
    fn get(&self, name: &'static str) -> Result<Option<Value<'a>>, Fault> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        let value = found.next().map(|(_, value)| *value);
        match found.next() {
            Some(_) => Err(self.fault(name, "must be given once, is given twice or more".into())),
            None => Ok(value.filter(|value| !value.is_null())),
        }
    }

    pub(crate) fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Value<'a>) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Fault> {
        self.get(name)?.map(read).transpose().map_err(|refusal| self.fault(name, refusal))
    }

    pub(crate) fn required<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Value<'a>) -> Result<T, Refusal>,
    ) -> Result<T, Fault> {
        self.optional(name, read)?.ok_or_else(|| self.fault(name, "is required".into()))
    }

    /// The items of an array of at most `max`; absent is empty. A bad item is named by its index.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        max: usize,
        read: impl Fn(Value<'a>) -> Result<T, Refusal>,
    ) -> Result<Vec<T>, Fault> {
        let must = format_args!("must be an array of at most {max}");
        let items = self.optional(name, |value| {
            value.items().filter(|items| items.len() <= max).ok_or_else(|| value.refuse(must))
        })?;
        let items = items.unwrap_or_default().into_iter().enumerate();
        items.map(|(i, item)| read(item).map_err(|refusal| self.fault(&format!("{name}[{i}]"), refusal))).collect()
    }

    /// The fields whose names are not among these.
    pub(super) fn rest(&self, known: &'static [&'static str]) -> impl Iterator<Item = (&str, Value<'a>)> {
        self.fields.iter().map(|(name, value)| (name.as_ref(), *value)).filter(|(name, _)| !known.contains(name))
    }

    pub(super) fn fault(&self, name: &str, refusal: Refusal) -> Fault {
        let path = self.path;
        Fault::new(format!("{path}.{name}"), refusal)
    }
}

fn not_json(error: &serde_json::Error) -> Refusal {
    match error.classify() {
        // Data errors quote what they refuse; none is left here, but the promise must not hang on that.
        Category::Data => "must be JSON".to_owned(),
        _ => format!("must be JSON: {error}"),
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    pub(super) fn raw(self) -> &'a RawValue {
        self.0
    }

    fn text(self) -> &'a str {
        self.0.get()
    }

    fn is_null(self) -> bool {
        self.text() == "null"
    }

    fn items(self) -> Option<Vec<Value<'a>>> {
        let items: Vec<&'a RawValue> = serde_json::from_str(self.text()).ok()?;
        Some(items.into_iter().map(Value).collect())
    }

    fn decoded(self) -> Option<Cow<'a, str>> {
        serde_json::from_str::<FieldName<'a>>(self.text()).ok().map(|text| text.0)
    }

    /// `must`, and the shape this value has instead.
    pub(super) fn refuse(self, must: impl fmt::Display) -> Refusal {
        format!("{must}, is {}", self.shape())
    }

    fn shape(self) -> String {
        let text = self.text();
        match text.as_bytes()[0] {
            b'n' => "null".to_owned(),
            b't' | b'f' => "a boolean".to_owned(),
            b'"' => match self.decoded() {
                Some(decoded) => format!("a string of {} bytes", decoded.len()),
                None => "a string with an escape that is no character".to_owned(),
            },
            b'[' => format!("an array of {}", self.items().map_or(0, |items| items.len())),
            b'{' => format!("an object of {} bytes", text.len()),
            _ if text.contains(['.', 'e', 'E']) => "a number with a fraction or an exponent".to_owned(),
            b'-' => "a negative number".to_owned(),
            _ => format!("a number of {} digits", text.len()),
        }
    }

    pub(super) fn flag(self) -> Result<bool, Refusal> {
        match self.text() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.refuse("must be true or false")),
        }
    }

    pub(crate) fn whole(self, range: RangeInclusive<i64>) -> Result<i64, Refusal> {
        let (least, most) = (range.start(), range.end());
        let number = self.text().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.refuse(format_args!("must be a whole number from {least} to {most}")))
    }

    pub(super) fn u32(self, range: RangeInclusive<u32>) -> Result<u32, Refusal> {
        let number = self.whole(i64::from(*range.start())..=i64::from(*range.end()))?;
        Ok(u32::try_from(number).expect("it is within a range of u32"))
    }

    pub(crate) fn id(self) -> Result<u64, Refusal> {
        Ok(self.whole(1..=i64::MAX)?.unsigned_abs())
    }

    /// A string of so many bytes without control characters.
    pub(super) fn string(self, bytes: RangeInclusive<usize>) -> Result<Cow<'a, str>, Refusal> {
        let text = self.decoded().filter(|text| bytes.contains(&text.len()) && !text.chars().any(char::is_control));
        let (least, most) = (bytes.start(), bytes.end());
        text.ok_or_else(|| {
            self.refuse(format_args!("must be a string of {least} to {most} bytes without control characters"))
        })
    }

    /// A string that `read` accepts; its error says what the string must be.
    pub(crate) fn parsed<T, E: fmt::Display>(self, read: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Refusal> {
        let text = self.decoded().ok_or_else(|| self.refuse("must be a string"))?;
        read(&text).map_err(|must| self.refuse(must))
    }
}

// === impl Fields ===

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(20);
                while let Some((name, raw)) = map.next_entry::<FieldName<'de>, &'de RawValue>()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(de::Error::custom("too many fields"));
                    }
                    fields.push((name.0, Value(raw)));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}
