//! The codec of all services: protobuf, but for messages of too many parts.
//!
//! An empty part of a message has two bytes and takes up to a hundred times as much once it is decoded,
//! so that a message of the largest size could be made to take hundreds of megabytes. The fields of a
//! message are therefore counted before it is decoded. Only those at its top: the one long list that lies
//! deeper, of what is to be collected, takes some sixty bytes where two were sent.

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Fields at the top of a message: more than there are in an answer with the digests of all segments
/// of the largest ring.
const MAX_FIELDS: usize = (1 << 16) + 64;

/// No field takes less than this.
const LEAST_BYTES: usize = 2;

/// The codec that encodes `T` and decodes `U`.
#[derive(Debug)]
pub struct Bounded<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Bounded(ProstCodec::default())
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        self.0.encoder()
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(self.0.decoder())
    }
}

/// The half of [`Bounded`] that decodes.
#[derive(Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // It is in one piece.
        if message.remaining() > MAX_FIELDS * LEAST_BYTES && has_too_many_fields(message.chunk()) {
            return Err(Status::invalid_argument(format!("a message has at most {MAX_FIELDS} fields")));
        }
        self.0.decode(message)
    }
}

/// What makes no sense is for the decoder to refuse.
fn has_too_many_fields(mut message: &[u8]) -> bool {
    for _ in 0..MAX_FIELDS {
        if message.is_empty() {
            return false;
        }
        let skipped = decode_key(&mut message)
            .and_then(|(tag, kind)| skip_field(kind, tag, &mut message, DecodeContext::default()));
        if skipped.is_err() {
            return false;
        }
    }
    !message.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MAX_MESSAGE_BYTES;
    use crate::wire::store::{DigestsResponse, LinkRequest, Question, SegmentDigest};

    #[test]
    fn the_largest_ring_fits_and_empty_parts_without_end_do_not() {
        let one =
            SegmentDigest { segment: u16::MAX.into(), digest: vec![7; 16].into(), ..Default::default() };
        let all = DigestsResponse { epoch: u64::MAX, segments: vec![one; 1 << 16] }.encode_to_vec();
        assert!(all.len() < MAX_MESSAGE_BYTES && !has_too_many_fields(&all));
        let frame = |questions| LinkRequest { hello: None, questions: vec![Question::default(); questions] };
        assert!(!has_too_many_fields(&frame(MAX_FIELDS).encode_to_vec()));
        assert!(has_too_many_fields(&frame(MAX_FIELDS + 1).encode_to_vec()));
        assert_eq!(frame(MAX_FIELDS).encoded_len(), MAX_FIELDS * LEAST_BYTES);
        assert!(size_of::<Question>() * MAX_FIELDS < 16 << 20, "what such a frame takes at the most");
        assert!(!has_too_many_fields(&vec![0xff; 1 << 20]), "no protobuf at all");
    }
}
