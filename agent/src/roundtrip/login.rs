//! The user that a client logs in as. Secrets come from files, because every user of the machine may read arguments.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use zeroize::Zeroizing;

use crate::state::durable::{self, FileError};

/// The largest file of credentials, in bytes. A JWT with many permissions has some kilobytes.
const MAX_CREDENTIALS: u64 = 64 * 1024;

/// Where the user of a client comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// No user.
    Anonymous,
    /// A user, and a file with the password.
    Password {
        /// The name of the user.
        user: String,
        /// The file.
        file: PathBuf,
    },
    /// A file with a token.
    Token(PathBuf),
    /// A file with a JWT and a seed.
    Credentials(PathBuf),
    /// A file with the seed of an nkey.
    Nkey(PathBuf),
}

/// Why a user can't be used. No text has anything of a file's content.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The file can't be read.
    #[error("the credentials can't be read")]
    File(#[from] FileError),
    /// There is no file.
    #[error("there is no {}; name the file with the credentials", .0.display())]
    Missing(PathBuf),
    /// The file holds something else.
    #[error("{} holds no {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
}

impl Login {
    /// Options that present this user. The file is read anew.
    ///
    /// # Errors
    /// The file is missing, can't be read, or holds something else.
    pub fn options(&self) -> Result<ConnectOptions, LoginError> {
        Ok(match self {
            Self::Anonymous => ConnectOptions::new(),
            Self::Password { user, file } => {
                ConnectOptions::with_user_and_password(user.clone(), line(file, "password")?.to_string())
            }
            Self::Token(file) => ConnectOptions::with_token(line(file, "token")?.to_string()),
            Self::Credentials(file) => {
                let what = "JWT and seed of a user, as `nsc generate creds` writes them";
                let options = ConnectOptions::with_credentials(&text(file, what)?);
                options.map_err(|_secret| unusable(file, what))?
            }
            Self::Nkey(file) => {
                let what = "seed of a user's nkey, a line that begins with \"SU\"";
                let text = text(file, what)?;
                let seed = text.lines().map(str::trim).find(|line| nkeys::KeyPair::from_seed(line).is_ok());
                ConnectOptions::with_nkey(seed.ok_or_else(|| unusable(file, what))?.to_owned())
            }
        })
    }
}

fn unusable(path: &Path, what: &'static str) -> LoginError {
    LoginError::Unusable { path: path.to_owned(), what }
}

/// The text of a file.
fn text(path: &Path, what: &'static str) -> Result<Zeroizing<String>, LoginError> {
    let bytes = durable::read_if_there(path, MAX_CREDENTIALS)?.map(Zeroizing::new);
    let bytes = bytes.ok_or_else(|| LoginError::Missing(path.to_owned()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_secret| unusable(path, what))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The single line of a file. A password may begin or end with blanks, so only the end of the line is cut.
fn line(path: &Path, what: &'static str) -> Result<Zeroizing<String>, LoginError> {
    let text = text(path, what)?;
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(line), None) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(unusable(path, what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_is_taken_and_no_error_has_anything_of_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.AAAA\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let nkey = format!("-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n");
        let password = Login::Password { user: "u".into(), file: file.clone() };
        let [token, credentials] = [Login::Token, Login::Credentials].map(|kind| kind(file.clone()));
        let login = Login::Nkey(file.clone());
        let cases = [
            (&password, "s3cret \n", true),
            (&password, "", false),
            (&password, "one\ntwo\n", false),
            (&token, "t0ken", true),
            (&token, "\n", false),
            (&credentials, &creds, true),
            (&credentials, &seed, false),
            (&login, &seed, true),
            (&login, &nkey, true),
            (&login, "SUnoseed", false),
        ];
        for (login, content, is_good) in cases {
            std::fs::write(&file, content).unwrap();
            match login.options() {
                Ok(_) => assert!(is_good, "{login:?} {content:?}"),
                Err(error) => {
                    assert!(!is_good, "{login:?} {content:?}: {error}");
                    let told = format!("{error} {error:?}");
                    assert!(content.trim().is_empty() || !told.contains(content.trim()), "{told}");
                }
            }
        }
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(matches!(token.options(), Err(LoginError::Unusable { .. })));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(password.options(), Err(LoginError::Missing(_))));
        assert!(Login::Anonymous.options().is_ok());
    }
}
