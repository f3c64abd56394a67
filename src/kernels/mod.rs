//! One file per kernel: formula and source, parameters, typed call, CPU reference, cases. The path is the name.
//!
//! A new kernel is a shader, a file here and a line in [`TABLE`]; tests, benches, `verify` and `bench` walk the table.

pub mod activation;
pub mod attention;
pub mod bounds;
pub mod copy;
pub mod dequantize;
mod elementwise;
pub mod embed;
pub mod experts;
pub mod gate;
pub mod kv;
pub mod logits;
pub mod loss;
pub mod mask;
pub mod matmul;
pub mod matrix;
pub mod norm;
pub mod optimize;
mod prelude;
pub mod probe;
pub mod quantize;
pub mod residual;
pub mod rope;
pub mod score;
pub mod select;
pub mod weights;

use crate::device::Kernel;

/// Every kernel, in the order a model meets them; the probes of `bench hardware` last.
pub static TABLE: &[&Kernel] = &[
    &embed::gather::KERNEL,
    &embed::scatter::KERNEL,
    &norm::rms::KERNEL,
    &norm::rms_grad::KERNEL,
    &norm::gain_grad::KERNEL,
    &norm::center::KERNEL,
    &norm::shift::KERNEL,
    &matmul::matvec::KERNEL,
    &matmul::dot4::KERNEL,
    &matmul::tiled::KERNEL,
    &matmul::coop::KERNEL,
    &matmul::lut::KERNEL,
    &matmul::lut_tables::KERNEL,
    &matmul::lut_i8::KERNEL,
    &matmul::lut_tables_i8::KERNEL,
    &matmul::bitserial::KERNEL,
    &matmul::bits::KERNEL,
    &matmul::ternary::KERNEL,
    &matmul::merge::KERNEL,
    &matmul::input_grad::KERNEL,
    &matmul::weight_grad::KERNEL,
    &matmul::gram::KERNEL,
    &matmul::part::KERNEL,
    &rope::rotate::KERNEL,
    &rope::enter::KERNEL,
    &kv::append::KERNEL,
    &kv::append_rounded::KERNEL,
    &kv::decode::KERNEL,
    &kv::advance::KERNEL,
    &attention::causal::KERNEL,
    &attention::split::KERNEL,
    &attention::step::KERNEL,
    &attention::merge::KERNEL,
    &attention::tiled::KERNEL,
    &attention::coop::KERNEL,
    &attention::lse_delta::KERNEL,
    &attention::delta::KERNEL,
    &attention::query_grad::KERNEL,
    &attention::query_grad_coop::KERNEL,
    &attention::key_value_grad::KERNEL,
    &attention::key_value_grad_coop::KERNEL,
    &attention::group_sum::KERNEL,
    &attention::bias::KERNEL,
    &attention::bias_grad::KERNEL,
    &gate::glu::KERNEL,
    &gate::glu_grad::KERNEL,
    &gate::activate::KERNEL,
    &gate::activate_grad::KERNEL,
    &experts::route::KERNEL,
    &experts::route_grad::KERNEL,
    &experts::product::KERNEL,
    &experts::choose::KERNEL,
    &experts::gated::KERNEL,
    &experts::down::KERNEL,
    &experts::combine::KERNEL,
    &experts::combine_grad::KERNEL,
    &experts::balance::KERNEL,
    &experts::balance_grad::KERNEL,
    &residual::add::KERNEL,
    &copy::cast::KERNEL,
    &copy::compact::KERNEL,
    &copy::pad::KERNEL,
    &copy::planes::KERNEL,
    &copy::scale_rows::KERNEL,
    &copy::gather_rows::KERNEL,
    &copy::transpose::KERNEL,
    &copy::ternary::KERNEL,
    &logits::soft_cap::KERNEL,
    &logits::soft_cap_grad::KERNEL,
    &logits::combine::KERNEL,
    &logits::penalize::KERNEL,
    &logits::probabilities::KERNEL,
    &logits::draw::KERNEL,
    &logits::accept::KERNEL,
    &loss::logsumexp::KERNEL,
    &loss::cross_entropy_grad::KERNEL,
    &loss::argmax::KERNEL,
    &loss::peaks::KERNEL,
    &loss::divergence::KERNEL,
    &loss::distil::KERNEL,
    &loss::distil_top::KERNEL,
    &loss::hidden::KERNEL,
    &score::fisher::KERNEL,
    &score::sums::KERNEL,
    &score::maxima::KERNEL,
    &score::rows::KERNEL,
    &score::columns::KERNEL,
    &score::blocks::KERNEL,
    &select::top_k::KERNEL,
    &select::top_tokens::KERNEL,
    &select::threshold::KERNEL,
    &mask::zero_weights::KERNEL,
    &mask::dropout::KERNEL,
    &mask::keep_runs::KERNEL,
    &mask::keep_groups::KERNEL,
    &mask::score_grad::KERNEL,
    &quantize::activations::KERNEL,
    &quantize::normed::KERNEL,
    &quantize::gated::KERNEL,
    &quantize::inputs::KERNEL,
    &quantize::merged::KERNEL,
    &quantize::absmax::KERNEL,
    &quantize::minmax::KERNEL,
    &quantize::round::KERNEL,
    &quantize::nearest::KERNEL,
    &quantize::scale_grad::KERNEL,
    &quantize::store_scales::KERNEL,
    &quantize::clip_range::KERNEL,
    &quantize::shift::KERNEL,
    &quantize::rounding_grad::KERNEL,
    &dequantize::rows::KERNEL,
    &optimize::squares::KERNEL,
    &optimize::clip::KERNEL,
    &optimize::adamw::KERNEL,
    &optimize::adamw_8bit::KERNEL,
    &optimize::sign::KERNEL,
    &probe::copy::KERNEL,
    &probe::read::KERNEL,
    &probe::write::KERNEL,
    &probe::shared::KERNEL,
    &probe::fma::KERNEL,
    &probe::imad::KERNEL,
    &probe::dot4::KERNEL,
    &probe::coop::KERNEL,
];
