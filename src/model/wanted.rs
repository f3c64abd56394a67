//! What a caller asks of a backward pass: whose gradients, of which loss, in how much memory.

use super::config::Config;
use super::head_grad::Loss;

/// What is asked of a backward pass.
#[derive(Clone, Copy)]
pub struct Wanted<'w> {
    /// Of what the gradients are.
    pub loss: Loss<'w>,
    /// Whether a tensor's gradient, by its name, is. Others are not computed; a tied head is its embedding's.
    pub tensor: &'w dyn Fn(&str) -> bool,
    /// Whether each sequence's part of a gradient is handed out apart, numbered as the sequences are. Otherwise a part is
    /// that of as many sequences as go through a layer at once.
    pub by_sequence: bool,
    /// Tokens that go through a layer at once; at least one sequence does.
    pub tokens: usize,
    /// Bytes of activations that may be kept for the way back; blocks whose are not are computed twice. None are kept of a
    /// model whose layers are streamed.
    pub keep: u64,
}

impl std::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            loss, by_sequence, ..
        } = self;
        write!(f, "gradients of {loss:?}, by sequence: {by_sequence}")
    }
}

impl Wanted<'_> {
    /// Every gradient of the next tokens' loss, each in one part, in the memory of one block.
    pub const ALL: Wanted<'static> = Wanted {
        loss: Loss::NextTokens,
        tensor: &|_| true,
        by_sequence: false,
        tokens: usize::MAX,
        keep: 0,
    };

    /// Parts of each gradient, for so many sequences of one length.
    pub fn parts(&self, sequences: usize, length: usize) -> usize {
        if self.by_sequence {
            return sequences;
        }
        sequences.div_ceil(self.at_once(sequences, length))
    }

    /// Sequences that go through a layer at once.
    pub(super) fn at_once(&self, sequences: usize, length: usize) -> usize {
        (self.tokens / length.max(1)).clamp(1, sequences.max(1))
    }

    /// The first of the blocks, none of them below `lowest`, whose activations are kept for the way back: as many as there
    /// is room for. Products take activations of `element` bytes.
    pub(super) fn first_kept(
        &self,
        config: &Config,
        lowest: usize,
        tokens: usize,
        element: usize,
    ) -> usize {
        // Inputs of products in their type, beside the f32 of it where that is another.
        let input = |columns: usize| match element {
            4 => 4 * columns,
            _ => (4 + element) * columns,
        };
        let bytes = |layer: usize| {
            let widths = &config.blocks[layer];
            let [query, kv] = [widths.heads, widths.kv_heads].map(|heads| heads * config.head_dim);
            let attention = element * config.hidden_size + 4 * (query + 2 * kv) + input(query);
            let stream = (4 + element) * config.hidden_size;
            let feed_forward = (8 + element) * widths.intermediate_size;
            (tokens * (attention + stream + feed_forward)) as u64
        };
        let (mut first, mut left) = (config.layers(), self.keep);
        while first > lowest && bytes(first - 1) <= left {
            first -= 1;
            left -= bytes(first);
        }
        first
    }
}
