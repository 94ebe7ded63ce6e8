"""A store for test.sh that fails every request with the status its key names. Prints its address.

A key `X` fails with status X as the transport does it, `X+RetryInfo` as a node of the ring does.
"""

from concurrent import futures

import grpc
from thrifty.store.v1.store_pb2_grpc import StoreServicer, add_StoreServicer_to_server


class Faulty(StoreServicer):
    def fail(self, request, context):
        code, _, detail = request.key.decode().partition("+")
        if detail:
            # google.rpc.Status { details: [Any { type_url }] }: each field is tag, length, bytes.
            url = f"type.googleapis.com/google.rpc.{detail}".encode()
            detail = b"\x0a" + bytes([len(url)]) + url
            status = b"\x1a" + bytes([len(detail)]) + detail
            context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(grpc.StatusCode[code], "as asked")

    Put = Get = Delete = fail


server = grpc.server(futures.ThreadPoolExecutor())
add_StoreServicer_to_server(Faulty(), server)
port = server.add_insecure_port("127.9.8.7:0")
server.start()
print(f"listens on 127.9.8.7:{port}", flush=True)
server.wait_for_termination()
