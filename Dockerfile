# job-router, with what its reference runner needs: bash. Needs BuildKit (Docker 23 or newer).
#
#   docker build --tag job-router:0.1.0 .
#   docker run --rm job-router:0.1.0 help serve
#
# Images are named with what they are and pinned by digest. `tests/compose/lint` holds the version of Rust against
# rust-toolchain.toml, which is not copied: it would have rustup fetch a formatter and a linter.

FROM rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY lua lua
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin job-router \
    && cp target/release/job-router /usr/local/bin/job-router

FROM debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171
# For TLS to Redis and to routers; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN groupadd --gid 10001 job-router \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/job-router --create-home --shell /usr/sbin/nologin job-router
COPY --from=build /usr/local/bin/job-router /usr/local/bin/job-router
USER 10001:10001
WORKDIR /var/lib/job-router
# In a container the loopback address of the defaults reaches nobody.
ENV JOB_ROUTER_GRPC_LISTEN=0.0.0.0:7460 JOB_ROUTER_ADMIN_LISTEN=0.0.0.0:7461
EXPOSE 7460 7461
# Alive, not ready: some platforms kill what is unhealthy, and a pod without its Redis must keep its runners.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["job-router", "health", "--url", "http://127.0.0.1:7461/livez"]
ENTRYPOINT ["job-router"]
CMD ["serve"]
