//! `verify` and `bench`: what they report, and what they do when a driver misbehaves.

use libtest_mimic::{Failed, Trial};
use lopper::gpu::{Selector, adapters};
use serde_json::Value;

use crate::machine::gpu_trial;
use crate::program::{Run, has_fields, lopper, read_json};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cli_verify":
        known_names_are_offered, bench_model_rows, bench_compare_judges_noise, on_the_cpu, formats_are_exact;
        gpu: rows_of_the_contract, a_failing_case_is_accepted_back, user_shader_is_judged, loops_without_end, bench_rows,
             compared_with_itself);
    trials.extend([
        gpu_trial("cli_verify::abort_is_a_failed_row".into(), || broken("abort:2", "SIGABRT")),
        gpu_trial("cli_verify::hang_is_a_failed_row".into(), || broken("hang:2", "hung")),
        // Of Mesa, which can be told what version to give; CI installs it.
        Trial::test("cli_verify::opengl_es_where_opengl_is_old", old_opengl)
            .with_ignored_flag(!mesa_opengl()),
    ]);
    trials
}

fn run(arguments: &str, code: i32) -> Result<Run, Failed> {
    let run = lopper(tempfile::tempdir()?, arguments)?;
    assert!(run.code == Some(code), "{arguments}: not {code}: {run}");
    Ok(run)
}

fn verify(arguments: &str, code: i32) -> Result<Value, Failed> {
    run(&format!("verify {arguments} --json=-"), code)?.json()
}

fn rows(report: &Value) -> Result<&Vec<Value>, Failed> {
    report["rows"].as_array().ok_or_else(|| "rows is an array".into())
}

fn known_names_are_offered() -> Result<(), Failed> {
    for (wrong, near) in
        [("matmul/tilde", "matmul/tiled"), ("shared/minifloats", "shared/minifloat")]
    {
        run(&format!("verify --kernel {wrong}"), 2)?.refused(2, near);
    }
    Ok(())
}

fn rows_of_the_contract() -> Result<(), Failed> {
    let report = verify("--kernel norm/*", 0)?;
    let rows = rows(&report)?;
    assert!(
        report["schema"] == 1
            && report["failed"] == 0
            && report["passed"] == rows.len()
            && rows.len() >= 8,
        "{report}"
    );
    for row in rows {
        has_fields(row, "kernel case tier adapter backend driver status error tolerance reason");
        let within = row["error"]
            .as_f64()
            .is_some_and(|error| error <= row["tolerance"].as_f64().unwrap_or(0.0));
        assert!(row["status"] == "pass" && within, "{row}");
    }
    Ok(())
}

fn mesa_opengl() -> bool {
    let selector = Selector { backend: Some(wgpu::Backend::Gl), name: None };
    let found = adapters(&selector);
    found.iter().any(|adapter| adapter.driver().contains("Mesa"))
}

/// Where desktop OpenGL is older than compute shaders, OpenGL ES takes its place, by a context that is not wgpu's.
fn old_opengl() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let arguments = "verify --backend gl --kernel norm/rms --json=-";
    let mut command = crate::program::command(folder.path(), arguments);
    let output = command.env("MESA_GL_VERSION_OVERRIDE", "3.3").output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = rows(&report)?;
    let es = |row: &Value| {
        let driver = row["driver"].as_str().unwrap_or_default();
        driver.contains("OpenGL ES 3") && row["status"] == "pass"
    };
    assert!(!rows.is_empty() && rows.iter().all(es), "{report}");
    Ok(())
}

fn a_failing_case_is_accepted_back() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let text = "norm/rms [act=f32,out=f32] rows=3,columns=97,epsilon=1e-5";
    let mut command =
        crate::program::command(folder.path(), "verify --tier baseline --json=- --kernel");
    let output = command.arg(text).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert!(report["passed"] == 1 && rows(&report)?.len() == 1, "{report}");
    Ok(())
}

/// The broken case is a failed row that says why, and every other case still runs.
fn broken(inject: &str, reason: &str) -> Result<(), Failed> {
    let arguments = format!("--kernel norm/rms --tier baseline --case-timeout 5 --inject {inject}");
    let report = verify(&arguments, 1)?;
    let whole = verify("--kernel norm/rms --tier baseline", 0)?;
    let failed: Vec<&Value> = rows(&report)?.iter().filter(|row| row["status"] == "fail").collect();
    let same = rows(&report)?.len() == rows(&whole)?.len();
    let said = |row: &Value| row["reason"].as_str().is_some_and(|text| text.contains(reason));
    assert!(same && matches!(failed[..], [row] if said(row)), "{report}");
    Ok(())
}

/// Mesa's software adapter leaves such a loop by itself, with right results; a real GPU hangs.
fn loops_without_end() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let source = std::fs::read_to_string("shaders/residual/add.wgsl")?;
    let verify =
        "verify --tier baseline --kernel residual/add --random 1 --shader mine.wgsl --json=-";
    let end = source.rfind('}').ok_or("an end")?;
    for (added, code) in [
        ("loop { if params.count == 0u { break; } }", 1),
        ("var n = 1u; while n != 0u { n = n | 2u; }", 1),
        ("for (var i = 0u; i < 2u; i++) { var n = 0; loop { continuing { break if n > 0; } } }", 1),
        (
            "var s = 0u; for (var i = 0u; i < 9u; i++) { for (var j = 0u; j < 9000u; j++) { s ^= j; } }",
            0,
        ),
    ] {
        let text = format!("{}    {added}\n}}\n", &source[..end]);
        std::fs::write(folder.path().join("mine.wgsl"), text)?;
        let run = lopper(&folder, verify)?;
        assert!(run.code == Some(code), "{added}: not {code}: {run}");
        let report = run.json()?;
        for row in rows(&report)?.iter().filter(|_| code == 1) {
            let reason = row["reason"].as_str().ok_or("a reason")?;
            assert!(reason.contains("did not end within 60000 rounds"), "{added}: {reason}");
        }
    }
    Ok(())
}

fn user_shader_is_judged() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let source = std::fs::read_to_string("shaders/norm/rms.wgsl")?;
    let verify = "verify --tier baseline --kernel norm/rms --shader mine.wgsl";
    let try_text = |text: &str, code: i32| -> Result<(), Failed> {
        std::fs::write(folder.path().join("mine.wgsl"), text)?;
        let run = lopper(&folder, verify)?;
        assert!(run.code == Some(code), "{run}");
        Ok(())
    };
    try_text(&source, 0)?;
    try_text(&source.replace("mean + params.epsilon", "mean"), 1)?;
    // What is no shader is told once, by the user's file and line, whatever is joined in front of it; an import that does not
    // exist too.
    let line = source.lines().position(|line| line.contains("mean + params.epsilon"));
    let line = line.ok_or("the line")? + 1;
    for (from, to, place) in [
        ("mean + params.epsilon", "mean + + * params.epsilon", format!("line {line}, column ")),
        ("mean + params.epsilon", "mean + params.nothing", format!("line {line}, column ")),
        ("#import reduce", "#import nonsense", "line ".into()),
    ] {
        std::fs::write(folder.path().join("mine.wgsl"), source.replace(from, to))?;
        for command in [verify, "bench kernels --kernel norm/rms --shader mine.wgsl"] {
            let run = lopper(&folder, command)?;
            run.refused(2, &format!("mine.wgsl & {place}"));
            assert_eq!(run.err.matches("mine.wgsl").count(), 1, "{run}");
        }
    }
    // A wrong result is a number of bounds, and the hint tries the same shader.
    std::fs::write(
        folder.path().join("mine.wgsl"),
        source.replace("mean + params.epsilon", "mean"),
    )?;
    let run = lopper(&folder, &format!("{verify} --json=v.json"))?;
    let report = read_json(folder.path().join("v.json"))?;
    let error = |row: &Value| row["error"].as_f64().unwrap_or(0.0);
    let failed = rows(&report)?.iter().filter(|row| row["status"] == "fail");
    let worst = failed.map(error).fold(0.0, f64::max);
    let told = run.out.contains(&format!("{worst:.1e} of")) && !run.out.contains(" 0.00 ");
    assert!(worst > 1.0 && told && run.err.contains("' --shader mine.wgsl --page"), "{run}");
    Ok(())
}

/// The CPU is judged where it is asked for: no adapter is opened.
fn on_the_cpu() -> Result<(), Failed> {
    let report = run("verify --device cpu --kernel norm/rms --json=-", 0)?.json()?;
    let all = rows(&report)?;
    let cpu = all.iter().all(|row| row["adapter"] == "cpu" && row["status"] == "pass");
    assert!(cpu && !all.is_empty(), "{report}");
    run("verify --device cpu --kernel norm/rms --tier f16", 2)?.refused(2, "--tier");
    Ok(())
}

fn bench_rows() -> Result<(), Failed> {
    let report = run("bench kernels --kernel residual/add -o json", 0)?.json()?;
    let rows = report.as_array().ok_or("rows")?;
    for row in rows {
        assert_eq!(row["schema"], 1);
        let positive = ["us", "gbps", "percent_of_ceiling"]
            .iter()
            .all(|key| row[*key].as_f64().is_some_and(|v| v > 0.0));
        let right = row["verified"] == true && row["kernel"] == "residual/add";
        assert!(positive && right, "{row}");
    }
    assert!(!rows.is_empty(), "no row");
    Ok(())
}

/// A run beside itself: every row is found, of every kind of bench.
fn compared_with_itself() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (bench, count) in [
        ("types --type f16,int8-g32 --shape 64x128 --tokens 1", 2),
        ("lut --bits 2 --shape 64x128 --tokens 2", 6),
    ] {
        crate::program::runs(&folder, &format!("bench {bench} --json=a.json"))?;
        let all = read_json(folder.path().join("a.json"))?;
        let all = all.as_array().map_or(0, Vec::len);
        assert_eq!(all, count, "{bench}");
        let run =
            crate::program::runs(&folder, "bench --compare a.json a.json --json=-")?.json()?;
        let found = rows(&run)?;
        let same = found.iter().all(|row| row["judgement"] == "the same");
        assert!(found.len() == all && same, "{bench}: {run}");
        let names: std::collections::BTreeSet<_> =
            found.iter().map(|row| row["row"].as_str()).collect();
        assert_eq!(names.len(), all, "{bench}: a name for each row");
    }
    Ok(())
}

/// Counts stay counts in every format, and columns of SQL have their types.
fn formats_are_exact() -> Result<(), Failed> {
    let bench = "bench model embedded:nano-llama --device cpu -p 8 -n 0 -r 1 -o";
    let size = run(&format!("{bench} json"), 0)?.json()?[0]["model_size"].clone();
    assert_eq!(size, 721_536);
    let row = run(&format!("{bench} jsonl"), 0)?.json()?;
    assert_eq!(row["schema"], 1);
    assert!(run(&format!("{bench} csv"), 0)?.out.contains("\"721536\""));
    let sql = run(&format!("{bench} sql"), 0)?.out;
    for words in ["model_size INTEGER", "avg_ts REAL", "test TEXT", ", 721536, "] {
        assert!(sql.contains(words), "`{words}` is due: {sql}");
    }
    Ok(())
}

/// llama-bench's names, and rates that follow from its samples.
fn bench_model_rows() -> Result<(), Failed> {
    let bench = "bench model embedded:nano-llama --device cpu";
    let report = run(&format!("{bench} -p 16,32 -n 4 -d 8 -r 3 -o json"), 0)?.json()?;
    let rows = report.as_array().ok_or("rows")?;
    let tests: Vec<_> = rows.iter().map(|row| row["test"].as_str().unwrap_or_default()).collect();
    assert_eq!(tests, ["pp16 @ d8", "pp32 @ d8", "tg4 @ d8"]);
    for row in rows {
        let samples: Vec<f64> =
            row["samples_ns"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let tokens = row["n_prompt"].as_f64().unwrap_or(0.0) + row["n_gen"].as_f64().unwrap_or(0.0);
        let mean_ns = samples.iter().sum::<f64>() / samples.len() as f64;
        let mean_ts =
            samples.iter().map(|ns| tokens / ns * 1e9).sum::<f64>() / samples.len() as f64;
        let near = |key: &str, value: f64| {
            row[key].as_f64().is_some_and(|v| (v / value - 1.0).abs() < 1e-3)
        };
        has_fields(row, "model_filename model_type model_size model_n_params test_time stddev_ts");
        let rates = near("avg_ns", mean_ns) && near("avg_ts", mean_ts);
        assert!(samples.len() == 3 && rates, "{row}");
    }
    run(&format!("{bench} -p 600"), 2).map(drop)
}

fn bench_compare_judges_noise() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let row = |shape: &str, us: f64| serde_json::json!({"kernel": "k", "variant": "v", "shape": shape, "us": us, "us_spread": 1.0});
    let write = |name: &str, rows: Vec<Value>| {
        std::fs::write(folder.path().join(name), Value::Array(rows).to_string())
    };
    let before = [("same", 100.0), ("faster", 100.0), ("slower", 100.0), ("gone", 1.0)];
    let after = [("same", 103.0), ("faster", 90.0), ("slower", 110.0)];
    write("a.json", before.map(|(shape, us)| row(shape, us)).to_vec())?;
    write("b.json", after.map(|(shape, us)| row(shape, us)).to_vec())?;
    let report = lopper(&folder, "bench --compare a.json b.json --json=-")?.json()?;
    let judged: Vec<_> =
        rows(&report)?.iter().map(|row| row["judgement"].as_str().unwrap_or_default()).collect();
    let missing = lopper(&folder, "bench --compare a.json nowhere.json")?;
    assert_eq!(judged, ["within noise", "better", "worse"]);
    assert!(missing.code == Some(2), "{missing}");
    Ok(())
}
