//! What `verify` and `bench` say of what they cannot run, and the pages that they write.

use libtest_mimic::{Failed, Trial};
use lopper::gpu::{Options, Tier};
use lopper::measure::speed::peaks;
use lopper::measure::trust::verify::{RandomCases, Selection, Status, verify};

use crate::machine::open;
use crate::program::{command, lopper};

pub fn trials() -> Vec<Trial> {
    suite!("cli_pages":
        a_case_as_a_page, bench_page, peaks_know_names;
        gpu: a_case_too_large_is_skipped, random_cases_replay, bench_says_where)
}

/// On a device whose bindings are small, the large case is left out with the reason, and the others run.
fn a_case_too_large_is_skipped() -> Result<(), Failed> {
    let runner =
        open(Options { tier: Tier::Baseline, max_binding: Some(1 << 20), ..Options::default() })?;
    let selection = Selection::new(Some("gate/glu"))?;
    let mut rows = Vec::new();
    verify(&runner, &selection, RandomCases::default(), 0, |_| {}, |row| rows.push(row))?;
    let skipped: Vec<_> = rows
        .iter()
        .filter(|row| row.status == Status::Skip)
        .map(|row| row.reason.as_str())
        .collect();
    let passed = rows.iter().filter(|row| row.status == Status::Pass).count();
    if skipped != ["skipped: needs 5 MiB binding, adapter has 1 MiB"] || passed + 1 != rows.len() {
        return Err(format!("{skipped:?}, {passed} of {} passed", rows.len()).into());
    }
    Ok(())
}

/// The same seed gives the same shapes, another seed others, and a shape's text runs that shape alone.
fn random_cases_replay() -> Result<(), Failed> {
    let cases = |arguments: &[&str]| -> Result<Vec<String>, Failed> {
        let folder = tempfile::tempdir()?;
        let mut command = command(folder.path(), "verify --tier baseline --json=-");
        let out = command.args(arguments).output()?;
        let report: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        let rows = report["rows"].as_array().ok_or("rows")?.iter();
        let text = |row: &serde_json::Value| row["case"].as_str().unwrap_or_default().to_string();
        Ok(rows.map(text).filter(|case| case.contains(",sizes=")).collect())
    };
    let first = cases(&["--kernel", "kv/append", "--random", "3", "--seed", "5"])?;
    let again = cases(&["--kernel", "kv/append", "--random", "3", "--seed", "5"])?;
    let other = cases(&["--kernel", "kv/append", "--random", "3", "--seed", "6"])?;
    if first.len() != 3 || first != again || first == other {
        return Err(format!("{first:?} {again:?} {other:?}").into());
    }
    let text = format!("kv/append {}", first[1]);
    let alone = cases(&["--kernel", &text, "--random", "0"])?;
    assert!(alone == first[1..2], "{text}: {alone:?}");
    Ok(())
}

fn a_case_as_a_page() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let text = "residual/add [act=f32,out=f32] count=5,-infinity";
    let mut command = command(folder.path(), "verify --page case.html --kernel");
    let out = command.arg(text).output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    let page = std::fs::read_to_string(folder.path().join("case.html"))?;
    for part in
        [text, "fn main(", "\"groups\":[1,1,1]", "requestAdapter", "\"access\":\"read_write\""]
    {
        assert!(page.contains(part), "the page lacks {part}");
    }
    // Which of many cases? It asks, and writes nothing.
    let run = lopper(&folder, "verify --page other.html --kernel residual/add")?;
    let asked = run.code == Some(2) && run.err.contains("the whole text of one case");
    assert!(asked && !folder.path().join("other.html").exists(), "{run}");
    Ok(())
}

fn bench_page() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let bench = "bench model embedded:nano-llama --device cpu -p 8 -n 0 -r 1 --html";
    let run = lopper(&folder, &format!("{bench} page.html"))?;
    let page = std::fs::read_to_string(folder.path().join("page.html"))?;
    for part in
        ["<p>embedded:nano-llama · llama 0.4M f16 · cpu</p>", "<th class=\"number\">avg_ts</th>"]
    {
        assert!(page.contains(part), "no {part}: {page}");
    }
    if run.code != Some(0) || !page.contains("pp8") || !page.contains("prefers-color-scheme") {
        return Err(format!("{:?}: {}{}\n{page}", run.code, run.out, run.err).into());
    }
    let run = lopper(&folder, &format!("{bench} no/such/folder/page.html"))?;
    assert!(run.code == Some(4) && run.err.contains("no/such/folder"), "{run}");
    Ok(())
}

fn peaks_know_names() -> Result<(), Failed> {
    let memory = |name: &str| peaks::of(name).map(|peak| peak.memory);
    let expected = [
        ("NVIDIA H100 80GB HBM3", Some(3352.0)),
        ("NVIDIA GeForce RTX 4080 SUPER", Some(736.3)),
        ("NVIDIA GeForce RTX 4080", Some(716.8)),
        ("NVIDIA GeForce RTX 4070 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", Some(864.0)),
        ("NVIDIA L4", Some(300.0)),
        ("Apple M1 Max", Some(400.0)),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", None),
    ];
    for (name, want) in expected {
        if memory(name) != want {
            return Err(format!("{name}: {:?}, not {want:?}", memory(name)).into());
        }
    }
    Ok(())
}

/// Rows of products say where they were measured, as all rows do, and so does their page.
fn bench_says_where() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let bench =
        "bench types --device gpu --type f16 --shape 32x64 --tokens 1 -o json --html p.html";
    let rows = crate::program::runs(&folder, bench)?.json()?;
    let row = &rows[0];
    for key in ["gpu_info", "backends", "driver"] {
        assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {row}");
    }
    let page = std::fs::read_to_string(folder.path().join("p.html"))?;
    let adapter = row["gpu_info"].as_str().unwrap_or_default();
    assert!(page.contains(&format!("<p>{adapter} · ")), "{page}");
    Ok(())
}
