//! Recipes and plans: strict keys, filters, decisions.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::error::Error;
use lopper::model::Checkpoint;
use lopper::plan::Plan;
use lopper::recipe::{EMBEDDED, Recipe, Stage};

pub fn trials() -> Vec<Trial> {
    suite!("recipes": later_stages_decide, recipes_are_strict)
}

fn later_stages_decide() -> Result<(), Failed> {
    let mut recipe = Recipe::parse(Path::new("embedded recipe"), EMBEDDED)?;
    let Stage::Quantize(mut second) = recipe.stage[0].clone() else {
        return Err("the embedded recipe quantizes".into());
    };
    second.bits = 8;
    second.include = vec!["*.down_proj".into(), "lm_head".into()];
    second.exclude = vec!["model.layers.0.*".into()];
    recipe.stage.push(Stage::Quantize(second));
    let plan = Plan::new(&recipe, &Checkpoint::open("embedded:tiny-llama")?)?;
    let decided = |name: &str| {
        plan.tensors
            .iter()
            .find(|line| line.name == name)
            .map(|line| line.format.label())
    };
    let wanted = [
        ("model.layers.0.mlp.down_proj.weight", "uint4m-g32"),
        ("model.layers.1.mlp.down_proj.weight", "uint8m-g32"),
        ("model.layers.1.mlp.up_proj.weight", "uint4m-g32"),
        ("lm_head.weight", "uint8m-g32"),
        ("model.embed_tokens.weight", "f16"),
        ("model.norm.weight", "f16"),
    ];
    for (name, format) in wanted {
        assert_eq!(decided(name).as_deref(), Some(format), "{name}");
    }
    let bytes: u64 = plan.tensors.iter().map(|line| line.output_bytes).sum();
    assert!(bytes == plan.output_bytes, "the total is the lines' sum");
    Ok(())
}

fn refused<T>(result: Result<T, Error>, named: &str) {
    let error = result.err().expect("a wrong recipe");
    assert!(
        error.exit_code() == 2 && error.to_string().contains(named),
        "{named}: {error}"
    );
}

fn recipes_are_strict() -> Result<(), Failed> {
    let parse = |text: &str| Recipe::parse(Path::new("r.toml"), text);
    let embedded = parse(EMBEDDED)?;
    assert_eq!(parse(&embedded.to_toml())?, embedded, "printed and read");
    for (find, replace, named) in [
        ("seed = 0", "sede = 0", "sede"),
        ("group_size = 32", "groupsize = 32", "groupsize"),
        ("ctx = 256", "context = 256", "context"),
        ("kind = \"quantize\"", "kind = \"shrink\"", "shrink"),
        ("grid = \"float-min\"", "grid = \"float\"", "float"),
        ("bits = 4", "bits = \"four\"", "four"),
    ] {
        assert!(EMBEDDED.contains(find), "the embedded recipe has {find}");
        refused(parse(&EMBEDDED.replace(find, replace)), named);
    }
    let parent = Checkpoint::open("embedded:nano-llama")?;
    for (find, replace, named) in [
        ("bits = 4", "bits = 9", "bits"),
        ("group_size = 32", "group_size = 24", "group_size"),
        (
            "grid = \"float-min\"",
            "include = [\"nothing.*\"]",
            "include",
        ),
    ] {
        refused(
            Plan::new(&parse(&EMBEDDED.replace(find, replace))?, &parent),
            named,
        );
    }
    Ok(())
}
