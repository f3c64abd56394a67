//! Metadata values of a GGUF file.

/// One metadata value. Arrays keep their element type, so that what is read is written back alike.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// type 0
    U8(u8),
    /// type 1
    I8(i8),
    /// type 2
    U16(u16),
    /// type 3
    I16(i16),
    /// type 4
    U32(u32),
    /// type 5
    I32(i32),
    /// type 6
    F32(f32),
    /// type 7, one byte, 0 or 1
    Bool(bool),
    /// type 8
    String(String),
    /// type 9
    Array(Array),
    /// type 10
    U64(u64),
    /// type 11
    I64(i64),
    /// type 12
    F64(f64),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// elements of type 0
    U8(Vec<u8>),
    /// elements of type 1
    I8(Vec<i8>),
    /// elements of type 2
    U16(Vec<u16>),
    /// elements of type 3
    I16(Vec<i16>),
    /// elements of type 4
    U32(Vec<u32>),
    /// elements of type 5
    I32(Vec<i32>),
    /// elements of type 6
    F32(Vec<f32>),
    /// elements of type 7
    Bool(Vec<bool>),
    /// elements of type 8
    String(Vec<String>),
    /// elements of type 9
    Array(Vec<Array>),
    /// elements of type 10
    U64(Vec<u64>),
    /// elements of type 11
    I64(Vec<i64>),
    /// elements of type 12
    F64(Vec<f64>),
}

impl Array {
    /// The elements as integers, whatever integer type they are stored in; `None` for other types.
    pub fn integers(&self) -> Option<Box<dyn ExactSizeIterator<Item = i128> + '_>> {
        fn wide<T: Copy + Into<i128>>(
            list: &[T],
        ) -> Option<Box<dyn ExactSizeIterator<Item = i128> + '_>> {
            Some(Box::new(list.iter().map(|number| (*number).into())))
        }
        match self {
            Array::U8(list) => wide(list),
            Array::I8(list) => wide(list),
            Array::U16(list) => wide(list),
            Array::I16(list) => wide(list),
            Array::U32(list) => wide(list),
            Array::I32(list) => wide(list),
            Array::U64(list) => wide(list),
            Array::I64(list) => wide(list),
            _ => None,
        }
    }
}

impl Value {
    /// The value as an unsigned integer, whatever integer type it is stored in; `None` for other types and negatives.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float, from either float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}
