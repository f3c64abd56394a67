//! The types that llama-quantize gives each tensor of a mix (Q4_K_M and others), so that files can be compared with its own. As it
//! has them for dense models of up to 70 billion parameters, without an imatrix.

use crate::graph::Slot;
use crate::tensor::{BLOCK, SUPER_BLOCK};

/// A mix.
#[derive(Debug)]
pub struct Mix {
    /// Its name there, in lower case.
    pub name: &'static str,
    /// The type of most tensors.
    base: &'static str,
    /// That of the value, output and down projections of a block, where it is another.
    value: fn(&Place) -> Option<&'static str>,
    output: Option<&'static str>,
    down: fn(&Place) -> Option<&'static str>,
}

/// Where a tensor stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its block, and how many there are.
    pub layer: usize,
    /// How many there are.
    pub layers: usize,
    /// Query heads of a key and value head.
    pub shared: usize,
}

impl Place {
    /// The first and last eighth, and every third between them.
    fn gets_more(&self) -> bool {
        let (layer, eighth) = (self.layer, self.layers / 8);
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

/// The mixes.
pub static MIXES: &[Mix] = &[
    Mix {
        name: "q2_k",
        base: "q2_k",
        value: |place| Some(if place.shared >= 4 { "q4_k" } else { "q3_k" }),
        output: Some("q3_k"),
        down: |_| Some("q3_k"),
    },
    Mix { name: "q3_k_s", base: "q3_k", value: |_| None, output: None, down: |_| None },
    Mix {
        name: "q3_k_m",
        base: "q3_k",
        value: |place| Some(if place.layer < 2 { "q5_k" } else { "q4_k" }),
        output: Some("q4_k"),
        down: |place| Some(if place.layer < place.layers / 16 { "q5_k" } else { "q4_k" }),
    },
    Mix {
        name: "q3_k_l",
        base: "q3_k",
        value: |_| Some("q5_k"),
        output: Some("q5_k"),
        down: |_| Some("q5_k"),
    },
    Mix {
        name: "q4_k_s",
        base: "q4_k",
        value: |place| (place.layer < 4).then_some("q5_k"),
        output: None,
        down: |place| (place.layer < place.layers / 8).then_some("q5_k"),
    },
    Mix {
        name: "q4_k_m",
        base: "q4_k",
        value: |place| place.gets_more().then_some("q6_k"),
        output: None,
        down: |place| place.gets_more().then_some("q6_k"),
    },
    Mix { name: "q5_k_s", base: "q5_k", value: |_| None, output: None, down: |_| None },
    Mix {
        name: "q5_k_m",
        base: "q5_k",
        value: |place| place.gets_more().then_some("q6_k"),
        output: None,
        down: |place| place.gets_more().then_some("q6_k"),
    },
];

/// The mix of that name, in any case.
pub fn mix(name: &str) -> Option<&'static Mix> {
    MIXES.iter().find(|mix| mix.name.eq_ignore_ascii_case(name))
}

impl Mix {
    /// The type of a matrix with rows of `columns`, and the one that it has instead, where those are not whole blocks. `is_head`:
    /// what gives the logits, a tied embedding too. `None`: it stays as it is, as no type of blocks holds its rows.
    pub fn ty(
        &self,
        slot: Slot,
        is_head: bool,
        place: &Place,
        columns: usize,
    ) -> Option<(&'static str, bool)> {
        if !columns.is_multiple_of(BLOCK) {
            return None;
        }
        let whole = columns.is_multiple_of(SUPER_BLOCK);
        if is_head {
            return Some((if whole { "q6_k" } else { "q8_0" }, !whole));
        }
        let own = match slot {
            Slot::Value => (self.value)(place),
            Slot::Output => self.output,
            Slot::Down | Slot::ExpertDown(_) => (self.down)(place),
            _ => None,
        };
        let ty = own.unwrap_or(self.base);
        let instead = match ty {
            _ if whole => return Some((ty, false)),
            "q4_k" => "q5_0",
            "q5_k" => "q5_1",
            "q6_k" => "q8_0",
            _ => "iq4_nl",
        };
        Some((instead, true))
    }
}
