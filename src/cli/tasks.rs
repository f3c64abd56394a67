//! `lopper tasks`: what `--task` takes.

use serde_json::json;

use super::output::{Output, table};
use crate::data::{EMBEDDED_TASKS, LAYOUTS, read_task};
use crate::error::Result;

pub(super) fn run(output: &Output) -> Result<()> {
    let mut embedded = Vec::new();
    let mut rows = vec![["task", "questions", "examples"].map(String::from).to_vec()];
    for name in EMBEDDED_TASKS {
        let task = read_task(name, None)?;
        let pool = task.pool.as_ref().map(Vec::len);
        let examples = pool.map_or("from the questions".into(), |n| format!("from {n} others"));
        embedded.push(json!({"name": name, "questions": task.items.len(), "examples": pool}));
        rows.push(vec![(*name).into(), task.items.len().to_string(), examples]);
    }
    let layouts: Vec<_> = LAYOUTS.iter().filter(|layout| !layout.from.is_empty()).collect();
    let published = layouts
        .iter()
        .map(|layout| json!({"layout": layout.name, "from": layout.from, "form": layout.shape}));
    output.json(&json!({
        "schema": 1, "embedded": embedded, "published": published.collect::<Vec<_>>(),
    }))?;
    output.text(&table(&rows));
    output.line("\nOf published tasks the file is given: --task FILE, or LAYOUT:FILE\n");
    let mut rows = vec![["layout", "its file comes from", "form"].map(String::from).to_vec()];
    let cells = layouts.iter().map(|layout| [layout.name, layout.from, layout.shape]);
    rows.extend(cells.map(|cells| cells.map(String::from).to_vec()));
    output.text(&table(&rows));
    output.line(
        "\nAny other JSONL or CSV file: --task FILE.toml, which describes it (see the README)",
    );
    Ok(())
}
