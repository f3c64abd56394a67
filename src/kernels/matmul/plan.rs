//! Which kernel computes a product: an analytic order of the candidates, best first, and the measured winner where the device
//! was tuned.

use super::{FEW_TOKENS, bitserial, coop, dot4, lut, lut8, matvec, tiled, trits};
use crate::device::{Case, Engine, Kernel, Variant};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes;
use crate::kernels::quantize::activations::Rounding;
use crate::tensor::{BLOCK, DType, WHOLE_ROW, WeightFormat};

/// A product, as far as the choice of its kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Type of the activations.
    pub activation: DType,
    /// Bytes of an activation in integer products, 1 to 3.
    pub bytes: u32,
    /// Type of the result.
    pub output: DType,
    /// How the weight is stored.
    pub weight: WeightFormat,
    /// How it is to be computed.
    pub engine: Engine,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Rows of activations.
    pub tokens: usize,
}

/// A kernel and a variant of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// A variant of its table, so that it has been checked (a test holds that).
    pub variant: Variant,
    /// Parts that the columns are split in, to have more workgroups; [`merge`](super::merge) adds up their sums.
    pub splits: u32,
}

impl Choice {
    /// The text that names it in reports and in the table of winners.
    pub fn label(&self) -> String {
        let label = format!("{} [{}]", self.kernel.name, self.variant.label());
        if self.splits > 1 {
            format!("{label} splits={}", self.splits)
        } else {
            label
        }
    }

    /// How activations are rounded where the kernel takes integers; `None` where it takes them as they are.
    pub fn rounding(&self) -> Option<Rounding> {
        let integers = *self.kernel == dot4::KERNEL || self.trits().is_some();
        integers.then(|| Rounding::of(&self.variant))
    }

    /// Whether the kernel takes the activations as tables.
    pub fn looks_up(&self) -> bool {
        *self.kernel == lut::KERNEL
    }

    /// Whether the kernel takes the activations as tables of bytes.
    pub fn looks_up_bytes(&self) -> bool {
        *self.kernel == lut8::KERNEL
    }

    /// Whether the kernel takes the activations as bit planes.
    pub fn counts_bits(&self) -> bool {
        *self.kernel == bitserial::KERNEL
    }

    /// Whether the kernel takes the weight as bit planes.
    pub fn takes_planes(&self) -> bool {
        self.looks_up() || self.looks_up_bytes() || self.counts_bits()
    }

    /// Weights to an index, 2 or 3, where the kernel takes ternary codes as those of sums.
    pub fn trits(&self) -> Option<usize> {
        (*self.kernel == trits::KERNEL).then(|| self.variant.constant("TRITS") as usize)
    }

    /// A case of that shape, for the checks and the measurement of tuning.
    pub fn case(&self, product: &Product) -> Case {
        let Product {
            rows,
            columns,
            tokens,
            weight,
            ..
        } = *product;
        let group = weight.group_size;
        match self.rounding() {
            Some(_) if self.trits().is_some() => trits::shaped(rows, columns, tokens, group),
            Some(_) => dot4::shaped(rows, columns, tokens, group),
            None if self.splits > 1 => {
                super::cases::split(rows, columns, tokens, self.splits as usize)
            }
            None if self.looks_up() => lut::shaped(rows, columns, tokens, group),
            None if self.looks_up_bytes() => lut8::shaped(rows, columns, tokens, group),
            None if self.counts_bits() => bitserial::shaped(rows, columns, tokens, group),
            None => super::cases::plain(rows, columns, tokens, group),
        }
    }
}

impl Product {
    /// Products that share a winner: sizes up to the same power of two, tokens up to the same step.
    pub fn class(&self) -> String {
        const STEPS: [usize; 7] = [1, 4, 8, 16, 32, 64, 128];
        let tokens = STEPS
            .iter()
            .find(|step| self.tokens <= **step)
            .unwrap_or(&512);
        // Winners among all engines are what `auto` asks for; those of one engine are its own.
        let engine = match self.engine {
            Engine::Auto => "",
            Engine::Mul => "engine=mul,",
            Engine::Lut => "engine=lut,",
            Engine::BitSerial => "engine=bitserial,",
        };
        format!(
            "{engine}act={},bytes={},out={},weight={},tokens={tokens},rows={},columns={}",
            self.activation,
            self.bytes,
            self.output,
            self.weight.label(),
            self.rows.next_power_of_two(),
            self.columns.next_power_of_two()
        )
    }

    /// Every way to compute it on a device with these capabilities, the analytic choice first.
    pub fn candidates(&self, capabilities: Capabilities) -> Vec<Choice> {
        let few = self.tokens <= FEW_TOKENS;
        let planes = match self.engine {
            // Bits of activations are eight: not where more were asked for.
            Engine::Auto if few && self.bytes == 1 => {
                [self.by_lookup(), self.by_counting()].concat()
            }
            Engine::Auto if few => self.by_lookup(),
            Engine::Auto | Engine::Mul => Vec::new(),
            Engine::Lut => self.by_lookup(),
            Engine::BitSerial => self.by_counting(),
        };
        if self.engine != Engine::Auto && !planes.is_empty() {
            return planes;
        }
        let matrix_units = self.on_matrix_units(capabilities);
        let integers = if few {
            self.in_integers(capabilities)
        } else {
            Vec::new()
        };
        // Many tokens are many times as quick on matrix units.
        let floats = if few || matrix_units.is_empty() {
            self.in_floats(capabilities)
        } else {
            Vec::new()
        };
        // Where the weight's bytes are the limit, integers: they take least work apart from loading.
        [integers, matrix_units, floats, planes].concat()
    }

    /// Whether the weight can stand as bit planes, in groups of whole blocks.
    fn has_planes(&self) -> bool {
        let group = self.weight.group_size as usize;
        let whole_blocks = self.weight.group_size == WHOLE_ROW || group.is_multiple_of(BLOCK);
        planes::takes(self.weight.ty) && whole_blocks
    }

    /// By counting the bits of activations of eight.
    fn by_counting(&self) -> Vec<Choice> {
        let choice = |constants: &'static [(&'static str, u32)]| Choice {
            kernel: &bitserial::KERNEL,
            variant: Variant {
                output: self.output,
                weight: Some(self.weight.ty),
                constants,
                ..Variant::BASELINE
            },
            splits: 1,
        };
        let shapes = bitserial::SHAPES.into_iter();
        shapes.filter(|_| self.has_planes()).map(choice).collect()
    }

    /// By tables of sums of activations: of bytes where activations of one byte were asked for.
    fn by_lookup(&self) -> Vec<Choice> {
        if trits::multiplies(self.weight) {
            return self.by_ternary_lookup();
        }
        if !self.has_planes() {
            return Vec::new();
        }
        let choice = |tables: DType, constants: &'static [(&'static str, u32)]| Choice {
            kernel: &lut::KERNEL,
            variant: Variant {
                activation: tables,
                output: self.output,
                weight: Some(self.weight.ty),
                constants,
                ..Variant::BASELINE
            },
            splits: 1,
        };
        if self.bytes == 1 {
            let choice = |constants| Choice {
                kernel: &lut8::KERNEL,
                variant: Variant {
                    output: self.output,
                    weight: Some(self.weight.ty),
                    constants,
                    ..Variant::BASELINE
                },
                splits: 1,
            };
            return lut8::SHAPES.into_iter().map(choice).collect();
        }
        // Tables in f32 lose nothing; those in f16 are for activations that were rounded already, and hold four tokens.
        let types: &[DType] = match self.activation {
            DType::F16 => &[DType::F16, DType::F32],
            _ => &[DType::F32],
        };
        let choices = types.iter().flat_map(|tables| {
            let shapes = lut::shapes(self.weight.ty, *tables, self.tokens);
            shapes.map(|constants| choice(*tables, constants))
        });
        choices.collect()
    }

    /// By tables of sums of integers, where weights are ternary.
    fn by_ternary_lookup(&self) -> Vec<Choice> {
        let choice = |constants: &&'static [(&'static str, u32)]| Choice {
            kernel: &trits::KERNEL,
            variant: Variant {
                output: self.output,
                weight: Some(self.weight.ty),
                constants,
                ..Variant::BASELINE
            },
            splits: 1,
        };
        let shapes = trits::shapes(self.bytes, self.output).iter();
        shapes.map(choice).collect()
    }

    /// By cooperative matrices: the largest tile that, split along the columns if need be, leaves enough workgroups to fill a
    /// large device; then what else may be quickest.
    fn on_matrix_units(&self, capabilities: Capabilities) -> Vec<Choice> {
        const ENOUGH: usize = 128;
        // Columns of a part, so that what a part costs beside its products stays small.
        const LEAST: usize = 512;
        let mut choices: Vec<(bool, Choice)> = Vec::new();
        for tile in &coop::TILES {
            let variant = |output| {
                let base = Variant {
                    output,
                    weight: Some(self.weight.ty),
                    ..Variant::BASELINE
                };
                coop::with_tile(&base, tile)
            };
            let whole = variant(self.output);
            if self.activation != DType::F16 || !whole.runs_on(capabilities) {
                return Vec::new();
            }
            let tokens = coop::tile_tokens(&whole) as usize;
            // No tile of which more than half would be empty, nor a small one beside a larger that fills the device.
            let small = tokens * 4 < self.tokens && choices.iter().any(|(enough, _)| *enough);
            if small || (tokens > 16 && self.tokens <= tokens / 2) {
                continue;
            }
            let workgroups = self.tokens.div_ceil(tokens) * self.rows.div_ceil(128);
            let most = (self.columns / LEAST).clamp(1, 8);
            let wanted = ENOUGH.div_ceil(workgroups).next_power_of_two();
            let mut splits = vec![wanted.min(most)];
            if wanted > 1 {
                splits.extend([(2 * wanted).min(most), 1]);
            }
            splits.dedup();
            choices.extend(splits.into_iter().map(|splits| {
                let split = splits > 1;
                let choice = Choice {
                    kernel: &coop::KERNEL,
                    variant: variant(if split { DType::F32 } else { self.output }),
                    splits: splits as u32,
                };
                (workgroups * splits >= ENOUGH, choice)
            }));
        }
        let best = choices.iter().position(|(enough, _)| *enough);
        let best = best.unwrap_or(choices.len() - 1);
        choices[..=best].rotate_right(1);
        choices.into_iter().map(|(_, choice)| choice).collect()
    }

    /// By integer dot products of activations in so many bytes as were asked for.
    fn in_integers(&self, capabilities: Capabilities) -> Vec<Choice> {
        let group = self.weight.group_size as usize;
        let whole_blocks = self.weight.group_size == WHOLE_ROW || group.is_multiple_of(BLOCK);
        // The table has f16 results with subgroups and of up to two bytes only.
        let known = self.output == DType::F32 || (capabilities.subgroups && self.bytes < 3);
        let can = capabilities.integer_dot && known && whole_blocks;
        if !can || !dot4::takes(self.weight.ty) {
            return Vec::new();
        }
        let all = self.output == DType::F32 && capabilities.subgroups;
        let shapes = dot4::shapes(self.bytes, self.tokens);
        let shapes = if all { shapes } else { &shapes[..1] };
        let wide = self.columns.is_multiple_of(2 * BLOCK) && (group == 0 || group > BLOCK);
        let pairs = dot4::pairs(self.weight.ty, self.bytes, self.tokens);
        let pairs = match (wide, all) {
            (true, true) => pairs,
            // The first is in the table for f16 results too.
            (true, false) => &pairs[..pairs.len().min(1)],
            (false, _) => &[],
        };
        let variant = |constants: &&'static [_]| Variant {
            output: self.output,
            weight: Some(self.weight.ty),
            subgroups: capabilities.subgroups,
            constants,
            ..Variant::BASELINE
        };
        pairs
            .iter()
            .chain(shapes)
            .map(variant)
            .map(|variant| Choice {
                kernel: &dot4::KERNEL,
                variant,
                splits: 1,
            })
            .collect()
    }

    /// By multiply-adds in f32. Runs everywhere.
    fn in_floats(&self, capabilities: Capabilities) -> Vec<Choice> {
        let base = Variant {
            activation: self.activation,
            output: self.output,
            weight: Some(self.weight.ty),
            ..Variant::BASELINE
        };
        if self.tokens > FEW_TOKENS {
            // The large tile where it leaves enough workgroups to fill a large device; a processor has few cores to fill.
            let workgroups = self.rows.div_ceil(128) * self.tokens.div_ceil(128);
            let enough = if capabilities.processor { 2 } else { 128 };
            let mut tiles = tiled::TILES.to_vec();
            if workgroups >= enough && self.tokens > 64 {
                tiles.reverse();
            }
            return tiles
                .into_iter()
                .filter(|constants| tiled::large(&base) || *constants == tiled::TILES[0])
                .map(|constants| Choice {
                    kernel: &tiled::KERNEL,
                    variant: Variant {
                        constants,
                        ..base.clone()
                    },
                    splits: 1,
                })
                .collect();
        }
        let shapes: &[_] = if self.tokens == 1 {
            &matvec::ONE
        } else {
            &matvec::FOUR
        };
        shapes
            .iter()
            .map(|constants| Choice {
                kernel: &matvec::KERNEL,
                variant: Variant {
                    constants,
                    subgroups: capabilities.subgroups,
                    ..base.clone()
                },
                splits: 1,
            })
            .collect()
    }

    /// The kernel to run: the winner that tuning found for the class, or else the analytic choice.
    pub fn choose(&self, capabilities: Capabilities, winner: Option<&str>) -> Choice {
        let mut candidates = self.candidates(capabilities);
        let place = winner.and_then(|winner| candidates.iter().position(|c| c.label() == winner));
        candidates.swap_remove(place.unwrap_or(0))
    }
}
