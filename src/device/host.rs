//! Tensors on the host, and the views of them that references and CPU kernels work on.

use half::{bf16, f16};
use rayon::prelude::*;

use super::kernel::Variant;
use crate::tensor::DType;

/// A dense tensor in host memory. Words, so that it can be viewed as any element type.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements, little-endian, padded to a whole word.
    pub words: Vec<u32>,
}

impl HostTensor {
    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Self { dtype, shape: shape.to_vec(), words: vec![0; bytes.div_ceil(4)] }
    }

    /// Values rounded to `dtype`.
    pub fn from_f32(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let mut tensor = Self::zeros(dtype, shape);
        assert_eq!(values.len(), tensor.len(), "a tensor has as many values as its shape says");
        store(dtype, &mut tensor.words, 0, values);
        tensor
    }

    /// Integers.
    pub fn from_u32(shape: &[usize], values: &[u32]) -> Self {
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "a tensor has as many values as its shape says"
        );
        Self { dtype: DType::U32, shape: shape.to_vec(), words: values.to_vec() }
    }

    /// The tensor that these bytes are.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        let mut tensor = Self::zeros(dtype, shape);
        bytemuck::cast_slice_mut(&mut tensor.words)[..bytes.len()].copy_from_slice(bytes);
        tensor
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len() * self.dtype.size()]
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.view().to_f32()
    }

    /// A view of it.
    pub fn view(&self) -> View<'_> {
        View { dtype: self.dtype, shape: &self.shape, words: &self.words }
    }
}

/// A read-only view of a host tensor.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The elements as words.
    pub words: &'a [u32],
}

impl<'a> View<'a> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One element, exact.
    pub fn get(&self, index: usize) -> f64 {
        self.dtype.get(bytemuck::cast_slice(self.words), index)
    }

    /// All elements as integers. The type must be u32.
    pub fn u32s(&self) -> &'a [u32] {
        assert_eq!(self.dtype, DType::U32, "integers are read as integers");
        &self.words[..self.len()]
    }

    /// Elements `[start, start + count)` as f32.
    pub fn load(&self, start: usize, count: usize) -> Vec<f32> {
        match self.dtype {
            DType::F32 => {
                bytemuck::cast_slice::<u32, f32>(self.words)[start..start + count].to_vec()
            }
            DType::F16 => self.halves(start, count, |bits| f16::from_bits(bits).to_f32()),
            DType::Bf16 => self.halves(start, count, |bits| bf16::from_bits(bits).to_f32()),
            DType::I64 | DType::F64 | DType::I32 | DType::U8 | DType::I8 | DType::F8E4m3 => {
                (start..start + count).map(|index| self.get(index) as f32).collect()
            }
            DType::U32 => {
                self.words[start..start + count].iter().map(|&word| word as f32).collect()
            }
        }
    }

    fn halves(&self, start: usize, count: usize, widen: fn(u16) -> f32) -> Vec<f32> {
        let halves: &[u16] = bytemuck::cast_slice(self.words);
        halves[start..start + count].iter().map(|&bits| widen(bits)).collect()
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.load(0, self.len())
    }

    /// All elements as f64, exact.
    pub fn to_f64(&self) -> Vec<f64> {
        (0..self.len()).into_par_iter().with_min_len(1 << 14).map(|index| self.get(index)).collect()
    }
}

/// A kernel call as references and CPU kernels see it. To a reference, written bindings show their contents before the
/// call; to a CPU kernel they are empty here, and read through its [`Outputs`].
#[derive(Clone, Debug)]
pub struct Args<'a> {
    /// The chosen variant.
    pub variant: &'a Variant,
    /// Bytes of the parameter struct.
    pub parameters: &'a [u8],
    /// All bindings in order.
    pub tensors: Vec<View<'a>>,
}

impl Args<'_> {
    /// The parameters as the kernel's struct.
    pub fn parameters<P: bytemuck::AnyBitPattern>(&self) -> P {
        bytemuck::pod_read_unaligned(self.parameters)
    }
}

/// The written bindings of a call on the CPU device, in binding order.
pub struct Outputs<'a> {
    pub(super) tensors: Vec<(DType, &'a mut [u32])>,
}

impl Outputs<'_> {
    /// Rounds `values` to the output's type and stores them from element `start` on.
    pub fn store(&mut self, output: usize, start: usize, values: &[f32]) {
        let (dtype, words) = &mut self.tensors[output];
        store(*dtype, words, start, values);
    }

    /// What an output holds, elements `[start, start + count)` as f32.
    pub fn load(&self, output: usize, start: usize, count: usize) -> Vec<f32> {
        let (dtype, words) = &self.tensors[output];
        View { dtype: *dtype, shape: &[], words }.load(start, count)
    }

    /// The words of an output of integers or f32.
    pub fn words(&mut self, output: usize) -> &mut [u32] {
        let (dtype, words) = &mut self.tensors[output];
        assert_eq!(dtype.size(), 4, "words are whole elements");
        words
    }
}

fn store(dtype: DType, words: &mut [u32], start: usize, values: &[f32]) {
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut::<u32, f32>(words)[start..start + values.len()]
            .copy_from_slice(values),
        DType::F16 => store_halves(words, start, values, |value| f16::from_f32(value).to_bits()),
        DType::Bf16 => store_halves(words, start, values, |value| bf16::from_f32(value).to_bits()),
        DType::I64 | DType::F64 | DType::I32 | DType::U8 | DType::I8 | DType::F8E4m3 => {
            panic!("no kernel writes elements of types that only files have")
        }
        DType::U32 => {
            for (word, value) in words[start..].iter_mut().zip(values) {
                *word = *value as u32;
            }
        }
    }
}

fn store_halves(words: &mut [u32], start: usize, values: &[f32], narrow: fn(f32) -> u16) {
    let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
    for (half, value) in halves[start..].iter_mut().zip(values) {
        *half = narrow(*value);
    }
}
