//! Two writes of one key that bear the same stamp: whoever meets both, in whatever order, keeps the same.

use crate::rig::{Rig, addresses};
use thrifty::core::layout::Layout;
use thrifty::core::node::NodeId;
use thrifty::wire::convert::id_bytes;
use thrifty::wire::store::store_peer_client::StorePeerClient;
use thrifty::wire::store::{
    LinkHello, LinkRequest, Question, Record, Version, WriteQuestion, answer, question,
};

/// Has one node, and no other, keep a record.
async fn keep(layout: &Layout, to: NodeId, key: &str, version: Version, value: &str) {
    let address = &layout.member(to).unwrap().address;
    let mut peer = StorePeerClient::connect(format!("http://{address}")).await.unwrap();
    let from = id_bytes(layout.ids().find(|id| *id != to).unwrap().0);
    let hello = LinkHello { from, to: id_bytes(to.0), ring_id: id_bytes(layout.ring.0) };
    let record = Record { version: Some(version), value: Some(value.to_owned().into()), ..Record::default() };
    let write = WriteQuestion {
        epoch: layout.epoch,
        key: key.to_owned().into(),
        record: Some(record),
        write_back: false,
    };
    let question = Question { number: 1, ask: Some(question::Ask::Write(write)) };
    // The link stays open until it is answered.
    let (frames, sent) = tokio::sync::mpsc::channel(2);
    frames.send(LinkRequest { hello: Some(hello), questions: Vec::new() }).await.unwrap();
    frames.send(LinkRequest { hello: None, questions: vec![question] }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = peer.link(stream).await.unwrap().into_inner();
    let answered = answers.message().await.unwrap().unwrap().answers.remove(0).answer.unwrap();
    assert!(matches!(answered, answer::Answer::Accepted(of) if of == version), "{answered:?}");
}

#[test]
fn of_two_writes_with_one_stamp_all_nodes_keep_the_same() {
    let rig = Rig::new();
    let nodes = rig.ring_of(3);
    let client = rig.client(&addresses(&nodes));
    let layout = client.layout();
    let hlc = rig.wait(client.put("clock", "")).unwrap().version.hlc + (1 << 16);
    let ids: Vec<NodeId> = layout.ids().collect();
    let orders = [[0, 1], [1, 0], [0, 2], [2, 1]];
    let key = |number: usize| format!("tie {number}");
    for (number, [first, second]) in orders.into_iter().enumerate() {
        rig.wait(keep(&layout, ids[first], &key(number), Version { hlc, node: 1 }, "of one"));
        rig.wait(keep(&layout, ids[second], &key(number), Version { hlc, node: 2 }, "of the other"));
    }
    // Nobody was told that these are kept; now the nodes tell each other.
    for arguments in [["repair"], ["verify"]] {
        rig.tool("storectl", &[&["--peer", &nodes[0].address()], &arguments[..]].concat()).ok();
    }
    for (node, number) in nodes.iter().flat_map(|node| (0..orders.len()).map(move |number| (node, number))) {
        let address = node.address().parse().unwrap();
        let here = rig.wait(client.get_local(&address, key(number))).unwrap().unwrap();
        assert_eq!(here.value, "of the other", "{number} at {address}");
        let found = rig.wait(client.get(key(number))).unwrap().unwrap();
        assert_eq!(found.value, "of the other", "{number}");
    }
}
