//! Puts to an etcd cluster with as many callers, connections and bytes as `storebench put` has by
//! default, to compare the two in one run: `cargo bench --bench etcd -- HOST:PORT [SECONDS]`.
//!
//! Of etcd's protocol only `KV.Put` is spoken, so that nothing of it has to be shipped.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that a person runs by hand")]

use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

const CALLERS: usize = 64;
const CONNECTIONS: usize = 4;
const KEYS: u64 = 100_000;

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What comes back is not looked at.
#[derive(Clone, PartialEq, Message)]
struct Response {}

async fn put(channel: Channel, key: u64) {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let request = tonic::Request::new(Put { key: format!("{key:016}").into_bytes(), value: vec![b'x'; 100] });
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = tonic_prost::ProstCodec::<Put, Response>::default();
    client.unary(request, path, codec).await.unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(address) = arguments.next() else { return println!("usage: etcd HOST:PORT [SECONDS]") };
    let seconds = arguments.next().map_or(5, |text| text.parse().unwrap());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
    let channels: Vec<Channel> = (0..CONNECTIONS).map(|_| endpoint.connect_lazy()).collect();
    let (done, counting) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs(1));
    let end = counting + Duration::from_secs(seconds);
    let callers = (0..CALLERS).map(|caller| {
        let (channel, done) = (channels[caller % CONNECTIONS].clone(), done.clone());
        tokio::spawn(async move {
            let mut key = caller as u64 * 7919;
            while Instant::now() < end {
                key = (key * 31_337 + 1_442_695) % KEYS;
                put(channel.clone(), key).await;
                if Instant::now() >= counting {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    println!("{} puts/s", done.load(Ordering::Relaxed) / seconds);
}
