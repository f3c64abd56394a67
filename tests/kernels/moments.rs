//! Sums over activations, call by call as calibration strings them together.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::gpu::Options;
use lopper::kernels::matmul::gram::{gram, read};
use lopper::kernels::score::sums::{Term, sequence_magnitudes, sums};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, on_each};
use crate::numbers::{Within, assert_close};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("moments::gram", gram_of_several_calls));
    trials.extend(on_each("moments::sums", sums_of_several_calls));
    trials.push(gpu_trial("moments::gram_in_pieces".into(), gram_in_pieces));
    trials
}

/// Activations on a device, and their values there.
fn activations(
    device: &Device,
    dtype: DType,
    [tokens, width]: [usize; 2],
    seed: u64,
) -> Result<(Tensor, Vec<f64>), Failed> {
    let values = Random::new(seed).values(tokens * width, 1.0);
    let host = HostTensor::from_f32(dtype, &[tokens, width], &values);
    let rounded = host.to_f32().into_iter().map(f64::from).collect();
    Ok((device.upload(&host, "activations")?, rounded))
}

fn types(device: &Device) -> Vec<DType> {
    let mut types = vec![DType::F32, DType::F16];
    types.retain(|dtype| *dtype == DType::F32 || device.capabilities().f16);
    types
}

/// Two microbatches' second moments are those of all tokens, on both sides of the diagonal: of a narrow width, whose tokens are
/// summed in parts beside each other, and of one of several large tiles; of more tokens than one sum has, and of a single one.
fn gram_of_several_calls(device: &Device) -> Result<(), Failed> {
    for dtype in types(device) {
        for (width, batches) in [(70, [2100, 1100]), (268, [130, 1])] {
            let result = device.allocate(DType::F32, &[width, width], "moments")?;
            let mut expected = vec![0.0; width * width];
            for (index, tokens) in batches.into_iter().enumerate() {
                let (x, values) = activations(device, dtype, [tokens, width], index as u64)?;
                gram(device, &x, &result, index > 0)?;
                for line in values.chunks(width) {
                    for (sums, a) in expected.chunks_mut(width).zip(line) {
                        sums.iter_mut().zip(line).for_each(|(sum, b)| *sum += a * b);
                    }
                }
            }
            let found = read(device, &result)?.to_f32();
            let what = format!("{dtype}, width {width}");
            assert_close(&what, &found, &expected, Within::Largest(1e-6));
            for row in 0..width {
                for column in 0..row {
                    let (below, above) = (row * width + column, column * width + row);
                    assert_eq!(found[below].to_bits(), found[above].to_bits(), "{what}: symmetric");
                }
            }
        }
    }
    Ok(())
}

/// However little a submit may hold, the sums are the same bits.
fn gram_in_pieces() -> Result<(), Failed> {
    let [tokens, width] = [600, 530];
    let moments = |max_operations: Option<f64>| -> Result<Vec<u32>, Failed> {
        let device = device(Options { max_operations, ..Options::default() })?;
        let (x, _) = activations(&device, DType::F32, [tokens, width], 5)?;
        let result = device.allocate(DType::F32, &[width, width], "moments")?;
        gram(&device, &x, &result, false)?;
        gram(&device, &x, &result, true)?;
        Ok(read(&device, &result)?.words)
    };
    let whole = moments(None)?;
    assert_eq!(whole, moments(None)?, "again");
    assert_eq!(whole, moments(Some(1e5))?, "a tile at a time");
    Ok(())
}

/// Sums and the importance of sequences, of two microbatches, the second's sequences longer than one call sums.
fn sums_of_several_calls(device: &Device) -> Result<(), Failed> {
    let width = 37;
    for dtype in types(device) {
        let new = || device.allocate(DType::F32, &[width], "sums");
        let (by_term, importance) = ([new()?, new()?, new()?], new()?);
        let mut expected = vec![vec![0.0; width]; 4];
        for (index, (sequences, length)) in [(3, 11), (2, 2051)].into_iter().enumerate() {
            let shape = [sequences * length, width];
            let (x, values) = activations(device, dtype, shape, index as u64)?;
            for (term, result) in Term::ALL.into_iter().zip(&by_term) {
                sums(device, term, &x, result, index > 0)?;
            }
            sequence_magnitudes(device, &x, length, &importance, index > 0)?;
            for sequence in values.chunks(length * width) {
                for column in 0..width {
                    let of = || sequence[column..].iter().step_by(width);
                    let magnitude: f64 = of().map(|x| x.abs()).sum();
                    expected[0][column] += of().sum::<f64>();
                    expected[1][column] += magnitude;
                    expected[2][column] += of().map(|x| x * x).sum::<f64>();
                    expected[3][column] += (magnitude / length as f64).powi(2);
                }
            }
        }
        for (index, (found, expected)) in
            by_term.iter().chain([&importance]).zip(&expected).enumerate()
        {
            let found = device.read(found)?.to_f32();
            // Values of either sign cancel: 4135 of them add up to some 40.
            let within = if index == 0 { Within::Largest(1e-5) } else { Within::Each(2e-6) };
            assert_close(&format!("{dtype}, sum {index}"), &found, expected, within);
        }
    }
    Ok(())
}
