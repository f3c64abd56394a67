//! What the cards of an artifact's folders say of a run: what was made of what, the measured figures, the recipe.

use super::{Figures, Manifest};
use crate::model::{Card, Checkpoint, Config, ExportFormat, fenced};

/// The card of a folder with models in these formats. It says nothing that another run of the same recipe would not: no times.
pub(super) fn card<'a>(
    manifest: &Manifest,
    recipe: &str,
    (config, parent, merged): (&'a Config, &'a Checkpoint, Vec<&'a Checkpoint>),
    formats: &'a [ExportFormat],
) -> Card<'a> {
    let stages = manifest.stages.iter().map(|stage| stage.name.as_str());
    let quantized = stages.clone().any(|name| name == "quantize");
    let unchanged = manifest.stages.is_empty();
    let relation = match merged.is_empty() {
        _ if quantized => "quantized",
        true => "finetune",
        false => "merge",
    };
    let with: Vec<String> =
        manifest.merged.iter().map(|other| format!("`{}`", other.model)).collect();
    let with = match with.is_empty() {
        true => String::new(),
        false => format!(", merged with {}", with.join(", ")),
    };
    let mut text = format!(
        "# {}\n\nMade by Lopper {} of `{}`{with}.\n\n",
        name(parent),
        manifest.lopper,
        manifest.model
    );
    text.push_str(
        "| after | parameters | bytes of tensors | perplexity |\n| --- | ---: | ---: | ---: |\n",
    );
    text.push_str(&row("(parent)", &manifest.parent));
    for stage in &manifest.stages {
        let round = stage.round.map_or(String::new(), |round| format!(", round {round}"));
        text.push_str(&row(&format!("{}{round}", stage.name), &stage.figures));
    }
    if let Some(perplexity) = &manifest.parent.perplexity {
        text.push_str(&format!(
            "\nPerplexity with its standard error: {} tokens scored, windows of {}, convention {}.\n",
            perplexity.tokens_scored,
            perplexity.ctx,
            perplexity.convention.name()
        ));
    }
    if !manifest.warnings.is_empty() {
        text.push_str("\nWhat could not be kept exactly, and similar:\n\n");
        manifest.warnings.iter().for_each(|warning| text.push_str(&format!("- {warning}\n")));
    }
    text.push_str("\n## Recipe\n\n");
    text.push_str(&fenced("toml", recipe));
    Card {
        config,
        parent,
        merged,
        formats,
        relation: (!unchanged).then_some(relation),
        tags: stages.map(str::to_string).collect(),
        text,
    }
}

/// The parent's name for a title: that of its folder or file.
fn name(parent: &Checkpoint) -> String {
    let path = parent.path();
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn row(after: &str, figures: &Figures) -> String {
    let perplexity = figures.perplexity.as_ref();
    let perplexity = perplexity.map_or("not measured".into(), |p| match p.stderr.is_finite() {
        true => format!("{:.4} ± {:.4}", p.value, p.stderr),
        false => format!("{:.4}", p.value),
    });
    format!("| {after} | {} | {} | {perplexity} |\n", figures.parameters, figures.bytes)
}
