//! The login of a service: CONNECT, with a signature where the user has a key.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::json;
use zeroize::Zeroizing;

use super::wire::Info;
use crate::config::client::Login;
use crate::error::with_causes;
use crate::state::durable;

/// The largest file of credentials. A JWT with many permissions has some kilobytes.
const MAX_FILE: u64 = 64 * 1024;

/// Who logs in.
pub(super) enum Credentials {
    /// No user.
    None,
    /// A user with a password.
    Password(String, Zeroizing<String>),
    /// A user with a JWT and a key.
    Jwt(Zeroizing<String>, Box<KeyPair>),
}

impl Credentials {
    /// Reads the files of `[login]`. The error quotes none of their content.
    pub(super) fn read(login: &Login) -> Result<Self, String> {
        let text = |path: &std::path::Path| {
            let bytes = durable::read_if_there(path, MAX_FILE).map_err(|error| with_causes(&error))?;
            let bytes = bytes.ok_or_else(|| format!("there is no {}", path.display()))?;
            let text = String::from_utf8(bytes).map_err(|_| format!("{} is no text", path.display()))?;
            Ok::<_, String>(Zeroizing::new(text))
        };
        if let Some(path) = &login.creds_file {
            let content = text(path)?;
            let unusable = || format!("{} holds no JWT and seed of a user", path.display());
            let jwt = between(&content, "NATS USER JWT").ok_or_else(unusable)?;
            let seed = between(&content, "USER NKEY SEED").ok_or_else(unusable)?;
            let key = KeyPair::from_seed(&seed).map_err(|_| unusable())?;
            return Ok(Self::Jwt(jwt, Box::new(key)));
        }
        match (&login.user, &login.password_file) {
            (Some(user), Some(path)) => {
                Ok(Self::Password(user.clone(), Zeroizing::new(text(path)?.trim_end_matches(['\n', '\r']).to_owned())))
            }
            _ => Ok(Self::None),
        }
    }

    /// The options of CONNECT.
    pub(super) fn connect(&self, info: &Info) -> Result<Zeroizing<String>, String> {
        let mut options = json!({
            "verbose": false,
            "pedantic": false,
            "tls_required": true,
            "lang": "rust",
            "name": "agent client check",
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": 1,
        });
        match self {
            Self::None => {}
            Self::Password(user, password) => {
                options["user"] = json!(user);
                options["pass"] = json!(password.as_str());
            }
            Self::Jwt(jwt, key) => {
                let nonce = info.nonce.as_deref().unwrap_or_default();
                let signature = key.sign(nonce.as_bytes()).map_err(|_| "the seed of the credentials signs nothing")?;
                options["jwt"] = json!(jwt.as_str());
                options["sig"] = json!(BASE64_URL_SAFE_NO_PAD.encode(signature));
            }
        }
        Ok(Zeroizing::new(options.to_string()))
    }
}

/// The line between the marks of a block. nats.go takes three dashes and more on either side of a mark.
fn between(text: &str, what: &str) -> Option<Zeroizing<String>> {
    let lines = text.lines().skip_while(|line| !line.contains(&format!("BEGIN {what}"))).skip(1);
    // Base64 of a JWT may have three dashes too, and never begins with them.
    let line = lines.map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"));
    line.map(|line| Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_sign_the_nonce_and_no_error_quotes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.creds");
        let login = Login { creds_file: Some(path.clone()), ..Login::default() };
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let good = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.A---A\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&path, &good).unwrap();
        let info = Info { nonce: Some("nonce".into()), ..Info::default() };
        let connect = Credentials::read(&login).unwrap().connect(&info).unwrap();
        let options: serde_json::Value = serde_json::from_str(&connect).unwrap();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(options["sig"].as_str().unwrap()).unwrap();
        key.verify(b"nonce", &signature).unwrap();
        assert_eq!(options["jwt"], "eyJ0.eyJq.A---A");
        for wrong in [seed.as_str(), "", &good.replace(&seed, "SUnot")] {
            std::fs::write(&path, wrong).unwrap();
            let error = Credentials::read(&login).err().unwrap();
            assert!(!error.contains(&seed), "{error}");
        }
    }

    #[test]
    fn a_password_comes_from_its_file_without_the_line_feed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "s3cret\n").unwrap();
        let login = Login { user: Some("app".into()), password_file: Some(path), ..Login::default() };
        let connect = Credentials::read(&login).unwrap().connect(&Info::default()).unwrap();
        let options: serde_json::Value = serde_json::from_str(&connect).unwrap();
        assert_eq!((&options["user"], &options["pass"]), (&"app".into(), &"s3cret".into()));
    }
}
