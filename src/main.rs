//! The command line of Lopper: parse, run, exit code.

fn main() -> std::process::ExitCode {
    let code = lopper::jinja::serve().unwrap_or_else(lopper::cli::main);
    std::process::ExitCode::from(code)
}
