//! Files that hold tensors.

#[path = "gguf_files.rs"]
pub mod gguf_files;
#[path = "hostile_gguf.rs"]
pub mod hostile_gguf;
#[path = "hostile_safetensors.rs"]
pub mod hostile_safetensors;
#[path = "safetensors_files.rs"]
pub mod safetensors_files;

type Test = (&'static str, fn());

const PARTS: [&[Test]; 4] = [
    gguf_files::TESTS,
    safetensors_files::TESTS,
    hostile_gguf::TESTS,
    hostile_safetensors::TESTS,
];
const COUNT: usize = PARTS[0].len() + PARTS[1].len() + PARTS[2].len() + PARTS[3].len();

/// The tests of all of them.
pub const TESTS: &[Test] = &{
    let mut all = [PARTS[0][0]; COUNT];
    let (mut part, mut within, mut index) = (0, 0, 0);
    while index < COUNT {
        if within == PARTS[part].len() {
            (part, within) = (part + 1, 0);
        }
        all[index] = PARTS[part][within];
        (within, index) = (within + 1, index + 1);
    }
    all
};
