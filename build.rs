//! Compiles `proto/` without a system `protoc`: protox parses the files, tonic writes the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=lua");
    let services = ["job_router/v1/runner.proto", "job_router/v1/admin.proto", "gitlab/job_router.proto"];
    let files = protox::compile(services, ["proto"])?;
    let configured =
        tonic_prost_build::configure().bytes(".job_router.v1.Assign.payload").bytes(".gitlab.agent.job_router.rpc");
    configured.compile_fds(files)?;
    Ok(())
}
