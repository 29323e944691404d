//! Values to and from Redis.
//!
//! Both protocols (RESP2, RESP3) become the same [`Reply`]: a map is a flat list of keys and values, a
//! number with a fraction is its text, true is 1, false is nil, as RESP2 has them.

use bytes::Bytes;
use fred::types::{Resp3Frame, Value};

use super::RedisError;

/// One argument. Cheap to clone: bytes are shared, not copied.
#[derive(Debug, Clone)]
pub struct Arg(pub(super) Value);

/// What Redis answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing there.
    Nil,
    /// A whole number.
    Int(i64),
    /// A string; also a status such as `OK`.
    Bytes(Bytes),
    /// A list.
    Array(Vec<Reply>),
    /// An error inside a list. An error as the whole reply is a [`RedisError`].
    Error(String),
}

/// An entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id, `<ms>-<n>`.
    pub id: String,
    /// Its fields in order.
    pub fields: Vec<(Bytes, Bytes)>,
}

// === impl Arg ===

impl Arg {
    /// The bytes that name a cluster slot, if this argument is a key.
    pub(super) fn as_key(&self) -> Option<&[u8]> {
        match &self.0 {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl From<Bytes> for Arg {
    fn from(bytes: Bytes) -> Self {
        Self(Value::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Arg {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&String> for Arg {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Bytes::copy_from_slice(text.as_bytes()).into()
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self(Value::Integer(number))
    }
}

impl From<u32> for Arg {
    fn from(number: u32) -> Self {
        i64::from(number).into()
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Self {
        match i64::try_from(number) {
            Ok(number) => number.into(),
            Err(_) => number.to_string().into(),
        }
    }
}

// === impl Reply ===

impl Reply {
    /// The reply in a frame; an error frame is what the call failed with.
    pub(super) fn of(call: &'static str, frame: Resp3Frame) -> Result<Self, RedisError> {
        match Self::of_frame(frame) {
            Self::Error(text) => Err(RedisError::from_reply(call, &text)),
            reply => Ok(reply),
        }
    }

    fn of_frame(frame: Resp3Frame) -> Self {
        match frame {
            Resp3Frame::BlobString { data, .. }
            | Resp3Frame::SimpleString { data, .. }
            | Resp3Frame::BigNumber { data, .. }
            | Resp3Frame::VerbatimString { data, .. }
            | Resp3Frame::ChunkedString(data) => Self::Bytes(data),
            Resp3Frame::SimpleError { data, .. } => Self::Error(data.to_string()),
            Resp3Frame::BlobError { data, .. } => Self::Error(String::from_utf8_lossy(&data).into_owned()),
            Resp3Frame::Number { data, .. } => Self::Int(data),
            Resp3Frame::Boolean { data: true, .. } => Self::Int(1),
            Resp3Frame::Boolean { data: false, .. } | Resp3Frame::Null | Resp3Frame::Hello { .. } => Self::Nil,
            Resp3Frame::Double { data, .. } => Self::Bytes(data.to_string().into()),
            Resp3Frame::Array { data, .. } | Resp3Frame::Push { data, .. } => {
                Self::Array(data.into_iter().map(Self::of_frame).collect())
            }
            Resp3Frame::Set { data, .. } => Self::Array(data.into_iter().map(Self::of_frame).collect()),
            Resp3Frame::Map { data, .. } => Self::Array(
                data.into_iter().flat_map(|(key, value)| [Self::of_frame(key), Self::of_frame(value)]).collect(),
            ),
        }
    }

    /// Whether nothing was there.
    pub fn is_nil(&self) -> bool {
        *self == Self::Nil
    }

    /// `None` for nil.
    pub fn into_option(self) -> Option<Self> {
        match self {
            Self::Nil => None,
            reply => Some(reply),
        }
    }

    /// The string as bytes.
    pub fn into_bytes(self) -> Result<Bytes, RedisError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(other.unexpected("a string")),
        }
    }

    /// The string as text. Fails when it is not UTF-8.
    pub fn as_str(&self) -> Result<&str, RedisError> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| self.unexpected("text in UTF-8")),
            _ => Err(self.unexpected("text in UTF-8")),
        }
    }

    /// The whole number, also one that came as text (a hash field, say).
    pub fn as_i64(&self) -> Result<i64, RedisError> {
        match self {
            Self::Int(number) => Ok(*number),
            _ => self.parse("a whole number"),
        }
    }

    /// The whole number of at least 0, also one that came as text, up to 2^64-1.
    pub fn as_u64(&self) -> Result<u64, RedisError> {
        match self {
            Self::Int(number) => u64::try_from(*number).map_err(|_| self.unexpected("a number of at least 0")),
            _ => self.parse("a number of at least 0"),
        }
    }

    /// The list. Nil is no list.
    pub fn into_array(self) -> Result<Vec<Self>, RedisError> {
        match self {
            Self::Array(items) => Ok(items),
            other => Err(other.unexpected("a list")),
        }
    }

    /// The list of exactly `N`.
    pub fn into_tuple<const N: usize>(self) -> Result<[Self; N], RedisError> {
        self.into_array()?
            .try_into()
            .map_err(|_| RedisError::Unexpected { wanted: "a list of another length", got: "a list" })
    }

    /// The stream entries of an XRANGE or XCLAIM. Deleted ones are left out.
    pub fn into_entries(self) -> Result<Vec<Entry>, RedisError> {
        let entries = self.into_array()?.into_iter().map(Entry::of);
        entries.filter_map(|entry| entry.map(|(_, entry)| entry).transpose()).collect()
    }

    fn parse<T: std::str::FromStr>(&self, wanted: &'static str) -> Result<T, RedisError> {
        self.as_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| self.unexpected(wanted))
    }

    fn unexpected(&self, wanted: &'static str) -> RedisError {
        let got = match self {
            Self::Nil => "nil",
            Self::Int(_) => "a number",
            Self::Bytes(_) => "a string",
            Self::Array(_) => "a list",
            Self::Error(_) => "an error",
        };
        RedisError::Unexpected { wanted, got }
    }
}

// === impl Entry ===

impl Entry {
    /// The value of a field; the first one if it is there twice.
    pub fn field(&self, name: &str) -> Option<&Bytes> {
        self.fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value)
    }

    /// An entry's id, and the entry unless it was deleted.
    pub(super) fn of(reply: Reply) -> Result<(String, Option<Self>), RedisError> {
        let [id, fields] = reply.into_tuple()?;
        let id = id.as_str()?.to_owned();
        let Some(fields) = fields.into_option() else { return Ok((id, None)) };
        let mut flat = fields.into_array()?.into_iter();
        let mut fields = Vec::with_capacity(flat.len() / 2);
        while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
            fields.push((name.into_bytes()?, value.into_bytes()?));
        }
        Ok((id.clone(), Some(Self { id, fields })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Reply {
        Reply::Bytes(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn numbers_are_read_from_numbers_and_from_text_but_not_from_nothing() {
        assert_eq!(text("18446744073709551615").as_u64().unwrap(), u64::MAX);
        assert_eq!(Reply::Int(-3).as_i64().unwrap(), -3);
        assert!(Reply::Int(-3).as_u64().is_err());
        assert!(text("").as_u64().is_err());
        assert!(Reply::Nil.as_u64().is_err());
    }

    #[test]
    fn a_wrong_shape_is_told_by_kind_and_never_by_content() {
        let error = text("secret").into_array().unwrap_err().to_string();
        assert_eq!(error, "redis replied a string where a list was expected");
    }

    #[test]
    fn a_deleted_entry_is_left_out() {
        let entry = Reply::Array(vec![text("1-0"), Reply::Array(vec![text("a"), text("b")])]);
        let deleted = Reply::Array(vec![text("2-0"), Reply::Nil]);
        let entries = Reply::Array(vec![deleted, entry]).into_entries().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].id.as_str(), entries[0].field("a")), ("1-0", Some(&Bytes::from_static(b"b"))));
        assert_eq!(entries[0].field("c"), None);
    }
}
