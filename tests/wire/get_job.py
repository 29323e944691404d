"""The door for GitLab Runners, knocked at by a client that shares no code with the server: grpcio, of Google's C++ core.

    python3 -m pip install --target target/python grpcio==1.85.3 typing_extensions==4.16.0
    PYTHONPATH=target/python python3 tests/wire/get_job.py target/debug/job-router

Starts a Redis and a pod of its own, and ends them. Each check that holds is a line; the first that does not ends it, with exit
code 1. No code is generated: both messages have one field, bytes of number 1, which is written and read by hand.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc

METHOD = "/gitlab.agent.job_router.rpc.JobRouter/GetJob"
HOLD_S = 3
LIMIT_S = 30
PAYLOAD_MAX = 3 << 20
PING_EVERY_S = 1


def encode(data):
    """A message of `bytes = 1`."""
    length, varint = len(data), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return b"\x0a" + bytes(varint) + data if data else b""


def decode(message):
    """The field of such a message."""
    if not message:
        return b""
    assert message[0] == 0x0A, f"field 1, length-delimited, not {message[0]:#x}"
    length, shift, at = 0, 0, 1
    while True:
        length |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not message[at - 1] & 0x80:
            break
    assert len(message) == at + length, "nothing but that field"
    return message[at:]


def until(what, look):
    """Waits until `look` answers something."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not in time: {what}")


class Relay:
    """Passes connections on to an address, and counts the HTTP/2 pings of the client and the connections."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.to, self.pings, self.connections = (host, int(port)), 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            self.connections += 1
            far = socket.create_connection(self.to)
            threading.Thread(target=self.upward, args=(near, far), daemon=True).start()
            threading.Thread(target=self.downward, args=(far, near), daemon=True).start()

    def upward(self, near, far):
        reader = near.makefile("rb")
        far.sendall(reader.read(24))  # the preface
        while head := reader.read(9):
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            self.pings += kind == 6 and not flags & 1
            far.sendall(head + reader.read(length))
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def downward(self, far, near):
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)


class Pod:
    """A pod with its Redis, and what Rails would do."""

    def __init__(self, binary, stack):
        home = stack.enter_context(tempfile.TemporaryDirectory())
        redis = ["redis-server", "--port", "0", "--unixsocket", f"{home}/s", "--dir", home, "--save", ""]
        self.run(stack, redis + ["--appendonly", "no"], stdout=subprocess.DEVNULL)
        until("redis listens", lambda: os.path.exists(f"{home}/s"))
        settings = {
            "REDIS_URL": f"redis+unix://{home}/s",
            "PAYLOAD_MAX_BYTES": "3MiB",
            "DATA_MAX_BYTES": "4MiB",
            "GITLAB_HOLD": f"{HOLD_S}s",
            "REBUILD_HOLD": "0s",
            "DRAIN_TIMEOUT": "1s",
            "GRPC_LISTEN": "127.0.0.1:0",
            "ADMIN_LISTEN": "127.0.0.1:0",
            "LOG_FORMAT": "json",
        }
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("JOB_ROUTER_")}
        self.environment = foreign | {f"JOB_ROUTER_{name}": value for name, value in settings.items()}
        self.binary = binary
        pod = self.run(
            stack, [binary, "serve"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in pod.stdout:
            said = json.loads(line)
            self.admin = said.get("admin", getattr(self, "admin", None))
            if said["message"] == "pod ready":
                self.address = said["grpc"]
                break
        threading.Thread(target=pod.stdout.read, daemon=True).start()  # so that its pipe is never full

    def run(self, stack, command, **options):
        process = subprocess.Popen(command, **options)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        return process

    def command(self, *arguments, **options):
        return subprocess.run(
            [self.binary, *arguments], env=self.environment, check=True, capture_output=True, text=True, **options
        ).stdout

    def register(self):
        return self.command("runner-add", "--id", "1", "--run-untagged", "--quiet").strip()

    def publish(self, kind, **data):
        self.command("publish", input=json.dumps({"type": kind, "data": data}) + "\n")

    def job(self, number, **payload):
        payload = {"id": number, "token": "t", **payload}
        self.publish("job.pending", id=number, project_id=1, namespace_ids=[1], payload=payload)

    def until_held(self, calls):
        def told():
            with urllib.request.urlopen(f"http://{self.admin}/metrics") as page:
                return f"\njob_router_slots_free {calls}\n" in page.read().decode()

        until(f"{calls} calls are held", told)


class Runner:
    """A channel to a pod, and the call."""

    def __init__(self, address, token, options=()):
        # Each its own connection: the library shares those that are alike.
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), *options])
        self.token = token
        self.call = self.channel.unary_unary(METHOD, request_serializer=encode, response_deserializer=decode)

    def ask(self, system_id="s_1", text=None):
        said = {"info": {"version": "19.4.0", "features": {}}, "token": self.token, "system_id": system_id}
        metadata = [("authorization", f"Bearer {self.token}"), ("gitlab-agent-type", "runner"), ("x-request-id", "01J9")]
        return self.call.future(text or json.dumps(said).encode(), metadata=metadata, timeout=LIMIT_S)


def refused_with(call):
    error = call.exception()
    return error and error.code()


def check(pod, token):
    runner = Runner(pod.address, token)
    call = runner.ask()
    pod.until_held(1)
    pod.job(1)
    assert json.loads(call.result())["id"] == 1
    headers = dict(call.initial_metadata())
    assert headers["x-request-id"] == "01J9" and headers["x-gitlab-last-update"], headers
    yield "a held call gets its job, with its request id and a cursor in the initial metadata"

    since = time.monotonic()
    assert runner.ask().result() == b""
    held = time.monotonic() - since
    assert held >= 0.85 * HOLD_S, held
    yield f"a call that nothing comes for is answered OK and empty, after {held:.1f} s"

    assert refused_with(Runner(pod.address, "nobody").ask()) == grpc.StatusCode.PERMISSION_DENIED
    assert refused_with(runner.ask(text=b"{")) == grpc.StatusCode.INVALID_ARGUMENT
    assert refused_with(runner.ask(system_id="a b")) == grpc.StatusCode.INVALID_ARGUMENT
    yield "an unknown token is PERMISSION_DENIED, bad JSON and a bad system_id are INVALID_ARGUMENT"

    call = runner.ask("s_2")
    pod.until_held(1)
    call.cancel()
    pod.until_held(0)
    pod.job(2)
    assert json.loads(runner.ask("s_3").result())["id"] == 2
    yield "a call that is cancelled is a slot no more: the next caller has the job"

    filler = "x" * (PAYLOAD_MAX - 100)
    call = runner.ask("s_4")
    pod.until_held(1)
    pod.job(3, filler=filler)
    assert json.loads(call.result())["filler"] == filler
    yield f"a job of {len(call.result()):,} bytes arrives, with the receive limit as it comes"

    relay = Relay(pod.address)
    pings = [
        ("grpc.keepalive_time_ms", PING_EVERY_S * 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    idle = Runner(relay.address, token, pings)
    assert idle.ask("s_5").result() == b""
    until("pings while a call is held", lambda: relay.pings >= 1)
    sent = relay.pings
    until("pings without a call", lambda: relay.pings >= sent + 5)
    assert idle.ask("s_5").result() == b""
    assert relay.connections == 1, f"{relay.connections} connections"
    yield f"{relay.pings} pings, one every {PING_EVERY_S} s, with calls and without: none is punished"


def main():
    with contextlib.ExitStack() as stack:
        pod = Pod(sys.argv[1], stack)
        for promise in check(pod, pod.register()):
            print("ok:", promise, flush=True)


main()
