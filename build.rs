//! Compiles `proto/` without a system `protoc`: protox parses the files, tonic writes the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=lua");
    let files = protox::compile(["job_router/v1/runner.proto", "job_router/v1/admin.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".job_router.v1.Assign.payload").compile_fds(files)?;
    Ok(())
}
