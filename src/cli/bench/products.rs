//! Weight formats and shapes of products, as flags of `bench types`, `bench lut` and `tune-device` name them.

use crate::error::{Error, Result};
use crate::tensor::WeightFormat;

/// A weight format from its label: `uint4m-g32`.
pub(super) fn parse_format(text: &str) -> Result<WeightFormat> {
    WeightFormat::from_label(text).ok_or_else(|| Error::Argument {
        argument: "--type".into(),
        expected: "a weight type with its group size, such as uint4m-g32, int8-row or f16".into(),
        found: text.into(),
    })
}

/// Rows and columns of a weight: `4096x4096`.
pub(super) fn parse_shape(text: &str) -> Result<(usize, usize)> {
    let numbers = text.split_once('x').and_then(|(rows, columns)| {
        let number = |text: &str| {
            text.parse::<usize>()
                .ok()
                .filter(|n| (1..=1 << 18).contains(n))
        };
        Some((number(rows)?, number(columns)?))
    });
    numbers.ok_or_else(|| Error::Argument {
        argument: "--shape".into(),
        expected: "rows and columns, such as 4096x4096".into(),
        found: text.into(),
    })
}

/// Every text of a list, parsed.
pub(super) fn parse_all<T>(texts: &[String], parse: fn(&str) -> Result<T>) -> Result<Vec<T>> {
    texts.iter().map(|text| parse(text)).collect()
}
