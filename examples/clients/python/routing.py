"""The client that asks a key's owner itself, and so spares the ring a hop.

    python routing.py [HOST:PORT] put KEY VALUE | get KEY | del KEY

HOST:PORT is any node of the ring: it is asked for the layout. The rest is as with client.py. Which
node was chosen is said on stderr. What concerns many keys is asked of HOST:PORT itself.
"""

import hashlib
import sys

import grpc
from thrifty.location.v1 import location_pb2 as pb
from thrifty.location.v1.location_pb2_grpc import LocationStub

import client


def token(key):
    """A key's point on the ring, a number of 128 bits."""
    return int.from_bytes(hashlib.md5(key, usedforsecurity=False).digest(), "big")


def segment(key, segments):
    """Which of the ring's `segments` (a power of two) a key falls into: the top bits of its token."""
    return token(key) * segments >> 128


def row(table, index, vacant):
    """The owners in one row of a table, as indexes into the members."""
    entries = table.owners[index * table.stride : (index + 1) * table.stride]
    return entries[: entries.index(vacant)] if vacant in entries else entries


def owners(layout, key):
    """The members to send a key's requests to, the best first."""
    at, vacant = segment(key, layout.segments), len(layout.members)
    current = following = row(layout.current, at, vacant)
    if at in layout.next.segments:
        following = row(layout.next.rows, list(layout.next.segments).index(at), vacant)
    read = following if layout.phase == pb.PHASE_READ_NEW else current
    # While the ring changes, an owner in both tables coordinates best. The sort keeps the order.
    best = sorted(read, key=lambda member: member not in current or member not in following)
    return [layout.members[member] for member in best]


def fetch_layout(channel):
    """The layout of the ring. A client that lives longer than one request keeps it, and fetches
    another when the `epoch` in an answer is newer than the layout's."""
    try:
        response = LocationStub(channel).GetLayout(pb.GetLayoutRequest(), timeout=client.REQUEST_SECONDS)
    except grpc.RpcError as error:
        raise client.failure(error, writes=False) from None
    return response.layout


def owners_channel(seed, key):
    """A channel to a key's owner; to the seed if there is no one key or no owner can be reached, for
    every node forwards."""
    if key is None:
        return client.connected(seed)
    with client.connected(seed) as channel:
        layout = fetch_layout(channel)
    for address in [owner.address for owner in owners(layout, key)] + [seed]:
        try:
            channel = client.connected(address)
        except client.Failure:
            continue
        print(f"segment {segment(key, layout.segments)} of {layout.segments}: asking {address}", file=sys.stderr)
        return channel
    raise client.Failure(client.NOTHING_DONE, "no node of the ring answers: nothing was done")


if __name__ == "__main__":
    client.run(lambda arguments: client.main(arguments, owners_channel))
