//! The program `waxwing`. Everything that it does is in the library of the same name.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    waxwing::cli::run()
}
