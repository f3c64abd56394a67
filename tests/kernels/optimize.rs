//! What kernels of training do over several calls: steps of an optimizer, dropout's statistics, trained scales, and a parent's
//! likeliest tokens.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::error::Result;
use lopper::kernels::loss::distil::{Divergence, distil};
use lopper::kernels::loss::distil_top::distil_top;
use lopper::kernels::mask::dropout::dropout;
use lopper::kernels::matrix::Matrix;
use lopper::kernels::optimize::AdamW;
use lopper::kernels::optimize::adamw::adamw;
use lopper::kernels::optimize::adamw_8bit::{Moments8, adamw_8bit};
use lopper::kernels::optimize::clip::clip;
use lopper::kernels::optimize::squares::{parts, squares};
use lopper::kernels::quantize::scale_grad::{has_real_scales, scale_grad};
use lopper::kernels::quantize::store_scales::{scales, store_scales};
use lopper::kernels::select::top_tokens::top_tokens;
use lopper::tensor::{DType, Packed, WEIGHT_TYPES};

use crate::machine::on_each;
use crate::numbers::{Within, assert_close};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("optimize::norm_of_two_tensors", norm_of_two_tensors));
    trials.extend(on_each("optimize::first_step_is_the_rate", first_step_is_the_rate));
    trials.extend(on_each("optimize::both_reach_the_least", both_reach_the_least));
    trials.extend(on_each("optimize::dropout_by_seed", dropout_by_seed));
    trials.extend(on_each("optimize::scales_there_and_back", scales_there_and_back));
    trials.extend(on_each("optimize::top_tokens_as_whole_rows", top_tokens_as_whole_rows));
    trials
}

fn upload(device: &Device, values: &[f32]) -> Result<Tensor> {
    device.upload(&HostTensor::from_f32(DType::F32, &[values.len()], values), "values")
}

/// Two tensors' parts side by side make one norm, 13 for sums of squares of 25 and 144.
fn norm_of_two_tensors(device: &Device) -> Result<(), Failed> {
    let tensors = [upload(device, &[3.0, 4.0])?, upload(device, &vec![0.12; 10_000])?];
    let all = tensors.iter().map(|tensor| parts(tensor.len())).sum();
    let partials = upload(device, &vec![f32::NAN; all])?;
    let state = upload(device, &[0.0; 4])?;
    let mut first = 0;
    for tensor in &tensors {
        first += squares(device, tensor, &partials, first)?;
    }
    clip(device, &partials, 6.5, 1.0, &state)?;
    let found = device.read(&state)?.to_f32();
    assert!((found[0] - 13.0).abs() < 1e-4 && (found[1] - 0.5).abs() < 1e-5, "{found:?}");
    assert_eq!(found[2..], [1.0, 0.0]);
    Ok(())
}

/// Without decay the first step moves each weight by the rate against its gradient's sign, whatever its size.
fn first_step_is_the_rate(device: &Device) -> Result<(), Failed> {
    let settings = AdamW { rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-12, decay: 0.0 };
    let gradient = upload(device, &[5.0, -0.001, 300.0, -1.0, 0.0])?;
    let [weight, first, second] = [(); 3].map(|()| upload(device, &[0.0; 5]));
    let (weight, state) = (weight?, upload(device, &[1.0, 1.0, 1.0, 0.0])?);
    adamw(device, &settings, 1, &gradient, &state, &weight, (&first?, &second?), None)?;
    let found = device.read(&weight)?.to_f32();
    for (found, expected) in found.iter().zip([-0.01, 0.01, -0.01, 0.01, 0.0]) {
        assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    }
    Ok(())
}

/// Steps with moments in f32 and in 8 bits both lead to the least of sum (w - target)^2 / 2.
fn both_reach_the_least(device: &Device) -> Result<(), Failed> {
    let target = Random::new(66).values(300, 1.0);
    let mut settings = AdamW { rate: 0.0, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0.0 };
    let state = upload(device, &[1.0, 1.0, 1.0, 0.0])?;
    let [wide, narrow] = [(); 2].map(|()| upload(device, &[0.0; 300]));
    let (wide, narrow) = (wide?, narrow?);
    let moments = (upload(device, &[0.0; 300])?, upload(device, &[0.0; 300])?);
    let moments8 = Moments8::zeros(device, 300)?;
    let steps = 120;
    for step in 1..=steps {
        settings.rate = 0.05 * (1.0 - step as f32 / (steps + 1) as f32);
        let gradient = |weight: &Tensor| -> Result<Tensor> {
            let weight = device.read(weight)?.to_f32();
            let pairs = weight.iter().zip(&target);
            upload(device, &pairs.map(|(weight, target)| weight - target).collect::<Vec<_>>())
        };
        let (of_wide, of_narrow) = (gradient(&wide)?, gradient(&narrow)?);
        let both = (&moments.0, &moments.1);
        adamw(device, &settings, step, &of_wide, &state, &wide, both, None)?;
        adamw_8bit(device, &settings, step, &of_narrow, &state, &narrow, &moments8, None)?;
    }
    for (what, weight) in [("f32", &wide), ("8 bits", &narrow)] {
        let weight = device.read(weight)?.to_f32();
        let away = weight.iter().zip(&target).map(|(w, t)| (w - t).abs()).fold(0.0, f32::max);
        assert!(away < 0.02, "moments in {what}: {away} away");
    }
    Ok(())
}

/// The share kept is what was asked for, other seeds and places keep others, and the same keep the same.
fn dropout_by_seed(device: &Device) -> Result<(), Failed> {
    const COUNT: usize = 100_000;
    let ones = upload(device, &vec![1.0; COUNT])?;
    let kept = |rate: f32, seed: u64, offset: u32| -> Result<Vec<bool>> {
        let left = device.read(&dropout(device, &ones, rate, seed, offset, DType::F32)?)?;
        Ok(left.to_f32().into_iter().map(|value| value != 0.0).collect())
    };
    let share = |kept: &[bool]| kept.iter().filter(|kept| **kept).count() as f64 / COUNT as f64;
    for rate in [0.05f32, 0.5, 0.9] {
        let found = share(&kept(rate, 11, 0)?);
        // Five standard deviations.
        let [rate, count] = [f64::from(rate), COUNT as f64];
        let off = 5.0 * (rate * (1.0 - rate) / count).sqrt();
        assert!((found - (1.0 - rate)).abs() < off, "kept {found} at a rate of {rate}");
    }
    let one = kept(0.5, 11, 0)?;
    assert_eq!(one, kept(0.5, 11, 0)?);
    assert_eq!(one[1000..], kept(0.5, 11, 1000)?[..COUNT - 1000]);
    let others = [kept(0.5, 12, 0)?, kept(0.5, 11 << 32, 0)?, kept(0.5, 11, COUNT as u32)?];
    // Neighbours are no nearer to one another than chance.
    let shifted: Vec<bool> = one.iter().skip(1).chain([&one[0]]).copied().collect();
    for other in others.iter().chain([&shifted]) {
        let same: Vec<bool> = one.iter().zip(other).map(|(a, b)| a == b).collect();
        assert!((share(&same) - 0.5).abs() < 0.008, "{} in common", share(&same));
    }
    Ok(())
}

/// Scales read from a matrix and stored again leave it as it was; others change scales alone.
fn scales_there_and_back(device: &Device) -> Result<(), Failed> {
    let mut random = Random::new(72);
    for ty in WEIGHT_TYPES.iter().copied().filter(|ty| has_real_scales(ty)) {
        let variant = lopper::kernels::weights::variant(ty);
        let packed = lopper::kernels::weights::random(&mut random, &variant, 6, 100, 16);
        let matrix = Matrix::upload(device, &packed, ty.name)?;
        let (values, offsets) = scales(&packed)?;
        let shaped = |values: &[f32]| upload(device, values);
        let of = offsets.as_deref().map(shaped).transpose()?;
        store_scales(device, &shaped(&values)?, of.as_ref(), &matrix)?;
        assert_eq!(matrix.download(device)?, packed, "{}", ty.name);
        let doubled: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
        store_scales(device, &shaped(&doubled)?, of.as_ref(), &matrix)?;
        let stored = matrix.download(device)?;
        assert_eq!((scales(&stored)?, stored.codes), ((doubled, offsets), packed.codes));
    }
    let plain = Matrix::upload(device, &Packed::from_f32(&[1.0, 2.0], 1, 2), "plain")?;
    let refused = scale_grad(device, &upload(device, &[1.0, 2.0])?, &plain);
    assert!(refused.is_err_and(|error| error.to_string().contains("found f32")));
    Ok(())
}

/// All of a parent's tokens make the divergence of its whole rows; a part of them makes the same of what is renormalized.
fn top_tokens_as_whole_rows(device: &Device) -> Result<(), Failed> {
    let shape = [6, 50];
    let mut random = Random::new(74);
    let mut logits = || {
        let host = HostTensor::from_f32(DType::F32, &shape, &random.values(300, 4.0));
        device.upload(&host, "logits")
    };
    let (parent, child) = (logits()?, logits()?);
    let scored = device.upload(&HostTensor::from_u32(&[6], &[1, 1, 0, 1, 1, 1]), "scored")?;
    for keep in [50, 7] {
        let (tokens, logs) = top_tokens(device, &parent, keep)?;
        let mut left = vec![f32::NEG_INFINITY; 300];
        let all = device.read(&parent)?.to_f32();
        for (place, token) in device.read(&tokens)?.words.iter().enumerate() {
            let at = place / keep * 50 + *token as usize;
            left[at] = all[at];
        }
        let left = device.upload(&HostTensor::from_f32(DType::F32, &shape, &left), "logits")?;
        let forward = Divergence::Forward;
        let whole = distil(device, forward, &left, &child, &scored, 2.0, 3.0, DType::F32)?;
        let top = distil_top(device, (&tokens, &logs), &child, &scored, 2.0, 3.0, DType::F32)?;
        for (what, found, expected) in [("slope", top.0, whole.0), ("loss", top.1, whole.1)] {
            let (found, expected) =
                (device.read(&found)?.to_f32(), device.read(&expected)?.to_f32());
            assert_close(
                &format!("{what}, {keep} kept"),
                &found,
                &expected,
                Within::EachAndOne(3e-6),
            );
        }
    }
    Ok(())
}
