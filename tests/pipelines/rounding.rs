//! Rounding by calibration: grids and GPTQ beside what defines them, qualities that correct implementations reach, stages and what
//! they refuse.

use std::collections::BTreeSet;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::graph::Slot;
use lopper::methods::calibration::Rows;
use lopper::methods::guided::TokenRoots;
use lopper::methods::linalg::squared_outputs;
use lopper::methods::obs::Gram;
use lopper::methods::prune::sparse::{Pattern, gpt};
use lopper::methods::quantize::budget::{Choice, assign};
use lopper::methods::quantize::fit::{Fitting, How};
use lopper::methods::quantize::gptq::{Options, Prepared, Sparse, solve};
use lopper::methods::quantize::mixes::{Place, mix};
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme, level_type, prescribed_group_size};
use lopper::model::{Checkpoint, Outline, Role, TensorSpec, WeightSource, Weights};
use lopper::stages::RecipeStage;
use lopper::tensor::{Packed, Scale, WEIGHT_TYPES, WeightFormat};
use lopper::walk::{Through, Walk};

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass, run_stage, speech_perplexity};
use crate::numbers::{Within, assert_close};
use crate::program::{lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("rounding": by_rule, searched, super_blocks, searched_is_near_the_best, heavy_tails, columns, order, zeros, unseen,
        quality, rules, embeddings_have_no_inputs, budgets, within_a_size, mixes_by_name);
    trials.extend(on_each("rounding::on_a_device", on_a_device));
    trials.extend(on_each("rounding::guided", guided));
    trials
}

/// Bell-shaped weights with outliers, a constant group and a zero group.
fn weights(rows: usize, columns: usize, seed: u64) -> Packed {
    let mut random = Random::new(seed);
    let mut values: Vec<f32> = (0..rows * columns)
        .map(|index| {
            let bell = (0..4).map(|_| random.value()).sum::<f32>() * 0.02;
            if index % 61 == 7 { bell * 6.0 } else { bell }
        })
        .collect();
    values[..32].fill(0.0);
    values[columns..columns + 32].fill(-0.37);
    Packed::from_f32(&values, rows, columns)
}

/// Squares of inputs of unlike size.
fn importance(columns: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..columns).map(|_| (2.0 * random.value()).exp()).collect()
}

fn even(grid: Grid, bits: u32, group_size: u32) -> Scheme {
    Scheme { grid, bits, group_size, ty: None }
}

fn schemes() -> Result<Vec<Scheme>, Failed> {
    let mut all = Vec::new();
    for grid in Grid::ALL {
        for (bits, group_size) in [(2, 16), (3, 32), (4, 64), (5, 0), (8, 32)] {
            all.push(even(grid, bits, group_size));
        }
    }
    for grid in Grid::LEVELED {
        let ty = level_type(grid).ok_or("a type")?;
        all.push(even(grid, ty.bits, prescribed_group_size(ty).unwrap_or(32)));
    }
    Ok(all)
}

/// The types whose scales have super-blocks.
fn super_schemes() -> Vec<Scheme> {
    let types = WEIGHT_TYPES.iter().filter(|ty| ty.super_block().is_some());
    types.filter_map(|ty| Scheme::of(WeightFormat::grouped(ty, 0))).collect()
}

/// Grids of super-blocks lose little more than such whose scales are real numbers; weights of one sign, and rows that end in a part
/// of a super-block.
fn super_blocks() -> Result<(), Failed> {
    assert_eq!(super_schemes().len(), 6, "Q2_K to Q6_K and IQ4_XS");
    let importance = importance(544, 31);
    for scheme in super_schemes() {
        let format = scheme.format().map_err(|bad| format!("{bad:?}"))?;
        let fitting = Fitting::new(scheme, How::Search).map_err(|bad| format!("{bad:?}"))?;
        let shifted = matches!(format.ty.scale, Scale::SuperOffset(_));
        let real = match (shifted, format.ty.is_affine()) {
            (true, _) => even(Grid::FloatMin, scheme.bits, format.group_size),
            (false, true) => even(Grid::SignedMax, scheme.bits, format.group_size),
            _ => even(Grid::Iq4Nl, 4, 32),
        };
        let real = Fitting::new(real, How::Search).map_err(|bad| format!("{bad:?}"))?;
        for (shift, seed) in [(0.0, 32), (-0.3, 33), (0.3, 34)] {
            let values = weights(5, 544, seed).to_f32();
            let values: Vec<f32> = values.iter().map(|value| value + shift).collect();
            let weight = Packed::from_f32(&values, 5, 544);
            let rounded = |fitting: &Fitting| -> Result<f64, Failed> {
                let packed = fitting.round(&weight, Some(&importance), "w")?;
                Ok(error(&weight, &packed, &importance))
            };
            let (found, wanted) = (rounded(&fitting)?, rounded(&real)?);
            // Minima of one sign cannot follow weights that are all positive.
            let room = if shift > 0.0 && shifted { 60.0 } else { 2.0 };
            assert!(found < room * wanted, "{} by {shift}: {found}, {wanted}", format.label());
        }
        // Nothing but zeros; one number.
        for value in [0.0, 0.75, -0.75] {
            let weight = Packed::from_f32(&[value; 256], 1, 256);
            let found = fitting.round(&weight, None, "w")?.to_f32();
            assert_close(&format.label(), &found, &[value; 256], Within::Each(0.02));
        }
        assert_eq!(rtn(&Device::Cpu, &weights(3, 256, 35), scheme, "w")?.format, format);
    }
    Ok(())
}

fn error(weight: &Packed, packed: &Packed, importance: &[f32]) -> f64 {
    let pairs = weight.to_f32().into_iter().zip(packed.to_f32());
    let terms = pairs.zip(importance.iter().cycle());
    terms.map(|((w, new), much)| f64::from(*much) * f64::from(w - new).powi(2)).sum()
}

/// By the rule, the host finds what devices find, bit for bit.
fn by_rule() -> Result<(), Failed> {
    let weight = weights(6, 192, 5);
    for scheme in schemes()? {
        let fitting = Fitting::new(scheme, How::Rule).map_err(|bad| format!("{bad:?}"))?;
        let found = fitting.round(&weight, None, "w")?;
        assert_eq!(found, rtn(&Device::Cpu, &weight, scheme, "w")?, "{scheme:?}");
    }
    Ok(())
}

/// A search loses nothing against the rule, by the measure that it is told, and finds something at few bits.
fn searched() -> Result<(), Failed> {
    let weight = weights(6, 192, 6);
    let importance = importance(192, 7);
    for scheme in schemes()? {
        let new = |how| Fitting::new(scheme, how).map_err(|bad| format!("{bad:?}"));
        let rule = new(How::Rule)?.round(&weight, None, "w")?;
        let found = new(How::Search)?.round(&weight, Some(&importance), "w")?;
        let (rule, found) =
            (error(&weight, &rule, &importance), error(&weight, &found, &importance));
        assert!(found <= rule * 1.0001, "{scheme:?}: {found} after {rule}");
        if scheme.bits <= 3 && scheme.grid != Grid::Ternary {
            assert!(found < 0.9 * rule, "{scheme:?}: {found} after {rule}");
        }
    }
    Ok(())
}

/// Of single groups the search is within a few percent of the best of a fine raster of scales and offsets.
fn searched_is_near_the_best() -> Result<(), Failed> {
    let mut ratios = 0.0;
    let count = 12;
    for seed in 0..count {
        let mut random = Random::new(100 + seed);
        let values: Vec<f32> = (0..32).map(|_| random.value() + random.value()).collect();
        let weight = Packed::from_f32(&values, 1, 32);
        let importance = importance(32, 200 + seed);
        for bits in [2, 3] {
            let fitting = Fitting::new(even(Grid::FloatMin, bits, 32), How::Search)
                .map_err(|bad| format!("{bad:?}"))?;
            let found =
                error(&weight, &fitting.round(&weight, Some(&importance), "w")?, &importance);
            let last = ((1u32 << bits) - 1) as f64;
            let mut best = f64::INFINITY;
            for step in 1..160 {
                let scale = 0.025 * f64::from(step) / last;
                for shift in -160..80 {
                    let offset = 0.0125 * f64::from(shift);
                    let of = |(value, much): (&f32, &f32)| {
                        let x = f64::from(*value);
                        let code = ((x - offset) / scale).round().clamp(0.0, last);
                        f64::from(*much) * (x - scale * code - offset).powi(2)
                    };
                    best = values.iter().zip(&importance).map(of).sum::<f64>().min(best);
                }
            }
            assert!(found < 1.4 * best, "{bits} bits, draw {seed}: {found} of {best}");
            ratios += found / best;
        }
    }
    let mean = ratios / (2 * count) as f64;
    assert!(mean < 1.04, "{mean}");
    Ok(())
}

/// HQQ's offsets lose less by its own measure, and it takes grids with a real offset only.
fn heavy_tails() -> Result<(), Failed> {
    let weight = weights(8, 256, 8);
    let scheme = even(Grid::FloatMin, 3, 64);
    let new = |scheme, how| Fitting::new(scheme, how).map_err(|bad| bad.expected);
    let measure = |packed: &Packed| -> f64 {
        let pairs = weight.to_f32().into_iter().zip(packed.to_f32());
        pairs.map(|(w, new)| f64::from((w - new).abs()).powf(0.7)).sum()
    };
    let rule = measure(&new(scheme, How::Rule)?.round(&weight, None, "w")?);
    let found = measure(&new(scheme, How::Hqq)?.round(&weight, None, "w")?);
    assert!(found < 0.99 * rule, "{found} after {rule}");
    let refused = new(even(Grid::ZeroPoint, 4, 32), How::Hqq).err().ok_or("refused")?;
    assert!(refused.contains("float-min"), "{refused}");
    Ok(())
}

/// A Gram matrix of inputs some of which are much alike, of f32 values.
fn gram(n: usize, tokens: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed);
    let sizes: Vec<f64> = (0..n).map(|_| f64::from(1.5 * random.value()).exp()).collect();
    let mut gram = vec![0.0; n * n];
    for _ in 0..tokens {
        let shared = f64::from(random.value());
        let x: Vec<f64> =
            sizes.iter().map(|size| size * (shared + f64::from(random.value()))).collect();
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] += x[i] * x[j];
            }
        }
    }
    gram.into_iter().map(|value| f64::from(value as f32)).collect()
}

/// What GPTQ knows of inputs with this Gram matrix, on the processor.
fn prepared(gram: &[f64], span: usize, options: Options) -> Result<Prepared<'static>, Failed> {
    let sums: Vec<f32> = gram.iter().map(|value| *value as f32).collect();
    let found = Prepared::new(&sums, gram.len().isqrt(), span, options, &Device::Cpu)?;
    Ok(found.map_err(|bad| format!("{bad:?}"))?)
}

/// The inverse of a symmetric positive definite matrix, by elimination.
fn inverse(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut left = matrix.to_vec();
    let mut right: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for pivot in 0..n {
        let by = left[pivot * n + pivot];
        for column in 0..n {
            left[pivot * n + column] /= by;
            right[pivot * n + column] /= by;
        }
        for row in (0..n).filter(|row| *row != pivot) {
            let times = left[row * n + pivot];
            for column in 0..n {
                left[row * n + column] -= times * left[pivot * n + column];
                right[row * n + column] -= times * right[pivot * n + column];
            }
        }
    }
    right
}

/// GPTQ as its equations say (arXiv 2210.17323, equations 2 and 3): the inverse of what is left of the Hessian is made anew for each
/// column. Grids in groups of 32 of the weights as they are then.
fn plain_gptq(weight: &Packed, gram: &[f64], fitting: &Fitting, damping: f64) -> Vec<f32> {
    let n = weight.columns;
    let mean = (0..n).map(|i| gram[i * (n + 1)]).sum::<f64>() / n as f64;
    let mut hessian = gram.to_vec();
    (0..n).for_each(|i| hessian[i * (n + 1)] += damping * mean);
    let mut result = Vec::new();
    for row in weight.to_f32().chunks(n) {
        let mut w: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        let mut line = fitting.line(n, 0.0);
        for column in 0..n {
            if column % 32 == 0 {
                let values: Vec<f32> = w[column..column + 32].iter().map(|w| *w as f32).collect();
                fitting.fit(&mut line, column, &values, None);
            }
            let grid = line.grid(0, column / 32);
            let code = fitting.code(w[column] as f32, grid);
            let new = f64::from(fitting.format().ty.decode(code, grid.0, grid.1));
            // The rows and columns that are not done yet.
            let left: Vec<f64> = (column..n)
                .flat_map(|i| (column..n).map(move |j| (i, j)))
                .map(|(i, j)| hessian[i * n + j])
                .collect();
            let size = n - column;
            let inverse = inverse(&left, size);
            let error = (w[column] - new) / inverse[0];
            for other in 0..size {
                w[column + other] -= error * inverse[other];
            }
            w[column] = new;
        }
        result.extend(w.iter().map(|w| *w as f32));
    }
    result
}

/// By factors and in blocks GPTQ gives what its equations give column by column.
fn columns() -> Result<(), Failed> {
    let n = 96;
    let (weight, gram) = (weights(5, n, 11), gram(n, 200, 12));
    for scheme in
        [even(Grid::ZeroPoint, 3, 32), even(Grid::SignedMax, 2, 32), even(Grid::Nf4, 4, 32)]
    {
        let fitting = Fitting::new(scheme, How::Rule).map_err(|bad| format!("{bad:?}"))?;
        let wanted = plain_gptq(&weight, &gram, &fitting, 0.01);
        for block in [1, 32, 64, 128] {
            let options = Options { damping: 0.01, block, by_activation: false, sparse: None };
            let inputs = prepared(&gram, fitting.span(n), options)?;
            let found = solve(&weight, &inputs, &fitting, "w")?.packed.to_f32();
            assert_close("GPTQ", &found, &wanted, Within::Each(1e-6));
        }
    }
    Ok(())
}

/// The order by activation gives valid codes at their own places, and both orders lose less in the outputs than rounding.
fn order() -> Result<(), Failed> {
    let n = 128;
    let (weight, gram) = (weights(16, n, 21), gram(n, 400, 22));
    let lost = |packed: &Packed| {
        let pairs = weight.to_f32().into_iter().zip(packed.to_f32());
        let away: Vec<f64> = pairs.map(|(w, new)| f64::from(w - new)).collect();
        squared_outputs(&away, n, &gram)
    };
    let wide: Vec<f64> = weight.to_f32().into_iter().map(f64::from).collect();
    for how in [How::Rule, How::Search] {
        let fitting =
            Fitting::new(even(Grid::FloatMin, 3, 32), how).map_err(|b| format!("{b:?}"))?;
        let rounded = lost(&fitting.round(&weight, None, "w")?);
        for by_activation in [false, true] {
            let options = Options { damping: 0.01, block: 64, by_activation, sparse: None };
            let solved = solve(&weight, &prepared(&gram, 32, options)?, &fitting, "w")?;
            let found = lost(&solved.packed);
            let told = found / squared_outputs(&wide, n, &gram);
            assert_close("the error", &[solved.error], &[told], Within::Largest(1e-5));
            assert!(found < 0.7 * rounded, "{how:?} {by_activation}: {found} of {rounded}");
        }
    }
    // A matrix that no damping mends.
    let mut broken = gram.clone();
    broken[5 * n + 5] = -1e9;
    let options = Options { damping: 0.01, block: 64, by_activation: false, sparse: None };
    assert!(prepared(&broken, 32, options).is_err(), "not positive definite");
    Ok(())
}

/// Weights that become 0 on the way are 0 to the bit, as many as were asked for, and less is lost than by making them 0 first and
/// rounding what stays after; on a fine grid no more than the zeros cost.
fn zeros() -> Result<(), Failed> {
    let n = 128;
    let (weight, gram) = (weights(16, n, 41), gram(n, 400, 42));
    let dense = weight.to_f32();
    let lost = |values: &[f32]| {
        let away: Vec<f64> = dense.iter().zip(values).map(|(w, new)| f64::from(w - new)).collect();
        squared_outputs(&away, n, &gram)
    };
    for pattern in [Pattern::Groups { keep: 2, of: 4 }, Pattern::Row, Pattern::Tensor] {
        let alone = gpt::Options { damping: 0.01, block: 32, pattern, ratio: 0.5 };
        let alone = gpt::solve(&dense, n, &gram, alone)?.map_err(|bad| format!("{bad:?}"))?;
        let sparse = Some(Sparse { pattern, ratio: 0.5 });
        let joint = |bits: u32, group: u32| -> Result<(f64, f64), Failed> {
            let scheme = even(Grid::SignedMax, bits, group);
            let fitting = Fitting::new(scheme, How::Search).map_err(|bad| format!("{bad:?}"))?;
            let options = Options { damping: 0.01, block: 32, by_activation: false, sparse };
            let inputs = prepared(&gram, fitting.span(n), options)?;
            let solved = solve(&weight, &inputs, &fitting, "w")?;
            assert_eq!(solved.gone, 0.5, "{pattern:?}");
            let values = solved.packed.to_f32();
            let each = if let Pattern::Groups { .. } = pattern { 4 } else { values.len() };
            for group in values.chunks(each) {
                let gone = group.iter().filter(|value| **value == 0.0).count();
                assert!(2 * gone >= each, "{pattern:?}: {gone} of {each} are 0");
            }
            let after = Packed::from_f32(&alone.weights, 16, n);
            Ok((lost(&values), lost(&fitting.round(&after, None, "w")?.to_f32())))
        };
        let (fine, _) = joint(8, 32)?;
        assert_close("int8 beside none", &[fine], &[lost(&alone.weights)], Within::Each(0.02));
        let (together, after) = joint(3, 32)?;
        assert!(together < 0.9 * after, "{pattern:?}: {together} for {after}");
    }
    Ok(())
}

/// The products of a device, in f32, give what those of the processor give in f64, but for weights that lie between two codes.
fn on_a_device(device: &Device) -> Result<(), Failed> {
    let n = 600;
    let (weight, gram) = (weights(70, n, 31), gram(n, 700, 32));
    let sums: Vec<f32> = gram.iter().map(|value| *value as f32).collect();
    for (grid, bits, group_size) in [(Grid::FloatMin, 3, 32), (Grid::SignedMax, 4, 128)] {
        let fitting = Fitting::new(even(grid, bits, group_size), How::Rule)
            .map_err(|bad| format!("{bad:?}"))?;
        for order in [None, Some((0..n).rev().collect::<Vec<usize>>())] {
            let span = fitting.span(n);
            let here = Gram::host(&sums, n, order.as_deref());
            let there = Gram::on(device, &sums, n, order.as_deref())?;
            let options =
                Options { damping: 0.01, block: 128, by_activation: order.is_some(), sparse: None };
            let solve = |gram: Gram<'_>| -> Result<(f64, Vec<f32>), Failed> {
                let importance = (0..n).map(|i| sums[i * (n + 1)]).collect();
                let inputs = Prepared::with(gram, importance, order.clone(), span, options)?
                    .map_err(|bad| format!("{bad:?}"))?;
                let solved = solve(&weight, &inputs, &fitting, "w")?;
                Ok((solved.error, solved.packed.to_f32()))
            };
            let ((wanted, codes), (found, others)) = (solve(here)?, solve(there)?);
            let apart = codes.iter().zip(&others).filter(|(a, b)| a != b).count();
            assert!(apart * 50 < codes.len(), "{apart} weights are apart");
            assert!((found / wanted - 1.0).abs() < 0.01, "{found} for {wanted}");
        }
    }
    let mut broken = sums.clone();
    broken[300 * n + 300] = -1e9;
    let broken = Gram::on(device, &broken, n, None)?.factored(0.01, 256)?;
    assert!(broken.is_err(), "not positive definite");
    Ok(())
}

fn stage(keys: &str) -> Result<RecipeStage, Failed> {
    Ok(toml::from_str(&format!("kind = \"quantize\"\n{keys}"))?)
}

/// A layer that gets nothing but zeros is rounded without its inputs, and it is said.
fn unseen() -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let silent = MapWeights(&model, &|spec, packed| {
        Ok(match spec.name.as_str() {
            "model.layers.1.mlp.up_proj.weight" => {
                Packed::from_f32(&vec![0.0; spec.rows * spec.columns], spec.rows, spec.columns)
            }
            _ => packed,
        })
    });
    let stage = stage("method = \"gptq\"\nbits = 4\n[calibration]\nsamples = 2\nlength = 16\n")?;
    let folder = tempfile::tempdir()?;
    run_stage(&model, &silent, &*stage, folder.path())?;
    let report = stage.report(folder.path())?.ok_or("a report")?;
    let told: Vec<&String> =
        report.warnings.iter().filter(|warning| warning.contains("no token")).collect();
    assert_eq!(told.len(), 1, "{:?}", report.warnings);
    assert!(told[0].starts_with("model.layers.1.mlp.down_proj.weight"), "{}", told[0]);
    Ok(())
}

/// The perplexities of tiny-llama that a correct implementation reaches, with the dense model's statistics; 32 tokens of rounding
/// apart.
fn quality() -> Result<(), Failed> {
    let parent = Checkpoint::open("embedded:tiny-llama")?;
    let known = read_json("assets/golden/quality.json")?;
    let calibration = "[calibration]\noffset = 9000\nsamples = 64\nlength = 256\n";
    for (bits, within) in [(4, 0.006), (3, 0.015)] {
        let keys = format!(
            "method = \"gptq\"\nfit = \"rule\"\nbits = {bits}\ngrid = \"zero-point\"\ngroup_size = 32\nfeed = \"parent\"\n{calibration}"
        );
        let folder = tempfile::tempdir()?;
        let quantized = run_stage(&parent, &parent, &*stage(&keys)?, folder.path())?;
        let key = format!("gptq w{bits} g32 asym one-shot");
        let expected = known[key.as_str()].as_f64().ok_or("a figure")?;
        let found = speech_perplexity(&pass(&Device::Cpu), &quantized, 8192)?;
        assert_close(&key, &[found], &[expected], Within::Each(within));
    }
    Ok(())
}

/// What tokens count, beside gradients of weights: in a row of two tokens only the first foretells something, so that behind the
/// last attention a weight's gradient is the product of that token's input and the gradient of what it gives.
fn guided(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open("embedded:nano-llama")?;
    let model = load(device, &weights)?;
    let pass = pass(device);
    let rows = Rows { ids: vec![5, 77, 300, 41, 9, 260], samples: 3 };
    let last = weights.config().layers() - 1;
    let slots = [Slot::Gate, Slot::Up, Slot::Down];
    let chosen: Vec<&TensorSpec> = (weights.specs().iter())
        .filter(|spec| spec.layer == Some(last) && slots.contains(&spec.slot))
        .collect();
    let source = WeightSource::Resident(&model);
    let found = TokenRoots::new(source, &pass, &chosen, &rows, &mut |_, _| {})?;
    let mut inputs: Vec<(Slot, Vec<f32>)> = Vec::new();
    let mut walk = Walk::new(source, pass, &rows.ids, 3, usize::MAX)?;
    while let Some(mut step) = walk.next_block()? {
        if step.layer() == last {
            step.observe(Through::Parent, &mut |slot, x: &_| {
                inputs.push((slot, device.read(x)?.to_f32()));
                Ok(())
            })?;
        }
        step.advance(Through::Parent, None)?;
    }
    let squared = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    for slot in [Slot::Gate, Slot::Down] {
        let (_, x) = inputs.iter().find(|(of, _)| *of == slot).ok_or("an input")?;
        let width = x.len() / 6;
        let mut expected = Vec::new();
        for row in 0..3 {
            let mut squares = 0.0;
            model.gradients(&pass, &rows.ids[2 * row..2 * row + 2], 1, &mut |gradient| {
                let own =
                    |spec: &&TensorSpec| spec.slot.input() == slot && spec.name == gradient.name;
                if chosen.iter().any(own) {
                    squares += squared(&device.read(&gradient.values)?.to_f32());
                }
                Ok(())
            })?;
            expected.push(squares / squared(&x[2 * row * width..(2 * row + 1) * width]));
        }
        let largest = expected.iter().copied().fold(0.0, f64::max);
        assert!(largest > 0.0, "gradients");
        let of_layer = found.of(last);
        let roots = of_layer[&slot];
        for (row, expected) in expected.into_iter().enumerate() {
            let root = f64::from(roots[2 * row]);
            assert_close(
                "a token's share",
                &[root * root],
                &[expected / largest],
                Within::Each(2e-3),
            );
            assert_eq!(roots[2 * row + 1], 0.0, "the last token foretells nothing");
        }
    }
    let bytes = found.to_bytes();
    assert_eq!(TokenRoots::from_bytes(&bytes, &chosen, 6), Some(found), "as it was saved");
    assert_eq!(TokenRoots::from_bytes(&bytes, &chosen, 5), None, "of other rows");
    let gptq = |keys: &str| -> Result<Vec<u32>, Failed> {
        let keys =
            format!("method = \"gptq\"\nbits = 2\n{keys}[calibration]\nsamples = 4\nlength = 16\n");
        let folder = tempfile::tempdir()?;
        let quantized = run_stage(&weights, &weights, &*stage(&keys)?, folder.path())?;
        let spec = chosen.first().ok_or("a tensor")?;
        Ok(quantized.load(spec)?.codes)
    };
    assert!(
        gptq("")? != gptq("guided = true\n")?,
        "tokens that count differently round differently"
    );
    Ok(())
}

/// What a stage does to each tensor, and what it refuses.
fn rules() -> Result<(), Failed> {
    let model = Outline::of(&Checkpoint::open("embedded:nano-llama")?)?;
    let planned = stage("bits = 4\nmethod = \"gptq\"\nfit = \"rule\"")?.plan(&model)?;
    let change = |name: &str| planned.changes.get(name).map(String::as_str);
    let up = change("model.layers.1.mlp.up_proj.weight");
    assert_eq!(up, Some("gptq float-min uint4m-g32, by rule"));
    assert_eq!(change("model.embed_tokens.weight"), None);
    let keys = stage("bits = 4")?.keys();
    assert!(!keys.contains_key("calibration"), "it reads no text: {keys:?}");
    for (keys, expected) in [
        ("bits = 4\nmethod = \"gtpq\"", "gtpq"),
        ("bits = 4\nmethod = \"gptq\"\ndampign = 1", "dampign"),
        ("bits = 4\nmethod = \"hqq\"\ndamping = 0.1", "damping"),
    ] {
        let refused = stage(keys).err().ok_or(format!("{keys} is taken"))?;
        let refused = refused.message().unwrap_or_default().to_string();
        assert!(refused.contains(expected), "{keys}: {refused}");
    }
    for (keys, field, found) in [
        ("bits = 4\nmethod = \"gptq\"\ndamping = -1.0", "stage.damping", "-1"),
        ("bits = 4\nmethod = \"gptq\"\nblock_columns = 0", "stage.block_columns", "0"),
        ("bits = 4\nmethod = \"gptq\"\ninclude = [\"x\"]", "stage.include", "match none"),
        ("type = \"f16_2of4\"\nmethod = \"gptq\"", "stage.type", "f16_2of4"),
        ("type = \"int4_2of4\"\nfit = \"search\"", "stage.type", "int4_2of4"),
        ("bits = 4\nmethod = \"gptq\"\nguided = true\nstats = \"s\"", "stage.guided", "true"),
        ("bits = 4\nweighted = true", "stage.weighted", "true"),
        ("type = \"q4_k\"\nmethod = \"gptq\"\nfit = \"rule\"", "stage.fit", "rule"),
        ("bits = 4\nmethod = \"gptq\"\nzeros = \"2:4\"", "stage.type", "uint4m"),
        ("type = \"int4\"\nmethod = \"gptq\"\nzeros = \"half\"", "stage.zeros", "half"),
        ("type = \"int4\"\nmethod = \"gptq\"\nzeros = \"4:2\"", "stage.zeros", "4:2"),
        ("type = \"int4\"\nmethod = \"gptq\"\nzeros = \"3:5\"", "stage.zeros", "3:5"),
        ("type = \"int4\"\nmethod = \"gptq\"\nzeros = \"50\"", "stage.zeros", "50"),
        ("bits = 4\ngrid = \"zero-point\"\nmethod = \"hqq\"", "stage.grid", "zero-point"),
        ("bits = 4\nmethod = \"hqq\"\nfit = \"rule\"", "stage.fit", "one"),
        (
            "bits = 4\nmethod = \"gptq\"\nstats = \"s\"\nfeed = \"compressed\"",
            "stage.feed",
            "stats s",
        ),
    ] {
        let refused =
            stage(keys)?.plan(&model).err().ok_or(format!("{keys} is taken"))?.to_string();
        assert!(refused.contains(field) && refused.contains(found), "{keys}: {refused}");
    }
    Ok(())
}

/// An embedding that is not the head too has no inputs to be rounded by.
fn embeddings_have_no_inputs() -> Result<(), Failed> {
    let model = Outline::of(&Checkpoint::open("embedded:tiny-llama")?)?;
    let embedding = "include = [\"*embed_tokens*\"]";
    for keys in [
        "method = \"gptq\"\nbits = 4",
        "method = \"rtn\"\nbits = 4\nfit = \"search\"\nweighted = true",
        "method = \"mix\"\ntarget_bpw = 6",
    ] {
        let planned = stage(&format!("{keys}\n{embedding}"))?.plan(&model);
        let refused = planned.err().ok_or(format!("{keys} is taken"))?.to_string();
        let said = refused.contains("stage.include") && refused.contains("model.embed_tokens");
        assert!(said, "{keys}: {refused}");
    }
    let plain = "method = \"rtn\"\nbits = 4\nfit = \"search\"";
    stage(&format!("{plain}\n{embedding}"))?.plan(&model)?;
    Ok(())
}

/// Random losses that fall with bytes, as types' do.
fn choices(random: &mut Random, tensors: usize) -> Vec<Vec<Choice>> {
    let of = |random: &mut Random| {
        let size = 100.0 + f64::from(random.below(900));
        let much = f64::from(2.0 * random.value()).exp();
        let types = [2.6, 3.4, 4.5, 6.6, 8.5];
        let of = |bits: f64| Choice {
            bytes: (size * bits).floor() as u64,
            loss: size * much * f64::powf(0.25, bits),
        };
        types.into_iter().map(of).collect()
    };
    (0..tensors).map(|_| of(random)).collect()
}

/// Of few tensors the best assignment that there is; of many, one within half a percent of the size; below the least, the least.
fn budgets() -> Result<(), Failed> {
    let mut random = Random::new(41);
    let sum = |tensors: &[Vec<Choice>], found: &[usize]| {
        let chosen = tensors.iter().zip(found).map(|(choices, index)| choices[*index]);
        chosen.fold((0, 0.0), |sum, choice| (sum.0 + choice.bytes, sum.1 + choice.loss))
    };
    for budget in [9_000, 11_000, 14_000, 19_000] {
        let tensors = choices(&mut random, 6);
        let least: u64 = tensors.iter().map(|choices| choices[0].bytes).sum();
        let found = match assign(&tensors, budget) {
            Ok(found) => found,
            Err(minimum) => {
                assert_eq!(minimum, least);
                continue;
            }
        };
        let (bytes, loss) = sum(&tensors, &found);
        assert!(bytes <= budget, "{bytes} of {budget}");
        // Every assignment there is.
        let mut best = f64::INFINITY;
        for all in 0..5usize.pow(6) {
            let indices: Vec<usize> = (0..6).map(|place| all / 5usize.pow(place) % 5).collect();
            let (bytes, loss) = sum(&tensors, &indices);
            if bytes <= budget {
                best = best.min(loss);
            }
        }
        assert!(loss <= best * (1.0 + 1e-9), "{loss} of {best}");
    }
    let tensors = choices(&mut random, 200);
    let least: u64 = tensors.iter().map(|choices| choices[0].bytes).sum();
    for budget in [least, least * 11 / 10, least * 3 / 2, least * 2] {
        let (bytes, _) = sum(&tensors, &assign(&tensors, budget).map_err(|_| "within")?);
        let share = bytes as f64 / budget as f64;
        assert!(bytes <= budget && share > 0.995, "{bytes} of {budget}");
    }
    assert_eq!(assign(&tensors, least - 1), Err(least));
    let most: u64 = tensors.iter().map(|choices| choices[4].bytes).sum();
    assert_eq!(assign(&tensors, 2 * most), Ok(vec![4; 200]));
    Ok(())
}

/// A mix takes the bytes that it says, within half a percent below the target; what was measured is taken again; and it is ahead of
/// the one type that takes as much.
fn within_a_size() -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let calibration = "[calibration]\noffset = 9000\nsamples = 8\nlength = 128\n";
    let types = "types = [\"int2-g16\", \"int3\", \"int4\", \"int6\", \"int8\"]";
    let keys = format!("method = \"mix\"\ntarget_bpw = 4.5\nmeasure_rows = 4\n{types}\n");
    let folder = tempfile::tempdir()?;
    let mix = stage(&format!("{keys}{calibration}"))?;
    let mixed = run_stage(&model, &model, &*mix, folder.path())?;
    let report = mix.report(folder.path())?.ok_or("a report")?;
    let told = &report.value["mix"];
    let (target, bytes) = (told["target_bytes"].as_u64(), told["bytes"].as_u64());
    let (target, bytes) = (target.ok_or("target")?, bytes.ok_or("bytes")?);
    let blocks = |spec: &&TensorSpec| spec.role == Role::Linear;
    let mut stored = 0;
    let mut kinds = BTreeSet::new();
    for spec in mixed.specs().iter().filter(blocks) {
        let format = mixed.format(spec)?;
        stored += format.unpadded_bytes(spec.rows, spec.columns);
        kinds.insert(format.label());
    }
    assert_eq!(stored, bytes, "as it says");
    assert!(bytes <= target && bytes as f64 > 0.995 * target as f64, "{bytes} of {target}");
    assert!(kinds.len() > 1, "{kinds:?}");
    // What was measured, taken again.
    let known = folder.path().join("known.json");
    let (_, measured) = report.files.first().ok_or("sensitivities")?;
    std::fs::write(&known, measured)?;
    let again = format!("{keys}sensitivities = {known:?}\n{calibration}");
    let again = stage(&again)?;
    let planned = again.plan(&Outline::of(&model)?)?;
    assert!(!planned.outline.estimated && mix.plan(&Outline::of(&model)?)?.outline.estimated);
    let other = tempfile::tempdir()?;
    let second = run_stage(&model, &model, &*again, other.path())?;
    for spec in mixed.specs() {
        assert_eq!(second.load(spec)?, mixed.load(spec)?, "{}", spec.name);
        assert_eq!(planned.outline.format(spec)?, mixed.format(spec)?, "planned {}", spec.name);
    }
    let uniform = format!("method = \"gptq\"\ntype = \"int4\"\n{calibration}");
    let uniform = run_stage(&model, &model, &*stage(&uniform)?, &folder.path().join("uniform"))?;
    let figure = |model: &Checkpoint| speech_perplexity(&pass(&Device::Cpu), model, 4096);
    let (mixed, uniform) = (figure(&mixed)?, figure(&uniform)?);
    assert!(mixed < 1.005 * uniform, "{mixed} beside {uniform}");
    // Too small, and wrong files.
    let outline = Outline::of(&model)?;
    let refused = |keys: &str| -> Result<String, Failed> {
        let stage = stage(keys)?;
        let refused = stage.plan(&outline).err().map(|error| error.to_string());
        let of_files = || stage.files(None).err().map(|error| error.to_string());
        Ok(refused.or_else(of_files).ok_or(format!("{keys} is taken"))?)
    };
    let low = refused(&keys.replace("4.5", "1.5"))?;
    assert!(low.contains("stage.target_bpw") && low.contains("at least 3"), "{low}");
    let low = refused(&keys.replace("target_bpw = 4.5", "target_size = \"10kB\""))?;
    assert!(low.contains("stage.target_size"), "{low}");
    let none = refused(&keys.replace("target_bpw = 4.5\n", ""))?;
    assert!(none.contains("target_size or like, one of them"), "{none}");
    let absent = refused(&format!("{keys}sensitivities = \"none.json\"\n"))?;
    assert!(absent.contains("none.json"), "{absent}");
    std::fs::write(&known, "{\"schema\": 1, \"tensors\": {}}")?;
    let empty = refused(&format!("{keys}sensitivities = {known:?}\n"))?;
    assert!(empty.contains("known.json") && empty.contains("no such tensor"), "{empty}");
    let sparse = refused("method = \"mix\"\ntarget_bpw = 4.5\ntypes = [\"f16_2of4\"]")?;
    assert!(sparse.contains("stage.types"), "{sparse}");
    Ok(())
}

/// llama-quantize's types of a Q4_K_M of 32 blocks, and what it gives rows that are no super-blocks; by name as the program takes it.
fn mixes_by_name() -> Result<(), Failed> {
    let named = mix("Q4_K_M").ok_or("a mix")?;
    let ty = |slot, layer, columns| {
        named.ty(slot, slot == Slot::Head, &Place { layer, layers: 32, shared: 4 }, columns)
    };
    let more: Vec<usize> =
        (0..32).filter(|layer| ty(Slot::Down, *layer, 4096) == Some(("q6_k", false))).collect();
    // The blocks that its own files of a Llama 3.1 8B have so.
    assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    assert_eq!(ty(Slot::Query, 0, 4096), Some(("q4_k", false)));
    assert_eq!(ty(Slot::Embedding, 0, 4096), Some(("q4_k", false)));
    assert_eq!(ty(Slot::Head, 0, 4096), Some(("q6_k", false)));
    assert_eq!(ty(Slot::Query, 0, 576), Some(("q5_0", true)));
    assert_eq!(ty(Slot::Down, 0, 576), Some(("q8_0", true)));
    assert_eq!(ty(Slot::Down, 0, 80), None);
    let folder = tempfile::tempdir()?;
    let run = succeeds(
        folder.path(),
        "quantize embedded:nano-llama --type Q4_K_M --formats gguf --no-eval --out q",
    )?;
    assert!(run.err.contains("are no multiple of 256 columns"), "{run}");
    let model = Checkpoint::open(&folder.path().join("q/model.gguf").to_string_lossy())?;
    for (name, label) in [
        // It is the head too.
        ("model.embed_tokens.weight", "int8-g32"),
        ("model.layers.0.self_attn.q_proj.weight", "int5-g32"),
        ("model.layers.1.mlp.down_proj.weight", "int8-g32"),
    ] {
        let spec = model.specs().iter().find(|spec| spec.name == name).ok_or(name)?;
        assert_eq!(model.format(spec)?.label(), label, "{name}");
    }
    let refused =
        lopper(folder.path(), "quantize embedded:nano-llama --type q4_k_m --bits 3 --out r")?;
    refused.refused(2, "--bits");
    lopper(folder.path(), "quantize embedded:nano-llama --type q4_k_x --out r")?
        .refused(2, "stage.like & q4_k_x");
    Ok(())
}
