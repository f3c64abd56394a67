//! Speculative decoding: greedily the text that there is without, drawn the distribution that there is without; what is kept of a text
//! that goes on.

use libtest_mimic::{Failed, Trial};
use lopper::data::read_text;
use lopper::device::{Device, HostTensor};
use lopper::gpu::Options;
use lopper::kernels::logits::accept::{Drafted, accept};
use lopper::kernels::logits::draw::{Chances, draw};
use lopper::kernels::logits::probabilities::Filter;
use lopper::model::{
    Acceptance, Checkpoint, Continuation, Draft, Ensemble, Generation, Model, Pass, Sampling,
    Speculation, generate,
};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, on_each};
use crate::model::sampling::filtered;
use crate::models::{load, pass};
use crate::numbers::chi_square_fits;
use crate::program::{NANO, TEXT, TINY, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials =
        suite!("speculative": accepted_tokens_on_the_cpu, flags; gpu: drawn_as_without);
    trials.push(Trial::test("speculative::greedy_is_greedy", || greedy(&Device::Cpu, 3)));
    let on_gpu = || greedy(&device(Options { checked: true, ..Options::default() })?, 10);
    trials.push(gpu_trial("speculative::greedy_is_greedy_on_the_gpu".into(), on_gpu));
    let on_gpu = || accepted(&device(Options { checked: true, ..Options::default() })?, 1500);
    trials.push(gpu_trial("speculative::accepted_tokens_on_the_gpu".into(), on_gpu));
    trials.extend(on_each("speculative::a_draft_of_itself", of_itself));
    trials.extend(on_each("speculative::a_text_goes_on", goes_on));
    trials
}

/// Prompts from a text, each with something that stands in it twice.
fn prompts(count: usize) -> Result<Vec<Vec<u32>>, Failed> {
    let tokens = Checkpoint::open(TINY)?.tokenizer()?.encode(&read_text(TEXT)?, false)?;
    let prompt = |place: usize| {
        let piece = &tokens[37 * place..][..6 + place % 5];
        [piece, &tokens[500 + place..505 + place], piece].concat()
    };
    Ok((0..count).map(prompt).collect())
}

fn speculated<'m>(
    model: &'m Model,
    pass: &Pass<'m>,
    (draft, most): (Draft<'m>, usize),
    sampling: Sampling,
    (prompt, count): (&[u32], usize),
) -> Result<Generation, Failed> {
    let speculation = Some(Speculation { draft, most });
    let capacity = prompt.len() + count;
    let made = Continuation::new(Ensemble::from(model), *pass, sampling, capacity)
        .speculating(speculation)
        .run(prompt, count, |_| false, |_| Ok(true))?;
    assert_eq!(made.tokens.len(), count);
    Ok(made)
}

/// tiny-llama's likeliest tokens, proposed by nano-llama and by lookup: those of plain decoding, but where the two likeliest are nearer
/// than roundings.
fn greedy(device: &Device, count_of_prompts: usize) -> Result<(), Failed> {
    let (tiny, nano) =
        (load(device, &Checkpoint::open(TINY)?)?, load(device, &Checkpoint::open(NANO)?)?);
    let pass = pass(device);
    let (mut total, mut tokens) = ([Acceptance::default(); 2], 0);
    for (index, prompt) in prompts(count_of_prompts)?.iter().enumerate() {
        let count = 14 + index % 3;
        tokens += count;
        let plain =
            generate(&tiny, &pass, prompt, count, Sampling::GREEDY, |_| false, |_| Ok(true))?;
        for (total, draft) in total.iter_mut().zip([Draft::Model(&nano), Draft::Lookup]) {
            let most = 1 + index % 6;
            let made = speculated(&tiny, &pass, (draft, most), Sampling::GREEDY, (prompt, count))?;
            total.passes += made.acceptance.passes;
            total.drafted += made.acceptance.drafted;
            total.accepted += made.acceptance.accepted;
            let differs = (0..count).find(|place| made.tokens[*place] != plain.tokens[*place]);
            let Some(place) = differs else { continue };
            let text = [prompt, &plain.tokens[..place]].concat();
            let (_, logits) = tiny.trace(&pass, &text, 1, false)?;
            let last = &logits.to_f32()[(text.len() - 1) * tiny.config().vocab_size..];
            let margin = last[plain.tokens[place] as usize] - last[made.tokens[place] as usize];
            assert!(margin.abs() < 1e-4, "prompt {index}, token {place}, {draft:?}: {margin}");
        }
    }
    // Each pass gives a token beside those that it accepts. The pair agrees now and then; few prompts repeat themselves.
    for total in total {
        assert!(total.drafted > total.accepted, "{total:?}");
        assert_eq!(total.passes + total.accepted, tokens, "{total:?}");
    }
    assert!(total[0].accepted > 0 && (total[1].accepted > 0 || count_of_prompts < 10), "{total:?}");
    Ok(())
}

/// Two tokens from accepted drafts and what is drawn behind them, beside the product of the target's distributions.
fn accepted(device: &Device, rounds: usize) -> Result<(), Failed> {
    let likely = [[0.5f32, 0.2, 0.2, 0.1, 0.0], [0.05, 0.05, 0.3, 0.2, 0.4]];
    // The draft has no last token, and is far from the target.
    let by = [[0.2f32, 0.4, 0.1, 0.3], [0.7, 0.1, 0.1, 0.1]];
    let rows = [likely[0], likely[1], likely[1]].concat();
    let likely_rows = device.upload(&HostTensor::from_f32(DType::F32, &[3, 5], &rows), "target")?;
    let drafts =
        device.upload(&HostTensor::from_f32(DType::F32, &[2, 4], &by.concat()), "draft")?;
    let mut first = Vec::new();
    for (place, by) in by.iter().enumerate() {
        let rows = HostTensor::from_f32(DType::F32, &[rounds, 4], &by.repeat(rounds));
        let places = HostTensor::from_u32(&[rounds], &vec![place as u32; rounds]);
        let (rows, places) = (device.upload(&rows, "rows")?, device.upload(&places, "places")?);
        let chances = Chances::consecutive(device, 77, rounds)?;
        first.push(device.read(&draw(device, &rows, &places, &chances)?)?.words);
    }
    for certain in [false, true] {
        let mut counts = vec![0; 25];
        for (round, (one, two)) in first[0].iter().zip(&first[1]).enumerate() {
            let drafted = if certain { [2, 4] } else { [*one, *two] };
            let tokens = device.upload(&HostTensor::from_u32(&[2], &drafted), "drafted")?;
            let by = (!certain).then_some(&drafts);
            let proposed = Drafted { tokens: &tokens, count: 2, by };
            let seed = 1000 + round as u64;
            let found = device.read(&accept(device, &likely_rows, proposed, 40, seed)?)?.words;
            let (stay, next) = (found[0] as usize, found[1]);
            let mut text = drafted[..stay].to_vec();
            text.push(next);
            if text.len() == 1 {
                // The second is drawn anew, by the target alone.
                let last = Drafted { tokens: &tokens, count: 0, by };
                let row = HostTensor::from_f32(DType::F32, &[1, 5], &likely[1]);
                let row = device.upload(&row, "target")?;
                text.push(device.read(&accept(device, &row, last, 41, seed)?)?.words[1]);
            }
            counts[(5 * text[0] + text[1]) as usize] += 1;
        }
        let exact: Vec<f64> = likely[0]
            .iter()
            .flat_map(|a| likely[1].map(|b| f64::from(*a) * f64::from(b)))
            .collect();
        chi_square_fits(&counts, &exact).map_err(|found| format!("certain {certain}: {found}"))?;
    }
    Ok(())
}

fn accepted_tokens_on_the_cpu() -> Result<(), Failed> {
    accepted(&Device::Cpu, 20_000)
}

/// The first two tokens of whole models, drawn under filters, beside their exact distribution.
fn drawn_as_without() -> Result<(), Failed> {
    const RUNS: usize = 120;
    let device = &device(Options { checked: true, ..Options::default() })?;
    let (target, other) =
        (load(device, &Checkpoint::open(NANO)?)?, load(device, &Checkpoint::open(TINY)?)?);
    let pass = pass(device);
    let prompt = [11u32, 40, 7, 90, 11, 40, 7];
    let filter = Filter { temperature: 1.5, top_k: 3, top_p: 0.95, min_p: 0.01 };
    let distribution = |text: &[u32]| -> Result<Vec<f64>, Failed> {
        let (_, logits) = target.trace(&pass, text, 1, false)?;
        let columns = target.config().vocab_size;
        Ok(filtered(&logits.to_f32()[(text.len() - 1) * columns..], &filter))
    };
    let likely = |chances: &[f64]| -> Vec<u32> {
        (0..chances.len() as u32).filter(|token| chances[*token as usize] > 0.0).collect()
    };
    let (mut pairs, mut exact) = (Vec::new(), Vec::new());
    let first = distribution(&prompt)?;
    for one in likely(&first) {
        let second = distribution(&[&prompt[..], &[one]].concat())?;
        for two in likely(&second) {
            pairs.push([one, two]);
            exact.push(first[one as usize] * second[two as usize]);
        }
    }
    for draft in [Draft::Model(&other), Draft::Lookup] {
        let (mut counts, mut drafted) = (vec![0; pairs.len()], 0);
        for seed in 0..RUNS as u64 {
            let Filter { temperature, top_k, top_p, min_p } = filter;
            let sampling = Sampling { top_k, top_p, min_p, ..Sampling::at(temperature, seed) };
            let made = speculated(&target, &pass, (draft, 2), sampling, (&prompt, 3))?;
            let pair = pairs.iter().position(|pair| made.tokens[..2] == *pair);
            counts[pair.ok_or_else(|| format!("{:?} cannot be", made.tokens))?] += 1;
            drafted += made.acceptance.drafted;
        }
        assert!(drafted > RUNS / 2, "{draft:?}: {drafted} tokens were proposed");
        chi_square_fits(&counts, &exact).map_err(|found| format!("{draft:?}: {found}"))?;
    }
    Ok(())
}

/// A model that drafts for itself is nearly always right, drawing or not, and with a penalty.
fn of_itself(device: &Device) -> Result<(), Failed> {
    let model = load(device, &Checkpoint::open(NANO)?)?;
    let pass = pass(device);
    let prompt: Vec<u32> = (0..9).map(|id| 31 * id % 290).collect();
    let penalty = Sampling { repetition_penalty: 1.3, ..Sampling::GREEDY };
    for sampling in [Sampling::GREEDY, penalty, Sampling::at(0.8, 3)] {
        let draft = (Draft::Model(&model), 6);
        let made = speculated(&model, &pass, draft, sampling, (&prompt, 30))?;
        let Acceptance { passes, drafted, accepted } = made.acceptance;
        assert!(drafted - accepted <= 1 && passes <= 8, "{sampling:?}: {:?}", made.acceptance);
        if sampling.is_greedy() {
            let plain = generate(&model, &pass, &prompt, 30, sampling, |_| false, |_| Ok(true))?;
            assert_eq!(made.tokens, plain.tokens, "{sampling:?}");
        }
    }
    Ok(())
}

/// What is in the caches is not read again, and the tokens are those of a text read anew; with drafts too.
fn goes_on(device: &Device) -> Result<(), Failed> {
    let model = load(device, &Checkpoint::open(NANO)?)?;
    let pass = pass(device);
    let first: Vec<u32> = (0..20).map(|id| 31 * id % 290).collect();
    for speculation in [None, Some(Speculation { draft: Draft::Model(&model), most: 3 })] {
        let mut text = Continuation::new(Ensemble::from(&model), pass, Sampling::GREEDY, 100)
            .speculating(speculation);
        let made = text.run(&first, 10, |_| false, |_| Ok(true))?;
        assert_eq!((made.reused, made.tokens.len()), (0, 10));
        // All that was made and more; then another end.
        let more = [&first[..], &made.tokens, &[5, 6, 7]].concat();
        let other = [&first[..12], &[8, 9]].concat();
        for (prompt, least, most) in [(more, 28, 30), (other, 12, 12)] {
            let again = text.run(&prompt, 10, |_| false, |_| Ok(true))?;
            let fresh =
                generate(&model, &pass, &prompt, 10, Sampling::GREEDY, |_| false, |_| Ok(true))?;
            assert_eq!(again.tokens, fresh.tokens);
            assert!((least..=most).contains(&again.reused), "{}", again.reused);
        }
    }
    Ok(())
}

/// The program's flags: what is told of proposals, and a draft with other tokens.
fn flags() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let greedy = format!("generate {TINY} --prompt People -n 16 --json=-");
    let plain = succeeds(&folder, &greedy)?.json()?;
    assert!(plain["speculation"].is_null());
    for draft in [format!("--draft {NANO} --draft-tokens 3"), "--lookup".into()] {
        let run = succeeds(&folder, &format!("{greedy} {draft} -v"))?;
        let made = run.json()?;
        assert_eq!(made["tokens"], plain["tokens"], "{draft}");
        let count = |field: &str| made["speculation"][field].as_u64().unwrap_or(0);
        assert!(count("passes") + count("accepted") >= 16, "{made}");
        assert!(run.err.contains("proposed tokens were accepted"), "{run}");
    }
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/families/qwen2");
    for flag in ["--draft", "--ensemble", "--anti-expert x --expert"] {
        let run = lopper(&folder, &format!("{greedy} --device cpu {flag} {other}"))?;
        let name = flag.split(' ').next_back().unwrap_or_default();
        run.refused(2, &format!("error: {name} & same tokens: token & qwen2"));
    }
    let run = lopper(&folder, &format!("{greedy} --device cpu --lookup --draft-tokens 0"))?;
    run.refused(2, "error: --draft-tokens & 1 to 64");
    Ok(())
}
