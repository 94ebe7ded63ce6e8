"""A store for test.sh that fails every request with the status its key names. Prints its address.

A key `X` fails with status X as the transport does it, `X+RetryInfo` as a node of the ring does; so
do a batch with such a key in its first item, and a scan of such a prefix. Where that is `each`, each
item fails for itself (`X?`: outcome unknown); where it is `broken`, a scan breaks after every key.
"""

from concurrent import futures

import grpc
from thrifty.store.v1 import store_pb2 as pb
from thrifty.store.v1.store_pb2_grpc import StoreServicer, add_StoreServicer_to_server


def key_of(item):
    return getattr(item, item.WhichOneof("item")).key.decode()


def fail(key, context):
    code, _, detail = key.partition("+")
    if detail:
        # google.rpc.Status { details: [Any { type_url }] }: each field is tag, length, bytes.
        url = f"type.googleapis.com/google.rpc.{detail}".encode()
        detail = b"\x0a" + bytes([len(url)]) + url
        status = b"\x1a" + bytes([len(detail)]) + detail
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
    context.abort(grpc.StatusCode[code], "as asked")


class Faulty(StoreServicer):
    def Put(self, request, context):
        fail(request.key.decode(), context)

    Get = Delete = Put

    def Batch(self, request, context):
        keys = [key_of(item) for item in request.items]
        if keys[0] == "few":
            return pb.BatchResponse()
        if keys[0] != "each":
            fail(keys[0], context)
        failures = [
            pb.Failure(code=grpc.StatusCode[key.rstrip("?")].value[0], message=key, outcome_unknown="?" in key)
            for key in keys[1:]
        ]
        # A result of a kind that nobody knows yet.
        return pb.BatchResponse(results=[pb.BatchResult()] + [pb.BatchResult(failure=failure) for failure in failures])

    def Scan(self, request, context):
        if request.prefix != b"broken":
            fail(request.prefix.decode(), context)
        for number in range(int(request.page_token or 0), 10):
            yield pb.ScanResponse(items=[pb.ScanItem(key=b"%d" % number)], page_token=b"%d" % (number + 1))
            fail("UNAVAILABLE", context)
        yield pb.ScanResponse(items=[pb.ScanItem(key=b"the last")])


server = grpc.server(futures.ThreadPoolExecutor())
add_StoreServicer_to_server(Faulty(), server)
port = server.add_insecure_port("127.9.8.7:0")
server.start()
print(f"listens on 127.9.8.7:{port}", flush=True)
server.wait_for_termination()
