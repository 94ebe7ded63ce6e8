"""A thrifty client: any node takes any request.

    python client.py [HOST:PORT] put KEY VALUE
    python client.py [HOST:PORT] get KEY
    python client.py [HOST:PORT] del KEY

Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.
"""

import os
import sys

import grpc
from grpc import StatusCode
from thrifty.store.v1 import store_pb2 as pb
from thrifty.store.v1.store_pb2_grpc import StoreStub

ARGUMENTS = {"put": 2, "get": 1, "del": 1}
CONNECT_SECONDS = 2
REQUEST_SECONDS = 5  # sent along: the server gives up in time to say how far it got

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


def request(channel, command, key, value=b""):
    """Carries a command out: the value for `get`, None for the others."""
    store = StoreStub(channel)
    try:
        if command == "put":
            store.Put(pb.PutRequest(key=key, value=value), timeout=REQUEST_SECONDS)
        elif command == "del":
            store.Delete(pb.DeleteRequest(key=key), timeout=REQUEST_SECONDS)
        else:
            return store.Get(pb.GetRequest(key=key), timeout=REQUEST_SECONDS).value
    except grpc.RpcError as error:
        raise failure(error, writes=command != "get") from None


def failure(error, writes):
    """What a status means for the caller."""
    code, message = error.code(), f"{error.code().name}: {error.details()}"
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    # UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
    refused = code is StatusCode.UNAVAILABLE and b"google.rpc.RetryInfo" in details
    if code is StatusCode.NOT_FOUND:
        return Failure(NOT_FOUND, message)
    if code in WRONG:
        return Failure(USAGE, message)
    if refused or code is StatusCode.RESOURCE_EXHAUSTED or not writes:
        return Failure(NOTHING_DONE, f"{message} (try again later)")
    # ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
    return Failure(OUTCOME_UNKNOWN, f"{message} (it may have happened or not: read before you repeat it)")


def main(arguments, channel_for=lambda address, key: connected(address)):
    address = "127.0.0.1:9900"
    if arguments and arguments[0] not in ARGUMENTS:
        address, *arguments = arguments
    command, *rest = arguments or [""]
    if len(rest) != ARGUMENTS.get(command):
        raise Failure(USAGE, "usage: [HOST:PORT] put KEY VALUE | get KEY | del KEY")
    key, *value = map(os.fsencode, rest)
    with channel_for(address, key) as channel:
        found = request(channel, command, key, *value)
    if found is not None:
        sys.stdout.buffer.write(found + (b"\n" if sys.stdout.isatty() else b""))


def run(main):
    """Runs to an exit code, and says on stderr why it isn't 0."""
    try:
        main(sys.argv[1:])
    except Failure as failure:
        print(f"{os.path.basename(sys.argv[0])}: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)


if __name__ == "__main__":
    run(main)
