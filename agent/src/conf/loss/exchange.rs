//! What accounts export, and what they import from other accounts.

use std::collections::BTreeSet;

use super::permissions::{are_within, meet, tokens};
use super::tls::maps;
use super::values::{text, texts};
use crate::conf::tree::{Ambiguous, Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream,
    Service,
}

const KINDS: [(Kind, &str); 2] = [(Kind::Stream, "stream"), (Kind::Service, "service")];

/// An export: a subject, and the accounts that may import it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Export {
    kind: Kind,
    subject: String,
    importers: Importers,
}

/// Who may import.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Importers {
    Everyone,
    /// These accounts.
    Listed(BTreeSet<String>),
    /// The account that the subject names, in the token of this number.
    Named(i64),
}

/// An import: a subject of another account, and the subject under which it appears.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Import {
    kind: Kind,
    account: String,
    subject: String,
    local: String,
}

/// The exports and imports of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    exports: Vec<Export>,
    imports: Vec<Import>,
}

impl Exchange {
    pub(super) fn of(account: &Map) -> Result<Self, Ambiguous> {
        let mut exchange = Self::default();
        for map in maps(account, &["exports"])? {
            for (kind, name) in KINDS {
                let Some(subject) = text(map, &[name])? else { continue };
                exchange.exports.push(Export { kind, subject, importers: Importers::of(map)? });
            }
        }
        for map in maps(account, &["imports"])? {
            for (kind, name) in KINDS {
                let Some(from) = map.find(&[name])?.and_then(|entry| entry.value.as_map()) else { continue };
                let (Some(account), Some(subject)) = (text(from, &["account"])?, text(from, &["subject"])?) else {
                    continue;
                };
                let prefix = text(map, &["prefix"])?.filter(|prefix| kind == Kind::Stream && !prefix.is_empty());
                let local = match (text(map, &["to"])?.filter(|to| !to.is_empty()), prefix) {
                    (Some(to), _) => to,
                    (None, Some(prefix)) => format!("{}.{subject}", prefix.strip_suffix('.').unwrap_or(&prefix)),
                    (None, None) => subject.clone(),
                };
                exchange.imports.push(Import { kind, account, subject, local });
            }
        }
        Ok(exchange)
    }

    /// The subjects that `before` exports, and that this account would no longer export to the same accounts. An account
    /// that is gone misses no export.
    pub(super) fn exports_gone<'a>(
        &'a self,
        before: &'a Self,
        exists: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = &'a str> {
        let is_kept = move |export: &Export, now: &Export| {
            now.covers(export.kind, &export.subject) && now.importers.admit(&export.importers, &exists)
        };
        let gone = before.exports.iter().filter(move |export| !self.exports.iter().any(|now| is_kept(export, now)));
        gone.map(|export| export.subject.as_str())
    }

    /// The subjects that every account may import, and that only some accounts could import before.
    pub(super) fn exports_opened<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a str> {
        let is_open = |export: &Export| export.importers == Importers::Everyone;
        let was_open = move |export: &Export| {
            before.exports.iter().any(|known| is_open(known) && known.covers(export.kind, &export.subject))
        };
        let was_closed = move |export: &Export| {
            let meets = |known: &Export| meet(&tokens(&known.subject), &tokens(&export.subject)).is_some();
            before.exports.iter().any(|known| !is_open(known) && known.kind == export.kind && meets(known))
        };
        let opened = self.exports.iter().filter(move |now| is_open(now) && !was_open(now) && was_closed(now));
        opened.map(|export| export.subject.as_str())
    }

    /// The subjects that `before` imports under a name, and that would no longer appear under that name. An import from an
    /// account that is gone is gone with the account.
    pub(super) fn imports_gone<'a>(
        &'a self,
        before: &'a Self,
        is_account_gone: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let is_plain = |import: &Import| import.local == import.subject;
        let is_kept = move |import: &Import, now: &Import| {
            now == import
                || now.kind == import.kind
                    && now.account == import.account
                    && is_plain(now)
                    && is_plain(import)
                    && are_within([&import.subject], [now.subject.as_str()])
        };
        let is_gone = move |import: &&Import| {
            !is_account_gone(&import.account) && !self.imports.iter().any(|now| is_kept(import, now))
        };
        before.imports.iter().filter(is_gone).map(|import| (import.subject.as_str(), import.account.as_str()))
    }
}

impl Export {
    fn covers(&self, kind: Kind, subject: &String) -> bool {
        self.kind == kind && are_within([subject], [self.subject.as_str()])
    }
}

impl Importers {
    /// An empty list is no list to nats-server.
    fn of(export: &Map) -> Result<Self, Ambiguous> {
        let listed: BTreeSet<String> = texts(export.find(&["accounts"])?).map(str::to_owned).collect();
        let token = match export.find(&["account_token_position"])?.map(|entry| &entry.value) {
            Some(Value::Integer(token)) => *token,
            _ => 0,
        };
        Ok(match (token, listed.is_empty()) {
            (1.., _) => Self::Named(token),
            (_, true) => Self::Everyone,
            (_, false) => Self::Listed(listed),
        })
    }

    /// Whether everyone who could import before can import now.
    fn admit(&self, before: &Self, exists: impl Fn(&str) -> bool) -> bool {
        match (self, before) {
            (Self::Everyone, _) => true,
            (Self::Listed(now), Self::Listed(before)) => before.difference(now).all(|account| !exists(account)),
            (now, before) => now == before,
        }
    }
}
