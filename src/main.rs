//! Contents page: command line → configuration → the command.

#[global_allocator]
static ALLOCATOR: tproxyd::sys::pages::Allocator = tproxyd::sys::pages::Allocator;

fn main() -> std::process::ExitCode {
    tproxyd::cli::main()
}
