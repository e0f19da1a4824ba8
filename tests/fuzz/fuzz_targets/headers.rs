//! Any bytes are read or refused; what is read lies within the frame.

#![no_main]

use dataplane_core::headers::Headers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(headers) = Headers::parse(bytes) else {
        assert!(bytes.len() < 14);
        return;
    };
    if let Some(ip) = headers.ip() {
        assert!(headers.l3_offset + ip.total_size as usize <= bytes.len());
        assert!(u32::from(ip.header_size) <= ip.total_size);
    }
    if let Ok(l4) = headers.l4 {
        assert!(l4.offset < bytes.len());
    }
});
