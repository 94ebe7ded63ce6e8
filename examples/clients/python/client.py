"""A thrifty client: any node takes any request.

    python client.py [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE
    python client.py [HOST:PORT] get KEY
    python client.py [HOST:PORT] del KEY
    python client.py [HOST:PORT] batch          lines of stdin: put KEY VALUE | get KEY | del KEY
    python client.py [HOST:PORT] ls [PREFIX]    the keys that begin with it

Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.
"""

import os
import re
import signal
import sys
import time

import grpc
from grpc import StatusCode
from thrifty.store.v1 import store_pb2 as pb
from thrifty.store.v1.store_pb2_grpc import StoreStub

USAGE_LINE = "usage: [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE | get KEY | del KEY | batch | ls [PREFIX]"
ARGUMENTS = {"put": (2,), "get": (1,), "del": (1,), "batch": (0,), "ls": (0, 1)}
CONNECT_SECONDS = 2
REQUEST_SECONDS = 5  # sent along: the server gives up in time to say how far it got
RESUMES = 4  # of a scan, one after the other that bring nothing
PAUSE_SECONDS = 0.1  # before the first of them; doubles

OK, NOT_FOUND, USAGE, NOTHING_DONE, OUTCOME_UNKNOWN = 0, 1, 2, 3, 5
WRONG = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.OUT_OF_RANGE,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.PERMISSION_DENIED,
    StatusCode.UNIMPLEMENTED,  # a node of the location service, which stores nothing
}


class Failure(Exception):
    def __init__(self, exit_code, message):
        super().__init__(message)
        self.exit_code = exit_code


def connected(address):
    """A channel that is connected, so that a request which fails afterwards may have been sent."""
    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
    except grpc.FutureTimeoutError:
        channel.close()
        raise Failure(NOTHING_DONE, f"nobody answers at {address}: nothing was done") from None
    return channel


def request(channel, command, key, value=b"", ttl_ms=None):
    """Carries a command out: the value for `get`, None for the others."""
    store = StoreStub(channel)
    try:
        if command == "put":
            store.Put(pb.PutRequest(key=key, value=value, ttl_ms=ttl_ms), timeout=REQUEST_SECONDS)
        elif command == "del":
            store.Delete(pb.DeleteRequest(key=key), timeout=REQUEST_SECONDS)
        else:
            return store.Get(pb.GetRequest(key=key), timeout=REQUEST_SECONDS).value
    except grpc.RpcError as error:
        raise failure(error, writes=command != "get") from None


def batch(channel, items):
    """Carries many requests out in one: for each an exit code and the value or what went wrong."""
    writes = any(item.WhichOneof("item") != "get" for item in items)
    try:
        response = StoreStub(channel).Batch(pb.BatchRequest(items=items), timeout=REQUEST_SECONDS)
    except grpc.RpcError as error:
        raise failure(error, writes) from None
    if len(response.results) != len(items):
        raise meaning(StatusCode.INTERNAL, "results are missing", nothing_done=not writes)
    return [outcome(*pair) for pair in zip(items, response.results)]


def outcome(item, result):
    asked, came = item.WhichOneof("item"), result.WhichOneof("result")
    if came == asked:
        return OK, result.get.value if came == "get" else b"done"
    code, details, nothing_done = StatusCode.UNKNOWN, "a result of another kind", False
    # A failure says outright whether anything was done, a result of another kind doesn't.
    if came == "failure":
        code = next((code for code in StatusCode if code.value[0] == result.failure.code), code)
        details, nothing_done = result.failure.message, not result.failure.outcome_unknown
    if code is StatusCode.OUT_OF_RANGE:  # the value did not fit into the answer any more
        return NOTHING_DONE, f"{code.name}: {details}".encode()
    failed = meaning(code, details, nothing_done or asked == "get")
    return failed.exit_code, str(failed).encode()


def scan(channel, prefix=b""):
    """Yields the keys that begin with the prefix. A stream that breaks is resumed where it was."""
    token, broken = b"", 0
    while True:
        failed = Failure(NOTHING_DONE, "the scan stopped before its end")
        asked = pb.ScanRequest(prefix=prefix, page_token=token, keys_only=True)
        try:
            for page in StoreStub(channel).Scan(asked, timeout=REQUEST_SECONDS):
                yield from (item.key for item in page.items)
                token, broken = page.page_token, 0
                if not token:
                    return
        except grpc.RpcError as error:
            failed = failure(error, writes=False)
        if failed.exit_code != NOTHING_DONE or broken == RESUMES:
            raise failed
        time.sleep(PAUSE_SECONDS * 2**broken)
        broken += 1


def failure(error, writes):
    """What the failure of a call means for the caller."""
    code = error.code()
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    # UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
    refused = code is StatusCode.UNAVAILABLE and b"google.rpc.RetryInfo" in details
    return meaning(code, error.details(), refused or code is StatusCode.RESOURCE_EXHAUSTED or not writes)


def meaning(code, details, nothing_done):
    """What a status means for the caller."""
    message = f"{code.name}: {details}"
    if code is StatusCode.NOT_FOUND:
        return Failure(NOT_FOUND, message)
    if code in WRONG:
        return Failure(USAGE, message)
    if nothing_done:
        return Failure(NOTHING_DONE, f"{message} (try again later)")
    # ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
    return Failure(OUTCOME_UNKNOWN, f"{message} (it may have happened or not: read before you repeat it)")


def batch_item(line):
    command, *rest = line.removesuffix(b"\n").split(b" ", 2)
    if command == b"put" and len(rest) == 2:
        return pb.BatchItem(put=pb.PutRequest(key=rest[0], value=rest[1]))
    if command == b"get" and len(rest) == 1:
        return pb.BatchItem(get=pb.GetRequest(key=rest[0]))
    if command == b"del" and len(rest) == 1:
        return pb.BatchItem(delete=pb.DeleteRequest(key=rest[0]))
    raise Failure(USAGE, "every line of a batch is put KEY VALUE | get KEY | del KEY: nothing was done")


def main(arguments, channel_for=lambda address, key: connected(address)):
    address, ttl_ms = "127.0.0.1:9900", None
    if arguments and arguments[0] not in ARGUMENTS:
        address, *arguments = arguments
    command, *rest = arguments or [""]
    if command == "put" and rest[:1] == ["--ttl-ms"] and len(rest) == 4 and re.fullmatch("[0-9]{1,15}", rest[1]):
        ttl_ms, rest = int(rest[1]), rest[2:]
    if len(rest) not in ARGUMENTS.get(command, ()):
        raise Failure(USAGE, USAGE_LINE)
    rest = [os.fsencode(argument) for argument in rest]
    items = [batch_item(line) for line in sys.stdin.buffer] if command == "batch" else []
    key = None if command in ("batch", "ls") else rest[0]
    out = sys.stdout.buffer
    with channel_for(address, key) as channel:
        if command == "ls":
            for key in scan(channel, *rest):
                out.write(key + b"\n")
        elif command == "batch":
            results = batch(channel, items)
            for result in results:
                out.write(b"%d %s\n" % result)
            failed = [code for code, _ in results if code != OK]
            if failed:
                raise Failure(max(failed), f"{len(failed)} of {len(results)} failed")
        else:
            found = request(channel, command, *rest, ttl_ms=ttl_ms)
            if found is not None:
                out.write(found + (b"\n" if sys.stdout.isatty() else b""))


def run(main):
    """Runs to an exit code, and says on stderr why it isn't 0."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads stdout may stop early
    try:
        main(sys.argv[1:])
    except Failure as failure:
        print(f"{os.path.basename(sys.argv[0])}: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)


if __name__ == "__main__":
    run(main)
