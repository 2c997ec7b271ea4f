//! Contents page: command line → configuration → the command.

fn main() -> std::process::ExitCode {
    tproxyd::cli::main()
}
