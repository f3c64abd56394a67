//! Models of real shapes with random weights: they open, they compute, and a seed is a model.

use libtest_mimic::{Failed, Trial};
use lopper::model::{Checkpoint, Synth, Weights};
use lopper::tensor::{WHOLE_ROW, WeightFormat, weight_type};

use crate::program::{TEXT, lopper, runs};

pub fn trials() -> Vec<Trial> {
    suite!("synth":
        written_and_measured, parameters_of_the_shapes, a_seed_is_a_model, bad_arguments)
}

fn written_and_measured() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let made = "synth smollm2-135m --layers 1 --type nvfp4 --out made";
    runs(&folder, made)?;
    let eval = format!("eval made --ppl {TEXT} --ctx 64 --max-tokens 128 --device cpu --json=-");
    let report = lopper(&folder, &eval)?.json()?;
    // Random logits of unit variance over 49 152 tokens: perplexity near 49 152 * e^(1/2 + 1/2).
    let perplexity = report["perplexity"]["value"].as_f64().unwrap_or(0.0);
    assert!((3e4..4e5).contains(&perplexity), "perplexity {perplexity}");
    // One token per byte, and the bytes come back.
    let tokenizer =
        Checkpoint::open(folder.path().join("made").to_str().ok_or("a path")?)?.tokenizer()?;
    let text = "Grüße, 你好!\n\t\u{1}";
    let ids = tokenizer.encode(text, true)?;
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(ids, bytes);
    assert_eq!(tokenizer.decode(&ids, true)?, text);
    Ok(())
}

/// The models' known sums.
fn parameters_of_the_shapes() -> Result<(), Failed> {
    for (shape, parameters) in [
        ("smollm2-135m", 134_515_008u64),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3.1-8b", 8_030_261_248),
        ("smollm2-1.7b", 1_711_376_384),
        ("minitron-4b-width", 4_512_746_496),
        ("minitron-4b-depth", 4_540_469_248),
        ("litellama-460m", 454_214_656),
        ("flan-t5-base", 247_577_856),
        ("flan-t5-large", 783_150_080),
        ("flan-t5-xl", 2_849_757_184),
        ("mixtral-8x7b", 46_702_792_704),
    ] {
        let model = Synth::new(shape, WeightFormat::f16(), None, 0)?;
        let sizes = model.specs().iter().map(|spec| spec.rows as u64 * spec.columns as u64);
        let found: u64 = sizes.sum();
        assert!(found == parameters, "{shape}: {found}");
    }
    Ok(())
}

fn a_seed_is_a_model() -> Result<(), Failed> {
    let ty = weight_type("uint3z").ok_or("a type")?;
    let format = WeightFormat { ty, group_size: WHOLE_ROW };
    let load = |seed: u64, index: usize| {
        let model = Synth::new("smollm2-135m", format, Some(2), seed)?;
        model.load(&model.specs()[index])
    };
    let (first, again, other) = (load(3, 4)?, load(3, 4)?, load(4, 4)?);
    assert!(first == again, "the seed and the name decide");
    assert!(first != other && first != load(3, 13)?, "nothing else does");
    Ok(())
}

fn bad_arguments() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (arguments, said) in [
        ("llama-9", "tinyllama-1.1b"),
        ("smollm2-135m --type q9", "a weight type"),
        ("smollm2-135m --type int4 --group-size 48", "power of two"),
        ("smollm2-135m --layers 0", "at least 1"),
    ] {
        let run = lopper(&folder, &format!("synth {arguments} --out made"))?;
        run.refused(2, said);
        assert!(!folder.path().join("made").exists(), "{arguments}");
    }
    Ok(())
}
