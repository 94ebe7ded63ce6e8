//! Reads at ONE of keys that another node coordinates: answered from this node's [cache](crate::cache).
//!
//! The node that coordinates a key's requests reads its own replica, and its answers are not older than
//! that; so nothing here is forwarded twice, and what is kept is one `ttl` old at the most. Other owners
//! ask it, too, rather than their own replicas, which may have missed a write.

use super::Store;
use super::routing::{check, key_of, nonsense, reads};
use crate::cache::Changing;
use crate::client;
use crate::core::quorum::Consistency;
use crate::wire::convert;
use crate::wire::status;
use crate::wire::store::{GetRequest, GetResponse, answer, forwarded_request};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

impl Store {
    /// Whether a read is content with what was current a moment ago, and would be forwarded.
    pub(super) fn may_be_cached(&self, get: &GetRequest) -> bool {
        let options = get.options.unwrap_or_default();
        let one = convert::consistency_to(Consistency::One);
        if !self.0.cache.is_on() || options.consistency != one || options.fallback_to_one {
            return false;
        }
        let Some(layout) = self.location().layout() else { return false };
        let first = self.candidates(&layout, layout.segment(&get.key)).next();
        first != Some(self.location().me())
    }

    /// Answers such a read.
    pub(super) async fn get_cached(&self, get: GetRequest, timeout: Duration) -> Result<GetResponse, Status> {
        let found = match self.0.cache.kept(&get.key) {
            Some(found) => Some(found),
            None => self.load(get, timeout).await?,
        };
        let found = found.ok_or_else(|| Status::not_found("no such key"))?;
        Ok(GetResponse {
            value: found.value,
            version: Some(convert::version_to(found.version)),
            content_type: found.content_type,
            consistency: convert::consistency_to(Consistency::One),
            epoch: self.layout()?.epoch,
            expires_at_ms: found.expires_at_ms,
        })
    }

    /// While a request lasts that changes a key, what is kept of it is not given out.
    pub(super) fn changing<'a>(&'a self, request: &'a forwarded_request::Request) -> Option<Changing<'a>> {
        (!reads(request)).then(|| self.0.cache.changing(key_of(request)))
    }

    async fn load(&self, get: GetRequest, timeout: Duration) -> Result<Option<client::Found>, Status> {
        let (key, deadline) = (get.key.clone(), Instant::now() + timeout);
        let request = forwarded_request::Request::Get(get);
        check(&request)?;
        let _taken_in = self.0.admission.take_in()?;
        let load = async {
            match self.have_coordinated(&request, deadline).await {
                Ok(answer::Answer::Get(response)) => Ok(Some(client::found(response))),
                Ok(other) => Err(nonsense(&other)),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        };
        let loaded = tokio::time::timeout_at(deadline, self.0.cache.load(&key, load)).await;
        loaded.map_err(|_elapsed| {
            status::unavailable("another read of this key took all the time there was; nothing was done")
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::ring_of;
    use crate::store::tests::member_of;
    use crate::wire::store::Options;
    use bytes::Bytes;
    use futures_util::poll;
    use std::pin::pin;

    fn get(key: &Bytes, consistency: Consistency, fallback_to_one: bool) -> GetRequest {
        let options = Options { consistency: convert::consistency_to(consistency), fallback_to_one };
        GetRequest { key: key.clone(), options: Some(options), local: false }
    }

    #[tokio::test]
    async fn only_what_is_content_with_one_and_would_be_forwarded_is_answered_from_the_cache() {
        let layout = ring_of(3, 3, 4);
        let store = member_of(layout.clone()).await;
        let first = |key: &Bytes| layout.coordinators(layout.segment(key))[0];
        for key in (0..100).map(|number| Bytes::from(number.to_string())) {
            let forwarded = first(&key) != store.location().me();
            assert_eq!(store.may_be_cached(&get(&key, Consistency::One, false)), forwarded);
            assert!(!store.may_be_cached(&get(&key, Consistency::One, true)));
            assert!(!store.may_be_cached(&get(&key, Consistency::Quorum, false)));
            assert!(!store.may_be_cached(&get(&key, Consistency::All, false)));
            assert!(!store.may_be_cached(&GetRequest { key, ..GetRequest::default() }));
        }
    }

    #[tokio::test]
    async fn who_waits_for_anothers_read_waits_for_no_longer_than_he_has() {
        let layout = ring_of(3, 1, 4);
        let store = member_of(layout.clone()).await;
        let mut keys = (0..).map(|number: u32| Bytes::from(number.to_string()));
        let key =
            keys.find(|key| !layout.may_coordinate(store.location().me(), layout.segment(key))).unwrap();
        let get = || get(&key, Consistency::One, false);
        // Nobody answers it.
        let mut patient = pin!(store.get(get(), Duration::from_secs(3600)));
        assert!(poll!(&mut patient).is_pending());
        let status = store.get(get(), Duration::from_millis(50)).await.unwrap_err();
        assert!(status.message().contains("another read") && status::nothing_done(&status), "{status}");
        assert_eq!(store.in_flight(), 1);
        assert!(poll!(&mut patient).is_pending());
    }
}
