//! From a kernel's source to the WGSL text of a variant: constants in front, imports and repetitions in place.

use super::kernel::{Kernel, Variant};
use crate::gpu::{Complaint, complaint};
use crate::tensor::{Levels, Scale, WeightType};

macro_rules! fragments {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../shaders/shared/", $name, ".wgsl")))),*]
    };
}

/// The texts of `shaders/shared`.
const FRAGMENTS: &[(&str, &str)] = fragments! {
    "activation"
    "adamw_step"
    "append_grouped"
    "append_plain"
    "attention_add_keys"
    "attention_coop"
    "attention_owners"
    "attention_score_grads"
    "attention_scores"
    "attention_seen"
    "attention_tile"
    "block_bytes_1"
    "block_bytes_2"
    "block_bytes_3"
    "block_bytes_4"
    "block_bytes_5"
    "block_bytes_6"
    "block_bytes_7"
    "block_bytes_8"
    "block_bytes_kept_4"
    "block_bytes_kept_8"
    "block_grid"
    "block_grid_super"
    "block_parts_1"
    "block_parts_2"
    "block_parts_3"
    "block_parts_bytes"
    "cached_4"
    "cached_8"
    "cached_f16"
    "cached_f32"
    "cached_grid"
    "code_bytes"
    "code_bytes_kept"
    "code_word_one"
    "code_word_vector"
    "column_shares"
    "coop_before"
    "coop_before_none"
    "coop_direct"
    "coop_staged"
    "coop_weight_blocks"
    "coop_weight_kept"
    "coop_weight_wide"
    "coop_wide_bf16"
    "coop_wide_f16"
    "coop_wide_f32"
    "e4m3_bits"
    "eight_weights"
    "eight_weights_kept"
    "f16_bits"
    "gram_tile"
    "group_grid_affine"
    "group_grid_levels"
    "group_grid_super"
    "group_scale"
    "input_row"
    "integer_block"
    "is_nan"
    "kept_bytes"
    "kept_place"
    "kept_values"
    "lanes_memory"
    "lanes_subgroup"
    "lanes_workgroup"
    "level_float"
    "level_table"
    "lut_four"
    "lut_one"
    "matmul_bindings"
    "matmul_params"
    "minifloat"
    "nearest_code"
    "order_key"
    "pcg4d"
    "prepare_nothing"
    "prepare_table"
    "quad_affine"
    "quad_levels"
    "radix_select"
    "random_exponential"
    "reduce_each_subgroup"
    "reduce_each_workgroup"
    "reduce_subgroup"
    "reduce_workgroup"
    "score_element"
    "soft_cap"
    "span_halves"
    "span_whole"
    "split_end"
    "split_scores"
    "split_sums"
    "store_block"
    "store_four"
    "weight_affine"
    "weight_bf16"
    "weight_f16"
    "weight_f32"
    "weight_kept_f16"
    "weight_levels"
};

/// Codes of 1 to 8 bits as bytes.
const BLOCK_BYTES: [&str; 8] = [
    "block_bytes_1",
    "block_bytes_2",
    "block_bytes_3",
    "block_bytes_4",
    "block_bytes_5",
    "block_bytes_6",
    "block_bytes_7",
    "block_bytes_8",
];

/// The whole WGSL text of a kernel variant: `enable`s, aliases, constants, then the source with its imports in place.
///
/// A line `#import NAME` becomes the fragment `shaders/shared/NAME.wgsl`; `params` stands for the kernel's parameters,
/// `weight`, `reduce` and others for the fragment that the variant asks for.
pub fn compose(kernel: &Kernel, source: &str, variant: &Variant) -> String {
    compose_with(kernel, source, variant, &|name| fragment(name))
}

/// The same, with fragments from elsewhere.
pub fn compose_with<'a>(
    kernel: &Kernel,
    source: &str,
    variant: &Variant,
    fragment: &dyn Fn(&str) -> Option<&'a str>,
) -> String {
    let mut text = String::new();
    if variant.uses_f16() {
        text.push_str("enable f16;\n");
    }
    if variant.coop > 0 {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    text.push_str(&format!(
        "alias act = {};\nalias out_t = {};\n",
        variant.activation, variant.output
    ));
    if let Some(weight) = variant.weight {
        let scale = match weight.scale {
            Scale::None => 0,
            Scale::Symmetric => 1,
            Scale::ZeroPoint => 2,
            Scale::Offset => 3,
            Scale::Level => 4,
            Scale::PowerOfTwo => 5,
            Scale::TwoLevel => 6,
            Scale::SuperOffset(_) => 7,
            Scale::SuperSymmetric(_) => 8,
        };
        // The widest vector of words that a block of codes is a multiple of.
        let (lanes, words) = match code_lanes(weight) {
            lanes if weight.is_sparse() => (lanes, format!("vec{lanes}<u32>")),
            // Cooperative matrices are loaded from f16: 16-bit floats are bound as what they are.
            _ if variant.coop > 0 && weight.levels == Levels::F16 => (1, "vec4<f16>".to_string()),
            _ if variant.coop > 0 && weight.levels == Levels::Bf16 => (2, "vec2<u32>".to_string()),
            1 => (1, "u32".to_string()),
            lanes => (lanes, format!("vec{lanes}<u32>")),
        };
        text.push_str(&format!(
            "const BITS: u32 = {}u;\nconst SCALE: u32 = {scale}u;\nalias code_t = {words};\nconst CODE_LANES: u32 = {lanes}u;\n",
            weight.bits
        ));
        text.push_str(&levels(weight));
        if let Some(of) = weight.super_block() {
            text.push_str(&format!("const GROUP: u32 = {}u;\n", of.group));
        }
    }
    if variant.coop > 0 {
        let edge = variant.coop;
        let matrix = format!("coop_mat{edge}x{edge}");
        text.push_str(&format!(
            "alias coop_a = {matrix}<f16, A>;\nalias coop_b = {matrix}<f16, B>;\nalias coop_c = {matrix}<f32, C>;\nconst COOP: u32 = {edge}u;\n"
        ));
    }
    for (name, value) in variant.constants {
        text.push_str(&format!("const {name}: u32 = {value}u;\n"));
    }
    include(&mut text, source, (kernel, variant), fragment, &mut Vec::new());
    if text.contains("#for ") { repeat(&text, variant) } else { text }
}

/// What is wrong with a user's text in the place of a kernel or of a shared fragment, in the first variant where anything is: the
/// line and column in that text if it is there, and the complaint.
pub fn complaint_of(
    kernel: &Kernel,
    name: &str,
    text: &str,
    variants: &[Variant],
) -> Option<Complaint> {
    const MARK: &str = " //@";
    // Each line carries its number through imports and repetitions; directives are lines that they do not leave.
    let marked =
        text.lines().zip(1..).map(|(line, number)| match line.trim_start().starts_with('#') {
            true => format!("{line}\n"),
            false => format!("{line}{MARK}{number}\n"),
        });
    let marked: String = marked.collect();
    let own = |asked: &str| match name.strip_prefix("shared/") {
        Some(shared) if shared == asked => Some(marked.as_str()),
        _ => fragment(asked),
    };
    let source = if name == kernel.name { marked.as_str() } else { kernel.source };
    for variant in variants {
        let composed = compose_with(kernel, source, variant, &own);
        let Some(found) = complaint(&composed) else { continue };
        let line = found.place.and_then(|(line, _)| composed.lines().nth(line as usize - 1));
        let number = line.and_then(|line| {
            let marked = line.rsplit_once(MARK).and_then(|(_, number)| number.parse().ok());
            marked.or_else(|| Some(text.lines().position(|own| own == line)? as u32 + 1))
        });
        let column = found.place.map_or(1, |(_, column)| column);
        let outside = match number {
            Some(_) => String::new(),
            None => format!(" (in what it is joined with: `{}`)", line.unwrap_or_default().trim()),
        };
        return Some(Complaint {
            place: number.map(|number| (number, column)),
            reason: format!("{}{outside}", found.reason),
        });
    }
    None
}

/// Writes out `#for NAME in COUNT` ... `#end`: the lines between, once for each number below a constant of the variant (or
/// a number), with `{NAME}` replaced. Loops may nest. What must stay in registers, such as an array of cooperative
/// matrices, cannot be left to a compiler's unrolling.
fn repeat(text: &str, variant: &Variant) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let header = line.trim().strip_prefix("#for ");
        let known = |count: &str| {
            let constant = variant.constants.iter().find(|(known, _)| *known == count);
            constant.map(|(_, value)| *value).or(count.parse().ok())
        };
        let parts = header.and_then(|header| header.split_once(" in "));
        // A count that is neither stays in the text, where the parser names it.
        let Some((name, count)) = parts.and_then(|(name, count)| Some((name, known(count)?)))
        else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut body = String::new();
        let mut depth = 1;
        for line in lines.by_ref() {
            depth += i32::from(line.trim().starts_with("#for "));
            depth -= i32::from(line.trim() == "#end");
            if depth == 0 {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        for number in 0..count {
            let copy = body.replace(&format!("{{{name}}}"), &number.to_string());
            out.push_str(&repeat(&copy, variant));
        }
    }
    out
}

/// Appends a text with its imports in place, each fragment once.
fn include<'a>(
    text: &mut String,
    source: &str,
    (kernel, variant): (&Kernel, &Variant),
    fragment: &dyn Fn(&str) -> Option<&'a str>,
    known: &mut Vec<String>,
) {
    for line in source.lines() {
        let name = line.strip_prefix("#import ").map(|name| kernel.resolve(variant, name.trim()));
        if name == Some("params") {
            text.push_str(&(kernel.parameters.wgsl)());
            continue;
        }
        match name.and_then(|name| Some((name, fragment(name)?))) {
            Some((name, _)) if known.iter().any(|seen| seen == name) => {}
            Some((name, imported)) => {
                known.push(name.to_string());
                include(text, imported, (kernel, variant), fragment, known);
            }
            // An unknown import stays in the text, where the parser names it: shaders may come from users.
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

/// Words that shaders load of a weight's codes at once: a block of codes is a multiple of it, and so is a row.
pub fn code_lanes(weight: &WeightType) -> u32 {
    if weight.is_sparse() {
        // Half a block of bytes; of wider codes those of eight columns, which an invocation of `matmul/matvec` takes.
        return if weight.bits == 8 { 4 } else { 2 };
    }
    match weight.bits % 4 {
        0 => 4,
        2 => 2,
        _ => 1,
    }
}

/// Whether levels are looked up: codebooks, and floats of so few bits that a table is quicker than arithmetic.
fn tabled(weight: &WeightType) -> bool {
    match weight.levels {
        Levels::Table(_) => true,
        Levels::Float { .. } => weight.bits <= 4,
        _ => false,
    }
}

/// What `level` needs to know of a type whose codes are levels.
fn levels(weight: &WeightType) -> String {
    if !matches!(weight.levels, Levels::Float { .. } | Levels::Table(_)) {
        return String::new();
    }
    let mut text = format!("const LEVELS: u32 = {}u;\n", weight.codes());
    if tabled(weight) {
        // Places behind the end of a codebook hold 0. Nine digits tell any f32 apart.
        let entries: Vec<String> =
            (0..1u32 << weight.bits).map(|code| format!("{:.9e}f", weight.level(code))).collect();
        let (count, entries) = (entries.len(), entries.join(", "));
        text.push_str(&format!(
            "var<private> level_entries: array<f32, {count}> = array<f32, {count}>({entries});\n"
        ));
    } else if let Levels::Float { exponent, mantissa } = weight.levels {
        text.push_str(&format!(
            "const EXPONENT: u32 = {exponent}u;\nconst MANTISSA: u32 = {mantissa}u;\n"
        ));
    }
    text
}

/// The name of the fragment that an import stands for in a variant.
pub(super) fn resolve<'a>(name: &'a str, variant: &Variant) -> &'a str {
    match name {
        "weight" => variant.weight.map_or("weight_f32", |weight| weight.fragment),
        "prepare" if variant.weight.is_some_and(tabled) => "prepare_table",
        "prepare" => "prepare_nothing",
        "level" if variant.weight.is_some_and(tabled) => "level_table",
        "level" => "level_float",
        "code_word" => match variant.weight.map(code_lanes) {
            Some(2 | 4) => "code_word_vector",
            _ => "code_word_one",
        },
        "quad" => match variant.weight {
            Some(weight) if weight.is_affine() => "quad_affine",
            _ => "quad_levels",
        },
        "group_grid" => match variant.weight {
            Some(weight) if weight.super_block().is_some() => "group_grid_super",
            Some(weight) if weight.is_affine() => "group_grid_affine",
            _ => "group_grid_levels",
        },
        "block_grid" if variant.weight.is_some_and(|weight| weight.super_block().is_some()) => {
            "block_grid_super"
        }
        "block_bytes" if variant.weight.is_some_and(WeightType::is_sparse) => {
            let wide = variant.weight.is_some_and(|weight| weight.bits == 8);
            if wide { "block_bytes_kept_8" } else { "block_bytes_kept_4" }
        }
        "code_bytes" if variant.weight.is_some_and(WeightType::is_sparse) => "code_bytes_kept",
        "eight_weights" => match variant.weight {
            Some(weight) if weight.is_sparse() && weight.levels == Levels::F16 => {
                "eight_weights_kept"
            }
            _ => "eight_weights",
        },
        "block_bytes" => {
            let bits = variant.weight.map_or(8, |weight| weight.bits.min(8));
            BLOCK_BYTES[bits as usize - 1]
        }
        "reduce_each" if variant.subgroups => "reduce_each_subgroup",
        "reduce_each" => "reduce_each_workgroup",
        "lanes" if variant.subgroups => "lanes_subgroup",
        "lanes" => "lanes_workgroup",
        "reduce" if variant.subgroups => "reduce_subgroup",
        "reduce" => "reduce_workgroup",
        other => other,
    }
}

/// The fragment of that name; `None` for a name that a user's shader made up.
pub fn fragment(name: &str) -> Option<&'static str> {
    let found = FRAGMENTS.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text)
}

/// The shared fragments by name.
pub fn fragments() -> impl Iterator<Item = (&'static str, &'static str)> {
    FRAGMENTS.iter().copied()
}
