//! A thin HTTP client for the daemon's socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::ErrorBody;

/// Why a request has no answer that is of use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon answers on {}: {source}; start one with `causeway daemon`, or name its socket with --socket", socket.display())]
    NoDaemon {
        /// Which socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}{}", .0.error, .0.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Refused(ErrorBody),
    /// The daemon went away, or is none.
    #[error("the daemon's answer cannot be read: {0}; see its log")]
    Broken(String),
}

/// A client of one daemon. Each request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the daemon on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.request(Method::GET, path, Bytes::new()).await?;
        decode(response).await
    }

    /// Creates an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        let response = self.request(Method::POST, path, body.into()).await?;
        decode(response).await
    }

    /// Creates an object of which nothing is told.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create(&self, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        self.request(Method::POST, path, body.into()).await?;
        Ok(())
    }

    /// Changes an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        let response = self.request(Method::PATCH, path, body.into()).await?;
        decode(response).await
    }

    /// Removes an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        self.request(Method::DELETE, path, Bytes::new()).await?;
        Ok(())
    }

    /// Reads a stream of lines, calling `line` for each until it says that it has enough.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut body = self
            .request(Method::GET, path, Bytes::new())
            .await?
            .into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = rest.drain(..=end).collect();
                line(&whole).map_err(broken)?;
            }
        }
        Ok(())
    }

    /// Reads a stream of bytes, piece by piece.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bytes(&self, path: &str) -> Result<ByteStream, Error> {
        let response = self.request(Method::GET, path, Bytes::new()).await?;
        Ok(ByteStream {
            body: response.into_body(),
        })
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Error::NoDaemon {
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the answer; what goes wrong on it is seen by the request.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "causeway")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        let refused = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
            error: format!("the daemon answered {status}"),
            hint: None,
        });
        Err(Error::Refused(refused))
    }
}

/// An answer that arrives piece by piece.
#[derive(Debug)]
pub struct ByteStream {
    body: Incoming,
}

impl ByteStream {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Error> {
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(broken)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Broken(error.to_string())
}

/// A name as a part of a path: everything that is not unreserved is escaped (RFC 3986 section 2).
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("web-1.a_b~"), "web-1.a_b~");
        assert_eq!(escape("a/b c?é"), "a%2Fb%20c%3F%C3%A9");
    }
}
