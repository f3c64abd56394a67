//! Figures of a child beside its parent, on a text: against values made here from whole logits, and through the program.

use libtest_mimic::{Failed, Trial};
use lopper::data::read_text;
use lopper::device::Device;
use lopper::measure::quality::statistics::Bootstrap;
use lopper::measure::{Convention, Windows, divergence, losses, perplexity_change};
use lopper::model::{Checkpoint, Model};
use serde_json::Value;
use tempfile::TempDir;

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::program::{NANO, SHORT, TEXT, TINY, has_fields, lopper, read_json, rows, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("figures":
        bytes_of_the_scored_tokens, eval_against_a_base, compare_two_models, another_tokenizer);
    trials.extend(on_each("figures::a_model_is_not_apart_from_itself", itself));
    trials.extend(on_each("figures::divergence_is_that_of_the_logits", of_logits));
    trials
}

fn tokens(count: usize) -> Result<Vec<u32>, Failed> {
    let tokenizer = Checkpoint::open(TINY)?.tokenizer()?;
    let mut tokens = tokenizer.encode(&read_text(TEXT)?, false)?;
    tokens.truncate(count);
    Ok(tokens)
}

fn model(device: &Device, name: &str) -> Result<Model, Failed> {
    Ok(load(device, &Checkpoint::open(name)?)?)
}

fn itself(device: &Device) -> Result<(), Failed> {
    let tokens = tokens(300)?;
    let windows = Windows::new(&tokens, 32, Convention::AllButFirst, None)?;
    let (parent, child) = (model(device, NANO)?, model(device, NANO)?);
    let found = divergence(&parent, &child, &pass(device), &windows, |_, _| Ok(()))?;
    let (kl, delta_p) = (found.kl(), found.delta_p());
    let change = perplexity_change(&found.parent, &found.child, Bootstrap::seeded(1));
    let interval = change.percent_interval.ok_or("9 windows give an interval")?;
    assert!(found.kl.len() == 9 * 31 && found.kl.iter().all(|kl| *kl == 0.0), "{kl:?}");
    assert!(kl.same_top == 1.0 && delta_p.rms == 0.0, "{delta_p:?}");
    assert!(change.ratio == 1.0 && (interval.low, interval.high) == (0.0, 0.0), "{change:?}");
    Ok(())
}

/// log softmax in f64.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - sum.ln()).collect()
}

fn of_logits(device: &Device) -> Result<(), Failed> {
    let (tokens, ctx) = (tokens(70)?, 32);
    let models = [model(device, TINY)?, model(device, NANO)?];
    for convention in [Convention::AllButFirst, Convention::SecondHalf] {
        let windows = Windows::new(&tokens, ctx, convention, Some(1))?;
        let found = divergence(&models[0], &models[1], &pass(device), &windows, |_, _| Ok(()))?;
        let mut place = 0;
        for window in tokens.chunks_exact(ctx) {
            let mut ids = window.to_vec();
            let mut first = 0;
            if convention == Convention::SecondHalf {
                (ids[0], first) = (1, ctx / 2);
            }
            // The parent and the child, each through the path that `lopper logits` takes.
            let mut logits = Vec::new();
            for model in &models {
                logits.push(model.trace(&pass(device), &ids, 1, false)?.1.to_f32());
            }
            let columns = logits[0].len() / ctx;
            for row in first..ctx - 1 {
                let line = |side: usize| &logits[side][row * columns..(row + 1) * columns];
                let (p, q) = (log_probabilities(line(0)), log_probabilities(line(1)));
                let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                let target = window[row + 1] as usize;
                let near = |have: f64, want: f64| (have - want).abs() <= 2e-5 * (1.0 + want.abs());
                let top = |line: &[f64]| line.iter().position(|p| line.iter().all(|q| q <= p));
                assert!(
                    near(found.kl[place], kl)
                        && near(found.parent.values()[place], -p[target])
                        && near(found.child.values()[place], -q[target])
                        && found.same_top[place] == (top(&p) == top(&q)),
                    "place {place}: {} is not {kl}",
                    found.kl[place]
                );
                place += 1;
            }
        }
        assert!(place == found.kl.len(), "{place} places");
    }
    Ok(())
}

fn bytes_of_the_scored_tokens() -> Result<(), Failed> {
    for (name, text) in [
        (TINY, "Prices — naïve “estimates” — rose 4 % in Zürich; 東京 is 🗼 tall. ".repeat(30)),
        (NANO, read_text("embedded:heldout-older")?.chars().take(3000).collect()),
    ] {
        let tokenizer = Checkpoint::open(name)?.tokenizer()?;
        let (tokens, ends) = tokenizer.encode_with_ends(&text, false, usize::MAX)?;
        assert!(tokens == tokenizer.encode(&text, false)?, "other tokens");
        assert!(ends.last() == Some(&text.len()), "{:?} of {} bytes", ends.last(), text.len());
        let ctx = 32;
        let windows = Windows::new(&tokens, ctx, Convention::AllButFirst, None)?;
        // What a window's scored tokens spell is what the window spells without its first token.
        let spelled = |ids: &[u32]| Ok::<_, Failed>(tokenizer.decode(ids, false)?.len());
        let mut sum = 0;
        for start in (0..windows.count()).map(|window| window * ctx) {
            sum += spelled(&tokens[..start + ctx])? - spelled(&tokens[..=start])?;
        }
        let (found, slack) = (windows.scored_bytes(&ends), 2 * 3 * windows.count());
        // A character cut by a window's edge decodes to U+FFFD: three bytes, whatever it has.
        assert!(found.abs_diff(sum) <= slack, "{found} bytes, decoded {sum}");
        let device = Device::Cpu;
        let losses = losses(&model(&device, name)?, &pass(&device), &windows, |_, _, _| Ok(()))?;
        let bits = losses.bits_per_byte(found).ok_or("bytes are scored")?;
        let want = losses.values().iter().sum::<f64>() / 2f64.ln() / found as f64;
        assert!((bits.value - want).abs() < 1e-12, "{bits}, not {want}");
    }
    Ok(())
}

fn eval_against_a_base() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let quantize = "--bits 3 --group-size 32 --grid float-min --out q";
    succeeds(&folder, &format!("quantize {NANO} {quantize}"))?;
    let arguments = format!("eval q/packed --base {NANO} --ppl {TEXT} {SHORT}");
    let json = succeeds(&folder, &format!("{arguments} --json=-"))?.json()?;
    let table = "
         => schema model base perplexity base_perplexity bits_per_byte size summary
        /kl => mean stderr max p99_9 p99 p95 p90 median p10 p5 p1 min same_top same_top_stderr
        /perplexity_change => ratio ratio_stderr ln_ratio difference correlation
        /perplexity_change => percent percent_interval windows
        /delta_p => mean rms max p99 p0_1 min
    ";
    for (path, fields) in rows(table) {
        has_fields(json.pointer(path).ok_or(path)?, fields);
    }
    let number = |path: &str| json.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    // Each model's own figure is what it is without the other.
    for (model, path) in [("q/packed", "/perplexity/value"), (NANO, "/base_perplexity/value")] {
        let eval = format!("eval {model} --ppl {TEXT} {SHORT} --json=-");
        let alone = succeeds(&folder, &eval)?.json()?;
        assert_eq!(alone["perplexity"]["value"], number(path));
    }
    let ratio = number("/perplexity/value") / number("/base_perplexity/value");
    assert!((ratio - number("/perplexity_change/ratio")).abs() < 1e-9, "{json}");
    let (low, high) = (
        number("/perplexity_change/percent_interval/low"),
        number("/perplexity_change/percent_interval/high"),
    );
    let percent = number("/perplexity_change/percent");
    assert!(low < percent && percent < high && number("/kl/mean") > 0.01, "{json}");
    let printed = succeeds(&folder, &arguments)?.out;
    for words in [
        "smaller than its parent in f16, perplexity +",
        "(95 %: ",
        "mean KLD:",
        "same top token:",
        "RMS Δp:",
    ] {
        assert!(printed.contains(words), "no `{words}` in {printed}");
    }
    Ok(())
}

fn compare_two_models() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let compare = format!("compare {TINY} {NANO}");
    let whole = format!("{compare} --ppl {TEXT} {SHORT} --json=-");
    let json = succeeds(&folder, &whole)?.json()?;
    has_fields(&json, "schema parent child sizes text summary bootstrap");
    assert!(json["tasks"].is_null() && json["text"]["kl"]["mean"].as_f64() > Some(0.0), "{json}");
    let few = succeeds(&folder, &format!("{compare} --ctx 128 --max-tokens 512"))?.out;
    assert!(few.contains("too few windows for an interval: 4"), "{few}");
    assert!(few.contains("B against A"), "{few}");
    Ok(())
}

/// Another vocabulary leaves bits per byte and says what cannot be had.
fn another_tokenizer() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let path = folder.path().join("m/tokenizer.json");
    let mut other = read_json(&path)?;
    let vocabulary = &mut other["model"]["vocab"];
    let (a, b) = (vocabulary["e"].clone(), vocabulary["t"].clone());
    (vocabulary["e"], vocabulary["t"]) = (b, a);
    std::fs::write(&path, other.to_string())?;
    for command in ["eval m --base", "compare m"] {
        let command = format!("{command} {NANO} --ppl {TEXT} --ctx 64 --max-tokens 256 --json=-");
        let mut run = succeeds(&folder, &command)?.json()?;
        if run["text"].is_object() {
            run = run["text"].take();
        }
        let why = run["impossible"].as_str().unwrap_or_default();
        assert!(
            run["kl"].is_null() && why.contains("another tokenizer") && why.contains("\"t\""),
            "{run}"
        );
    }
    let compare = format!("compare m {NANO} --ctx 64 --max-tokens 256");
    let printed = succeeds(&folder, &compare)?.out;
    assert!(printed.contains("bits per byte"), "{printed}");
    assert!(printed.contains("not possible: no KL"), "{printed}");
    // A parent without a tokenizer has no figure at all.
    std::fs::remove_file(&path)?;
    let eval = format!("eval {NANO} --base m --ppl {TEXT} --device cpu");
    lopper(&folder, &eval)?.refused(2, "tokenizer");
    Ok(())
}
