//! AWS Secrets Manager: the trust bundle in a secret.

use async_trait::async_trait;
use aws_config::SdkConfig;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::aws::secret::{Secret, SecretError, SecretValue, Unfit};
use crate::trust::distrust;
use crate::trust::{TrustBundle, TrustError, TrustSource};

const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// A trust bundle in a secret: PEM as string or binary, or a JSON object with the PEM as one value.
pub struct SecretsManager {
    secret: Secret,
    json_key: Option<String>,
}

impl SecretsManager {
    /// `secret_id` is a name or an ARN; `json_key` names the value of a JSON secret.
    #[must_use]
    pub fn new(aws: &SdkConfig, secret_id: &str, json_key: Option<String>) -> Self {
        Self { secret: Secret::new(aws, secret_id), json_key }
    }

    /// What the current version of the secret holds.
    pub async fn stored(&self) -> Result<Stored, SecretError> {
        let SecretValue { content, version, created } = self.secret.current().await?;
        let unfit = |unfit| self.secret.unfit(unfit);
        let distrust = distrusted(&content).map_err(unfit)?;
        let content = pem(content, self.json_key.as_deref()).map_err(unfit)?;
        Ok(Stored { pem: SecretValue { content, version, created }, distrust })
    }
}

/// The content of the bundle's secret. Neither part is proven yet.
pub struct Stored {
    /// The bundle's PEM.
    pub pem: SecretValue,
    /// The entries that distrust CAs.
    distrust: Vec<String>,
}

#[async_trait]
impl TrustSource for SecretsManager {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let Stored { pem, distrust } = self.stored().await?;
        let origin = &self.secret.id;
        TrustBundle::parse(&pem.content, origin, &pem.version)
            .and_then(|bundle| bundle.without(&distrust::read(distrust.iter().map(String::as_str))?))
            .map_err(|source| TrustError::Bundle { origin: origin.clone(), source })
    }
}

/// The key of a JSON secret with the distrusted CAs.
const DISTRUST: &str = "distrust";

/// The entries of a JSON secret that distrust CAs. They are no secrets. [`pem`] says what else is wrong with the content.
fn distrusted(content: &[u8]) -> Result<Vec<String>, Unfit> {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(default)]
        distrust: Option<serde_json::Value>,
    }
    if !is_json(content) {
        return Ok(Vec::new());
    }
    let unfit = |what: &str| {
        let remedy =
            format!("store one {DISTRUST:?}: [\"SHA256\"], with the SHA-256 of each CA certificate that leaked");
        (what.to_owned(), remedy)
    };
    let marked: Marked = serde_json::from_slice(content)
        .map_err(|_| unfit("begins like a JSON object but is none, or distrusts in two places"))?;
    let entries = marked.distrust.map(serde_json::from_value).transpose();
    Ok(entries.map_err(|_| unfit("has no list of texts under the key \"distrust\""))?.unwrap_or_default())
}

fn is_json(content: &[u8]) -> bool {
    content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// The PEM in a secret: the whole content, or a value of a JSON object. `json_key` names that value; otherwise only one value
/// may hold a certificate.
pub fn pem(content: Zeroizing<Vec<u8>>, json_key: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Unfit> {
    if !is_json(&content) {
        return match json_key {
            None => Ok(content),
            Some(key) => Err((
                format!("is no JSON object, so it has no key {key:?}"),
                "write trust.secret_id without \"#KEY\", or store a JSON object".into(),
            )),
        };
    }
    // A bundle is text, so every other kind of value is ignored.
    let object: std::collections::BTreeMap<String, Text> = serde_json::from_slice(&content).map_err(|_| {
        (
            "begins like a JSON object but is none".to_owned(),
            "store PEM, or a JSON object with the PEM as a value".into(),
        )
    })?;
    let text = if let Some(key) = json_key {
        object.get(key).and_then(|value| value.0.as_ref()).ok_or_else(|| {
            (format!("has no text under the key {key:?}"), "check KEY in trust.secret_id = \"NAME#KEY\"".to_owned())
        })?
    } else {
        let mut fitting =
            object.values().filter_map(|text| text.0.as_ref()).filter(|text| text.contains(BEGIN_CERTIFICATE));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => only,
            (None, _) => {
                return Err((
                    "is a JSON object without a PEM certificate".into(),
                    "store the bundle's PEM as one of its values".into(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err((
                    "is a JSON object with several PEM values".into(),
                    "say which one: trust.secret_id = \"NAME#KEY\"".into(),
                ));
            }
        }
    };
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}

/// A JSON value. Only text is kept.
struct Text(Option<Zeroizing<String>>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Text(Zeroizing<String>),
            Other(serde::de::IgnoredAny),
        }
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::Text(text) => Some(text),
            Value::Other(_) => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";

    fn read(content: &str, key: Option<&str>) -> Result<String, Unfit> {
        pem(Zeroizing::new(content.as_bytes().to_vec()), key).map(|pem| String::from_utf8(pem.to_vec()).unwrap())
    }

    proptest::proptest! {
        #[test]
        fn invariant_01_whatever_a_secret_holds_no_word_of_it_is_in_an_error(
            word in "[g-z]{12}", before in "(?s).{0,20}|\\{\"a\": \"", after in "(?s).{0,20}|\"\\}",
        ) {
            let content = format!("{before}{word}{after}");
            for key in [None, Some("a"), Some("KEY")] {
                if let Err((what, remedy)) = read(&content, key) {
                    proptest::prop_assert!(!what.contains(&word) && !remedy.contains(&word), "{what}; {remedy}");
                }
            }
        }
    }

    #[test]
    fn plain_pem_is_taken_whole() {
        assert_eq!(read(PEM, None).unwrap(), PEM);
    }

    #[test]
    fn a_json_secret_gives_the_named_value_or_its_only_certificate() {
        let secret = serde_json::json!({"bundle": PEM, "note": "x", "count": 3, "more": {"a": []}}).to_string();
        assert_eq!(read(&secret, None).unwrap(), PEM);
        assert_eq!(read(&secret, Some("bundle")).unwrap(), PEM);
        assert!(read(&secret, Some("count")).unwrap_err().0.contains("\"count\""));
        assert!(read(&secret, Some("absent")).is_err());
    }

    #[test]
    fn a_json_secret_distrusts_by_a_list_of_texts() {
        let read = |value: serde_json::Value| distrusted(value.to_string().as_bytes());
        assert_eq!(read(serde_json::json!({"ca": PEM, "distrust": ["a", "b"]})).unwrap(), ["a", "b"]);
        assert!(read(serde_json::json!({"ca": PEM})).unwrap().is_empty());
        assert!(read(serde_json::json!({"distrust": []})).unwrap().is_empty());
        assert!(distrusted(PEM.as_bytes()).unwrap().is_empty());
        assert!(distrusted(br#"{"distrust": [], "distrust": ["a"]}"#).is_err());
        for wrong in [serde_json::json!("a"), serde_json::json!([1]), serde_json::json!({"a": 1})] {
            let (what, remedy) = read(serde_json::json!({"ca": PEM, "distrust": wrong})).unwrap_err();
            assert!(what.contains("distrust") && remedy.contains("SHA256"), "{what}; {remedy}");
        }
    }

    #[test]
    fn several_certificates_need_a_name() {
        let secret = serde_json::json!({"old": PEM, "new": PEM}).to_string();
        let (_, remedy) = read(&secret, None).unwrap_err();
        assert!(remedy.contains("NAME#KEY"));
        assert_eq!(read(&secret, Some("old")).unwrap(), PEM);
    }

    #[test]
    fn a_key_of_something_that_is_no_json_is_refused() {
        assert!(read(PEM, Some("bundle")).is_err());
        assert!(read("{not json", None).is_err());
        assert!(read("{}", None).is_err());
    }

    #[test]
    fn invariant_01_a_broken_secrets_content_stays_out_of_the_error() {
        for secret in [r#"{"a": "s3cret""#, r#"{"a": "s3cret"}"#] {
            let (what, remedy) = read(secret, Some("b")).unwrap_err();
            assert!(!what.contains("s3cret") && !remedy.contains("s3cret"));
        }
    }
}
