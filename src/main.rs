//! The command line of Lopper: parse, run, exit code.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(lopper::cli::main())
}
