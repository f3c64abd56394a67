//! Rows of an encoder-decoder's tokens on a device: of each the source's tokens, which the encoder reads, then the target's, which
//! the decoder writes. So a pass takes rows of one length, and has one residual stream, as every other model's; a block takes its
//! part's tokens out of the stream and puts them back.

use std::borrow::Cow;
use std::cell::RefCell;

use super::{PositionBias, Slot};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::kernels::attention::Seen;
use crate::kernels::attention::bias::{Bias, Distances};
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::tensor::DType;

/// A part of a row of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What the encoder reads: every token sees all of them.
    Source,
    /// What the decoder writes: a token sees those before it, and the source.
    Target,
}

/// Which buckets of a bias the distances from a token to a key fall into (Raffel et al. 2020, T5, arXiv 1910.10683, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistanceBuckets {
    /// Buckets of each of the two biases: even, 4 or more.
    pub count: usize,
    /// From here on all distances are in the last bucket: more than `count / 2`.
    pub far: usize,
}

impl DistanceBuckets {
    /// Most buckets, and the farthest distance that has one.
    pub const MOST: usize = 1 << 12;

    /// The buckets of distances, key less token, from -far to far: for tokens that see both sides half of them for each side, for
    /// those that see what is before them all of them for that. One of a distance each for the nearest, then as many again whose
    /// distances grow by one factor. In f32, as `transformers` computes them: where one begins is rounded as there.
    pub fn of(self, part: Part) -> Vec<u32> {
        let far = self.far as i64;
        let both = part == Part::Source;
        let buckets = if both { self.count / 2 } else { self.count };
        let exact = buckets / 2;
        let bucket = |distance: i64| {
            let size = match both {
                true => distance.unsigned_abs() as usize,
                false => (-distance).max(0) as usize,
            };
            let after = if both && distance > 0 { buckets } else { 0 };
            let within = if size < exact {
                size
            } else {
                let ratio = (size as f32 / exact as f32).ln();
                let whole = (self.far as f64 / exact as f64).ln() as f32;
                let more = (ratio / whole * (buckets - exact) as f32) as usize;
                (exact + more).min(buckets - 1)
            };
            (after + within) as u32
        };
        (-far..=far).map(bucket).collect()
    }
}

/// Rows of a source and a target each.
#[derive(Clone, Debug)]
pub struct PairedRows {
    /// Tokens of a source, with what fills it up; the place of the target's first token.
    width: usize,
    /// Tokens of each source, u32 (rows).
    ends: Tensor,
    /// The place of each target's first token, u32 (rows).
    starts: Tensor,
    /// Zeros, u32 (rows): places of targets that stand alone.
    zeros: Tensor,
    /// The tokens of a pass that begins with the sources, by part, if it has some.
    source: Option<PartRows>,
    target: Option<PartRows>,
    /// The buckets of distances in both parts, where scores have a bias by distance.
    distances: Option<[Distances; 2]>,
    /// The biases that blocks of each part had last: all of a stack have one.
    biases: RefCell<[Option<Bias>; 2]>,
}

/// Where the tokens of a part stand among those of a pass.
#[derive(Clone, Debug)]
struct PartRows {
    count: usize,
    /// From the pass's tokens to the part's.
    out: Rows,
    /// Back.
    back: Rows,
}

impl PartRows {
    /// The places `from` to `to` of rows of one length.
    fn upload(
        device: &Device,
        (sequences, length): (usize, usize),
        places: std::ops::Range<usize>,
    ) -> Result<Option<Self>> {
        let all = (0..sequences).flat_map(|row| places.clone().map(move |at| row * length + at));
        let out: Vec<(u32, u32)> = all.zip(0u32..).map(|(at, to)| (at as u32, to)).collect();
        if out.is_empty() {
            return Ok(None);
        }
        let back: Vec<(u32, u32)> = out.iter().map(|(at, to)| (*to, *at)).collect();
        let (out_list, back) = (Rows::upload(device, &out)?, Rows::upload(device, &back)?);
        Ok(Some(Self { count: out.len(), out: out_list, back }))
    }
}

impl PairedRows {
    /// Rows of `length` tokens each, whose first `width` are the source's, `sources` of them; the others fill up. `length` is at
    /// least `width`.
    pub fn upload(
        device: &Device,
        buckets: Option<DistanceBuckets>,
        sources: &[u32],
        width: usize,
        length: usize,
    ) -> Result<Self> {
        let words = |values: &[u32], what: &str| {
            device.upload(&HostTensor::from_u32(&[values.len()], values), what)
        };
        let of = |buckets: DistanceBuckets, part| {
            Distances::upload(device, &buckets.of(part), buckets.count)
        };
        let both = |buckets| Ok([of(buckets, Part::Source)?, of(buckets, Part::Target)?]);
        let rows = (sources.len(), length);
        Ok(Self {
            width,
            ends: words(sources, "tokens of sources")?,
            starts: words(&vec![width as u32; sources.len()], "places of targets")?,
            zeros: words(&vec![0; sources.len()], "places of targets alone")?,
            source: PartRows::upload(device, rows, 0..width)?,
            target: PartRows::upload(device, rows, width..length)?,
            distances: buckets.map(both).transpose()?,
            biases: RefCell::default(),
        })
    }

    /// The place of the target's first token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All tokens of the sources.
    pub(super) fn sources(&self) -> Seen<'_> {
        Seen::all(&self.ends)
    }

    /// The place of each target's first token, u32 (rows).
    pub(super) fn starts(&self) -> &Tensor {
        &self.starts
    }

    /// What tokens of a part see of it where it stands alone.
    pub(super) fn alone(&self, part: Part) -> Seen<'_> {
        match part {
            Part::Source => self.sources(),
            Part::Target => Seen::causal(&self.zeros),
        }
    }

    /// A block's bias by distance within a part, if it has one, as attention takes it. It is kept for the stack's other blocks: as long
    /// as there are these rows, a table stays as it is.
    pub(super) fn bias(
        &self,
        device: &Device,
        bias: Option<&PositionBias>,
        part: Part,
    ) -> Result<Option<Bias>> {
        let Some(PositionBias { table, .. }) = bias else { return Ok(None) };
        let place = usize::from(part == Part::Target);
        let mut known = self.biases.borrow_mut();
        if let Some(known) = known[place].as_ref().filter(|known| known.table().is(table)) {
            return Ok(Some(known.clone()));
        }
        let both = self.distances.as_ref().expect("a model with a bias by distance has buckets");
        let made = Bias::new(device, table, &both[place], self.alone(part).ends)?;
        Ok(Some(known[place].insert(made).clone()))
    }

    /// The row of a table that is added to each token of rows without targets: of positions that of its place, of token types the
    /// first.
    pub(super) fn table_rows(&self, slot: Slot) -> Cow<'static, [u32]> {
        let (rows, width) = (self.ends.len() as u32, self.width as u32);
        let row = |place: u32| if slot == Slot::Positions { place } else { 0 };
        (0..rows).flat_map(|_| (0..width).map(row)).collect()
    }

    fn rows(&self, part: Part) -> Option<&PartRows> {
        match part {
            Part::Source => self.source.as_ref(),
            Part::Target => self.target.as_ref(),
        }
    }

    /// The rows of `all`, f32 (tokens, columns), of a part's tokens, a copy; `None` where there are none.
    pub(super) fn take(&self, device: &Device, all: &Tensor, part: Part) -> Result<Option<Tensor>> {
        let Some(list) = self.rows(part) else { return Ok(None) };
        let columns = all.len() / all.shape()[0];
        let own = device.allocate(DType::F32, &[list.count, columns], "a part of a stream")?;
        rows(device, all, &own, columns, &list.out)?;
        Ok(Some(own))
    }

    /// Puts rows of a part's tokens, f32 (tokens, columns), in the place of those of `all`.
    pub(super) fn put(
        &self,
        device: &Device,
        own: &Tensor,
        all: &Tensor,
        part: Part,
    ) -> Result<()> {
        let list = self.rows(part).expect("rows that are put back were taken");
        rows(device, own, all, own.len() / list.count, &list.back)
    }
}
