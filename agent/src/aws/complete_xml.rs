//! An XML answer that breaks off is an error.
//!
//! The SDK's parser takes the end of the text for the end of every open element. So half a list of instances is read as
//! a short list. Some proxies don't announce the length of an answer, and then only this check shows that the rest is
//! missing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Longer than the name of any answer's root element.
const LONGEST_NAME: usize = 128;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A body that fails at its end if it is XML and its root element isn't closed.
pub(super) struct CompleteXml {
    body: Pin<Box<Limited<SdkBody>>>,
    /// The beginning of the body, up to where the name of the root element may end.
    head: Vec<u8>,
    /// The last bytes of the body.
    tail: Vec<u8>,
}

impl CompleteXml {
    pub(super) fn new(body: Limited<SdkBody>) -> Self {
        Self { body: Box::pin(body), head: Vec::new(), tail: Vec::new() }
    }

    fn note(&mut self, bytes: &[u8]) {
        // The text may begin with any amount of whitespace.
        let bytes = if self.head.is_empty() { bytes.trim_ascii_start() } else { bytes };
        let room = (4 * LONGEST_NAME).saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(2 * LONGEST_NAME)..]);
        let surplus = self.tail.len().saturating_sub(2 * LONGEST_NAME);
        self.tail.drain(..surplus);
    }

    fn breaks_off(&self) -> bool {
        let head = String::from_utf8_lossy(&self.head);
        let markup = head.split_once("?>").filter(|_| head.starts_with("<?")).map_or(&*head, |(_, rest)| rest);
        let Some(root) = markup.trim_start().strip_prefix('<') else { return false };
        let name: String = root.chars().take_while(|c| !c.is_whitespace() && !"/>".contains(*c)).collect();
        let closes = format!("</{name}>");
        let is_empty_element = root.trim_end().ends_with("/>") && !root.trim_end_matches("/>").contains('>');
        !is_empty_element && !self.tail.trim_ascii_end().ends_with(closes.as_bytes())
    }
}

impl Body for CompleteXml {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(match ready!(self.body.as_mut().poll_frame(context)) {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    let bytes = bytes.clone();
                    self.note(&bytes);
                }
                Some(Ok(frame))
            }
            None if self.breaks_off() => {
                self.head.clear();
                Some(Err("the answer breaks off before its end".into()))
            }
            other => other,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn read(text: &str) -> bool {
        let body = CompleteXml::new(Limited::new(SdkBody::from(text), 1 << 20));
        match body.collect().await {
            Ok(collected) => {
                assert_eq!(collected.to_bytes(), text.as_bytes());
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("breaks off"), "{error}");
                false
            }
        }
    }

    #[tokio::test]
    async fn every_beginning_of_an_xml_answer_is_refused_and_the_whole_is_not() {
        let text = "<?xml version=\"1.0\"?>\n<AnswerResponse xmlns=\"http://x/\"><List><member>1</member></List></AnswerResponse>\n";
        assert!(read(text).await);
        let root = text.find("<Answer").unwrap();
        for end in root + 2..text.len() - 2 {
            assert!(!read(&text[..end]).await, "{}", &text[..end]);
        }
    }

    #[tokio::test]
    async fn what_is_no_xml_is_none_of_its_business() {
        for text in ["", "  ", "{\"Certificate\": \"-----BEGIN", "token", "<Answer/>", "<Answer a=\"b\" />"] {
            assert!(read(text).await, "{text}");
        }
        assert!(read(&format!("{}<a>{}</a>", " ".repeat(5000), "b".repeat(5000))).await);
        assert!(!read(&format!("<a>{}", "b".repeat(5000))).await);
    }
}
