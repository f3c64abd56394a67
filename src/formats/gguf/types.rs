//! The table of GGUF's tensor types.

macro_rules! ggml_types {
    ($($variant:ident = $id:literal $name:literal $elements:literal / $bytes:literal;)*) => {
        /// A tensor type of GGUF. Elements of a row stand in blocks that share scales.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgmlType {
            $(#[doc = concat!($name, ": ", $elements, " elements in ", $bytes, " bytes")] $variant = $id,)*
        }

        impl GgmlType {
            /// All of them, by id.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant,)*];

            /// The name that llama.cpp uses.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name,)* }
            }

            /// Elements of a block.
            pub const fn block_elements(self) -> usize {
                match self { $(GgmlType::$variant => $elements,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$variant => $bytes,)* }
            }
        }
    };
}

// Types without a decoder are listed too: a file that holds them can be opened, listed and copied.
ggml_types! {
    F32 = 0 "F32" 1/4;
    F16 = 1 "F16" 1/2;
    Q4_0 = 2 "Q4_0" 32/18;
    Q4_1 = 3 "Q4_1" 32/20;
    Q5_0 = 6 "Q5_0" 32/22;
    Q5_1 = 7 "Q5_1" 32/24;
    Q8_0 = 8 "Q8_0" 32/34;
    Q8_1 = 9 "Q8_1" 32/40;
    Q2K = 10 "Q2_K" 256/84;
    Q3K = 11 "Q3_K" 256/110;
    Q4K = 12 "Q4_K" 256/144;
    Q5K = 13 "Q5_K" 256/176;
    Q6K = 14 "Q6_K" 256/210;
    Q8K = 15 "Q8_K" 256/292;
    Iq2Xxs = 16 "IQ2_XXS" 256/66;
    Iq2Xs = 17 "IQ2_XS" 256/74;
    Iq3Xxs = 18 "IQ3_XXS" 256/98;
    Iq1S = 19 "IQ1_S" 256/50;
    Iq4Nl = 20 "IQ4_NL" 32/18;
    Iq3S = 21 "IQ3_S" 256/110;
    Iq2S = 22 "IQ2_S" 256/82;
    Iq4Xs = 23 "IQ4_XS" 256/136;
    I8 = 24 "I8" 1/1;
    I16 = 25 "I16" 1/2;
    I32 = 26 "I32" 1/4;
    I64 = 27 "I64" 1/8;
    F64 = 28 "F64" 1/8;
    Iq1M = 29 "IQ1_M" 256/56;
    Bf16 = 30 "BF16" 1/2;
    Tq1_0 = 34 "TQ1_0" 256/54;
    Tq2_0 = 35 "TQ2_0" 256/66;
    Mxfp4 = 39 "MXFP4" 32/17;
    Nvfp4 = 40 "NVFP4" 64/36;
    Q1_0 = 41 "Q1_0" 128/18;
}

impl GgmlType {
    /// The number that stands for it in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type of that number.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|ty| ty.id() == id)
    }

    /// Bytes of a tensor of that shape (outermost first). `None` if rows are not whole blocks or a number overflows.
    pub fn bytes_of(self, shape: &[usize]) -> Option<u64> {
        let (columns, outer) = shape.split_last()?;
        if !columns.is_multiple_of(self.block_elements()) {
            return None;
        }
        let row =
            ((columns / self.block_elements()) as u64).checked_mul(self.block_bytes() as u64)?;
        outer.iter().try_fold(row, |bytes, &length| bytes.checked_mul(length as u64))
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
