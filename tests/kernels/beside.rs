//! What one call computes is what several compute one after the other, to the last bit.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::gpu::Options;
use lopper::kernels::activation::Activation;
use lopper::kernels::attention::Attention;
use lopper::kernels::attention::cached::{Mixed, cached, entering};
use lopper::kernels::attention::merge::merge;
use lopper::kernels::gate::glu::glu;
use lopper::kernels::kv::{CacheType, Cached};
use lopper::kernels::matmul::{Destination, Input, linear, linear_beside};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::quantize::activations::{Integers, Rounding, activations};
use lopper::kernels::quantize::gated::gated;
use lopper::kernels::quantize::merged::merged;
use lopper::kernels::rope::enter::enter;
use lopper::kernels::weights;
use lopper::tensor::{DType, Packed, WHOLE_ROW, weight_type};

use crate::machine::device;

pub fn trials() -> Vec<Trial> {
    suite!("beside": ; gpu: products, what_is_not_beside, gates, parts, steps)
}

const COLUMNS: usize = 256;
/// Rows of queries, keys and values.
const ROWS: [usize; 3] = [96, 32, 64];

fn drawn(name: &str, random: &mut Random) -> Result<Vec<Packed>, Failed> {
    let ty = weight_type(name).ok_or("a weight type")?;
    let group = if ty.is_plain() { WHOLE_ROW } else { 32 };
    let variant = weights::variant(ty);
    Ok(ROWS.map(|rows| weights::random(random, &variant, rows, COLUMNS, group)).to_vec())
}

fn upload(device: &Device, shape: &[usize], values: &[f32]) -> Result<Tensor, Failed> {
    Ok(device.upload(&HostTensor::from_f32(DType::F32, shape, values), "values")?)
}

/// Biases one behind the other.
fn biases(device: &Device, random: &mut Random) -> Result<Vec<Tensor>, Failed> {
    let shapes = ROWS.map(|rows| vec![rows]);
    let biases = device.allocate_parts(DType::F32, &shapes, "biases")?.ok_or("parts")?;
    for bias in &biases {
        let values =
            HostTensor::from_f32(DType::F32, bias.shape(), &random.values(bias.len(), 1.0));
        device.write(bias, &values.words)?;
    }
    Ok(biases)
}

/// Two and three layers, of one token and of several, with biases and without.
fn products() -> Result<(), Failed> {
    let device = device(Options { checked: true, ..Options::default() })?;
    let mut random = Random::new(5);
    let biases = biases(&device, &mut random)?;
    for name in ["f16", "uint4m", "q4_k", "q6_k", "int8"] {
        let matrices = Matrix::upload_beside(&device, &drawn(name, &mut random)?, &["w"; 3])?;
        for (tokens, bytes) in [(1, 2), (3, 1), (8, 3)] {
            let x = upload(&device, &[tokens, COLUMNS], &random.values(tokens * COLUMNS, 1.0))?;
            let x = Input::new(x, COLUMNS, bytes);
            for (count, biased) in [(2, false), (3, false), (3, true)] {
                let layers: Vec<(&Matrix, Option<&Tensor>)> = matrices[..count]
                    .iter()
                    .zip(&biases)
                    .map(|(matrix, bias)| (matrix, biased.then_some(bias)))
                    .collect();
                let all = linear_beside(&device, &x, &layers, DType::F32)?;
                let all = all.ok_or_else(|| format!("{name}: beside each other"))?;
                for ((matrix, bias), found) in layers.iter().zip(&all) {
                    let new = Destination::New(DType::F32);
                    let alone = linear(&device, &x, matrix, *bias, new)?;
                    assert_eq!(found.shape(), alone.shape(), "{name}");
                    let (found, alone) = (device.read(found)?, device.read(&alone)?);
                    assert!(found.words == alone.words, "{name}: {tokens} tokens, {count} layers");
                }
            }
        }
    }
    Ok(())
}

/// Other formats, another place in memory, one bias only, many tokens: each by itself.
fn what_is_not_beside() -> Result<(), Failed> {
    let device = device(Options::default())?;
    let mut random = Random::new(6);
    let packed = drawn("uint4m", &mut random)?;
    let beside = Matrix::upload_beside(&device, &packed, &["w"; 3])?;
    let other = Matrix::upload_beside(&device, &[packed[1].clone()], &["w"])?;
    let mixed = [packed[0].clone(), drawn("f16", &mut random)?.remove(1)];
    let mixed = Matrix::upload_beside(&device, &mixed, &["w"; 2])?;
    let biases = biases(&device, &mut random)?;
    let made = |tokens: usize, layers: &[(&Matrix, Option<&Tensor>)]| {
        let x = upload(&device, &[tokens, COLUMNS], &vec![1.0; tokens * COLUMNS])?;
        let made = linear_beside(&device, &Input::new(x, COLUMNS, 2), layers, DType::F32)?;
        Ok::<bool, Failed>(made.is_some())
    };
    let [query, key, value] = [0, 1, 2].map(|index| (&beside[index], None));
    assert!(made(8, &[query, key, value])?, "three layers");
    // Integers take more than products without matrix units gain by.
    let integers = device.capabilities().integer_dot;
    assert_eq!(made(16, &[query, key, value])?, integers, "integers");
    assert!(!made(17, &[query, key, value])?, "many tokens");
    assert!(!made(1, &[query])?, "one layer");
    assert!(!made(1, &[query, value])?, "not one behind the other");
    assert!(!made(1, &[key, query])?, "the other order");
    assert!(!made(1, &[query, (&other[0], None)])?, "memory of its own");
    assert!(!made(1, &[(&mixed[0], None), (&mixed[1], None)])?, "two formats");
    assert!(!made(1, &[(query.0, Some(&biases[0])), key])?, "one bias");
    assert!(made(1, &[(query.0, Some(&biases[0])), (key.0, Some(&biases[1]))])?, "two biases");
    // Bytes as they were.
    for (matrix, packed) in beside.iter().zip(&packed) {
        assert!(matrix.download(&device)? == *packed, "uploaded as they are");
    }
    Ok(())
}

const ROUNDINGS: [(u32, u32); 5] = [(1, 1), (2, 1), (3, 1), (2, 2), (1, 4)];

fn same(device: &Device, found: &Integers, wanted: &Integers, what: &str) -> Result<(), Failed> {
    for (found, wanted) in [(&found.codes, &wanted.codes), (&found.scales, &wanted.scales)] {
        assert_eq!(found.shape(), wanted.shape(), "{what}");
        assert!(device.read(found)?.words == device.read(wanted)?.words, "{what}");
    }
    Ok(())
}

fn gates() -> Result<(), Failed> {
    let device = device(Options { checked: true, ..Options::default() })?;
    let mut random = Random::new(7);
    let (tokens, columns) = (5, 712);
    let drawn = |random: &mut Random, size| {
        upload(&device, &[tokens, columns], &random.values(tokens * columns, size))
    };
    let (gate, up) = (drawn(&mut random, 6.0)?, drawn(&mut random, 3.0)?);
    for activation in Activation::ALL {
        let dense = glu(&device, &gate, &up, activation, DType::F32)?;
        for (bytes, span) in ROUNDINGS {
            let rounding = Rounding { bytes, span };
            let wanted = activations(&device, &dense, 1..4, columns, rounding)?;
            let found = gated(&device, (&gate, &up), activation, columns, 1..4, rounding)?;
            same(&device, &found, &wanted, &format!("{activation:?}, {rounding:?}"))?;
        }
    }
    Ok(())
}

fn parts() -> Result<(), Failed> {
    let device = device(Options { checked: true, ..Options::default() })?;
    let mut random = Random::new(8);
    for splits in [1, 7, 128] {
        let shape = [3, 4, splits, 128 + 2];
        let mut values = random.values(shape.iter().product(), 1.0);
        for part in values.chunks_exact_mut(130) {
            part[128] *= 5.0;
            part[129] += 1.5;
        }
        let parts = upload(&device, &shape, &values)?;
        let dense = merge(&device, &parts, DType::F32)?;
        for (bytes, span) in ROUNDINGS {
            let rounding = Rounding { bytes, span };
            let wanted = activations(&device, &dense, 1..3, 512, rounding)?;
            let found = merged(&device, &parts, 1..3, rounding)?;
            same(&device, &found, &wanted, &format!("{splits} parts, {rounding:?}"))?;
        }
    }
    Ok(())
}

/// Keys and values of three sequences that hold different numbers of tokens, one of them none.
fn cache(device: &Device, dtype: DType, heads: &Attention) -> Result<[Cached; 2], Failed> {
    let mut random = Random::new(9);
    let width = heads.kv * heads.dim;
    let mut made = Vec::new();
    for _ in 0..2 {
        let ty = CacheType::plain(dtype);
        let cached = Cached::new(device, ty, (3, 200), (width, heads.dim), "a cache")?;
        let values = random.values(3 * 200 * width, 1.0);
        let values = HostTensor::from_f32(dtype, &[3, 200, width], &values);
        device.write(cached.numbers(), &values.words)?;
        made.push(cached);
    }
    <[Cached; 2]>::try_from(made).map_err(|_| "two caches".into())
}

fn steps() -> Result<(), Failed> {
    let device = device(Options { checked: true, ..Options::default() })?;
    let mut random = Random::new(10);
    let past = device.upload(&HostTensor::from_u32(&[3], &[150, 7, 0]), "past")?;
    let half = device.capabilities().f16;
    for dtype in [DType::F32, DType::F16].into_iter().filter(|dtype| *dtype == DType::F32 || half) {
        for heads in [Attention::new(6, 2, 64), Attention::new(3, 3, 32).with_window(70)] {
            let turns = upload(&device, &[200, heads.dim], &random.values(200 * heads.dim, 1.0))?;
            let new = [heads.query, heads.kv, heads.kv].map(|count| {
                let width = count * heads.dim;
                let x = HostTensor::from_f32(dtype, &[3, width], &random.values(3 * width, 2.0));
                device.upload(&x, "new")
            });
            let [query, key, value] = new;
            let (query, key, value) = (query?, key?, value?);
            let [keys, values] = cache(&device, dtype, &heads)?;
            let rope = (&turns, &past);
            let numbers = (keys.numbers(), values.numbers());
            let new = (&query, &key, &value);
            let rotated = enter(&device, new, heads.dim, rope, numbers, 200)?;
            let wanted = cached(&device, &rotated, (&keys, &values), &past, heads, 200)?;
            let [own_keys, own_values] = cache(&device, dtype, &heads)?;
            let own = (&own_keys, &own_values);
            let found = entering(&device, [&query, &key, &value], rope, own, heads, 200)?;
            let (Some(Mixed::Parts(found)), Mixed::Parts(wanted)) = (found, wanted) else {
                return Err("parts of both".into());
            };
            for (found, wanted) in [
                (&found, &wanted),
                (own_keys.numbers(), keys.numbers()),
                (own_values.numbers(), values.numbers()),
            ] {
                let (found, wanted) = (device.read(found)?, device.read(wanted)?);
                assert!(found.words == wanted.words, "{dtype}, {heads:?}");
            }
        }
    }
    Ok(())
}
