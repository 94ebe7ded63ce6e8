//! As much of HTTP/2 and gRPC as it takes to send unary requests and to see how each ended, without
//! a library: what the crowd costs itself, the ring on the same machine doesn't have.

use thrifty::core::node::Address;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest frame that everybody takes.
pub(crate) const MAX_FRAME: usize = 16 << 10;

/// What a side may send at first.
pub(crate) const FIRST_WINDOW: i64 = 65_535;

/// The error code of a request that is given up.
pub(crate) const CANCEL: u32 = 8;

/// What a frame begins with.
const HEADER: usize = 9;

/// The name and the length before a status, in the Huffman code that every server uses here.
const GRPC_STATUS: [u8; 8] = [0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Good,
    TurnedAway,
    Unavailable,
    Unknown,
    Other,
}

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

/// Adds a frame.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// The first frame of what came, if all of it is there, and the rest.
pub(crate) fn take(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (&[a, b, c, kind, flags, s0, s1, s2, s3], rest) = bytes.split_first_chunk::<HEADER>()?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize)?;
    let stream = u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1);
    Some((Frame { kind, flags, stream, payload }, rest))
}

/// What a client says first: no table for the headers of answers, and no bound on their bytes.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [0, 1, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
    put(&mut out, SETTINGS, 0, 0, &settings);
    put(&mut out, WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes());
    out
}

/// A gRPC request: its headers, then its message. The stream is yet to be set; the first one of a
/// connection says the headers that the others refer to.
pub(crate) fn request(first: Option<(&Address, u32)>, path: &str, message: &[u8]) -> Vec<u8> {
    // POST and http, then the path.
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.bytes());
    match first {
        Some((authority, timeout_ms)) => {
            let mut remember = |name: &str, value: &str| {
                block.extend([0x40, name.len() as u8]);
                block.extend(name.bytes());
                block.push(value.len() as u8);
                block.extend(value.bytes());
            };
            remember(":authority", &authority.to_string());
            remember("content-type", "application/grpc");
            remember("te", "trailers");
            remember("grpc-timeout", &format!("{timeout_ms}m"));
        }
        None => block.extend([0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]),
    }
    let mut out = Vec::new();
    put(&mut out, HEADERS, END_HEADERS, 0, &block);
    let mut data = vec![0];
    data.extend((message.len() as u32).to_be_bytes());
    data.extend(message);
    put(&mut out, DATA, END_STREAM, 0, &data);
    out
}

/// Sets the stream of a request.
pub(crate) fn address(request: &mut [u8], stream: u32) {
    let data = HEADER + u32::from_be_bytes([0, request[0], request[1], request[2]]) as usize;
    for at in [0, data] {
        request[at + 5..at + HEADER].copy_from_slice(&stream.to_be_bytes());
    }
}

/// How a request ended, from its last headers.
pub(crate) fn end(block: &[u8]) -> End {
    let at = block.windows(GRPC_STATUS.len()).position(|window| window == GRPC_STATUS);
    match at.and_then(|at| block.get(at + GRPC_STATUS.len()..)) {
        // 0, and 5: there is no such key.
        Some([0x81, 0x07 | 0x6f, ..]) => End::Good,
        // 8
        Some([0x81, 0x7b, ..]) => End::TurnedAway,
        // 14
        Some([0x82, 0x0b, 0x5f, ..]) => End::Unavailable,
        // 4 and 10
        Some([0x81, 0x6b, ..] | [0x82, 0x08, 0x3f, ..]) => End::Unknown,
        _ => End::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_put() {
        let mut request = request(None, "/p", b"message");
        address(&mut request, 7);
        let (headers, rest) = take(&request).unwrap();
        assert_eq!((headers.kind, headers.flags, headers.stream), (HEADERS, END_HEADERS, 7));
        let (data, rest) = take(rest).unwrap();
        assert_eq!((data.kind, data.flags, data.stream), (DATA, END_STREAM, 7));
        assert_eq!((data.payload, rest), (&b"\0\0\0\0\x07message"[..], &b""[..]));
        assert_eq!(take(&request[..request.len() - 1]).unwrap().1.len() + 1, HEADER + 5 + 7);
        assert!(take(&request[..5]).is_none());
    }

    #[test]
    fn an_end_is_found_among_other_headers() {
        let block = |value: &[u8]| [&[0x88, 0x40, 0x88][..], &GRPC_STATUS, value, &[0x40, 1]].concat();
        assert_eq!(end(&block(&[0x81, 0x07])), End::Good);
        assert_eq!(end(&block(&[0x81, 0x7b])), End::TurnedAway);
        assert_eq!(end(&block(&[0x82, 0x0b, 0x5f])), End::Unavailable);
        assert_eq!(end(&block(&[0x82, 0x0b, 0x3f])), End::Other);
        assert_eq!(end(&[0x88]), End::Other);
    }
}
