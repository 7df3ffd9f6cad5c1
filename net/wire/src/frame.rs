//! A frame as the session sees it: message decoded, payload beside it. In one process it travels as it is; over a
//! socket it is encoded by [`Frame::encode_head`] and the payload follows.

use std::sync::Arc;

use bytes::Bytes;
use vellum_base::{DmaSlice, Epoch};

use crate::codec::WireFault;
use crate::header::{FrameHeader, FrameKind};
use crate::message::{Greeted, Greeting, Refusal, Request, Response};

/// Messages are shared: the sender keeps them for a resend while they travel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Request(Arc<Request>),
    Response(Arc<Response>),
    Greeting(Greeting),
    Greeted(Greeted),
    Refused(Refusal),
    Note,
}

#[derive(Clone, Debug)]
pub struct Frame {
    pub id: u64,
    pub seq: u64,
    pub ack: u64,
    pub durable: Epoch,
    pub body: Body,
    pub payload: Option<DmaSlice>,
}

impl Frame {
    /// A frame outside the sequence: greetings, refusals and notes.
    pub fn unsequenced(body: Body, ack: u64, durable: Epoch) -> Frame {
        Frame { id: 0, seq: 0, ack, durable, body, payload: None }
    }

    fn header(&self) -> FrameHeader {
        let (kind, message) = match &self.body {
            Body::Request(request) => (FrameKind::Request, request.code()),
            Body::Response(response) => (FrameKind::Response, response.code()),
            Body::Greeting(_) => (FrameKind::Greeting, 0),
            Body::Greeted(_) => (FrameKind::Greeted, 0),
            Body::Refused(_) => (FrameKind::Refused, 0),
            Body::Note => (FrameKind::Note, 0),
        };
        FrameHeader {
            kind,
            flags: 0,
            message,
            id: self.id,
            seq: self.seq,
            ack: self.ack,
            durable: self.durable,
            control_len: 0,
            payload_len: self.payload.as_ref().map_or(0, |p| p.len() as u32),
            crc: 0,
        }
    }

    /// Control part in bytes, at least.
    pub fn control_len(&self) -> usize {
        match &self.body {
            Body::Request(request) => request.control_len(),
            Body::Response(response) => response.control_len(),
            _ => 0,
        }
    }

    /// Appends header and control part; the payload goes out behind them.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        self.header().encode_with(out, |out| match &self.body {
            Body::Request(request) => request.encode(out),
            Body::Response(response) => response.encode(out),
            Body::Greeting(greeting) => greeting.encode(out),
            Body::Greeted(greeted) => greeted.encode(out),
            Body::Refused(refusal) => refusal.encode(out),
            Body::Note => {}
        });
    }

    /// Puts a received frame together, after its checksum.
    pub fn decode(header: &FrameHeader, control: Bytes, payload: Option<DmaSlice>) -> Result<Frame, WireFault> {
        header.verify(&control)?;
        let body = match header.kind {
            FrameKind::Request => Body::Request(Arc::new(Request::decode(header.message, control)?)),
            FrameKind::Response => Body::Response(Arc::new(Response::decode(header.message, control)?)),
            FrameKind::Greeting => Body::Greeting(Greeting::decode(control)?),
            FrameKind::Greeted => Body::Greeted(Greeted::decode(control)?),
            FrameKind::Refused => Body::Refused(Refusal::decode(control)?),
            FrameKind::Note => Body::Note,
        };
        Ok(Frame { id: header.id, seq: header.seq, ack: header.ack, durable: header.durable, body, payload })
    }
}
