//! What a kernel is: a name, a WGSL source, its bindings, its variants, and the reference that defines its result.

use glam::UVec3;

use super::case::{Case, CaseData, Sizes};
use super::compose::{fragment, resolve};
use super::host::{Args, Outputs};
use crate::compare::Expected;
use crate::gpu::{Access, Capabilities, Cost};
use crate::tensor::{DType, WeightType};

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
    Binding { name, access, element }
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

    /// The baseline with these types of activations and result.
    pub fn typed(activation: DType, output: DType) -> Self {
        Self { activation, output, ..Self::BASELINE }
    }

    /// The same, with or without subgroup operations.
    pub fn with_subgroups(self, subgroups: bool) -> Self {
        Self { subgroups, ..self }
    }

    /// Whether a device with these capabilities can run it.
    pub fn runs_on(&self, capabilities: Capabilities) -> bool {
        (!self.uses_f16() || capabilities.f16)
            && (!self.subgroups || capabilities.subgroups)
            && (self.coop == 0 || self.coop == capabilities.cooperative_matrix)
            && [1, capabilities.subgroup_size].contains(&self.constant("SUBGROUP"))
    }

    /// Whether the shader needs `enable f16`.
    pub fn uses_f16(&self) -> bool {
        self.activation == DType::F16 || self.output == DType::F16 || self.coop > 0
    }

    /// The text that names it: `act=f16,out=f32,weight=uint4m,subgroups`.
    pub fn label(&self) -> String {
        let mut parts = vec![format!("act={}", self.activation), format!("out={}", self.output)];
        parts.extend(self.weight.map(|weight| format!("weight={}", weight.name)));
        parts.extend(
            self.constants.iter().map(|(name, value)| format!("{}={value}", name.to_lowercase())),
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

/// A kernel's parameters, on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// Bytes of the Rust struct.
    pub bytes: usize,
    /// The WGSL struct `Params` and its binding, what the import `params` stands for.
    pub wgsl: fn() -> String,
}

/// A type that a field of a kernel's parameters may have.
pub trait Field {
    /// The WGSL of a field of that name: one line, or several where the type is a struct.
    fn wgsl(name: &str) -> String;
}

impl Field for u32 {
    fn wgsl(name: &str) -> String {
        format!("    {name}: u32,\n")
    }
}

impl Field for f32 {
    fn wgsl(name: &str) -> String {
        format!("    {name}: f32,\n")
    }
}

/// Defines the parameters of a kernel: the `#[repr(C)]` struct and, as its `LAYOUT`, the WGSL text of the same fields, so that
/// the two sides cannot disagree.
macro_rules! params {
    ($(#[$doc:meta])* struct $name:ident { $($(#[$about:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name {
            $($(#[$about])* pub(crate) $field: $ty,)*
        }

        impl $name {
            pub(crate) const LAYOUT: $crate::device::Parameters = $crate::device::Parameters {
                bytes: size_of::<$name>(),
                wgsl: || {
                    let fields = [$(<$ty as $crate::device::Field>::wgsl(stringify!($field))),*];
                    let binding = "@group(1) @binding(0) var<uniform> params: Params;\n";
                    format!("struct Params {{\n{}}}\n{binding}", fields.concat())
                },
            };
        }
    };
}
pub(crate) use params;

/// A row of the kernel table.
///
/// Parameters are one struct of 4-byte fields, the same on both sides ([`params!`]), passed as bytes.
#[derive(Debug)]
pub struct Kernel {
    /// The path below `shaders/` and `src/kernels/`: its name everywhere.
    pub name: &'static str,
    /// The WGSL text before imports are resolved.
    pub source: &'static str,
    /// Storage bindings in the order of group 0.
    pub bindings: &'static [Binding],
    /// The parameters, as [`params!`] defined them.
    pub parameters: Parameters,
    /// The shared fragment that an import of the source stands for in a variant; `None`: the one of that name.
    pub imports: fn(&Variant, &str) -> Option<&'static str>,
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

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Kernel {}

impl Kernel {
    /// What a row says that says nothing else: one variant, no constants, no CPU version, no imports but shared ones. Name,
    /// source, bindings, parameters, groups, cost, reference and cases are every row's own.
    pub(crate) const BASE: Kernel = Kernel {
        name: "",
        source: "",
        bindings: &[],
        parameters: Parameters { bytes: 0, wgsl: String::new },
        imports: |_, _| None,
        overrides: &[],
        variants: || vec![Variant::BASELINE],
        groups: |_| UVec3::ONE,
        cost: |_| Cost::default(),
        reference: |_| Vec::new(),
        cpu: None,
        cases: Vec::new,
        random: |_| Case::new("", |_| CaseData::default()),
    };

    /// The name of the fragment that an import stands for in a variant.
    pub(super) fn resolve<'a>(&self, variant: &Variant, name: &'a str) -> &'a str {
        (self.imports)(variant, name).unwrap_or_else(|| resolve(name, variant))
    }

    /// The cases to check a variant on.
    pub fn checks(&self, variant: &Variant) -> Vec<Case> {
        (self.cases)().into_iter().filter(|case| !case.large && (case.fits)(variant)).collect()
    }

    /// The case that these sizes give; its text names them.
    pub fn sized(&self, sizes: &Sizes) -> Case {
        let case = (self.random)(sizes);
        Case { label: format!("{},sizes={sizes}", case.label), ..case }
    }

    /// The shapes to time a variant on.
    pub fn shapes(&self, variant: &Variant) -> Vec<Case> {
        (self.cases)().into_iter().filter(|case| case.large && (case.fits)(variant)).collect()
    }

    /// Whether a variant's text holds the shared fragment of that name.
    pub fn imports(&self, variant: &Variant, name: &str) -> bool {
        self.holds(self.source, variant, name)
    }

    fn holds(&self, source: &str, variant: &Variant, name: &str) -> bool {
        source
            .lines()
            .filter_map(|line| line.strip_prefix("#import "))
            .map(|import| self.resolve(variant, import.trim()))
            .any(|import| {
                let text = fragment(import);
                import == name || text.is_some_and(|text| self.holds(text, variant, name))
            })
    }

    /// The bindings that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, &Binding)> {
        self.bindings.iter().enumerate().filter(|(_, binding)| binding.access != Access::Read)
    }
}

/// Workgroups in the first dimension at most, where they are folded.
pub const FOLDED: usize = 1024;

/// Workgroups for `count` independent pieces of work, folded into two dimensions: a shader finds its piece as
/// `group.y * groups.x + group.x`. Devices have 65 535 in a dimension; it is folded long before, so that a case with more than
/// [`FOLDED`] pieces tries it without a software adapter's seconds and gigabytes.
pub fn fold(count: usize) -> UVec3 {
    let count = count.max(1);
    let rows = count.div_ceil(FOLDED);
    UVec3::new(count.div_ceil(rows) as u32, rows as u32, 1)
}
