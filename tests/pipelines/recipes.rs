//! Recipes and plans: strict keys, filters, decisions.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::error::Error;
use lopper::model::{BlockDims, Checkpoint, Config, Outline, Role, Weights, tensor_specs};
use lopper::plan::Plan;
use lopper::recipe::{EMBEDDED, Recipe};
use lopper::stages::RecipeStage;
use lopper::stages::quantize::Target;
use lopper::tensor::WeightFormat;

pub fn trials() -> Vec<Trial> {
    suite!("recipes": later_stages_decide, types_with_groups, recipes_are_strict, plans_are_pure, the_readmes)
}

/// A type may name its group as tables do; what contradicts that is refused.
fn types_with_groups() -> Result<(), Failed> {
    let format = |keys: &str| -> Result<String, String> {
        let target: Target = toml::from_str(keys).map_err(|error| error.to_string())?;
        match target.explicit().and_then(|target| target.format()) {
            Ok(format) => Ok(format.label()),
            Err(bad) => Err(format!("{}: {}, {}", bad.field, bad.expected, bad.found)),
        }
    };
    for (keys, label) in [
        ("type = \"int8-row\"", "int8-row"),
        ("type = \"INT4-g64\"", "int4-g64"),
        ("type = \"uint3m-g128\"\ngroup_size = 128", "uint3m-g128"),
        ("type = \"q4_0-g32\"", "int4-g32"),
        ("type = \"fp8_e4m3-row\"", "fp8_e4m3-row"),
        ("type = \"q4_k\"", "q4_k"),
    ] {
        assert_eq!(format(keys).as_deref(), Ok(label), "{keys}");
    }
    for (keys, said) in [
        ("type = \"int4-g64\"\ngroup_size = 32", "group_size: 64 beside type int4-g64, 32"),
        ("type = \"int4-g24\"", "group_size: a power of two"),
        ("type = \"q4_0-g64\"", "group_size: 32 beside type q4_0"),
        ("type = \"int4-64\"", "type: int1 to int8"),
        ("type = \"-row\"", "type: int1 to int8"),
    ] {
        let error = format(keys).err().ok_or(keys)?;
        assert!(error.contains(said), "{keys}: {error}");
    }
    Ok(())
}

fn later_stages_decide() -> Result<(), Failed> {
    let mut recipe = Recipe::parse(Path::new("embedded recipe"), EMBEDDED)?;
    let second: RecipeStage = toml::from_str(
        r#"kind = "quantize"
        bits = 8
        include = ["*.down_proj", "lm_head"]
        exclude = ["model.layers.0.*"]"#,
    )?;
    recipe.stage.push(second);
    let plan = Plan::new(&recipe, &Checkpoint::open("embedded:tiny-llama")?)?;
    let decided = |name: &str| {
        plan.tensors.iter().find(|line| line.name == name).map(|line| line.format.label())
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
    assert!(error.exit_code() == 2 && error.to_string().contains(named), "{named}: {error}");
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
        ("grid = \"float-min\"", "include = [\"nothing.*\"]", "include"),
    ] {
        refused(Plan::new(&parse(&EMBEDDED.replace(find, replace))?, &parent), named);
    }
    Ok(())
}

/// A plan needs no model: of a shape alone, stages in any order say what they leave, the same every time.
fn plans_are_pure() -> Result<(), Failed> {
    let tiny = Checkpoint::open("embedded:tiny-llama")?;
    let widths = BlockDims::new(32, 8, 14_336);
    let config = Config {
        hidden_size: 4096,
        head_dim: 128,
        vocab_size: 128_256,
        blocks: vec![widths; 32],
        ..tiny.config().clone()
    };
    let mut specs = tensor_specs(&config);
    specs.retain(|spec| spec.role != Role::Bias);
    let begin = Outline {
        formats: vec![WeightFormat::f16(); specs.len()],
        copies: vec![None; specs.len()],
        specs,
        first: config.clone(),
        config,
        estimated: false,
        uneven: false,
    };
    let text = "model = 'none'\n[[stage]]\nkind = 'quantize'\nbits = 4\n[[stage]]\nkind = 'prune'\nratio = 0.25\nwidths = ['ffn']\n[[stage]]\nkind = 'quantize'\ntype = 'q8_0'\ninclude = ['*.down_proj']\n";
    let recipe = Recipe::parse(Path::new("r.toml"), text)?;
    let mut outline = begin.clone();
    // Of a block: 4096 x (4096 + 1024 + 1024 + 4096) and 3 x 4096 x channels; all of it in 4 bits with a scale and an offset
    // of 32 columns, down_proj in 8 bits with a scale.
    let block = |channels: u64, down: f64| {
        let attention = 4096.0 * 10_240.0 * 5.0 / 8.0;
        let matrix = 4096.0 * channels as f64;
        (attention + matrix * (2.0 * 5.0 / 8.0 + down) + 4.0 * 4096.0) as u64
    };
    let rest = 2 * (2 * 4096 * 128_256 + 4096);
    let expected = [(14_336, 5.0 / 8.0), (10_752, 5.0 / 8.0), (10_752, 8.5 / 8.0)];
    for (stage, (channels, down)) in recipe.stage.iter().zip(expected) {
        let planned = stage.plan(&outline)?;
        assert_eq!(planned, stage.plan(&outline)?);
        let bytes = planned.outline.bytes();
        assert_eq!(bytes, rest + 32 * block(channels, down), "{stage:?}");
        outline = planned.outline;
    }
    // The largest tensor in f16 is far from the whole model.
    let planned = recipe.stage[0].plan(&begin)?;
    assert!(planned.peak_host_bytes * 2 < begin.bytes(), "{planned:?}");
    Ok(())
}

/// Recipes of the README can be planned as they stand there.
fn the_readmes() -> Result<(), Failed> {
    let readme = std::fs::read_to_string("README.md")?;
    let blocks = readme.split("```toml\n").skip(1);
    let texts = blocks.filter_map(|block| block.split("```").next());
    let recipes: Vec<&str> = texts.filter(|text| text.contains("[[stage]]")).collect();
    assert!(recipes.len() >= 3, "{} recipes", recipes.len());
    for text in recipes {
        let recipe = Recipe::parse(Path::new("README.md"), text)?;
        Plan::new(&recipe, &Checkpoint::open(&recipe.model)?)?;
    }
    Ok(())
}
