//! The download server of the user data: files by name, over plain HTTP. The SHA-256 makes a file trusted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use aws_double::wire::{self, Body};
use aws_lc_rs::digest::{SHA256, digest};
use harness::Failure;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::network::HUB;

/// A file on the download server.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    /// The URL of the file.
    pub(crate) url: String,
    /// The SHA-256 of the content, in hexadecimal.
    pub(crate) sha256: String,
    path: String,
    content: Bytes,
}

impl Download {
    /// Reads a file. The server offers it under its own name.
    pub(crate) fn of(file: &Path) -> Result<Self, Failure> {
        let content = std::fs::read(file)
            .map_err(|error| Failure::new(format!("could not read {}", file.display())).because(error))?;
        let path = format!("/{}", file.file_name().unwrap_or_default().to_string_lossy());
        let sha256 =
            digest(&SHA256, &content).as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Ok(Self { url: format!("http://{HUB}{path}"), sha256, path, content: content.into() })
    }
}

/// The download server, which runs until it is dropped.
pub(crate) struct Downloads(JoinHandle<()>);

impl Downloads {
    /// Listens on the hub.
    pub(crate) async fn start(files: impl IntoIterator<Item = Download>) -> Result<Self, Failure> {
        let listener = TcpListener::bind((HUB, 80))
            .await
            .map_err(|error| Failure::new("could not listen for downloads").because(error))?;
        let files: BTreeMap<String, Bytes> = files.into_iter().map(|file| (file.path, file.content)).collect();
        let files = Arc::new(files);
        let answer = move |request: Request<_>, _| {
            let found = files.get(request.uri().path()).cloned();
            let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let mut response = Body::of(found.unwrap_or_default());
            *response.status_mut() = status;
            std::future::ready(response)
        };
        Ok(Self(tokio::spawn(wire::serve(listener, answer))))
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.0.abort();
    }
}
