//! Who may connect, and what they may do.

use std::collections::{BTreeMap, BTreeSet};

use super::exchange::Exchange;
use super::limits::Limits;
use super::permissions::{Change, Permissions};
use super::tls::{is_on, listens};
use super::values::{block, is_given, text, texts};
use super::{Found, Loss, store};
use crate::conf::system;
use crate::conf::tree::{Ambiguous, Entry, Map, Value};
use crate::digest::sha256_hex;

const USER: [&str; 2] = ["user", "username"];
const PASSWORD: [&str; 2] = ["pass", "password"];
const OPERATOR: [&str; 6] = ["operator", "operators", "roots", "root", "root_operators", "root_operator"];
/// The account of the server itself (`DEFAULT_SYSTEM_ACCOUNT`).
const SYSTEM_ACCOUNT: &str = "$SYS";

/// Accounts, users and everything else that tells clients apart, without any password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub(super) struct Access {
    token: bool,
    callout: bool,
    operator: bool,
    trusted_keys: bool,
    resolver: bool,
    /// Clients must come through a trusted proxy.
    proxy_required: bool,
    /// There is an `authorization` block, even one that lets in everybody.
    has_block: bool,
    /// `authorization` has one user.
    single_user: bool,
    no_auth_user: Option<String>,
    system_account: String,
    accounts: BTreeMap<String, Account>,
    /// By name across all lists, because nats-server refuses a name that occurs twice.
    users: BTreeMap<String, User>,
    websocket: Port,
    mqtt: Port,
    leafnodes: Port,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Account {
    jetstream: bool,
    limits: Limits,
    jetstream_limits: Limits,
    exchange: Exchange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    /// `None`: in `authorization`.
    account: Option<String>,
    has_password: bool,
    permissions: Permissions,
    ways: Ways,
}

/// The ways in which a user may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// Empty: every kind of connection.
    kinds: BTreeSet<String>,
    proxy_required: bool,
}

/// A listener with users of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Port {
    is_on: bool,
    has_users: bool,
    no_auth_user: Option<String>,
}

impl Access {
    pub(super) fn of(top: &Map) -> Result<Self, Ambiguous> {
        let authorization = block(top, &["authorization"])?;
        let websocket = block(top, &["websocket", "ws"])?;
        let mqtt = block(top, &["mqtt"])?;
        let leafnodes = block(top, &["leafnodes", "leaf"])?;
        let leaf_authorization = block(&leafnodes, &["authorization"])?;
        let system_account = text(top, &["system_account", "system"])?;
        let mut access = Self {
            token: is_given(&authorization, &["token"])?,
            callout: authorization.find(&["auth_callout", "auth_hook"])?.is_some(),
            operator: is_given(top, &OPERATOR)?,
            trusted_keys: is_given(top, &["trusted", "trusted_keys"])?,
            resolver: is_given(top, &["resolver", "account_resolver", "accounts_resolver"])?,
            proxy_required: is_on(&authorization, "proxy_required")?,
            has_block: top.find(&["authorization"])?.is_some(),
            single_user: is_given(&authorization, &USER)?,
            no_auth_user: no_auth_user(top)?,
            system_account: system_account.unwrap_or_else(|| SYSTEM_ACCOUNT.to_owned()),
            accounts: BTreeMap::new(),
            users: BTreeMap::new(),
            websocket: Port::of(&websocket, &*block(&websocket, &["authorization", "authentication"])?)?,
            mqtt: Port::of(&mqtt, &*block(&mqtt, &["authorization", "authentication"])?)?,
            leafnodes: Port::of(&leafnodes, &leaf_authorization)?,
        };
        access.read_users(None, &authorization, &["default_permission", "default_permissions", "permissions"])?;
        if let Some(name) = text(&authorization, &USER)?.filter(|name| !name.is_empty()) {
            let has_password = is_given(&authorization, &PASSWORD)?;
            let (permissions, ways) = (Permissions::default(), Ways::default());
            access.users.insert(name, User { account: None, has_password, permissions, ways });
        }
        access.read_accounts(top.find(&["accounts"])?)?;
        Ok(access)
    }

    fn read_accounts(&mut self, accounts: Option<&Entry>) -> Result<(), Ambiguous> {
        match accounts.map(|entry| &entry.value) {
            Some(Value::Map(accounts)) => {
                for (name, entry) in accounts.iter() {
                    // nats-server passes over the definition of a variable.
                    let Some(account) = entry.value.as_map().filter(|_| !entry.is_used_variable) else { continue };
                    // The agent's own user, and an account for it alone, are nobody's capability and nobody's protection.
                    if system::is_own(entry) {
                        continue;
                    }
                    self.accounts.insert(name.to_owned(), Account::of(account)?);
                    self.read_users(Some(name), account, &["default_permissions"])?;
                }
            }
            Some(Value::Array(names)) => {
                let names = names.iter().filter_map(|name| name.value.as_text());
                self.accounts.extend(names.map(|name| (name.to_owned(), Account::default())));
            }
            _ => {}
        }
        Ok(())
    }

    fn read_users(&mut self, account: Option<&str>, map: &Map, defaults: &[&str]) -> Result<(), Ambiguous> {
        let defaults = Permissions::of(map.find(defaults)?)?;
        let users = map.find(&["users"])?.and_then(|users| users.value.as_array()).unwrap_or_default();
        for user in users.iter().filter(|user| !system::is_own(user)).filter_map(|user| user.value.as_map()) {
            let nkey = text(user, &["nkey"])?.filter(|nkey| !nkey.is_empty()).map(|nkey| name_of_nkey(&nkey));
            let Some(name) = nkey.clone().or(text(user, &USER)?.filter(|name| !name.is_empty())) else { continue };
            let permissions = user.find(&["permission", "permissions", "authorization"])?;
            let entry = User {
                account: account.map(str::to_owned),
                has_password: nkey.is_some() || is_given(user, &PASSWORD)?,
                permissions: if permissions.is_some() { Permissions::of(permissions)? } else { defaults.clone() },
                ways: Ways::of(user)?,
            };
            self.users.insert(name, entry);
        }
        Ok(())
    }

    /// Whether somebody is kept out. Without a user, a token or a callout, nats-server lets everyone in
    /// (`configureAuthorization` in server/auth.go). Everyone is also let in where only the system account has users,
    /// no other account exists and no `authorization` block exists (`sysAccOnlyNoAuthUser` in server/server.go).
    fn restricts(&self) -> bool {
        let is_system = |user: &User| user.account.as_deref() == Some(&self.system_account);
        let only_system = self.users.values().all(is_system)
            && self.accounts.keys().all(|name| *name == self.system_account)
            && !self.has_block
            && self.no_auth_user.is_none();
        self.token
            || self.callout
            || self.operator
            || self.trusted_keys
            || self.single_user
            || !self.users.is_empty() && !only_system
    }
}

/// The name of a user with an nkey. A public key of a user begins with `U` and has 56 characters. Any other text may be
/// a secret in the wrong place, so a digest stands for the text. nats-server refuses such a user.
fn name_of_nkey(nkey: &str) -> String {
    let is_public = nkey.len() == 56 && nkey.starts_with('U');
    if is_public { nkey.to_owned() } else { format!("nkey {:.8}", sha256_hex(nkey.as_bytes())) }
}

fn no_auth_user(map: &Map) -> Result<Option<String>, Ambiguous> {
    Ok(text(map, &["no_auth_user"])?.filter(|user| !user.is_empty()))
}

impl Account {
    fn of(account: &Map) -> Result<Self, Ambiguous> {
        let jetstream = store::is_on(account)?;
        Ok(Self {
            jetstream,
            limits: Limits::of_account(account)?,
            jetstream_limits: if jetstream { Limits::of_account_jetstream(account)? } else { Limits::default() },
            exchange: Exchange::of(account)?,
        })
    }
}

impl Ways {
    fn of(user: &Map) -> Result<Self, Ambiguous> {
        let kinds = texts(user.find(&["allowed_connection_types", "connection_types", "clients"])?);
        Ok(Self { kinds: kinds.map(str::to_uppercase).collect(), proxy_required: is_on(user, "proxy_required")? })
    }

    /// Whether a connection that was refused before is accepted.
    fn accept_more_than(&self, before: &Self) -> bool {
        let accepts_more = !before.kinds.is_empty() && (self.kinds.is_empty() || !self.kinds.is_subset(&before.kinds));
        accepts_more || before.proxy_required && !self.proxy_required
    }
}

impl Port {
    fn of(map: &Map, authorization: &Map) -> Result<Self, Ambiguous> {
        Ok(Self {
            is_on: listens(map)?,
            has_users: is_given(authorization, &USER)?
                || is_given(authorization, &["token"])?
                || is_given(authorization, &["nkey"])?
                || is_given(authorization, &["users"])?,
            no_auth_user: no_auth_user(map)?,
        })
    }
}

pub(super) fn compare(before: &Access, after: &Access, found: &mut Found) {
    if before.restricts() && !after.restricts() {
        found.add(Loss::Authorization, "everybody could connect, without a user");
    } else if before.restricts() {
        compare_means(before, after, found);
    }
    compare_accounts(before, after, found);
    compare_users(before, after, found);
    compare_ports(before, after, found);
}

/// The ways to tell clients apart, where at least one way remains.
fn compare_means(before: &Access, after: &Access, found: &mut Found) {
    for (loss, before, after, what) in [
        (Loss::Token, before.token, after.token, "clients would no longer need the token"),
        (Loss::AuthCallout, before.callout, after.callout, "the auth callout would no longer be asked"),
        (Loss::Operator, before.operator, after.operator, "the operator's accounts would no longer be known"),
        (Loss::TrustedKeys, before.trusted_keys, after.trusted_keys, "the trusted keys would be gone"),
        (Loss::Resolver, before.resolver, after.resolver, "accounts would no longer be resolved"),
    ] {
        if before && !after {
            found.add(loss, what);
        }
    }
    if after.no_auth_user.is_some() && after.no_auth_user != before.no_auth_user {
        found.add(Loss::NoAuthUser, "clients without a user could connect, as no_auth_user");
    }
}

fn compare_accounts(before: &Access, after: &Access, found: &mut Found) {
    let exists = |name: &str| after.accounts.contains_key(name);
    let is_gone = |name: &str| before.accounts.contains_key(name) && !exists(name);
    for (name, account) in &before.accounts {
        let Some(now) = after.accounts.get(name) else {
            found.add(Loss::Account, format!("the account {name:?} would be gone, with all that it has"));
            continue;
        };
        if account.jetstream && !now.jetstream {
            found.add(Loss::AccountJetStream, format!("the account {name:?} would have no JetStream"));
        } else if account.jetstream {
            for limit in now.jetstream_limits.lowered(&account.jetstream_limits) {
                let what = format!("JetStream of the account {name:?} would have a lower limit, by {limit}");
                found.add(Loss::AccountJetStreamLimits, what);
            }
        }
        for limit in now.limits.lowered(&account.limits) {
            found.add(Loss::AccountLimits, format!("the account {name:?} would have a lower {limit}"));
        }
        for subject in now.exchange.exports_gone(&account.exchange, exists) {
            let what = format!("the account {name:?} would no longer export {subject:?} to the same accounts");
            found.add(Loss::AccountExport, what);
        }
        for subject in now.exchange.exports_opened(&account.exchange) {
            found.add(Loss::PrivateExport, format!("every account could import {subject:?} of the account {name:?}"));
        }
        for (subject, from) in now.exchange.imports_gone(&account.exchange, is_gone) {
            let what = format!("the account {name:?} would no longer import {subject:?} of {from:?} as it does");
            found.add(Loss::AccountImport, what);
        }
    }
}

fn compare_users(before: &Access, after: &Access, found: &mut Found) {
    if before.proxy_required && !after.proxy_required {
        found.add(Loss::UserConnections, "clients could connect without a trusted proxy");
    }
    for (name, user) in &before.users {
        let Some(now) = after.users.get(name) else { continue };
        if user.has_password && !now.has_password {
            found.add(Loss::UserPassword, format!("the user {name:?} would need no password"));
        }
        match now.permissions.change_from(&user.permissions) {
            Change::Kept => {}
            Change::Wider => {
                found.add(Loss::UserSubjects, format!("the user {name:?} could use more subjects than before"));
            }
            Change::Open => {
                let what = format!("the user {name:?} could use every subject, and its permissions close some");
                found.add(Loss::UserPermissions, what);
            }
        }
        if now.ways.accept_more_than(&user.ways) {
            found.add(Loss::UserConnections, format!("the user {name:?} could connect in more ways than before"));
        }
    }
    if !after.restricts() {
        return;
    }
    // Whether a user of each list is left, in the same list or in another.
    let mut left: BTreeMap<Option<&str>, bool> = BTreeMap::new();
    for (name, user) in &before.users {
        *left.entry(user.account.as_deref()).or_default() |= after.users.contains_key(name);
    }
    for user in after.users.values() {
        left.insert(user.account.as_deref(), true);
    }
    for (account, _) in left.into_iter().filter(|(_, is_left)| !is_left) {
        match account {
            None => found.add(Loss::Users, "`authorization` would have no user"),
            Some(name) if after.accounts.contains_key(name) => {
                found.add(Loss::Users, format!("the account {name:?} would have no user"));
            }
            Some(_) => {}
        }
    }
}

fn compare_ports(before: &Access, after: &Access, found: &mut Found) {
    for (users, anonymous, name, old, new) in [
        (
            Loss::WebsocketAuthorization,
            Some(Loss::WebsocketNoAuthUser),
            "websocket",
            &before.websocket,
            &after.websocket,
        ),
        (Loss::MqttAuthorization, Some(Loss::MqttNoAuthUser), "MQTT", &before.mqtt, &after.mqtt),
        (Loss::LeafnodeAuthorization, None, "leafnode", &before.leafnodes, &after.leafnodes),
    ] {
        if old.is_on && old.has_users && new.is_on && !new.has_users {
            found.add(users, format!("the {name} listener would no longer ask for its user or token"));
        }
        let was = old.no_auth_user.as_ref().or(before.no_auth_user.as_ref());
        if let Some(loss) = anonymous
            && (before.restricts() || old.has_users)
            && new.no_auth_user.is_some()
            && new.no_auth_user.as_ref() != was
        {
            found.add(loss, format!("{name} clients without a user could connect, as no_auth_user"));
        }
    }
}
