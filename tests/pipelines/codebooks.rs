//! Codebooks that are learned from weights: the least loss there is, by the program, and what is refused.

use libtest_mimic::{Failed, Trial};
use lopper::device::Random;
use lopper::methods::quantize::clusters::Spread;
use lopper::model::Weights;
use lopper::tensor::{WHOLE_ROW, weight_type};

use crate::models::checkpoint;
use crate::program::{NANO, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("codebooks": least, few_values, columns_count, groups_are_scaled, commands, refused)
}

/// Values as weights are, a row whose largest is 1.
fn row(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut row: Vec<f32> =
        (0..count).map(|_| (0..4).map(|_| random.value()).sum::<f32>() / 4.0).collect();
    (row[0], row[1]) = (1.0, -1.0);
    row
}

fn spread(row: &[f32], squares: Option<&[f32]>) -> Spread {
    let mut spread = Spread::default();
    spread.add(row, row.len(), WHOLE_ROW, squares);
    spread
}

/// Lloyd's iteration between outer entries that stay, from a start: its error is never below the least.
fn lloyd(row: &[f32], mut entries: Vec<f32>) -> Vec<f32> {
    for _ in 0..60 {
        let mut sums = vec![(0.0f64, 0.0f64); entries.len()];
        for value in row {
            let away = |entry: &f32| (value - entry).abs();
            let near =
                (0..entries.len()).min_by(|a, b| away(&entries[*a]).total_cmp(&away(&entries[*b])));
            let sum = &mut sums[near.unwrap_or(0)];
            *sum = (sum.0 + f64::from(*value), sum.1 + 1.0);
        }
        let last = entries.len() - 1;
        for (entry, (sum, count)) in entries[1..last].iter_mut().zip(&sums[1..last]) {
            if *count > 0.0 {
                *entry = (sum / count) as f32;
            }
        }
    }
    entries
}

fn least() -> Result<(), Failed> {
    let row = row(301, 6000);
    let spread = spread(&row, None);
    let mut random = Random::new(302);
    for count in [3, 4, 7, 16, 33] {
        let entries = spread.entries(count);
        assert_eq!((entries.len(), entries[0], entries[count - 1]), (count, -1.0, 1.0));
        assert!(entries.is_sorted(), "{entries:?}");
        let least = spread.loss(&entries);
        // By the values themselves: places of 1/2048 change little.
        let exact = |entries: &[f32]| -> f64 {
            let loss = |value: &f32| {
                let away = entries.iter().map(|entry| f64::from((entry - value).abs()));
                away.fold(f64::INFINITY, f64::min).powi(2)
            };
            let all: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
            row.iter().map(loss).sum::<f64>() / all
        };
        assert!((exact(&entries) - least).abs() < 0.01 * least + 1e-7, "{count}: {least}");
        for _ in 0..20 {
            let mut start: Vec<f32> = (0..count).map(|_| random.value()).collect();
            (start[0], start[count - 1]) = (-1.0, 1.0);
            start.sort_by(f32::total_cmp);
            let found = exact(&lloyd(&row, start));
            assert!(least < 1.01 * found + 1e-7, "{count}: {least}, by iteration {found}");
        }
        // And it stays where iteration would go from it.
        let settled = exact(&lloyd(&row, entries.clone()));
        assert!(exact(&entries) < 1.01 * settled + 1e-7, "{count}: {settled}");
    }
    Ok(())
}

/// As many entries as values lose nothing; more than there are values are still as many as asked for.
fn few_values() -> Result<(), Failed> {
    let row: Vec<f32> = [-1.0, -0.5, 0.0, 0.25, 1.0].repeat(20);
    let spread = spread(&row, None);
    let entries = spread.entries(5);
    for (entry, wanted) in entries.iter().zip([-1.0, -0.5, 0.0, 0.25, 1.0]) {
        assert!((entry - wanted).abs() < 1e-6, "{entries:?}");
    }
    assert!(spread.loss(&entries) < 1e-12);
    let many = spread.entries(256);
    assert!(many.len() == 256 && many.is_sorted() && spread.loss(&many) < 1e-12);
    assert_eq!(spread.entries(2), [-1.0, 1.0]);
    assert!(Spread::default().is_empty() && !spread.is_empty());
    Ok(())
}

/// Columns with larger inputs draw the entries to their values.
fn columns_count() -> Result<(), Failed> {
    let row: Vec<f32> = [-1.0, 1.0, 0.1, 0.5].repeat(30);
    let squares: Vec<f32> = [1.0, 1.0, 9.0, 1.0].repeat(30);
    let (plain, weighted) = (spread(&row, None), spread(&row, Some(&squares)));
    assert!((plain.entries(3)[1] - 0.3).abs() < 1e-6, "{:?}", plain.entries(3));
    assert!((weighted.entries(3)[1] - 0.14).abs() < 1e-6, "{:?}", weighted.entries(3));
    Ok(())
}

/// Groups are scaled each by its own largest value, and count by it; those of zeros not at all.
fn groups_are_scaled() -> Result<(), Failed> {
    let mut row = vec![0.0f32; 48];
    for (group, (scale, share)) in [(1.0f32, 0.2f32), (3.0, 0.6)].into_iter().enumerate() {
        row[16 * group..][..16].fill(scale * share);
        row[16 * group] = -scale;
    }
    let mut spread = Spread::default();
    spread.add(&row, 48, 16, None);
    let wanted = (1.0 * 0.2 + 9.0 * 0.6) / 10.0;
    assert!((spread.entries(3)[1] - wanted).abs() < 1e-6, "{:?}", spread.entries(3));
    Ok(())
}

/// What is found is what `quantize` takes, and loses less than the same number of entries elsewhere; with statistics of inputs too.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    succeeds(
        &folder,
        &format!("calibrate {NANO} --kinds squares --samples 4 --length 32 --out stats"),
    )?;
    for (entries, more) in [(8, ""), (16, ""), (16, " --stats stats")] {
        let run = lopper(&folder, &format!("codebook {NANO} --entries {entries}{more} --json=-"))?;
        let report = run.json()?;
        let losses: Vec<f64> = report["losses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["loss"].as_f64())
            .collect();
        assert_eq!(losses.len(), if entries == 16 { 3 } else { 2 }, "{run}");
        assert!(losses[1..].iter().all(|other| losses[0] < *other), "{losses:?}");
        let run = lopper(&folder, &format!("codebook {NANO} --entries {entries}{more} --quiet"))?;
        let (numbers, out) = (run.out.trim(), format!("q{entries}{}", more.len()));
        succeeds(
            &folder,
            &format!("quantize {NANO} --codebook={numbers} --no-eval --formats packed --out {out}"),
        )?;
        let model = checkpoint(&folder.path().join(&out).join("packed"))?;
        let spec = model.specs().iter().find(|spec| spec.layer.is_some() && !spec.is_plain());
        let format = model.format(spec.ok_or("a layer")?)?;
        let levels: Vec<f32> = (0..entries).map(|code| format.ty.level(code)).collect();
        let wanted: Result<Vec<f32>, _> = numbers.split(',').map(str::parse).collect();
        assert_eq!(levels, wanted?);
        assert!(weight_type(format.ty.name).is_none() && format.group_size == 32);
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    succeeds(
        &folder,
        &format!("calibrate {NANO} --kinds squares --samples 4 --length 32 --out stats"),
    )?;
    for (arguments, said) in [
        (format!("codebook {NANO} --entries 1"), "2 to 256"),
        (format!("codebook {NANO} --entries 257"), "2 to 256"),
        (format!("codebook {NANO} --group-size 24"), "a power of two"),
        (format!("codebook {NANO} --include nothing"), "matches"),
        ("codebook embedded:tiny-llama --stats stats".into(), "these statistics are of"),
        (format!("codebook {NANO} --stats stats --include model.embed_tokens"), "layers of blocks"),
        (format!("quantize {NANO} --codebook 1 --out q"), "2 to 256 finite numbers"),
        (format!("quantize {NANO} --codebook 0,a --out q"), "invalid"),
        (format!("quantize {NANO} --codebook=-1,0,1 --bits 3 --out q"), "bits"),
    ] {
        let run = lopper(&folder, &arguments)?;
        assert!(run.code == Some(2) && run.err.contains(said), "{arguments}: {run}");
    }
    Ok(())
}
