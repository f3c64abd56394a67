//! Grids of super-blocks (GGUF's K types): each group's grid first, as if its scale and minimum were real numbers; then the two
//! scales of the super-block, and for each group the integers near its own that lose least; then the two scales again by least
//! squares for the codes that come of it, as long as that helps.

use half::f16;

use super::fit::{Fitting, extremes};
use crate::tensor::{Packed, SUPER_BLOCK, Scale};

/// How often scales are found again, at most.
const ROUNDS: usize = 5;

/// A super-block's scales, as f16 holds them, what each group multiplies them by, and the squared error.
struct Found {
    error: f32,
    scales: (f16, f16),
    integers: Vec<(i32, i32)>,
}

impl Fitting {
    /// [`Fitting::fit`] for a super-block.
    pub(super) fn fit_super_block(
        &self,
        line: &mut Packed,
        first: usize,
        values: &[f32],
        importance: Option<&[f32]>,
    ) {
        let format = self.format();
        let Some(of) = format.ty.super_block() else { return };
        let has_minima = matches!(format.ty.scale, Scale::SuperOffset(_));
        let (least, most) = match has_minima {
            true => (0, (1i32 << of.bits) - 1),
            false => (-(1i32 << (of.bits - 1)), (1i32 << (of.bits - 1)) - 1),
        };
        let size = of.group as usize;
        let parts: Vec<(&[f32], Option<&[f32]>)> = values
            .chunks(size)
            .enumerate()
            .map(|(group, part)| {
                let places = group * size..group * size + part.len();
                (part, importance.map(|importance| &importance[places]))
            })
            .collect();
        // Scales and minima as real numbers.
        let wanted: Vec<(f32, f32)> = parts
            .iter()
            .map(|(part, importance)| match self.search(part, *importance, None, 0.0) {
                Some(grid) => (grid.scale, -grid.offset),
                // They are all the same.
                None if has_minima => (0.0, -extremes(part).0.min(0.0)),
                None => (0.0, 0.0),
            })
            .collect();
        let most_of = |of: &dyn Fn(&(f32, f32)) -> f32| {
            let all = wanted.iter().map(of);
            all.fold(0.0f32, |most, value| if value.abs() > most.abs() { value } else { most })
        };
        // The largest scale on the integer that is farthest from 0.
        let end = if has_minima { most } else { least } as f32;
        let mut scales = (most_of(&|grid| grid.0) / end, most_of(&|grid| grid.1) / most as f32);
        let mut best: Option<Found> = None;
        for _ in 0..ROUNDS {
            let found = self.integers(&parts, &wanted, scales, (least, most));
            if best.as_ref().is_some_and(|best| found.error >= best.error) {
                break;
            }
            let next = self.scales(&parts, &found);
            best = Some(found);
            match next {
                Some(next) => scales = next,
                None => break,
            }
        }
        let Some(best) = best else { return };
        let (d, e) = best.scales;
        line.set_super_scales(0, first / SUPER_BLOCK, d.to_bits(), e.to_bits());
        for (index, (scale, minimum)) in best.integers.iter().enumerate() {
            line.set_group(0, first / size + index, *scale as u16, *minimum as u16);
        }
    }

    /// For each group the integers that lose least, of those near what it wants.
    fn integers(
        &self,
        parts: &[(&[f32], Option<&[f32]>)],
        wanted: &[(f32, f32)],
        scales: (f32, f32),
        (least, most): (i32, i32),
    ) -> Found {
        let has_minima = least == 0;
        let (d, e) = (f16::from_f32(scales.0), f16::from_f32(scales.1));
        let near = |value: f32, scale: f16| {
            let quotient = (value / scale.to_f32()).round();
            let near = if quotient.is_finite() { quotient as i32 } else { 0 };
            near.clamp(least, most).saturating_sub(1).max(least)..=near.saturating_add(1).min(most)
        };
        let mut found = Found { error: 0.0, scales: (d, e), integers: Vec::new() };
        for ((part, importance), (scale, minimum)) in parts.iter().zip(wanted) {
            let mut lowest = (f32::INFINITY, (0, 0));
            let minima = if has_minima { near(*minimum, e) } else { 0..=0 };
            for s in near(*scale, d) {
                for m in minima.clone() {
                    let (scale, offset) = (d.to_f32() * s as f32, -(e.to_f32() * m as f32));
                    let error = self.error(part, *importance, scale, offset);
                    if error < lowest.0 {
                        lowest = (error, (s, m));
                    }
                }
            }
            found.error += lowest.0;
            found.integers.push(lowest.1);
        }
        found
    }

    /// The scales with the least squared error for the integers and codes that were found: x is near d s L - e m.
    fn scales(&self, parts: &[(&[f32], Option<&[f32]>)], found: &Found) -> Option<(f32, f32)> {
        let (d, e) = (found.scales.0.to_f32(), found.scales.1.to_f32());
        // Sums of w a^2, w a b, w b^2, w a x, w b x with a = s L, b = -m.
        let mut sums = [0.0f64; 5];
        for ((part, importance), (s, m)) in parts.iter().zip(&found.integers) {
            let (s, m) = (*s as f32, *m as f32);
            for (place, x) in part.iter().enumerate() {
                let much = importance.map_or(1.0, |importance| importance[place]);
                let (a, b) = (s * self.level(*x, d * s, -(e * m)), -m);
                let (w, a, b, x) = (f64::from(much), f64::from(a), f64::from(b), f64::from(*x));
                for (sum, term) in sums.iter_mut().zip([a * a, a * b, b * b, a * x, b * x]) {
                    *sum += w * term;
                }
            }
        }
        let [aa, ab, bb, ax, bx] = sums;
        let determinant = aa * bb - ab * ab;
        let (d, e) = match determinant > 1e-9 * aa * bb {
            true => ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant),
            false if aa > 0.0 => ((ax + ab * f64::from(-e)) / aa, f64::from(e)),
            false => return None,
        };
        let fits = d.is_finite() && e.is_finite() && e >= 0.0;
        fits.then_some((d as f32, e as f32))
    }
}
