//! Sweeps: which recipes they come to, their figures beside those of a single run, and that a killed one goes on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use libtest_mimic::{Failed, Trial};
use lopper::recipe::Sweep;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{SHORT, command, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("sweep": recipes, figures)
}

const SWEEP: &str = r#"
model = "embedded:nano-llama"
draws = 2

[[text]]
text = "embedded:heldout-2026"
ctx = 128
max_tokens = 1024

[[case]]
name = "l2"
vary = { key = "ratio", values = [0.25, 0.5, 0.001] }
[[case.stage]]
kind = "prune"
score = "l2"
widths = ["ffn"]

[[case]]
name = "first"
[[case.stage]]
kind = "prune"
score = "param_first"
ratio = 0.25
widths = ["ffn"]
[case.stage.calibration]
samples = 2
length = 32
offset = 100
"#;

/// Draws take the rows behind each other; where nothing is drawn there is one.
fn recipes() -> Result<(), Failed> {
    let sweep = Sweep::parse(Path::new("s.toml"), SWEEP)?;
    let points = sweep.points(Path::new("s.toml"))?;
    let found: Vec<_> = points
        .iter()
        .map(|point| (point.case.as_str(), point.value.as_deref(), point.draw, point.recipe.seed))
        .collect();
    let wanted = [
        ("l2", Some("0.25"), 0, 0),
        ("l2", Some("0.5"), 0, 0),
        ("l2", Some("0.001"), 0, 0),
        ("first", None, 0, 0),
        ("first", None, 1, 1),
    ];
    assert_eq!(found, wanted);
    let offset = |point: usize| {
        let stage = &points[point].recipe.stage[0];
        stage.needs().calibration.map(|calibration| calibration.offset)
    };
    assert_eq!((offset(3), offset(4)), (Some(100), Some(164)), "first tokens");
    let folder = TempDir::new()?;
    for (from, to, said) in [
        ("draws = 2", "draws = 0", "draws"),
        ("draws = 2", "draw = 2", "draw"),
        ("name = \"first\"", "name = \"l2\"", "a name of its own"),
        ("vary = { key", "vary = { stage = 2, key", "1 to 1, the case's stages"),
        ("key = \"ratio\"", "key = \"ration\"", "ration"),
        ("ctx = 128", "ctxx = 128", "ctxx"),
    ] {
        std::fs::write(folder.path().join("s.toml"), SWEEP.replacen(from, to, 1))?;
        lopper(&folder, "compress s.toml --sweep --out o --device cpu")?.refused(2, said);
        assert!(!folder.path().join("o").exists() && !folder.path().join("o.work").exists());
    }
    Ok(())
}

/// Rows without what depends on the moment.
fn timeless(mut rows: Value) -> Value {
    for row in rows.as_array_mut().into_iter().flatten() {
        row["seconds"] = 0.into();
    }
    rows
}

/// A row has what a single run measures; a killed sweep goes on to the same rows.
fn figures() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("s.toml"), SWEEP)?;
    let sweep = "compress s.toml --sweep --out";
    let planned = succeeds(&folder, &format!("{sweep} whole --dry-run"))?;
    assert!(planned.out.contains("not run") && planned.out.contains("param"), "{planned}");
    assert!(!folder.path().join("whole").exists(), "a dry run writes nothing");
    succeeds(&folder, &format!("{sweep} whole"))?;
    let rows = read_json(folder.path().join("whole/sweep.json"))?["rows"].clone();
    assert_eq!(rows.as_array().map(Vec::len), Some(5), "rows");
    assert!(rows[2]["refused"].as_str().is_some_and(|why| why.contains("ratio")), "{}", rows[2]);
    let single =
        format!("prune embedded:nano-llama --score l2 --ratio 0.25 --widths ffn {SHORT} --out p");
    succeeds(&folder, &single)?;
    let manifest = read_json(folder.path().join("p/manifest.json"))?;
    let figures = &manifest["stages"][0]["figures"];
    assert_eq!(rows[0]["parameters"], figures["parameters"], "parameters");
    assert_eq!(rows[0]["nonzero"], rows[0]["parameters"], "what is cut leaves no zeros");
    let close = |found: &Value, wanted: &Value| {
        let (found, wanted) = (found.as_f64().unwrap_or(0.0), wanted.as_f64().unwrap_or(1.0));
        assert!((found / wanted - 1.0).abs() < 1e-6, "{found} for {wanted}");
    };
    let on = &rows[0]["texts"][0];
    close(&on["perplexity"], &figures["perplexity"]["value"]);
    close(&on["base_perplexity"], &manifest["parent"]["perplexity"]["value"]);
    let kl = |row: usize| rows[row]["texts"][0]["kl"].as_f64().unwrap_or(f64::NAN);
    assert!(0.0 < kl(0) && kl(0) < kl(1), "{} and {}", kl(0), kl(1));
    assert!(kl(3) > 0.0 && kl(3) != kl(4), "two draws");
    let table = std::fs::read_to_string(folder.path().join("whole/sweep.md"))?;
    assert!(table.contains(" ± ") && table.contains("not run"), "{table}");
    let plot = std::fs::read_to_string(folder.path().join("whole/sweep.svg"))?;
    assert_eq!(plot.matches("<polyline").count(), 4, "two lines in two panels");
    lopper(&folder, &format!("{sweep} whole"))?.refused(4, "--force");

    let arguments = format!("{sweep} killed");
    let mut child = command(folder.path(), &format!("{arguments} --device cpu"))
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().ok_or("a pipe")?;
    BufReader::new(out).read_line(&mut String::new())?;
    child.kill()?;
    child.wait()?;
    lopper(&folder, &arguments)?.refused(4, "--resume");
    // Rows of two types would not compare.
    lopper(&folder, &format!("{arguments} --resume --device cpu --compute f16"))?
        .refused(4, "compute");
    succeeds(&folder, &format!("{arguments} --resume"))?;
    let killed = read_json(folder.path().join("killed/sweep.json"))?["rows"].clone();
    assert_eq!(timeless(killed), timeless(rows), "rows after a kill");
    assert!(!folder.path().join("killed.work").exists(), "a work folder is left");
    Ok(())
}
