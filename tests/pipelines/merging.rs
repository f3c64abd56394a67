//! Merges: every method beside its formula in f64, along the depth and by names; stacked blocks; inputs of any format; what is refused.

use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::error::Error;
use lopper::formats::safetensors::Safetensors;
use lopper::methods::calibration::Rows;
use lopper::model::{
    BlockDims, Checkpoint, Config, Outline, Role, TensorSpec, Weights, tensor_specs,
};
use lopper::recipe::mergekit;
use lopper::stages::RecipeStage;
use lopper::tensor::{DType, WeightFormat};
use serde_json::json;
use tempfile::TempDir;

use crate::models::{Stored, checkpoint, logits, read_folder, run_stage_on, write_model};
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("merging":
        means_and_arcs, changes_added, signs_elected, whole_models_trimmed, crumbs, stocks, drawn, along_the_depth,
        any_format, stacked, stacked_blocks_stay, tied_and_not, vocabularies, greedy_soup, mergekits_files, planned, refused,
        commands)
}

/// A folder with nano-llama in f32 as `base`, and fine-tunes of it, of which nobody knows how they were trained.
fn world(tunes: &[(&str, u64, f32)]) -> Result<TempDir, Failed> {
    let place = TempDir::new()?;
    let (config, tensors) = read_folder("assets/nano-llama".as_ref())?;
    let wide = |(name, ty, shape, bytes): &Stored| -> (String, Vec<usize>, Vec<f32>) {
        assert_eq!(*ty, DType::F16);
        let values = bytes.chunks_exact(2).map(|b| half(u16::from_le_bytes([b[0], b[1]])));
        (name.clone(), shape.clone(), values.collect())
    };
    let base: Vec<_> = tensors.iter().map(wide).collect();
    for (name, seed, by) in [("base", 0, 0.0)].iter().chain(tunes) {
        let mut random = Random::new(*seed);
        let changed = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| -> Stored {
            let values = values.iter().map(|v| v + by * random.normal() * (v.abs() + 0.01));
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            (name.clone(), DType::F32, shape.clone(), bytes)
        };
        let tensors: Vec<Stored> = base.iter().map(changed).collect();
        let folder = place.path().join(name);
        std::fs::create_dir(&folder)?;
        write_model(&folder, &config, &tensors)?;
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(Path::new("assets/nano-llama").join(file), folder.join(file))?;
        }
    }
    Ok(place)
}

/// The value of f16's bits, normal or not.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => mantissa * 2f32.powi(-24),
        _ => (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// Fine-tunes of three seeds.
const THREE: [(&str, u64, f32); 3] = [("a", 91, 0.02), ("b", 92, 0.03), ("c", 93, 0.02)];

/// A merge stage; `DIR` in its keys stands for a folder.
fn stage(keys: &str, place: &TempDir) -> Result<RecipeStage, Failed> {
    let keys = keys.replace("DIR", &place.path().display().to_string());
    Ok(toml::from_str(&format!("kind = \"merge\"\n{keys}"))?)
}

/// Further models of a stage, by name.
fn with(names: &[&str]) -> String {
    let one = |name: &&str| format!("{{ model = \"DIR/{name}\" }}");
    format!("with = [{}]\n", names.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// What a stage makes of `base`.
fn merge(keys: &str, place: &TempDir) -> Result<(TempDir, Checkpoint), Failed> {
    let base = checkpoint(&place.path().join("base"))?;
    let folder = TempDir::new()?;
    let input = (&Device::Cpu, None);
    let merged = run_stage_on(input, &base, &base, &*stage(keys, place)?, folder.path())?;
    Ok((folder, merged))
}

/// The values of a tensor of some models, in f64.
fn values(place: &TempDir, models: &[&str], spec: &TensorSpec) -> Result<Vec<Vec<f64>>, Failed> {
    let of = |name: &&str| {
        let model = checkpoint(&place.path().join(name))?;
        Ok(model.load(spec)?.to_f32().into_iter().map(f64::from).collect())
    };
    models.iter().map(of).collect()
}

/// A formula of a tensor: of its spec and the models' values, `base` first.
type Formula<'a> = dyn Fn(&TensorSpec, &[Vec<f64>]) -> Vec<f64> + 'a;

/// The merged model has, in every tensor, what a formula gives of the models named, `base` first.
fn check(
    keys: &str,
    place: &TempDir,
    models: &[&str],
    formula: &Formula<'_>,
) -> Result<(), Failed> {
    let (_folder, merged) = merge(keys, place)?;
    let mut tensors = 0;
    for spec in merged.specs() {
        let wanted = formula(spec, &values(place, models, spec)?);
        let found = merged.load(spec)?.to_f32();
        assert_close(&format!("{keys}: {}", spec.name), &found, &wanted, Within::Largest(1e-6));
        tensors += 1;
    }
    assert_eq!(tensors, 20, "nano-llama has 2 blocks of 9 tensors");
    Ok(())
}

/// A value from those of each model.
fn each(x: &[Vec<f64>], of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    (0..x[0].len()).map(|at| of(&x.iter().map(|values| values[at]).collect::<Vec<_>>())).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn means_and_arcs() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let models = ["base", "a", "b"];
    let keys = "method = \"linear\"\ndtype = \"f32\"\n";
    check(&format!("{keys}{}", with(&["a", "b"])), &place, &models, &|_, x| {
        each(x, |v| (v[0] + v[1] + v[2]) / 3.0)
    })?;
    let weights = "weight = 0.5\nwith = [{ model = \"DIR/a\", weight = 2 }, { model = \"DIR/b\", weight = -0.5 }]";
    check(&format!("{keys}{weights}"), &place, &models, &|_, x| {
        each(x, |v| (0.5 * v[0] + 2.0 * v[1] - 0.5 * v[2]) / 2.0)
    })?;
    check(&format!("{keys}normalize = false\n{weights}"), &place, &models, &|_, x| {
        each(x, |v| 0.5 * v[0] + 2.0 * v[1] - 0.5 * v[2])
    })?;
    // An arc between models that are far from parallel, and one between such that are not.
    let far = world(&[("far", 94, 3.0)])?;
    let arc = |t: f64| {
        move |_: &TensorSpec, x: &[Vec<f64>]| {
            let (a, b) = (&x[0], &x[1]);
            let cosine = dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt());
            if cosine > 0.9995 {
                return each(x, |v| (1.0 - t) * v[0] + t * v[1]);
            }
            let angle = cosine.acos();
            each(x, |v| (((1.0 - t) * angle).sin() * v[0] + (t * angle).sin() * v[1]) / angle.sin())
        }
    };
    let keys = "method = \"slerp\"\ndtype = \"f32\"\n";
    check(&format!("{keys}t = 0.3\n{}", with(&["far"])), &far, &["base", "far"], &arc(0.3))?;
    check(&format!("{keys}{}", with(&["a"])), &place, &["base", "a"], &arc(0.5))
}

fn changes_added() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let keys = "method = \"task_arithmetic\"\ndtype = \"f32\"\nlambda = 0.8\nweight = 0.5\n";
    let weights = "with = [{ model = \"DIR/a\" }, { model = \"DIR/b\", weight = -0.25 }, { model = \"DIR/a\" }]";
    let models = ["base", "a", "b"];
    check(&format!("{keys}{weights}"), &place, &models, &|_, x| {
        each(x, |v| v[0] + 0.8 * (2.0 * 0.5 * (v[1] - v[0]) - 0.25 * (v[2] - v[0])))
    })?;
    check(&format!("{keys}normalize = true\n{weights}"), &place, &models, &|_, x| {
        let sum = 0.5 - 0.25 + 0.5;
        each(x, |v| v[0] + 0.8 * ((v[1] - v[0]) - 0.25 * (v[2] - v[0])) / sum)
    })
}

/// The changes of a model whose magnitudes are among the `count` largest, in f64.
fn largest(x: &[f64], base: &[f64], count: usize) -> Vec<f64> {
    let deltas = minus(x, base);
    let mut order: Vec<usize> = (0..deltas.len()).collect();
    order.sort_by(|a, b| deltas[*b].abs().total_cmp(&deltas[*a].abs()));
    let mut kept = vec![0.0; deltas.len()];
    order[..count].iter().for_each(|at| kept[*at] = deltas[*at]);
    kept
}

/// base + the mean of changes that have the sign of their weighted sum, by weights.
fn elected(base: &[f64], deltas: &[Vec<f64>], weights: &[f64], normalize: bool) -> Vec<f64> {
    (0..base.len())
        .map(|at| {
            let terms: Vec<f64> = deltas.iter().zip(weights).map(|(d, w)| w * d[at]).collect();
            let sign = if terms.iter().sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
            let agrees = |index: &usize| terms[*index] * sign > 0.0;
            let chosen: Vec<usize> = (0..terms.len()).filter(agrees).collect();
            let sum: f64 = chosen.iter().map(|index| terms[*index]).sum();
            let weight: f64 = chosen.iter().map(|index| weights[*index]).sum();
            base[at] + if normalize && weight != 0.0 { sum / weight } else { sum }
        })
        .collect()
}

fn signs_elected() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let keys = "method = \"ties\"\ndtype = \"f32\"\ndensity = 0.4\n";
    let count = |density: f64, values: &[f64]| ((density * values.len() as f64) as usize).max(1);
    let models = ["base", "a", "b", "c"];
    // The paper's mean: equal weights.
    check(&format!("{keys}{}", with(&["a", "b", "c"])), &place, &models, &|_, x| {
        let deltas: Vec<_> = x[1..].iter().map(|v| largest(v, &x[0], count(0.4, v))).collect();
        elected(&x[0], &deltas, &[1.0; 3], true)
    })?;
    let own = "with = [{ model = \"DIR/a\", weight = 0.5, density = 1 }, { model = \"DIR/b\", weight = 2, density = 0.1 }]";
    check(&format!("{keys}normalize = false\n{own}"), &place, &models[..3], &|_, x| {
        let deltas = [minus(&x[1], &x[0]), largest(&x[2], &x[0], count(0.1, &x[2]))];
        elected(&x[0], &deltas, &[0.5, 2.0], false)
    })
}

/// TIES as the paper has it: the largest changes of all of a model.
fn whole_models_trimmed() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let keys = "method = \"ties\"\ndtype = \"f32\"\ndensity = 0.2\ntrim = \"model\"\n";
    let base = checkpoint(&place.path().join("base"))?;
    let threshold = |model: &str| -> Result<f64, Failed> {
        let mut all = Vec::new();
        for spec in base.specs() {
            let x = values(&place, &["base", model], spec)?;
            all.extend(x[0].iter().zip(&x[1]).map(|(b, v)| (v - b).abs()));
        }
        all.sort_by(|a, b| b.total_cmp(a));
        let count = (0.2 * all.len() as f64) as usize;
        // Between the last one that stays and the first that does not: f32 may round either.
        Ok((all[count - 1] + all[count]) / 2.0)
    };
    let thresholds = [threshold("a")?, threshold("b")?];
    check(&format!("{keys}{}", with(&["a", "b"])), &place, &["base", "a", "b"], &|_, x| {
        let kept = |v: &Vec<f64>, least: f64| -> Vec<f64> {
            minus(v, &x[0]).into_iter().map(|d| if d.abs() >= least { d } else { 0.0 }).collect()
        };
        let deltas = [kept(&x[1], thresholds[0]), kept(&x[2], thresholds[1])];
        elected(&x[0], &deltas, &[1.0; 2], true)
    })
}

fn crumbs() -> Result<(), Failed> {
    let place = world(&THREE)?;
    // Largest first: `gamma` of them go, then `density` stay; scaled to the same sum of magnitudes where asked.
    let middle = |x: &[f64], base: &[f64], (density, gamma): (f64, f64), rescale: bool| {
        let deltas = minus(x, base);
        let count = deltas.len();
        let stay = (density * count as f64) as usize;
        let above = ((gamma * count as f64) as usize).min(count - stay);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| deltas[*b].abs().total_cmp(&deltas[*a].abs()));
        let mut kept = vec![0.0; count];
        order[above..above + stay].iter().for_each(|at| kept[*at] = deltas[*at]);
        let sum = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
        let factor = if rescale { sum(&deltas) / sum(&kept) } else { 1.0 };
        kept.iter().map(|value| value * factor).collect::<Vec<f64>>()
    };
    let keys = "dtype = \"f32\"\ndensity = 0.5\ngamma = 0.1\n";
    let models = ["base", "a", "b"];
    let plain = format!("method = \"breadcrumbs\"\n{keys}{}", with(&["a", "b"]));
    check(&plain, &place, &models, &|_, x| {
        let kept = |v: &Vec<f64>| middle(v, &x[0], (0.5, 0.1), false);
        let (a, b) = (kept(&x[1]), kept(&x[2]));
        (0..a.len()).map(|at| x[0][at] + a[at] + b[at]).collect()
    })?;
    let own = "with = [{ model = \"DIR/a\", gamma = 0.7 }, { model = \"DIR/b\", weight = 0.5 }]";
    let keys = format!("method = \"breadcrumbs_ties\"\n{keys}rescale = \"l1\"\n{own}");
    check(&keys, &place, &models, &|_, x| {
        let deltas =
            [middle(&x[1], &x[0], (0.5, 0.7), true), middle(&x[2], &x[0], (0.5, 0.1), true)];
        elected(&x[0], &deltas, &[1.0, 0.5], false)
    })
}

fn stocks() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let share = |deltas: &[&[f64]]| {
        let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        let pairs = [(0, 1), (0, 2), (1, 2)];
        let mean = pairs.iter().map(|(a, b)| cosine(deltas[*a], deltas[*b])).sum::<f64>() / 3.0;
        3.0 * mean / (1.0 + 2.0 * mean)
    };
    let models = ["base", "a", "b", "c"];
    for rows in [false, true] {
        let keys = format!(
            "method = \"model_stock\"\ndtype = \"f32\"\nfilter_wise = {rows}\n{}",
            with(&["a", "b", "c"])
        );
        check(&keys, &place, &models, &|spec, x| {
            let deltas: Vec<Vec<f64>> = x[1..].iter().map(|v| minus(v, &x[0])).collect();
            let columns = if rows { spec.columns } else { x[0].len() };
            let mut merged = Vec::new();
            for row in 0..x[0].len() / columns {
                let places = row * columns..(row + 1) * columns;
                let of: Vec<&[f64]> = deltas.iter().map(|d| &d[places.clone()]).collect();
                let t = share(&of);
                merged.extend(
                    places.map(|at| {
                        t * (x[1][at] + x[2][at] + x[3][at]) / 3.0 + (1.0 - t) * x[0][at]
                    }),
                );
            }
            merged
        })?;
    }
    Ok(())
}

/// DARE drops by lot what a seed, a model and a tensor say, on any number of threads, and scales up the rest.
fn drawn() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let keys = |density: f64| {
        format!("method = \"dare_linear\"\ndtype = \"f32\"\ndensity = {density}\n{}", with(&["a"]))
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let (_one, once) =
        pool(1)?.install(|| merge(&keys(0.3), &place).map_err(|e| format!("{e:?}")))?;
    let (_two, twice) =
        pool(3)?.install(|| merge(&keys(0.3), &place).map_err(|e| format!("{e:?}")))?;
    let (mut kept, mut all, mut marks) = (0, 0, Vec::new());
    for spec in once.specs() {
        assert_eq!(once.load(spec)?, twice.load(spec)?, "{}", spec.name);
        let x = values(&place, &["base", "a"], spec)?;
        for (at, found) in once.load(spec)?.to_f32().into_iter().map(f64::from).enumerate() {
            let (base, scaled) = (x[0][at], x[0][at] + (x[1][at] - x[0][at]) / 0.3);
            let near = |wanted: f64| (found - wanted).abs() <= 1e-6 * (1.0 + wanted.abs());
            assert!(near(base) || near(scaled), "{} at {at}: {found}, {base}, {scaled}", spec.name);
            (kept, all) = (kept + usize::from(!near(base)), all + 1);
            if spec.name == name {
                marks.push(!near(base));
            }
        }
    }
    // 0.39 M draws: four deviations are 0.003.
    let share = kept as f64 / all as f64;
    assert!((share - 0.3).abs() < 0.003, "{share}");
    // The same model once more is drawn anew: 0.3 of 0.3 stay in both.
    let both = keys(0.3).replace("}]", "}, { model = \"DIR/a\" }]");
    let (_both, both) = merge(&both, &place)?;
    let spec = both.specs().iter().find(|spec| spec.name == name).ok_or("the tensor")?;
    let x = values(&place, &["base", "a"], spec)?;
    let times = |at: usize, found: f32| {
        ((f64::from(found) - x[0][at]) / ((x[1][at] - x[0][at]) / 0.3)).round() as i64
    };
    let found = both.load(spec)?.to_f32();
    let twice = (0..found.len()).filter(|at| times(*at, found[*at]) == 2).count();
    let share = twice as f64 / found.len() as f64;
    assert!((share - 0.09).abs() < 0.02, "{share}");
    let as_before = (0..found.len()).filter(|at| marks[*at] && times(*at, found[*at]) == 0).count();
    assert_eq!(as_before, 0, "the first model's draws are the same");
    // With nothing dropped it is task arithmetic; mergekit's rule keeps the sum of magnitudes.
    check(&keys(1.0), &place, &["a"], &|_, x| x[0].clone())?;
    let (_l1, scaled) = merge(&keys(0.3).replace("with", "rescale = \"l1\"\nwith"), &place)?;
    let x = values(&place, &["base", "a"], spec)?;
    let sum = |of: &[f64]| minus(of, &x[0]).iter().map(|d| d.abs()).sum::<f64>();
    let found: Vec<f64> = scaled.load(spec)?.to_f32().into_iter().map(f64::from).collect();
    assert_close("sum of magnitudes", &[sum(&found)], &[sum(&x[1])], Within::Each(1e-5));
    Ok(())
}

/// Numbers along the depth and by names, as mergekit counts: the first block has the first number, the last one the last; the
/// embedding and the final norm have the first.
fn along_the_depth() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let keys = "method = \"linear\"\ndtype = \"f32\"\nweight = 1\nwith = [{ model = \"DIR/a\", weight = [\
        { filter = \"mlp.up\", value = [0, 4] }, { filter = \"*.o_proj\", value = 3 }, { filter = \"norm\", value = 2 }]}]";
    check(keys, &place, &["base", "a"], &|spec, x| {
        let weight = match (spec.name.as_str(), spec.layer) {
            (name, Some(layer)) if name.contains("up_proj") => 4.0 * layer as f64,
            (name, _) if name.contains("o_proj") => 3.0,
            (name, _) if name.contains("norm") => 2.0,
            _ => 1.0,
        };
        each(x, |v| (v[0] + weight * v[1]) / (1.0 + weight))
    })?;
    let keys = format!("method = \"slerp\"\ndtype = \"f32\"\nt = [0, 1, 0.5]\n{}", with(&["a"]));
    check(&keys, &place, &["base", "a"], &|spec, x| {
        let t = if spec.layer == Some(1) { 0.5 } else { 0.0 };
        // So near to each other that the arc is a line.
        each(x, |v| (1.0 - t) * v[0] + t * v[1])
    })
}

/// Models of any format merge: their values are what is merged, and the first one's codes do not survive.
fn any_format() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let path = place.path();
    succeeds(path, "export a --format gguf --out a.gguf")?;
    succeeds(path, "quantize b --type q4_0 --no-eval --formats packed,gguf --out q")?;
    succeeds(
        path,
        "merge q/model.gguf --with a.gguf@2 --with q/packed --with c@0.5 --no-eval --formats packed --out m",
    )?;
    let open = |name: &str| checkpoint(&path.join(name));
    let (merged, models) =
        (open("m")?, [open("q/model.gguf")?, open("a.gguf")?, open("q/packed")?, open("c")?]);
    for spec in merged.specs() {
        let x = models.iter().map(|model| {
            let spec = model.specs().iter().find(|own| own.name == spec.name).ok_or("a tensor")?;
            Ok(model.load(spec)?.to_f32().into_iter().map(f64::from).collect())
        });
        let x: Vec<Vec<f64>> = x.collect::<Result<_, Failed>>()?;
        let wanted = each(&x, |v| (v[0] + 2.0 * v[1] + v[2] + 0.5 * v[3]) / 4.5);
        let found = merged.load(spec)?;
        assert!(!found.format.ty.has_scales(), "{}: {}", spec.name, found.format.label());
        assert_close(&spec.name, &found.to_f32(), &wanted, Within::Largest(5e-4));
    }
    let manifest = read_json(path.join("m/manifest.json"))?;
    let parents = manifest["merged"].as_array().ok_or("parents")?;
    assert!(parents.len() == 3 && parents[0]["model"] == "a.gguf", "{parents:?}");
    assert!(parents.iter().all(|one| one["sha256"].as_str().is_some_and(|hash| hash.len() == 64)));
    assert!(manifest["stages"][0]["figures"].get("weight_error").is_none(), "{manifest}");
    let card = std::fs::read_to_string(path.join("m/README.md"))?;
    assert!(card.contains("merged with `a.gguf`, `q/packed`, `c`"), "{card}");
    Ok(())
}

/// Logits of two rows of tokens.
fn of_rows(model: &dyn Weights) -> Result<Vec<f32>, Failed> {
    let mut random = Random::new(95);
    let ids: Vec<u32> = (0..24).map(|_| random.below(model.config().vocab_size as u32)).collect();
    logits(&Device::Cpu, model, &ids, 2)
}

/// Blocks stacked on each other are a model of as many: its logits are those of one that was put together by hand.
fn stacked() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let path = place.path();
    let order = [("base", 0), ("base", 1), ("a", 1), ("base", 0), ("a", 0)];
    let (mut config, base) = read_folder(&path.join("base"))?;
    let (_, other) = read_folder(&path.join("a"))?;
    config.insert("num_hidden_layers".into(), json!(order.len()));
    let mut tensors: Vec<Stored> = Vec::new();
    for (place, (model, layer)) in order.into_iter().enumerate() {
        let of = if model == "base" { &base } else { &other };
        let prefix = format!("model.layers.{layer}.");
        for (name, ty, shape, bytes) in of {
            if let Some(rest) = name.strip_prefix(&prefix) {
                let name = format!("model.layers.{place}.{rest}");
                tensors.push((name, *ty, shape.clone(), bytes.clone()));
            }
        }
    }
    // The embedding is the first slice's; norm and head are the last one's, whose head is its embedding.
    let find = |of: &[Stored], name: &str| of.iter().find(|tensor| tensor.0 == name).cloned();
    tensors.extend(find(&base, "model.embed_tokens.weight"));
    tensors.extend(find(&other, "model.norm.weight"));
    let head = find(&other, "model.embed_tokens.weight").ok_or("an embedding")?;
    tensors.push(("lm_head.weight".into(), head.1, head.2, head.3));
    config.insert("tie_word_embeddings".into(), json!(false));
    std::fs::create_dir(path.join("hand"))?;
    write_model(&path.join("hand"), &config, &tensors)?;
    let slices = "--slice 0..2 --slice a@1..2 --slice 0..1 --slice a@0..1";
    succeeds(
        path,
        &format!(
            "merge base --method passthrough {slices} --no-eval --formats packed,gguf --out s"
        ),
    )?;
    let (found, wanted) = (checkpoint(&path.join("s"))?, checkpoint(&path.join("hand"))?);
    assert_eq!((found.config().layers(), found.config().tied), (5, false));
    let wanted = of_rows(&wanted)?;
    assert_close("stacked", &of_rows(&found)?, &wanted, Within::EachAndOne(1e-6));
    let gguf = checkpoint(&path.join("s/model.gguf"))?;
    assert_close("in GGUF", &of_rows(&gguf)?, &wanted, Within::EachAndOne(2e-2));
    // Of one model alone the head stays the embedding.
    succeeds(path, "merge base --method passthrough --slice 0..2 --slice 1..2 --no-eval --out t")?;
    let deep = checkpoint(&path.join("t/hf"))?;
    assert_eq!((deep.config().layers(), deep.config().tied), (3, true));
    // A factor of 0 for what writes the stream makes copied blocks do nothing.
    let keys = "method = \"passthrough\"\nslice = [{ layers = [0, 2] }, { model = \"DIR/a\", layers = [0, 1], scale = [{ filter = \"o_proj\", value = 0 }, { filter = \"down_proj\", value = 0 }, { value = 1 }] }, { layers = [1, 2], scale = [{ filter = \"o_proj\", value = 0 }, { filter = \"down_proj\", value = 0 }] }]";
    let (_folder, still) = merge(keys, &place)?;
    assert_eq!(still.config().layers(), 4);
    let wanted = of_rows(&checkpoint(&path.join("base"))?)?;
    assert_close("nothing added", &of_rows(&still)?, &wanted, Within::EachAndOne(1e-6));
    Ok(())
}

/// Blocks of a quantized model are stacked with their codes, from GGUF to GGUF byte for byte.
fn stacked_blocks_stay() -> Result<(), Failed> {
    let place = TempDir::new()?;
    let path = place.path();
    succeeds(path, &format!("quantize {NANO} --type q4_0 --no-eval --formats gguf --out q"))?;
    let flags = "--slice 0..2 --slice 0..2 --slice 1..2 --no-eval --formats gguf,packed --out s";
    succeeds(path, &format!("merge q/model.gguf --method passthrough {flags}"))?;
    let before = checkpoint(&path.join("q/model.gguf"))?;
    for name in ["s/model.gguf", "s/packed"] {
        let after = checkpoint(&path.join(name))?;
        assert_eq!(after.config().layers(), 5, "{name}");
        for spec in after.specs() {
            let same = |own: &&TensorSpec| match (spec.layer, own.layer) {
                (Some(place), Some(layer)) => {
                    layer == [0, 1, 0, 1, 1][place]
                        && (own.slot, own.role) == (spec.slot, spec.role)
                }
                (None, None) => own.name == spec.name,
                _ => false,
            };
            let own = before.specs().iter().find(same).ok_or("a tensor")?;
            assert_eq!(after.load(spec)?, before.load(own)?, "{name}: {}", spec.name);
            if let (Some(gguf), Some(of)) = (after.gguf(), before.gguf()) {
                let bytes = |gguf: &lopper::formats::gguf::Gguf, name: &str| {
                    gguf.tensor(name).and_then(|tensor| tensor.bytes().ok().map(|b| b.into_owned()))
                };
                assert!(bytes(gguf, &spec.gguf) == bytes(of, &own.gguf), "{}", spec.name);
            }
        }
    }
    Ok(())
}

/// A model whose head is its embedding merges with one that has both.
fn tied_and_not() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let (mut config, mut tensors) = read_folder(&place.path().join("a"))?;
    config.insert("tie_word_embeddings".into(), json!(false));
    let (_, _, shape, bytes) =
        tensors.iter().find(|tensor| tensor.0.contains("embed")).ok_or("an embedding")?.clone();
    let head: Vec<u8> = bytes
        .chunks_exact(4)
        .flat_map(|b| (2.0 * f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes())
        .collect();
    tensors.push(("lm_head.weight".into(), DType::F32, shape, head));
    write_model(&place.path().join("a"), &config, &tensors)?;
    let (_folder, merged) = merge(&format!("method = \"linear\"\n{}", with(&["a"])), &place)?;
    assert!(!merged.config().tied);
    let find = |model: &Checkpoint, role: Role| -> Result<Vec<f64>, Failed> {
        let spec = model.specs().iter().find(|spec| spec.role == role).ok_or("a tensor")?.clone();
        Ok(model.load(&spec)?.to_f32().into_iter().map(f64::from).collect())
    };
    let (base, other) =
        (checkpoint(&place.path().join("base"))?, checkpoint(&place.path().join("a"))?);
    let x = [find(&base, Role::Embedding)?, find(&other, Role::Head)?];
    let wanted = each(&x, |v| (v[0] + v[1]) / 2.0);
    assert_close("head", &find(&merged, Role::Head)?, &wanted, Within::Largest(1e-6));
    Ok(())
}

/// Where vocabularies differ that is an error, unless the first model's tokens are asked for: each then merges with its own row, in
/// whatever place the other model has it.
fn vocabularies() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let path = place.path();
    let (config, mut tensors) = read_folder(&path.join("a"))?;
    // Tokens 300 and 400 change places.
    let embedding = tensors.iter_mut().find(|tensor| tensor.0.contains("embed"));
    let (_, _, shape, bytes) = embedding.ok_or("an embedding")?;
    let line = 4 * shape[1];
    let (low, high) = bytes.split_at_mut(400 * line);
    low[300 * line..301 * line].swap_with_slice(&mut high[..line]);
    write_model(&path.join("b"), &config, &tensors)?;
    let mut document = read_json(path.join("b/tokenizer.json"))?;
    let vocabulary = document["model"]["vocab"].as_object_mut().ok_or("a vocabulary")?;
    let token =
        |id: u64| vocabulary.iter().find(|(_, of)| **of == id).map(|(name, _)| name.clone());
    let [Some(one), Some(two)] = [300, 400].map(token) else { return Err("tokens".into()) };
    vocabulary.insert(one.clone(), json!(400));
    vocabulary.insert(two.clone(), json!(300));
    std::fs::write(path.join("b/tokenizer.json"), document.to_string())?;
    let flags = "--no-eval --formats packed --out m";
    let run = lopper(path, &format!("merge base --with b {flags} --device cpu"))?;
    run.refused(2, &format!("vocabulary & b, whose token 300 is `{two}` & `{one}` & base"));
    assert!(!path.join("m.work").exists() && !path.join("m").exists());
    let run =
        lopper(path, &format!("merge base --with b --vocabulary union {flags} --device cpu"))?;
    run.refused(2, "union of vocabularies & base");
    succeeds(path, &format!("merge base --with b --vocabulary base {flags}"))?;
    succeeds(path, "merge base --with a --no-eval --formats packed --out n")?;
    let (found, wanted) = (checkpoint(&path.join("m"))?, checkpoint(&path.join("n"))?);
    for spec in found.specs() {
        assert_eq!(found.load(spec)?, wanted.load(spec)?, "{}", spec.name);
    }
    // Fewer rows: those of tokens that it lacks are the first model's.
    let (mut config, mut tensors) = read_folder(&path.join("a"))?;
    config.insert("vocab_size".into(), json!(4000));
    let embedding = tensors.iter_mut().find(|tensor| tensor.0.contains("embed"));
    let (_, _, shape, bytes) = embedding.ok_or("an embedding")?;
    shape[0] = 4000;
    bytes.truncate(4000 * line);
    write_model(&path.join("c"), &config, &tensors)?;
    let run = lopper(path, &format!("merge base --with c {flags} --force --device cpu"))?;
    run.refused(2, "c: tensor `model.embed_tokens.weight` & [4096, 64] & [4000, 64] & vocabulary");
    succeeds(path, &format!("merge base --with c --vocabulary base {flags} --force"))?;
    let found = checkpoint(&path.join("m"))?;
    let spec = &found.specs()[0];
    let (rows, base) =
        (found.load(spec)?.to_f32(), checkpoint(&path.join("base"))?.load(spec)?.to_f32());
    assert_eq!(rows[4000 * 64..], base[4000 * 64..]);
    assert_ne!(rows[..4000 * 64], base[..4000 * 64]);
    Ok(())
}

/// A soup takes what lowers the perplexity of the text, and is no worse than the best of its models.
fn greedy_soup() -> Result<(), Failed> {
    let place = world(&[("near", 96, 0.02), ("far", 97, 1.5)])?;
    let path = place.path();
    let flags = "--samples 4 --length 32 --no-eval --formats packed --out m";
    succeeds(path, &format!("merge far --method soup --with base --with near {flags}"))?;
    let manifest = read_json(path.join("m/manifest.json"))?;
    let tried = manifest["stages"][0]["details"]["ingredients"].as_array().ok_or("a table")?;
    let number = |at: usize, key: &str| tried[at][key].as_f64().ok_or("a figure");
    assert!(
        number(0, "alone")? <= number(1, "alone")? && number(1, "alone")? < number(2, "alone")?
    );
    assert!(number(0, "alone")? == number(0, "soup")? && tried[0]["taken"] == true);
    assert!(tried[2]["model"] == "the stage's model" && tried[2]["taken"] == false, "{tried:?}");
    assert_eq!(tried[1]["taken"] == true, number(1, "soup")? <= number(0, "soup")?);
    // The weights are the mean of those taken.
    let taken = tried.iter().filter(|one| one["taken"] == true);
    let names: Vec<&str> = taken.filter_map(|one| one["model"].as_str()).collect();
    let merged = checkpoint(&path.join("m"))?;
    for spec in merged.specs() {
        let x = values(&place, &names, spec)?;
        let wanted = each(&x, |v| v.iter().sum::<f64>() / v.len() as f64);
        assert_close(&spec.name, &merged.load(spec)?.to_f32(), &wanted, Within::Largest(1e-6));
    }
    // The figure is that of its own evaluation.
    let base = checkpoint(&path.join("far"))?;
    let keys = "method = \"soup\"\ncalibration = { samples = 4, length = 32 }\nwith = [{ model = \"DIR/base\" }, { model = \"DIR/near\" }]";
    let stage = stage(keys, &place)?;
    let calibration = stage.needs().calibration.ok_or("a text")?;
    let rows = Rows::of_text(calibration, &base.tokenizer()?)?;
    let source = lopper::model::WeightSource::Streamed(&Device::Cpu, &merged);
    let pass = crate::models::pass(&Device::Cpu);
    let perplexity = lopper::methods::prune::depth::rows_perplexity(source, &pass, &rows)?;
    let best = tried.iter().rfind(|one| one["taken"] == true).ok_or("one")?;
    assert_close(
        "perplexity",
        &[perplexity],
        &[best["soup"].as_f64().ok_or("a figure")?],
        Within::Each(1e-5),
    );
    Ok(())
}

/// mergekit's files say what recipes say.
fn mergekits_files() -> Result<(), Failed> {
    let read = |text: &str| mergekit::read("m.yml".as_ref(), text);
    let keys = |text: &str| -> Result<(String, String), Failed> {
        let (model, stage) = read(text)?;
        Ok((model, serde_json::to_string(&stage)?))
    };
    let found = keys(
        "merge_method: dare_ties\nbase_model: base\nmodels:\n  - model: base\n  - model: a\n    parameters: {weight: 0.5, density: [0.1, 1e-1]}\n  - model: b\n    parameters:\n      weight:\n      - {filter: mlp, value: '2e-1'}\n      - value: 1\nparameters: {int8_mask: true, lambda: 0.5}\ndtype: bfloat16\ntokenizer_source: base\n",
    )?;
    let wanted = r#"{"kind":"merge","method":"dare_ties","lambda":0.5,"density":1.0,"rescale":"l1","vocabulary":"base","dtype":"bf16","with":[{"model":"a","weight":0.5,"density":[0.1,0.1]},{"model":"b","weight":[{"filter":"mlp","value":0.2},{"value":1.0}]}]}"#;
    assert_eq!(found, ("base".to_string(), wanted.to_string()));
    let slerp = "slices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 2]}\nmerge_method: slerp\nbase_model: a\nparameters:\n  t:\n  - filter: self_attn\n    value: [0, 0.5]\n  - value: 0.5\n";
    let wanted = r#"{"kind":"merge","method":"slerp","t":[{"filter":"self_attn","value":[0.0,0.5]},{"value":0.5}],"layers":2,"with":[{"model":"b"}]}"#;
    assert_eq!(keys(slerp)?, ("a".to_string(), wanted.to_string()));
    let stack = "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources:\n  - {model: b, layer_range: [1, 2], parameters: {scale: 0.5}}\nmerge_method: passthrough\ndtype: float16\n";
    let wanted = r#"{"kind":"merge","method":"passthrough","slice":[{"layers":[0,2]},{"model":"b","layers":[1,2],"scale":0.5}]}"#;
    assert_eq!(keys(stack)?, ("a".to_string(), wanted.to_string()));
    let linear = "models: [{model: a, parameters: {weight: 0.25}}, {model: b}]\nmerge_method: linear\nparameters: {weight: 0.75, normalize: false}\n";
    let wanted = r#"{"kind":"merge","method":"linear","weight":0.25,"normalize":false,"with":[{"model":"b","weight":0.75}]}"#;
    assert_eq!(keys(linear)?, ("a".to_string(), wanted.to_string()));
    for (from, to, words) in [
        ("linear", "magic", "merge_method"),
        ("normalize: false", "normalise: false", "normalise"),
        ("weight: 0.75, ", "", "weight"),
        ("weight: 0.75", "weight: [{filter: mlp, value: 1}]", "without a rest"),
        ("weight: 0.75", "weight: much", "a number"),
        ("normalize: false", "normalize: 2", "true or false"),
        ("merge_method", "merge_mode: x\nmerge_method", "merge_mode"),
        ("merge_method", "chat_template: auto\nmerge_method", "chat_template"),
        ("merge_method", "dtype: int8\nmerge_method", "dtype"),
        ("merge_method", "tokenizer_source: b\nmerge_method", "tokenizer_source"),
        ("models:", "slices: []\nmodels:", "models"),
        ("models: [", "models: [[", "line"),
    ] {
        let error = read(&linear.replacen(from, to, 1)).err().ok_or(to)?;
        let said = error.to_string();
        assert!(
            error.exit_code() == 2 && said.contains("m.yml") && said.contains(words),
            "{to}: {said}"
        );
    }
    for (from, to, words) in [
        (
            "layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 2]",
            "layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 1]",
            "layer_range",
        ),
        ("[0, 2]}\nmerge", "[0, 2]}\n- sources: []\nmerge", "slices"),
        ("base_model: a\n", "", "base_model"),
        ("parameters:\n  t:", "parameters:\n  s:", "parameters"),
    ] {
        let error = read(&slerp.replacen(from, to, 1)).err().ok_or(to)?.to_string();
        assert!(error.contains(words), "{to}: {error}");
    }
    Ok(())
}

/// A plan needs headers alone, and says the same as the run.
fn planned() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let base = checkpoint(&place.path().join("base"))?;
    let others = [Outline::of(&checkpoint(&place.path().join("a"))?)?];
    let begin = Outline::of(&base)?;
    for keys in [
        format!("method = \"ties\"\n{}", with(&["a"])),
        format!("method = \"linear\"\ndtype = \"bf16\"\n{}", with(&["a"])),
        "method = \"passthrough\"\nslice = [{ layers = [0, 2] }, { model = \"DIR/a\", layers = [0, 1] }]".into(),
    ] {
        let planned = stage(&keys, &place)?.plan_beside(&begin, &others)?;
        let (_folder, merged) = merge(&keys, &place)?;
        let found = Outline::of(&merged)?;
        assert_eq!(planned.outline.specs, found.specs, "{keys}");
        assert_eq!(planned.outline.formats, found.formats, "{keys}");
        assert_eq!(planned.outline.config, found.config, "{keys}");
        assert!(!planned.changes.is_empty());
    }
    // Of two models of Llama 3.1's shape with 8 G weights, which take 16 GB each, less than 4 GiB is in memory.
    let config = Config {
        hidden_size: 4096,
        head_dim: 128,
        vocab_size: 128_256,
        blocks: vec![BlockDims::new(32, 8, 14_336); 32],
        tied: false,
        ..base.config().clone()
    };
    let mut specs = tensor_specs(&config);
    specs.retain(|spec| spec.role != Role::Bias);
    let large = Outline {
        formats: vec![WeightFormat::bf16(); specs.len()],
        copies: vec![None; specs.len()],
        specs,
        first: config.clone(),
        config,
        ..begin
    };
    for method in ["linear", "slerp", "task_arithmetic", "dare_ties"] {
        let stage = stage(&format!("method = \"{method}\"\n{}", with(&["a"])), &place)?;
        let planned = stage.plan_beside(&large, std::slice::from_ref(&large))?;
        assert!(large.bytes() > 16_000_000_000 && planned.peak_host_bytes < 4 << 30, "{method}");
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let base = checkpoint(&place.path().join("base"))?;
    let begin = Outline::of(&base)?;
    let said = |keys: &str| -> Result<String, Failed> {
        let read: Result<RecipeStage, Failed> = stage(keys, &place);
        let stage = match read {
            Ok(stage) => stage,
            Err(error) => return Ok(error.message().unwrap_or_default().into()),
        };
        let others = stage.others();
        let others = others.iter().map(|name| Outline::of(&Checkpoint::open(name)?));
        let others: Vec<Outline> = others.collect::<Result<_, Error>>()?;
        match stage.plan_beside(&begin, &others) {
            Ok(_) => Ok("nothing".into()),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                Ok(error.to_string())
            }
        }
    };
    let tiny = "with = [{ model = \"embedded:tiny-llama\" }]";
    let other = |name: &str| format!("with = [{{ model = \"assets/families/{name}\" }}]");
    let weights = |a: &str, b: &str| {
        format!("weight = {a}\nwith = [{{ model = \"DIR/a\", weight = {b} }}]\nmethod = \"linear\"")
    };
    for (keys, words) in [
        ("method = \"linear\"".to_string(), "stage.with & one further model"),
        (format!("method = \"slerp\"\n{}", with(&["a", "b"])), "stage.with & two ends"),
        (format!("method = \"model_stock\"\n{}", with(&["a"])), "stage.with & two further"),
        (tiny.into(), "stage.with & 2 blocks & embedded:tiny-llama"),
        (other("qwen2"), "stage.with & llama & qwen2"),
        (weights("1", "-1"), "stage.weight & sum is not 0 & model.embed_tokens.weight"),
        (weights("[0, 1]", "[-0.5, -1]"), "stage.weight & model.layers.1."),
        (weights("nan", "1"), "a number, a list"),
        (weights("[]", "1"), "stage.weight & an empty list"),
        (format!("method = \"task_arithmetic\"\ndensity = 0.5\n{}", with(&["a"])), "stage.density & task_arithmetic"),
        (format!("method = \"dare_ties\"\ntrim = \"model\"\n{}", with(&["a"])), "stage.trim & dare_ties"),
        ("method = \"ties\"\nwith = [{ model = \"DIR/a\", gamma = 0.5 }]".into(), "stage.gamma & ties"),
        (format!("method = \"ties\"\ndensity = 1.5\n{}", with(&["a"])), "stage.density & 0 to 1 & 1.5"),
        (format!("method = \"ties\"\ndensity = [0.5, -0.1]\n{}", with(&["a"])), "stage.density & -0.1"),
        (format!("method = \"breadcrumbs\"\ngamma = 2\n{}", with(&["a"])), "stage.gamma"),
        (format!("method = \"slerp\"\nt = -0.1\n{}", with(&["a"])), "stage.t & -0.1"),
        (format!("method = \"ties\"\ntrim = \"model\"\ndensity = [0.1, 0.2]\n{}", with(&["a"])), "stage.density & one density"),
        (format!("method = \"ties\"\nweight = 0\n{}", with(&["a"])), "stage.weight"),
        (format!("method = \"linear\"\ndensity = 0.5\n{}", with(&["a"])), "density"),
        ("method = \"linear\"\nwith = [{ model = \"DIR/a\", density = 0.5 }]".into(), "stage.with & density"),
        ("method = \"soup\"\nwith = [{ model = \"DIR/a\", weight = 0.5 }]".into(), "stage.with & equal"),
        (format!("method = \"magic\"\n{}", with(&["a"])), "magic & linear, slerp"),
        ("method = \"passthrough\"".into(), "stage.slice"),
        ("method = \"passthrough\"\nslice = [{ layers = [1, 3] }]".into(), "stage.slice & 0..2 & 1..3"),
        ("method = \"passthrough\"\nslice = [{ layers = [1, 1] }]".into(), "stage.slice & 1..1"),
        ("method = \"passthrough\"\nslice = [{ layers = [0, 2] }, { model = \"embedded:tiny-llama\", layers = [0, 1] }]".into(), "stage.slice & 64 columns & embedded:tiny-llama"),
        (format!("layers = 3\n{}", with(&["a"])), "stage.layers & 2, all & 3"),
    ] {
        let said = said(&keys)?;
        let all = words.split(" & ").all(|word| said.contains(word));
        assert!(all, "{keys}\nexpected `{words}`, found `{said}`");
    }
    // The same model twice is allowed, and so is merging a model with itself.
    assert_eq!(said(&format!("method = \"ties\"\n{}", with(&["a", "a", "base"])))?, "nothing");
    // Shapes: the tensors are named.
    let (mut config, mut tensors) = read_folder(&place.path().join("c"))?;
    config.insert("intermediate_size".into(), json!(96));
    for (name, _, shape, bytes) in &mut tensors {
        if name.contains("mlp") {
            bytes.truncate(bytes.len() / 2);
            let at = usize::from(name.contains("down"));
            shape[at] = 96;
        }
    }
    write_model(&place.path().join("c"), &config, &tensors)?;
    let found = said(&with(&["c"]))?;
    for word in [
        "/c: tensor `model.layers.0.mlp.gate_proj.weight`",
        "[192, 64]",
        "[96, 64]",
        "5 more tensors",
    ] {
        assert!(found.contains(word), "{word}: {found}");
    }
    // A bias that one model has.
    let biased = checkpoint("assets/fixtures/biased".as_ref())?;
    let stage: RecipeStage = toml::from_str("kind = \"merge\"\nwith = [{ model = \"x\" }]")?;
    let mut without = Outline::of(&biased)?;
    let place = without.specs.iter().position(|spec| spec.role == Role::Bias).ok_or("a bias")?;
    let name = without.specs.remove(place).name;
    without.formats.remove(place);
    without.copies.remove(place);
    let error = stage
        .plan_beside(&Outline::of(&biased)?, std::slice::from_ref(&without))
        .err()
        .ok_or("refused")?;
    assert!(
        error.to_string().contains(&name) && error.to_string().contains("no such tensor"),
        "{error}"
    );
    let error = stage.plan_beside(&without, &[Outline::of(&biased)?]).err().ok_or("refused")?;
    assert!(
        error.to_string().contains(&name) && error.to_string().contains("no such tensor"),
        "{error}"
    );
    Ok(())
}

/// Every method from the command line, a file of mergekit's, a merge that is quantized, a recipe.
fn commands() -> Result<(), Failed> {
    let place = world(&THREE)?;
    let path: PathBuf = place.path().into();
    let flags = "--no-eval --formats packed";
    for (number, method) in [
        "linear --weight 0.5 --normalize false",
        "slerp --t self_attn=0,1;mlp=1,0;0.5",
        "task_arithmetic --lambda 0.5",
        "ties --density 0.3 --trim model",
        "dare_linear --density 0.5 --rescale l1",
        "dare_ties --seed 5",
        "breadcrumbs --gamma 0.02",
        "breadcrumbs_ties --weight=-0.5",
    ]
    .into_iter()
    .enumerate()
    {
        succeeds(&path, &format!("merge base --with a --method {method} {flags} --out {number}"))?;
        checkpoint(&path.join(number.to_string()))?;
    }
    let weighted = "merge base --with a@0.3 --with b@0,1 --method model_stock --device cpu --out s";
    lopper(&path, weighted)?.refused(2, "stage.with & without numbers for model_stock & weight");
    succeeds(&path, &format!("merge base --with a --with b --method model_stock {flags} --out s"))?;
    let yaml = "merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 1.0, density: 0.3}}\nparameters: {normalize: true}\n";
    std::fs::write(path.join("m.yml"), yaml)?;
    let printed = succeeds(&path, "merge --config m.yml --print-recipe")?.out;
    assert!(
        printed.contains("method = \"ties\"") && printed.contains("[[stage.with]]"),
        "{printed}"
    );
    std::fs::write(path.join("r.toml"), &printed)?;
    succeeds(&path, &format!("merge --config m.yml {flags} --out y"))?;
    succeeds(&path, &format!("merge base --with a --method ties --density 0.3 {flags} --out z"))?;
    succeeds(&path, "compress r.toml --out r")?;
    let weights = |name: &str| {
        let bytes = std::fs::read(path.join(name).join("packed/model.safetensors"))?;
        Ok::<_, Failed>(crate::program::sha256(&bytes))
    };
    assert_eq!(weights("y")?, weights("z")?);
    lopper(&path, "merge --config m.yml --method ties --out x")?.refused(2, "--config");
    lopper(&path, "merge base --config m.yml --out x")?.refused(2, "--config");
    lopper(&path, "merge")?.refused(2, "MODEL");
    lopper(&path, "merge base --with nothing --out x --device cpu")?.refused(2, "nothing");
    // On to fewer bits; the perplexity of each step is in the table.
    let run = succeeds(
        &path,
        "merge base --with a --then q4_0 --ctx 64 --max-tokens 256 --formats gguf --out q",
    )?;
    assert!(run.out.contains("merged") || run.out.contains("merge"), "{run}");
    let manifest = read_json(path.join("q/manifest.json"))?;
    let names: Vec<&str> = manifest["stages"]
        .as_array()
        .ok_or("stages")?
        .iter()
        .filter_map(|stage| stage["name"].as_str())
        .collect();
    assert_eq!(names, ["merge", "quantize"]);
    let file = Safetensors::open_folder(&path.join("y/packed"))?;
    assert!(file.names().count() == 20);
    Ok(())
}
