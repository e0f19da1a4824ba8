//! Messages: what can be read of a question, and what an answer looks like on the wire.
//!
//! The wire format is hickory-proto's. What cannot be a question is met with silence, so that two
//! servers never talk to each other for ever; what is one and cannot be served, with the code that
//! RFC 1035, 6891 or 8482 has for it.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

/// Bytes of a header (RFC 1035 section 4.1.1).
const HEADER_SIZE: usize = 12;
/// Largest answer by UDP: what crosses every link without fragments (DNS flag day 2020). What is
/// larger is cut, and asked for again by TCP.
pub const UDP_SIZE_MAX: u16 = 1_232;
/// What a client takes that does not say (RFC 1035 section 2.3.4).
const UDP_SIZE_DEFAULT: u16 = 512;

/// How a question came, which limits its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// By a datagram.
    Udp,
    /// By a connection.
    Tcp,
}

/// A question that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// As it was asked, letter by letter.
    pub query: Query,
    id: u16,
    recursion_desired: bool,
    /// Signatures are not checked for the client's sake.
    pub checking_disabled: bool,
    /// What the client said of EDNS.
    edns: Option<ClientEdns>,
    transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClientEdns {
    size_max: u16,
    dnssec_ok: bool,
}

/// What is done about a message that is no question that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// Nothing.
    Silence,
    /// It is answered by this, which has that code.
    Refused(ResponseCode, Vec<u8>),
}

/// The records of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sections {
    /// What answers the question.
    pub answers: Vec<Record>,
    /// Who says so.
    pub authorities: Vec<Record>,
    /// What goes with it.
    pub additionals: Vec<Record>,
}

impl Sections {
    /// How long it may be kept at most, in seconds.
    pub fn ttl_min(&self) -> Option<u32> {
        let all = self.answers.iter().chain(&self.authorities);
        all.chain(&self.additionals).map(|record| record.ttl).min()
    }

    /// The same, some seconds later.
    pub fn aged(&self, seconds: u32) -> Self {
        let aged = |records: &[Record]| {
            let mut records = records.to_vec();
            for record in &mut records {
                record.decrement_ttl(seconds);
            }
            records
        };
        Self {
            answers: aged(&self.answers),
            authorities: aged(&self.authorities),
            additionals: aged(&self.additionals),
        }
    }
}

/// Whether an answer is the zone's own or somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The zone's.
    Own,
    /// An upstream server's.
    Other,
}

impl Question {
    /// Reads a message from a client.
    ///
    /// # Errors
    /// [`Unserved`] when it is no question that can be served.
    pub fn read(bytes: &[u8], transport: Transport) -> Result<Self, Unserved> {
        let header: &[u8; HEADER_SIZE] = bytes.first_chunk().ok_or(Unserved::Silence)?;
        if header[2] & 0x80 != 0 {
            return Err(Unserved::Silence);
        }
        let op = OpCode::from_u8((header[2] >> 3) & 0x0f);
        if op != OpCode::Query {
            return Err(bare(header, ResponseCode::NotImp));
        }
        let message = Message::from_vec(bytes);
        let mut message = message.map_err(|_| bare(header, ResponseCode::FormErr))?;
        let edns = message.edns.as_ref().map(|edns| ClientEdns {
            size_max: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        });
        let version = message.edns.as_ref().map_or(0, Edns::version);
        if message.queries.len() != 1 {
            return Err(bare(header, ResponseCode::FormErr));
        }
        let question = Self {
            query: message.queries.swap_remove(0),
            id: message.metadata.id,
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            edns,
            transport,
        };
        if version != 0 {
            return Err(question.refused(ResponseCode::BADVERS));
        }
        let rtype = question.query.query_type;
        let unserved = matches!(
            rtype,
            RecordType::ANY
                | RecordType::AXFR
                | RecordType::IXFR
                | RecordType::OPT
                | RecordType::TSIG
        );
        if unserved || question.query.query_class != DNSClass::IN {
            return Err(question.refused(ResponseCode::Refused));
        }
        Ok(question)
    }

    fn refused(&self, code: ResponseCode) -> Unserved {
        Unserved::Refused(
            code,
            self.answer(code, Authority::Other, &Sections::default()),
        )
    }

    /// Whether signatures are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The answer as it is sent: no larger than the client takes, or else cut.
    pub fn answer(&self, code: ResponseCode, by: Authority, sections: &Sections) -> Vec<u8> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authoritative = by == Authority::Own;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if let Some(edns) = self.edns {
            let mut own = Edns::new();
            own.set_max_payload(UDP_SIZE_MAX);
            own.set_dnssec_ok(edns.dnssec_ok);
            own.set_version(0);
            own.set_rcode_high(code.high());
            message.set_edns(own);
        }
        message.insert_answers(sections.answers.clone());
        message.insert_authorities(sections.authorities.clone());
        message.insert_additionals(sections.additionals.clone());
        let fits = |message: &Message| message.to_vec().ok().filter(|b| b.len() <= self.size_max());
        if let Some(bytes) = fits(&message) {
            return bytes;
        }
        if !message.answers.is_empty() {
            message.authorities.clear();
            message.additionals.clear();
            if let Some(bytes) = fits(&message) {
                return bytes;
            }
        }
        // A header and a question always fit.
        message.truncate().to_vec().unwrap_or_default()
    }

    fn size_max(&self) -> usize {
        match self.transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let size_max = self.edns.map_or(UDP_SIZE_DEFAULT, |edns| edns.size_max);
                size_max.clamp(UDP_SIZE_DEFAULT, UDP_SIZE_MAX).into()
            }
        }
    }
}

/// An answer that has a header and nothing else, for what could not be read.
fn bare(header: &[u8; HEADER_SIZE], code: ResponseCode) -> Unserved {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes[..2].copy_from_slice(&header[..2]);
    // A response, with the client's operation and its wish for recursion.
    bytes[2] = 0x80 | header[2] & 0x79;
    bytes[3] = 0x80 | code.low();
    Unserved::Refused(code, bytes)
}

/// The question that is sent to an upstream server.
pub fn upstream_query(
    id: u16,
    name: &Name,
    rtype: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(Query::query(name.clone(), rtype));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_SIZE_MAX);
    edns.set_version(0);
    edns.set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message.to_vec().unwrap_or_default()
}

/// What an upstream server has said to a question of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The code.
    pub code: ResponseCode,
    /// It is cut, and whole by TCP.
    pub truncated: bool,
    /// The records.
    pub sections: Sections,
}

/// Reads what came from a server; `None` when it is no answer to that question.
pub fn read_reply(bytes: &[u8], id: u16, name: &Name, rtype: RecordType) -> Option<Reply> {
    let message = Message::from_vec(bytes).ok()?;
    let [query] = message.queries.as_slice() else {
        return None;
    };
    let same = message.metadata.message_type == MessageType::Response
        && message.metadata.id == id
        && query.name == *name
        && query.query_type == rtype
        && query.query_class == DNSClass::IN;
    same.then_some(Reply {
        code: message.metadata.response_code,
        truncated: message.metadata.truncation,
        sections: Sections {
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        },
    })
}
