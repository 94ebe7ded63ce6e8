"""python test_routing.py [HOST:PORT]: with a node's address, its answers are compared, too."""

import json
import pathlib
import sys
import unittest

from thrifty.location.v1 import location_pb2 as pb
from thrifty.location.v1.location_pb2_grpc import LocationStub

import client
import routing

VECTORS = pathlib.Path(__file__).resolve().parents[3] / "testdata" / "ring_vectors.json"
NODE = sys.argv.pop() if len(sys.argv) > 1 else None


def vectors():
    found = json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]
    assert found, "there are vectors"
    return [(vector["key"].encode(), vector) for vector in found]


def table(*rows):
    owners = [owner for row in rows for owner in row]
    return pb.Table(stride=len(rows[0]), owners=owners, acquired=[1] * len(owners))


class Routing(unittest.TestCase):
    def test_tokens_and_segments_are_the_published_ones(self):
        for key, vector in vectors():
            self.assertEqual(f"{routing.token(key):032x}", vector["token"])
            for count, segment in vector["segment_by_count"].items():
                self.assertEqual(routing.segment(key, int(count)), segment)

    def check(self, layout, key, expected):
        self.assertEqual([owner.address for owner in routing.owners(layout, key)], expected)

    def test_owners_are_read_off_the_tables(self):
        members = [pb.Member(address=name) for name in ("m0", "m1", "m2")]
        layout = pb.Layout(segments=2, members=members, phase=pb.PHASE_STABLE)
        layout.current.CopyFrom(table([2, 0], [1, 3]))  # 3 members: 3 marks a vacant entry
        low, high = b"a", b"b"  # tokens 0c... and 92...
        self.check(layout, low, ["m2", "m0"])
        self.check(layout, high, ["m1"])

        layout.next.segments.append(0)
        layout.next.rows.CopyFrom(table([1, 0]))
        layout.phase = pb.PHASE_DUAL  # m0 is in both
        self.check(layout, low, ["m0", "m2"])
        self.check(layout, high, ["m1"])
        layout.phase = pb.PHASE_READ_NEW
        self.check(layout, low, ["m0", "m1"])
        self.check(layout, high, ["m1"])

    @unittest.skipUnless(NODE, "no node to compare with")
    def test_a_node_says_the_same(self):
        with client.connected(NODE) as channel:
            layout, location = routing.fetch_layout(channel), LocationStub(channel)
            for key, vector in vectors():
                said = location.Locate(pb.LocateRequest(key=key), timeout=client.REQUEST_SECONDS)
                self.assertEqual(said.token.hex(), vector["token"])
                self.assertEqual(said.segment, routing.segment(key, layout.segments))
                self.check(layout, key, [owner.address for owner in said.owners])


if __name__ == "__main__":
    unittest.main()
