//! Which experts the tokens of a pass go to, on a device.

use super::Experts;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::copy::cast::cast;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::experts::Share;
use crate::kernels::experts::choose::choose;
use crate::kernels::experts::combine::combine;
use crate::kernels::experts::route::route;
use crate::tensor::DType;

/// The shares of experts, and the tokens of each.
#[derive(Debug)]
pub struct Routed {
    shares: Tensor,
    /// Experts of a token.
    used: usize,
    /// Of each expert its tokens, if it has some. `None`: every expert takes all tokens, whose share of it may be 0.
    tokens: Option<Vec<Option<Rows>>>,
}

impl Routed {
    /// By the router's result, f32 (tokens, experts), without reading anything back: every expert is given all tokens, and what
    /// it makes of those that do not go there is left out of the sum.
    pub fn everywhere(device: &Device, logits: &Tensor, experts: Experts) -> Result<Self> {
        let shares = route(device, logits, experts.used, experts.normalized)?;
        Ok(Self { shares, used: experts.used, tokens: None })
    }

    /// By the router's result: every expert takes its own tokens. The processor reads which they are, and so waits. `filled`: an
    /// expert without tokens takes the first, whose share of it is 0, so that its weights have a gradient.
    pub fn by_expert(
        device: &Device,
        logits: &Tensor,
        experts: Experts,
        filled: bool,
    ) -> Result<Self> {
        let shares = route(device, logits, experts.used, experts.normalized)?;
        let (values, used) = (device.read(&shares)?.to_f32(), experts.used);
        let experts = shares.shape()[1];
        let list = |expert: usize| -> Result<Option<Rows>> {
            let column = values.iter().skip(expert).step_by(experts).enumerate();
            let own = column.filter(|(_, share)| **share != 0.0).map(|(token, _)| token as u32);
            let own = own.zip(0..).collect::<Vec<_>>();
            match (own.is_empty(), filled) {
                (true, false) => Ok(None),
                (true, true) => Rows::upload(device, &[(0, 0)]).map(Some),
                (false, _) => Rows::upload(device, &own).map(Some),
            }
        };
        let tokens = (0..experts).map(list).collect::<Result<_>>()?;
        Ok(Self { shares, used, tokens: Some(tokens) })
    }

    /// The shares, f32 (tokens, experts): 0 where a token does not go to an expert.
    pub fn shares(&self) -> &Tensor {
        &self.shares
    }

    /// The experts of each token, u32 (tokens, used).
    pub fn chosen(&self, device: &Device) -> Result<Tensor> {
        choose(device, &self.shares, self.used)
    }

    /// Whether every expert takes all tokens.
    pub fn is_everywhere(&self) -> bool {
        self.tokens.is_none()
    }

    /// The share of an expert.
    pub fn share(&self, expert: usize) -> Share<'_> {
        Share { shares: &self.shares, expert }
    }

    /// The tokens of an expert, u32 (rows), where it takes its own only.
    pub fn tokens(&self, expert: usize) -> Option<&Tensor> {
        self.rows(expert).map(Rows::origin)
    }

    fn rows(&self, expert: usize) -> Option<&Rows> {
        self.tokens.as_ref()?[expert].as_ref()
    }

    /// The rows of `x`, (tokens, width), of an expert's own tokens; `None` where it has none.
    pub fn gather(&self, device: &Device, x: &Tensor, expert: usize) -> Result<Option<Tensor>> {
        let Some(list) = self.rows(expert) else { return Ok(None) };
        let width = x.len() / self.shares.shape()[0];
        // Rows are copied in whole words.
        let whole = (width * x.dtype().size()).is_multiple_of(4);
        let dtype = if whole { x.dtype() } else { DType::F32 };
        let all = cast(device, x, dtype)?.reshaped(&[self.shares.shape()[0], width]);
        let own = device.allocate(dtype, &[list.origin().len(), width], "an expert's tokens")?;
        rows(device, &all, &own, width, list)?;
        Ok(Some(cast(device, &own, x.dtype())?))
    }

    /// Adds an expert's result, of as many rows as it took, to the stream, f32 (tokens, width), times its share.
    pub fn add(
        &self,
        device: &Device,
        expert: usize,
        branch: &Tensor,
        stream: &Tensor,
    ) -> Result<()> {
        combine(device, branch, Some(self.share(expert)), self.tokens(expert), stream)
    }
}
