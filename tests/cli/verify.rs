//! `verify` and `bench`: what they report, and what they do when a driver misbehaves.

use libtest_mimic::{Failed, Trial};
use lopper::gpu::{Selector, adapters};
use serde_json::Value;

use crate::machine::gpu_trial;
use crate::program::{Run, has_fields, lopper};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cli_verify":
        known_names_are_offered, bench_model_rows, bench_compare_judges_noise;
        gpu: rows_of_the_contract, a_failing_case_is_accepted_back, user_shader_is_judged, loops_without_end, bench_rows);
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
    try_text("this is no shader", 1)?;
    // An import that does not exist is the shader's mistake, told by the parser; it is no crash.
    std::fs::write(
        folder.path().join("mine.wgsl"),
        source.replace("#import reduce", "#import nonsense"),
    )?;
    let run = lopper(&folder, &format!("{verify} --fail-fast"))?;
    let told = run.out.contains("nonsense") && !run.out.contains("process ended");
    assert!(run.code == Some(1) && told, "{run}");
    Ok(())
}

fn bench_rows() -> Result<(), Failed> {
    let report = run("bench kernels --kernel residual/add -o json", 0)?.json()?;
    let rows = report.as_array().ok_or("rows")?;
    for row in rows {
        let positive = ["us", "gbps", "percent_of_ceiling"]
            .iter()
            .all(|key| row[*key].as_f64().is_some_and(|v| v > 0.0));
        let right = row["verified"] == true && row["kernel"] == "residual/add";
        assert!(positive && right, "{row}");
    }
    assert!(!rows.is_empty(), "no row");
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
