//! Rows of weights, decoded at once on the processor: each value is what its code and its group's grid alone say.

use half::f16;
use libtest_mimic::{Failed, Trial};
use lopper::device::Random;
use lopper::kernels::weights;
use lopper::tensor::minifloat::{half_bits, half_value};
use lopper::tensor::{WEIGHT_TYPES, WHOLE_ROW};

pub fn trials() -> Vec<Trial> {
    suite!("rows": decoded_at_once, products_of_tokens, halves)
}

/// Every type, in groups of less than a block, of whole ones and of a row, in rows that end within a block and within a group.
fn decoded_at_once() -> Result<(), Failed> {
    let mut random = Random::new(83);
    for ty in WEIGHT_TYPES.iter() {
        for (columns, group) in
            [(1, 32), (97, 16), (96, 32), (300, 64), (160, 128), (97, WHOLE_ROW)]
        {
            let packed = weights::random(&mut random, &weights::variant(ty), 3, columns, group);
            for row in 0..packed.rows {
                let mut values = vec![f32::NAN; columns];
                packed.decode_row(row, &mut values);
                for (column, value) in values.iter().enumerate() {
                    let alone = packed.value(row, column);
                    if value.to_bits() != alone.to_bits() {
                        let place = format!("{} in groups of {group}: {row}, {column}", ty.name);
                        return Err(format!("{place}: {value}, alone {alone}").into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// A token's product with a row is the same alone, where the row is never decoded whole, and beside others; and it is as near to
/// the exact one as sums in f32 are.
fn products_of_tokens() -> Result<(), Failed> {
    let mut random = Random::new(84);
    for ty in WEIGHT_TYPES.iter() {
        for (columns, group) in [(31, 32), (96, 16), (300, 64), (576, 32)] {
            let packed = weights::random(&mut random, &weights::variant(ty), 1, columns, group);
            let x = random.values(3 * columns, 1.0);
            let (line, mut scratch) = (packed.line(0), Vec::new());
            let mut together = [f32::NAN; 3];
            line.products(&x, &mut scratch, &mut together);
            for (token, x) in x.chunks_exact(columns).enumerate() {
                let mut alone = [f32::NAN];
                line.products(x, &mut scratch, &mut alone);
                let terms = x
                    .iter()
                    .enumerate()
                    .map(|(column, x)| f64::from(*x) * f64::from(packed.value(0, column)));
                let (exact, size) =
                    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let far = (f64::from(alone[0]) - exact).abs();
                let bound = columns as f64 * f64::from(f32::EPSILON) * size;
                let same = alone[0].to_bits() == together[token].to_bits();
                if !same || far.is_nan() || far > bound {
                    let what = format!("{} in groups of {group}, {columns} columns", ty.name);
                    let found = format!("{} beside others {}", alone[0], together[token]);
                    return Err(format!("{what}: {exact}, found {found}").into());
                }
            }
        }
    }
    Ok(())
}

/// All numbers of f16, those below its normal ones and NaNs with what they carry too, there; and back from what lies between two
/// of them, a little to either side.
fn halves() -> Result<(), Failed> {
    for bits in 0..=u16::MAX {
        let (found, expected) = (half_value(bits), f16::from_bits(bits).to_f32());
        if found.to_bits() & !0x0040_0000 != expected.to_bits() & !0x0040_0000 {
            return Err(format!("{bits:#06x} is {expected}, found {found}").into());
        }
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        let between = 0.5 * (expected + next);
        let around = [between, between.next_up(), between.next_down(), 1.5 * expected];
        for value in [expected].into_iter().chain(around) {
            let (found, nearest) = (half_bits(value), f16::from_f32(value).to_bits());
            if found != nearest && !(value.is_nan() && f16::from_bits(found).is_nan()) {
                return Err(format!("{value:e} is {nearest:#06x}, found {found:#06x}").into());
            }
        }
    }
    Ok(())
}
