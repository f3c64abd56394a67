//! The test suite: one binary, its trials listed from the kernel table and from the suites' own tables.
//!
//! GPU trials need an adapter. Without one they are listed as ignored, or fail where `LOPPER_REQUIRE_GPU=1` is set.

mod canary;
mod kernels;
mod machine;
mod shaders;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(kernels::trials());
    trials.extend(shaders::trials());
    trials.extend(canary::trials());
    libtest_mimic::run(&arguments, trials).exit();
}
