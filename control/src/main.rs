//! The `causeway` program; everything is in the library.

fn main() -> std::process::ExitCode {
    control::cli::main()
}
