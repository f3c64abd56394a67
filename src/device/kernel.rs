//! What a kernel is: a name, a WGSL source, its bindings, its variants, and the reference that defines its result.

use glam::UVec3;

use super::case::{Case, Sizes};
use super::host::{Args, Outputs};
use crate::compare::Expected;
use crate::gpu::{Access, Capabilities, Cost};
use crate::tensor::{DType, Levels, Scale, WeightType};

/// The element type of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Always this type.
    Is(DType),
    /// The variant's activation type.
    Activation,
    /// The variant's output type.
    Output,
}

/// One storage binding of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// The name in the WGSL source.
    pub name: &'static str,
    /// How it is used.
    pub access: Access,
    /// What it holds.
    pub element: Element,
}

/// Shorthand for a table of bindings.
pub const fn binding(name: &'static str, access: Access, element: Element) -> Binding {
    Binding {
        name,
        access,
        element,
    }
}

/// A compile-time choice within one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Type of activations read (`alias act`).
    pub activation: DType,
    /// Type of the result (`alias out_t`).
    pub output: DType,
    /// The weight type that the import `weight` decodes.
    pub weight: Option<&'static WeightType>,
    /// Whether the import `reduce` uses subgroup operations.
    pub subgroups: bool,
    /// Edge of the cooperative matrices it uses, 16 or 8; 0: none (`alias coop_a`, `coop_b`, `coop_c`, `const COOP`).
    pub coop: u32,
    /// Further `const NAME: u32` values, register-tile sizes for instance.
    pub constants: &'static [(&'static str, u32)],
}

impl Variant {
    /// The variant that every adapter can run.
    pub const BASELINE: Variant = Variant {
        activation: DType::F32,
        output: DType::F32,
        weight: None,
        subgroups: false,
        coop: 0,
        constants: &[],
    };

    /// Whether a device with these capabilities can run it.
    pub fn runs_on(&self, capabilities: Capabilities) -> bool {
        (!self.uses_f16() || capabilities.f16)
            && (!self.subgroups || capabilities.subgroups)
            && (self.coop == 0 || self.coop == capabilities.cooperative_matrix)
    }

    /// Whether the shader needs `enable f16`.
    pub fn uses_f16(&self) -> bool {
        self.activation == DType::F16 || self.output == DType::F16 || self.coop > 0
    }

    /// The text that names it: `act=f16,out=f32,weight=uint4m,subgroups`.
    pub fn label(&self) -> String {
        let mut parts = vec![
            format!("act={}", self.activation),
            format!("out={}", self.output),
        ];
        parts.extend(self.weight.map(|weight| format!("weight={}", weight.name)));
        parts.extend(
            self.constants
                .iter()
                .map(|(name, value)| format!("{}={value}", name.to_lowercase())),
        );
        if self.subgroups {
            parts.push("subgroups".into());
        }
        if self.coop > 0 {
            parts.push(format!("coop={}", self.coop));
        }
        parts.join(",")
    }

    /// The value of a constant; 1 where the variant has none of that name.
    pub fn constant(&self, name: &str) -> u32 {
        let found = self.constants.iter().find(|(known, _)| *known == name);
        found.map_or(1, |(_, value)| *value)
    }

    /// The type of a binding in this variant.
    pub fn dtype(&self, element: Element) -> DType {
        match element {
            Element::Is(dtype) => dtype,
            Element::Activation => self.activation,
            Element::Output => self.output,
        }
    }
}

/// A row of the kernel table.
///
/// Parameters are one `#[repr(C)]` struct of 4-byte fields, the same on both sides, passed as bytes.
#[derive(Debug)]
pub struct Kernel {
    /// The path below `shaders/` and `src/kernels/`: its name everywhere.
    pub name: &'static str,
    /// The WGSL text before imports are resolved.
    pub source: &'static str,
    /// Storage bindings in the order of group 0.
    pub bindings: &'static [Binding],
    /// Bytes of the parameter struct.
    pub parameter_bytes: usize,
    /// The `override` constants: workgroup sizes.
    pub overrides: &'static [(&'static str, f64)],
    /// Every variant there is.
    pub variants: fn() -> Vec<Variant>,
    /// Workgroups for these parameters.
    pub groups: fn(&Args<'_>) -> UVec3,
    /// What the call asks of the device.
    pub cost: fn(&Args<'_>) -> Cost,
    /// The result, in f64 and plain order, with the bound that a correct device keeps. One entry per written binding,
    /// in binding order, of the whole binding.
    pub reference: fn(&Args<'_>) -> Vec<Expected>,
    /// A quicker f32 version for the CPU device, itself checked against the reference; `None`: the reference serves.
    pub cpu: Option<fn(&Args<'_>, &mut Outputs<'_>)>,
    /// Inputs to try it on, for tests, `verify` and benches alike.
    pub cases: fn() -> Vec<Case>,
    /// A case of any shape, as the sizes say.
    pub random: fn(&Sizes) -> Case,
}

impl Kernel {
    /// The cases to check a variant on.
    pub fn checks(&self, variant: &Variant) -> Vec<Case> {
        (self.cases)()
            .into_iter()
            .filter(|case| !case.large && (case.fits)(variant))
            .collect()
    }

    /// The case that these sizes give; its text names them.
    pub fn sized(&self, sizes: &Sizes) -> Case {
        let case = (self.random)(sizes);
        Case {
            label: format!("{},sizes={sizes}", case.label),
            ..case
        }
    }

    /// The shapes to time a variant on.
    pub fn shapes(&self, variant: &Variant) -> Vec<Case> {
        (self.cases)()
            .into_iter()
            .filter(|case| case.large && (case.fits)(variant))
            .collect()
    }

    /// Whether a variant's text holds the shared fragment of that name.
    pub fn imports(&self, variant: &Variant, name: &str) -> bool {
        fn holds(source: &str, variant: &Variant, name: &str) -> bool {
            source
                .lines()
                .filter_map(|line| line.strip_prefix("#import "))
                .map(|import| resolve(import.trim(), variant))
                .any(|import| {
                    import == name
                        || fragment(import).is_some_and(|text| holds(text, variant, name))
                })
        }
        holds(self.source, variant, name)
    }

    /// The bindings that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, &Binding)> {
        self.bindings
            .iter()
            .enumerate()
            .filter(|(_, binding)| binding.access != Access::Read)
    }
}

const FRAGMENTS: &[(&str, &str)] = &[
    (
        "f16_bits",
        include_str!("../../shaders/shared/f16_bits.wgsl"),
    ),
    ("is_nan", include_str!("../../shaders/shared/is_nan.wgsl")),
    (
        "matmul_bindings",
        include_str!("../../shaders/shared/matmul_bindings.wgsl"),
    ),
    (
        "matmul_params",
        include_str!("../../shaders/shared/matmul_params.wgsl"),
    ),
    (
        "reduce_each_subgroup",
        include_str!("../../shaders/shared/reduce_each_subgroup.wgsl"),
    ),
    (
        "reduce_each_workgroup",
        include_str!("../../shaders/shared/reduce_each_workgroup.wgsl"),
    ),
    (
        "reduce_subgroup",
        include_str!("../../shaders/shared/reduce_subgroup.wgsl"),
    ),
    (
        "reduce_workgroup",
        include_str!("../../shaders/shared/reduce_workgroup.wgsl"),
    ),
    (
        "code_bytes",
        include_str!("../../shaders/shared/code_bytes.wgsl"),
    ),
    (
        "code_word_one",
        include_str!("../../shaders/shared/code_word_one.wgsl"),
    ),
    (
        "code_word_vector",
        include_str!("../../shaders/shared/code_word_vector.wgsl"),
    ),
    ("codes4", include_str!("../../shaders/shared/codes4.wgsl")),
    (
        "store_block",
        include_str!("../../shaders/shared/store_block.wgsl"),
    ),
    (
        "group_scale",
        include_str!("../../shaders/shared/group_scale.wgsl"),
    ),
    (
        "level_float",
        include_str!("../../shaders/shared/level_float.wgsl"),
    ),
    (
        "level_table",
        include_str!("../../shaders/shared/level_table.wgsl"),
    ),
    (
        "minifloat",
        include_str!("../../shaders/shared/minifloat.wgsl"),
    ),
    (
        "weight_levels",
        include_str!("../../shaders/shared/weight_levels.wgsl"),
    ),
    (
        "weight_affine",
        include_str!("../../shaders/shared/weight_affine.wgsl"),
    ),
    (
        "weight_bf16",
        include_str!("../../shaders/shared/weight_bf16.wgsl"),
    ),
    (
        "weight_f16",
        include_str!("../../shaders/shared/weight_f16.wgsl"),
    ),
    (
        "weight_f32",
        include_str!("../../shaders/shared/weight_f32.wgsl"),
    ),
];

/// Codes of 1 to 8 bits as bytes.
const BLOCK_BYTES: [(&str, &str); 8] = [
    (
        "block_bytes_1",
        include_str!("../../shaders/shared/block_bytes_1.wgsl"),
    ),
    (
        "block_bytes_2",
        include_str!("../../shaders/shared/block_bytes_2.wgsl"),
    ),
    (
        "block_bytes_3",
        include_str!("../../shaders/shared/block_bytes_3.wgsl"),
    ),
    (
        "block_bytes_4",
        include_str!("../../shaders/shared/block_bytes_4.wgsl"),
    ),
    (
        "block_bytes_5",
        include_str!("../../shaders/shared/block_bytes_5.wgsl"),
    ),
    (
        "block_bytes_6",
        include_str!("../../shaders/shared/block_bytes_6.wgsl"),
    ),
    (
        "block_bytes_7",
        include_str!("../../shaders/shared/block_bytes_7.wgsl"),
    ),
    (
        "block_bytes_8",
        include_str!("../../shaders/shared/block_bytes_8.wgsl"),
    ),
];

/// The whole WGSL text of a kernel variant: `enable`s, aliases, constants, then the source with its imports in place.
///
/// A line `#import NAME` becomes the fragment `shaders/shared/NAME.wgsl`; `weight` and `reduce` stand for the fragment
/// that the variant asks for.
pub fn compose(source: &str, variant: &Variant) -> String {
    compose_with(source, variant, &|name| fragment(name))
}

/// The same, with fragments from elsewhere.
pub fn compose_with<'a>(
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
        };
        // The widest vector of words that a block of codes is a multiple of.
        let (lanes, words) = match code_lanes(weight) {
            1 => (1, "u32".to_string()),
            lanes => (lanes, format!("vec{lanes}<u32>")),
        };
        text.push_str(&format!(
            "const BITS: u32 = {}u;\nconst SCALE: u32 = {scale}u;\nalias code_t = {words};\nconst CODE_LANES: u32 = {lanes}u;\n",
            weight.bits
        ));
        text.push_str(&levels(weight));
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
    include(&mut text, source, variant, fragment, &mut Vec::new());
    text
}

/// Appends a text with its imports in place, each fragment once.
fn include<'a>(
    text: &mut String,
    source: &str,
    variant: &Variant,
    fragment: &dyn Fn(&str) -> Option<&'a str>,
    known: &mut Vec<String>,
) {
    for line in source.lines() {
        let name = line
            .strip_prefix("#import ")
            .map(|name| resolve(name.trim(), variant));
        match name.and_then(|name| Some((name, fragment(name)?))) {
            Some((name, _)) if known.iter().any(|seen| seen == name) => {}
            Some((name, imported)) => {
                known.push(name.to_string());
                include(text, imported, variant, fragment, known);
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
    match weight.bits % 4 {
        0 => 4,
        2 => 2,
        _ => 1,
    }
}

/// What `level` needs to know of a type whose codes are levels.
fn levels(weight: &WeightType) -> String {
    match weight.levels {
        Levels::Float { exponent, mantissa } => {
            format!(
                "const EXPONENT: u32 = {exponent}u;\nconst MANTISSA: u32 = {mantissa}u;\nconst LEVELS: u32 = {}u;\n",
                weight.codes()
            )
        }
        Levels::Table(table) => {
            // Places behind the end of a codebook hold 0. Nine digits tell any f32 apart.
            let entries: Vec<String> = (0..1u32 << weight.bits)
                .map(|code| format!("{:.9e}f", weight.level(code)))
                .collect();
            format!(
                "const LEVELS: u32 = {}u;\nvar<private> level_table: array<f32, {}> = array<f32, {}>({});\n",
                table.len(),
                entries.len(),
                entries.len(),
                entries.join(", ")
            )
        }
        _ => String::new(),
    }
}

/// The name of the fragment that an import stands for in a variant.
fn resolve<'a>(name: &'a str, variant: &Variant) -> &'a str {
    match name {
        "weight" => variant
            .weight
            .map_or("weight_f32", |weight| weight.fragment),
        "level" => match variant.weight.map(|weight| weight.levels) {
            Some(Levels::Table(_)) => "level_table",
            _ => "level_float",
        },
        "code_word" => match variant.weight.map(code_lanes) {
            Some(2 | 4) => "code_word_vector",
            _ => "code_word_one",
        },
        "block_bytes" => {
            BLOCK_BYTES[variant.weight.map_or(8, |weight| weight.bits.min(8)) as usize - 1].0
        }
        "reduce_each" if variant.subgroups => "reduce_each_subgroup",
        "reduce_each" => "reduce_each_workgroup",
        "reduce" if variant.subgroups => "reduce_subgroup",
        "reduce" => "reduce_workgroup",
        other => other,
    }
}

/// The fragment of that name; `None` for a name that a user's shader made up.
pub fn fragment(name: &str) -> Option<&'static str> {
    let found = fragments().find(|(known, _)| *known == name);
    found.map(|(_, text)| text)
}

/// The shared fragments by name.
pub fn fragments() -> impl Iterator<Item = (&'static str, &'static str)> {
    FRAGMENTS.iter().chain(&BLOCK_BYTES).copied()
}

/// Workgroups for `count` independent pieces of work, folded into two dimensions: a shader finds its piece as
/// `group.y * groups.x + group.x`.
pub fn fold(count: usize) -> UVec3 {
    const PORTABLE: usize = 65_535;
    let count = count.max(1);
    let rows = count.div_ceil(PORTABLE);
    UVec3::new(count.div_ceil(rows) as u32, rows as u32, 1)
}
