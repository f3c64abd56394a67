//! Every kernel x variant x case against its reference: on the CPU device, on the adapter, and with the baseline forced.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Kernel, Sizes, Variant, check_case, check_cpu_case};
use lopper::gpu::{Capabilities, Tier};
use lopper::kernels::TABLE;
use lopper::kernels::activation::{Activation, erf, erf_f32, soft_cap, soft_cap_reference};
use lopper::kernels::bounds::U;
use lopper::kernels::matmul::Engine;
use lopper::kernels::matmul::product::MatmulShape;
use lopper::tensor::{DType, WEIGHT_TYPES, WHOLE_ROW, WeightFormat};

use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::machine::{gpu_trial, runner};

/// Pipelines that the trials' shared runners keep from one trial to the next: those of a few trials that run side by side. Mesa's
/// llvmpipe holds megabytes for each, and all of the table would take 6 GB.
const KEPT_PIPELINES: usize = 16;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("kernels::choices_are_in_the_table", choices_are_in_the_table),
        Trial::test("kernels::activations", activations),
        gpu_trial("kernels::pipelines_are_dropped".into(), pipelines_are_dropped),
    ];
    for kernel in TABLE.iter().copied() {
        trials.push(Trial::test(format!("kernels::cpu::{}", kernel.name), move || {
            for variant in (kernel.variants)() {
                on_cpu(kernel, &variant)?;
            }
            Ok(())
        }));
        trials.push(gpu_trial(format!("kernels::random::{}", kernel.name), move || {
            random_shapes(kernel)
        }));
        for tier in [Tier::Baseline, Tier::F16] {
            for variant in (kernel.variants)() {
                let needs_more = variant.uses_f16() || variant.subgroups;
                if needs_more != (tier == Tier::F16) {
                    continue;
                }
                let name =
                    format!("kernels::{}::{} [{}]", tier.name(), kernel.name, variant.label());
                trials.push(gpu_trial(name, move || on_gpu(kernel, &variant, tier)));
            }
        }
    }
    trials
}

/// The error function has the values of Abramowitz and Stegun, table 7.1; activations in f32 keep their bounds, and slopes are
/// those of the values.
fn activations() -> Result<(), Failed> {
    let table = [
        (0.1, 0.112_462_916_018_285),
        (0.5, 0.520_499_877_813_047),
        (1.0, 0.842_700_792_949_715),
        (1.5, 0.966_105_146_475_311),
        (2.0, 0.995_322_265_018_953),
        (-3.0, -0.999_977_909_503_001),
    ];
    for (x, expected) in table {
        let found = erf(x);
        let close = (found - expected).abs() < 1e-14;
        assert!(close, "erf({x}) = {found}, not {expected}");
    }
    for index in -30_000..30_000 {
        let x = index as f32 / 1000.0;
        let wide = f64::from(x);
        let near = |what: &str, found: f32, (value, bound): (f64, f64)| {
            let error = (f64::from(found) - value).abs();
            if error <= bound + 1e-36 {
                Ok(())
            } else {
                Err(format!("{what} at {x}: {found}, not {value}"))
            }
        };
        near("erf", erf_f32(x), (erf(wide), 4.0 * U * erf(wide).abs()))?;
        near("cap", soft_cap(x, 30.0), soft_cap_reference(wide, 0.0, 30.0))?;
        for activation in Activation::ALL {
            let name = format!("{activation:?}");
            near(&name, activation.value(x), activation.reference(wide))?;
            let [of_value, of_slope] = activation.slope_reference(wide);
            let (value, slope) = activation.value_and_slope(x);
            near(&name, value, of_value)?;
            near(&format!("slope of {name}"), slope, of_slope)?;
            let [high, low] = [1e-5, -1e-5].map(|step| activation.reference(wide + step).0);
            let difference = (high - low) / 2e-5;
            near("difference", difference as f32, (of_slope.0, 1e-6))?;
        }
    }
    Ok(())
}

fn on_cpu(kernel: &'static Kernel, variant: &Variant) -> Result<(), Failed> {
    for case in &kernel.checks(variant) {
        check_cpu_case(kernel, variant, case).map_err(|failure| {
            format!("{} [{}] {}: {failure}", kernel.name, variant.label(), case.label)
        })?;
    }
    Ok(())
}

fn on_gpu(kernel: &'static Kernel, variant: &Variant, tier: Tier) -> Result<(), Failed> {
    let runner = runner(tier)?;
    if !variant.runs_on(runner.gpu().capabilities()) {
        // An adapter without the capability cannot run the variant; the baseline ones cover its kernels.
        return Ok(());
    }
    for case in &kernel.checks(variant) {
        check_case(runner, kernel, variant, case).map_err(|failure| {
            format!("{} [{}] {}: {failure}", kernel.name, variant.label(), case.label)
        })?;
    }
    runner.keep_pipelines(KEPT_PIPELINES);
    Ok(())
}

/// A runner drops the pipelines that were used longest ago, on its own and when told to, and compiles them again.
fn pipelines_are_dropped() -> Result<(), Failed> {
    let runner = crate::machine::open(lopper::gpu::Options::default())?;
    let copies: Vec<&'static Kernel> =
        TABLE.iter().copied().filter(|kernel| kernel.name.starts_with("norm/")).collect();
    let variants: Vec<(&'static Kernel, Variant)> = copies
        .into_iter()
        .flat_map(|kernel| (kernel.variants)().into_iter().map(move |variant| (kernel, variant)))
        .filter(|(_, variant)| variant.runs_on(runner.gpu().capabilities()))
        .take(4)
        .collect();
    let [first, .., last] = &variants[..] else { return Err("at least two variants".into()) };
    for (kernel, variant) in &variants {
        runner.prepare(kernel, variant)?;
    }
    runner.prepare(first.0, &first.1)?;
    assert_eq!(runner.pipelines(), variants.len());
    runner.keep_pipelines(1);
    assert_eq!(runner.pipelines(), 1);
    // What was used last is there without compiling; what was dropped runs as before.
    for (kernel, variant) in [first, last, first] {
        check_case(&runner, kernel, variant, &kernel.checks(variant)[0])
            .map_err(|failure| failure.to_string())?;
    }
    assert_eq!(runner.pipelines(), 2);
    runner.keep_pipelines(9);
    assert_eq!(runner.pipelines(), 2);
    Ok(())
}

/// Random variants on random shapes, on the CPU device and on the adapter. A failure is shrunk, and its text replays it:
/// `lopper verify --kernel TEXT`.
fn random_shapes(kernel: &'static Kernel) -> Result<(), Failed> {
    let runner = runner(Tier::F16)?;
    let mut variants = (kernel.variants)();
    variants.retain(|variant| variant.runs_on(runner.gpu().capabilities()));
    if variants.is_empty() {
        // Cooperative matrices, on an adapter without.
        return Ok(());
    }
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let shapes = (any::<[u8; Sizes::COUNT]>(), 0..variants.len());
    let found = TestRunner::new_with_rng(config, seed)
        .run(&shapes, |(sizes, index)| {
            let (case, variant) = (kernel.sized(&Sizes(sizes)), &variants[index]);
            if !(case.fits)(variant) {
                return Ok(());
            }
            let text = format!("{} [{}] {}", kernel.name, variant.label(), case.label);
            check_cpu_case(kernel, variant, &case)
                .and_then(|_| check_case(runner, kernel, variant, &case))
                .map(|_| ())
                .map_err(|failure| TestCaseError::fail(format!("{text}: {failure}")))
        })
        .map_err(|error| error.to_string().into());
    runner.keep_pipelines(KEPT_PIPELINES);
    found
}

/// Whatever the planner of products may answer is a variant that the trials above check, and runs on the device asked for.
fn choices_are_in_the_table() -> Result<(), Failed> {
    let pairs = [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)];
    for bits in 0..8 {
        let capabilities = Capabilities {
            f16: true,
            subgroups: bits & 1 == 1,
            integer_dot: bits & 2 == 2,
            subgroup_size: 32,
            cooperative_matrix: if bits & 5 == 5 { 16 } else { 0 },
            ..Capabilities::default()
        };
        let bytes = [1, 2, 3];
        for ((activation, output), bytes) in pairs.into_iter().flat_map(|p| bytes.map(|b| (p, b))) {
            for ty in WEIGHT_TYPES {
                for (tokens, group) in [1, 2, 8, 9, 64, 4096]
                    .into_iter()
                    .flat_map(|tokens| [(tokens, 32), (tokens, 128)])
                {
                    let group_size = if ty.has_scales() { group } else { WHOLE_ROW };
                    let weight = WeightFormat::grouped(ty, group_size);
                    let product = MatmulShape {
                        activation,
                        bytes,
                        output,
                        engine: Engine::Auto,
                        weight,
                        rows: 4096,
                        columns: 4096,
                        tokens,
                    };
                    let candidates = product.candidates(capabilities);
                    assert!(!candidates.is_empty(), "nothing computes {product:?}");
                    for choice in candidates {
                        let dot4 = choice.kernel().name == "matmul/dot4";
                        if dot4 && !capabilities.integer_dot {
                            return Err(format!("{} without integers", choice.label()).into());
                        }
                        let known = (choice.kernel().variants)().contains(&choice.variant);
                        if !known || !choice.variant.runs_on(capabilities) {
                            return Err(format!("{}: {product:?}", choice.label()).into());
                        }
                        let again = product.choose(capabilities, Some(&choice.label()));
                        assert!(
                            again.label() == choice.label(),
                            "{} is not found by its name",
                            choice.label()
                        );
                    }
                }
            }
        }
    }
    Ok(())
}
