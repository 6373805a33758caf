//! Where the agent's own user of the system account stands, so that nothing changes for any client.
//!
//! A first user turns authentication on for every client. nats-server keeps anonymous clients only where no other account
//! and no `authorization` block exists. Such clients get a stand-in user (`sysAccOnlyNoAuthUser` in server/server.go). The stand-in
//! is absent for a moment of each reload. `no_auth_user` closes this gap, but needs an `authorization` block. Beside that block
//! nats-server may start with `--user`, pass over it, and let everybody in.
//! Every rule here was measured on 2.10.26, 2.12.8 and 2.15.1. `tests/it/system.rs` measures the rules again.

use std::fmt;
use std::sync::{Arc, LazyLock};

use super::names::{Block, each_block};
use super::tree::{Ambiguous, Entry, Map, Origin, Source, Value};

/// The system account where no setting names another one (`DEFAULT_SYSTEM_ACCOUNT`).
const DEFAULT_ACCOUNT: &str = "$SYS";
const SYSTEM_ACCOUNT: [&str; 2] = ["system_account", "system"];
const USER: [&str; 2] = ["user", "username"];
const OPERATOR: [&str; 11] = [
    "operator",
    "operators",
    "roots",
    "root",
    "root_operators",
    "root_operator",
    "trusted",
    "trusted_keys",
    "resolver",
    "account_resolver",
    "accounts_resolver",
];
const CALLOUT: [&str; 2] = ["auth_callout", "auth_hook"];

/// The beginning of every inbox of the agent. Its user may subscribe to no other subject.
pub const INBOX: &str = "_INBOX_nats-tls-agent";

/// The only subjects that the agent's user may publish to. `*` is the id of a server, which changes with each start.
const SUBJECTS: [&str; 9] = [
    "$SYS.REQ.SERVER.*.RELOAD",
    "$SYS.REQ.SERVER.*.VARZ",
    "$SYS.REQ.SERVER.*.ROUTEZ",
    "$SYS.REQ.SERVER.*.CONNZ",
    "$SYS.REQ.SERVER.*.LEAFZ",
    "$SYS.REQ.SERVER.*.GATEWAYZ",
    "$SYS.REQ.SERVER.*.KICK",
    "$SYS.REQ.SERVER.*.JSZ",
    "$SYS.REQ.SERVER.*.HEALTHZ",
];

/// Whether the agent's user may stand among the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The user belongs into this account.
    Account {
        /// The name of the system account.
        name: String,
        /// What the user changes for other clients.
        others: Others,
    },
    /// The user would change something for clients, or nats-server refuses the user.
    Nowhere(Obstacle),
}

/// What the agent's user changes for other clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Clients need a user already, so nothing changes.
    Unaffected,
    /// No client needs a user. Anonymous clients come in as before, through the stand-in user. A client that sends a user or a
    /// token, which nothing checked before, is refused.
    AnonymousAlone,
}

macro_rules! obstacles {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $why:literal, $help:literal;)+) => {
        /// Why the agent's user stands nowhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Obstacle { $($(#[$doc])+ $name,)+ }

        impl Obstacle {
            /// Every obstacle.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable name of the obstacle.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What stands in the way.
            #[must_use]
            pub const fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)+ }
            }

            /// The line that would help.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)+ }
            }
        }
    };
}

impl Obstacle {
    /// Whether the settings alone don't show the obstacle.
    #[must_use]
    pub(crate) const fn is_of_the_running_server(self) -> bool {
        matches!(self, Self::ClientsSendUsers | Self::ClientsUnknown | Self::Arguments | Self::NotRunning)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; what would help: {}", self.why(), self.help())
    }
}

obstacles! {
    /// Operator mode, trusted keys or a resolver: accounts come from JWTs.
    Operator = "operator",
        "in operator mode users are JWTs, and no user can stand in the configuration",
        "system = { creds_file = \"/etc/nats-tls-agent/system.creds\" } in [nats], with a user of the system account";
    /// `authorization` has a token.
    Token = "token",
        "nats-server takes no user beside `authorization { token }`",
        "users = [ { user: NAME, password: TOKEN } ] in `authorization` in the place of the token";
    /// `authorization` has a single user.
    SingleUser = "single_user",
        "nats-server takes no account beside a single `authorization { user, password }`",
        "users = [ { user: NAME, password: PASSWORD } ] in `authorization` in the place of user and password";
    /// `authorization` exists and nobody has a user.
    AuthorizationWithoutUsers = "authorization_without_users",
        "a first user beside an `authorization` block without users would lock every anonymous client out",
        "remove the `authorization` block, or give it users";
    /// Accounts exist and nobody has a user.
    AccountsWithoutUsers = "accounts_without_users",
        "a first user beside accounts without users would lock every anonymous client out",
        "users = [ { user: NAME, password: PASSWORD } ] in an account, and no_auth_user = NAME for anonymous clients";
    /// `accounts` is a list of names.
    AccountsListed = "accounts_listed",
        "`accounts` is a list of names, and a name has no users",
        "accounts { NAME { } } in the place of the list";
    /// A TLS block maps certificates to users, and nobody has a user.
    CertificatesMapped = "certificates_mapped",
        "a first user beside `verify_and_map` without users would lock every client out",
        "users = [ { user: NAME-IN-THE-CERTIFICATE } ] in `authorization` or in an account";
    /// The websocket listener has a user or a token of its own.
    WebsocketAuthorization = "websocket_authorization",
        "nats-server takes no user beside an `authorization` of websocket",
        "users in `authorization` or in an account in the place of websocket's `authorization`";
    /// The MQTT listener has a user or a token of its own.
    MqttAuthorization = "mqtt_authorization",
        "nats-server takes no user beside an `authorization` of mqtt",
        "users in `authorization` or in an account in the place of mqtt's `authorization`";
    /// Leaf nodes may send a user, which nobody asks for.
    LeafnodesOpen = "leafnodes_open",
        "a leaf node that sends a user, which nobody asks for, would be refused, and nats-server doesn't tell what leaf nodes send",
        "authorization { user: NAME, password: PASSWORD } in `leafnodes`, or users in `authorization`";
    /// The auth callout would be asked for the agent's user.
    AuthCallout = "auth_callout",
        "the auth callout would be asked for the agent's user and refuse it",
        "auth_users = [ …, \"{{ system_key }}\" ] of `auth_callout` in [nats.settings], which needs a restart of nats-server";
    /// The system account has limits, and the agent's connection would take a part of them.
    AccountLimited = "account_limited",
        "the system account has `limits`, and the agent's connection would count among them",
        "remove `limits` from the system account";
    /// A connected client sends a user or a token that nobody asks for.
    ClientsSendUsers = "clients_send_users",
        "a connected client sends a user or a token that nobody asks for, and would be refused",
        "no user and no token in the clients, or users = [ … ] in `authorization` for all of them";
    /// Nobody knows whether connected clients send a user.
    ClientsUnknown = "clients_unknown",
        "nats-server doesn't say whether a connected client sends a user that nobody asks for, and would be refused",
        "nats.monitor_listen on an address that answers, or a restart of nats-server";
    /// The arguments of nats-server name a user, a password or a token.
    Arguments = "arguments",
        "nats-server was started with --user, --pass or --auth, and takes no account beside these",
        "users = [ { user: NAME, password: PASSWORD } ] in `authorization` of [nats.settings], in the place of the arguments";
    /// nats-server doesn't run, so nobody knows how it is started.
    NotRunning = "not_running",
        "nats-server doesn't run, so nobody knows how it is started",
        "a start of nats-server";
    /// `system_account` names an account that doesn't exist, so nats-server doesn't start.
    AccountUnknown = "account_unknown",
        "`system_account` names an account that doesn't exist",
        "accounts { NAME { } } with the name that `system_account` has";
    /// A setting is not what nats-server takes there.
    Unreadable = "unreadable",
        "`accounts`, or the users of the system account, are not in the form that nats-server reads",
        "accounts { NAME { users = [ … ] } }";
}

/// Where a user with this public key may stand.
#[must_use]
pub fn placement(tree: &Map, key: &str) -> Placement {
    // One setting with two names is refused elsewhere.
    placed(tree, key).unwrap_or(Placement::Nowhere(Obstacle::Unreadable))
}

fn placed(tree: &Map, key: &str) -> Result<Placement, Ambiguous> {
    let nowhere = |obstacle| Ok(Placement::Nowhere(obstacle));
    if OPERATOR.iter().any(|name| tree.find(&[name]).is_ok_and(|entry| entry.is_some_and(is_given))) {
        return nowhere(Obstacle::Operator);
    }
    let name = tree.find(&SYSTEM_ACCOUNT)?.and_then(|entry| entry.value.as_text()).unwrap_or(DEFAULT_ACCOUNT);
    let authorization = tree.find(&["authorization"])?.map(|entry| entry.value.as_map());
    if let Some(Some(authorization)) = authorization {
        if authorization.find(&["token"])?.is_some_and(is_given) {
            return nowhere(Obstacle::Token);
        }
        if authorization.find(&USER)?.is_some_and(is_given) {
            return nowhere(Obstacle::SingleUser);
        }
        if let Some(callout) = authorization.find(&CALLOUT)?
            && !bypasses(callout, key)?
        {
            return nowhere(Obstacle::AuthCallout);
        }
    }
    for (names, obstacle) in
        [(&["websocket", "ws"][..], Obstacle::WebsocketAuthorization), (&["mqtt"], Obstacle::MqttAuthorization)]
    {
        if has_own_authorization(tree, names)? {
            return nowhere(obstacle);
        }
    }
    let accounts = match tree.find(&["accounts"])?.map(|entry| &entry.value) {
        None => None,
        Some(Value::Map(accounts)) => Some(accounts),
        Some(Value::Array(_)) => return nowhere(Obstacle::AccountsListed),
        Some(_) => return nowhere(Obstacle::Unreadable),
    };
    match accounts.and_then(|accounts| accounts.get(name)).map(|entry| &entry.value) {
        // A new account of this name would hide a mistake that nats-server names.
        None if tree.find(&SYSTEM_ACCOUNT)?.is_some() => return nowhere(Obstacle::AccountUnknown),
        None => {}
        Some(Value::Map(account)) => {
            if account.find(&["limits"])?.is_some_and(is_given) {
                return nowhere(Obstacle::AccountLimited);
            }
            if account.find(&["users"])?.is_some_and(|users| users.value.as_array().is_none()) {
                return nowhere(Obstacle::Unreadable);
            }
        }
        Some(_) => return nowhere(Obstacle::Unreadable),
    }
    let others = if has_users(tree)? { Others::Unaffected } else { Others::AnonymousAlone };
    if others == Others::AnonymousAlone {
        if authorization.is_some() {
            return nowhere(Obstacle::AuthorizationWithoutUsers);
        }
        if accounts.is_some_and(|accounts| accounts.iter().any(|(account, _)| account != name)) {
            return nowhere(Obstacle::AccountsWithoutUsers);
        }
        if maps_certificates(tree) {
            return nowhere(Obstacle::CertificatesMapped);
        }
        if takes_leaf_nodes(tree)? {
            return nowhere(Obstacle::LeafnodesOpen);
        }
    }
    Ok(Placement::Account { name: name.to_owned(), others })
}

/// Adds the user where it may stand. `barred` is what stands in the way where the user leaves in anonymous clients alone.
pub fn add(tree: &mut Map, key: &str, barred: Option<Obstacle>) -> Placement {
    let mut placement = placement(tree, key);
    if let (Placement::Account { others: Others::AnonymousAlone, .. }, Some(obstacle)) = (&placement, barred) {
        placement = Placement::Nowhere(obstacle);
    }
    if let Placement::Account { name, .. } = &placement {
        let accounts = tree.iter().map(|(name, _)| name).find(|name| name.eq_ignore_ascii_case("accounts"));
        let accounts = accounts.unwrap_or("accounts").to_owned();
        let users = block_in(tree, &accounts).and_then(|accounts| block_in(accounts, name)).and_then(users_in);
        if let Some(users) = users {
            users.push(user(key));
        }
    }
    placement
}

/// Whether a running nats-server would disconnect its anonymous clients if it loaded `after` in the place of `before`. They
/// have the stand-in user, which nats-server takes away as soon as no account is left.
#[must_use]
pub fn disconnects(before: &Map, after: &Map) -> bool {
    let stands_in = |tree: &Map| {
        let name = tree.find(&SYSTEM_ACCOUNT).ok()?.and_then(|entry| entry.value.as_text()).unwrap_or(DEFAULT_ACCOUNT);
        let accounts = tree.find(&["accounts"]).ok()??.value.as_map()?;
        let is_alone = accounts.iter().all(|(account, _)| account == name) && !accounts.is_empty();
        let has_block = tree.find(&["authorization"]).ok()?.is_some();
        let no_auth_user = tree.find(&["no_auth_user"]).ok()?.is_some();
        Some(is_alone && !has_block && !no_auth_user)
    };
    stands_in(before) == Some(true) && stands_in(after) != Some(true) && !has_users(after).unwrap_or(true)
}

/// Whether an entry was added by [`add`]. A committed text says so in a comment.
#[must_use]
pub fn is_own(entry: &Entry) -> bool {
    *entry.origin.source == Source::Agent
}

/// The settings without the entries that [`add`] made. Accounts without any setting, and lists of no users, are left out too,
/// because [`add`] may have filled them.
#[must_use]
pub fn without_own(tree: &Map) -> Map {
    let mut tree = tree.clone();
    let name_of = |map: &Map, wanted: &str| {
        let mut names = map.iter().map(|(name, _)| name);
        names.find(|name| name.eq_ignore_ascii_case(wanted)).map(str::to_owned)
    };
    let Some(accounts) = name_of(&tree, "accounts") else { return tree };
    let Some(Value::Map(block)) = tree.get_mut(&accounts).map(|entry| &mut entry.value) else { return tree };
    let names: Vec<String> = block.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let Some(Value::Map(account)) = block.get_mut(&name).map(|entry| &mut entry.value) else { continue };
        if let Some(users) = name_of(account, "users")
            && let Some(Value::Array(entries)) = account.get_mut(&users).map(|entry| &mut entry.value)
        {
            entries.retain(|entry| !is_own(entry));
            if entries.is_empty() {
                account.remove(&users);
            }
        }
        if account.is_empty() {
            block.remove(&name);
        }
    }
    if block.is_empty() {
        tree.remove(&accounts);
    }
    tree
}

/// Whether the agent's user stands among the settings.
#[must_use]
pub fn has_own(tree: &Map) -> bool {
    let Ok(Some(accounts)) = tree.find(&["accounts"]) else { return false };
    let accounts = accounts.value.as_map().into_iter().flat_map(Map::iter);
    let users = accounts.filter_map(|(_, account)| account.value.as_map()?.find(&["users"]).ok()?);
    users.filter_map(|users| users.value.as_array()).flatten().any(is_own)
}

/// Whether anybody has a user, in `authorization` or in an account.
fn has_users(tree: &Map) -> Result<bool, Ambiguous> {
    let in_block = |block: &Map| {
        let users = block.find(&["users"])?.and_then(|users| users.value.as_array());
        Ok(users.is_some_and(|users| users.iter().any(|user| user.value.as_map().is_some() && !is_own(user))))
    };
    if let Some(authorization) = tree.find(&["authorization"])?.and_then(|entry| entry.value.as_map())
        && in_block(authorization)?
    {
        return Ok(true);
    }
    let accounts = tree.find(&["accounts"])?.and_then(|entry| entry.value.as_map());
    for (_, account) in accounts.into_iter().flat_map(Map::iter) {
        if let Some(account) = account.value.as_map()
            && in_block(account)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the auth callout lets the user with this key pass.
fn bypasses(callout: &Entry, key: &str) -> Result<bool, Ambiguous> {
    let Some(callout) = callout.value.as_map() else { return Ok(false) };
    let users = callout.find(&["auth_users", "users"])?.and_then(|users| users.value.as_array());
    Ok(users.is_some_and(|users| users.iter().any(|user| user.value.as_text() == Some(key))))
}

/// Whether a listener has a user or a token of its own.
fn has_own_authorization(tree: &Map, names: &[&str]) -> Result<bool, Ambiguous> {
    let Some(listener) = tree.find(names)?.and_then(|entry| entry.value.as_map()) else { return Ok(false) };
    let authorization = listener.find(&["authorization", "authentication"])?.and_then(|entry| entry.value.as_map());
    let Some(authorization) = authorization else { return Ok(false) };
    Ok(authorization.find(&USER)?.is_some_and(is_given) || authorization.find(&["token"])?.is_some_and(is_given))
}

/// Whether leaf nodes are authenticated as clients are, because their listener has no `authorization` of its own.
fn takes_leaf_nodes(tree: &Map) -> Result<bool, Ambiguous> {
    let Some(leafnodes) = tree.find(&["leafnodes", "leaf"])?.and_then(|entry| entry.value.as_map()) else {
        return Ok(false);
    };
    let listens = leafnodes.find(&["listen"])?.is_some() || leafnodes.find(&["port"])?.is_some();
    let authorization = leafnodes.find(&["authorization"])?.and_then(|entry| entry.value.as_map());
    let has_own = match authorization {
        Some(own) => own.find(&USER)?.is_some_and(is_given) || own.find(&["users"])?.is_some_and(is_given),
        None => false,
    };
    Ok(listens && !has_own)
}

/// Whether any TLS block maps certificates to users.
fn maps_certificates(tree: &Map) -> bool {
    let mut maps = false;
    each_block(tree, &mut |block, _, map| {
        let is_on = |entry: &Entry| !matches!(entry.value, Value::Bool(false));
        maps |= block == Block::Tls && map.find(&["verify_and_map"]).is_ok_and(|entry| entry.is_some_and(is_on));
    });
    maps
}

fn is_given(entry: &Entry) -> bool {
    match &entry.value {
        Value::Text(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Map(map) => !map.is_empty(),
        _ => true,
    }
}

fn entry(value: Value) -> Entry {
    static SOURCE: LazyLock<Arc<Source>> = LazyLock::new(|| Arc::new(Source::Agent));
    Entry::new(value, Origin { source: Arc::clone(&SOURCE), line: 0 })
}

/// The block of this name, made where there is none.
fn block_in<'a>(map: &'a mut Map, name: &str) -> Option<&'a mut Map> {
    if map.get(name).is_none() {
        map.insert(name, entry(Value::Map(Map::default())));
    }
    if let Value::Map(block) = &mut map.get_mut(name)?.value { Some(block) } else { None }
}

fn users_in(account: &mut Map) -> Option<&mut Vec<Entry>> {
    let users = account.iter().map(|(name, _)| name).find(|name| name.eq_ignore_ascii_case("users"));
    let users = users.unwrap_or("users").to_owned();
    if account.get(&users).is_none() {
        account.insert(users.clone(), entry(Value::Array(Vec::new())));
    }
    if let Value::Array(users) = &mut account.get_mut(&users)?.value { Some(users) } else { None }
}

/// The user has permissions of its own, so `default_permissions` of the account don't apply.
fn user(key: &str) -> Entry {
    let list = |subjects: &[&str]| Value::Array(subjects.iter().map(|subject| entry(Value::text(*subject))).collect());
    let block = |settings: Vec<(&str, Value)>| {
        let mut map = Map::default();
        for (name, value) in settings {
            map.insert(name, entry(value));
        }
        Value::Map(map)
    };
    let inbox = format!("{INBOX}.>");
    let permissions = block(vec![("publish", list(&SUBJECTS)), ("subscribe", list(&[&inbox]))]);
    entry(block(vec![("nkey", Value::text(key)), ("permissions", permissions)]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::conf::render::Rendered;
    use crate::conf::write;

    const KEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn read(text: &str) -> Map {
        crate::conf::read(text, Path::new("/a.conf")).unwrap()
    }

    #[test]
    fn without_the_own_user_the_settings_are_as_before_it_was_added() {
        let account = "accounts { A { users: [ { user: a, password: b } ] } }";
        let system = "accounts { \"$SYS\" { users: [ { user: a, password: b } ] } }";
        let jetstream = "accounts { A { jetstream {}, exports [] }, \"$SYS\" { users: [ { user: a } ] } }";
        for (text, expected) in [
            ("a: 1", "a: 1"),
            ("accounts {}", ""),
            ("accounts { \"$SYS\" {} }", ""),
            ("accounts { \"$SYS\" { users: [] } }", ""),
            (account, account),
            (system, system),
            (jetstream, jetstream),
        ] {
            let (before, expected) = (read(text), read(expected));
            let mut after = before.clone();
            assert!(matches!(add(&mut after, KEY, None), Placement::Account { .. }), "{text}");
            for tree in [before, after] {
                assert!(without_own(&tree).differing(&expected).is_empty(), "{text}");
            }
        }
    }

    fn account(name: &str, others: Others) -> Placement {
        Placement::Account { name: name.to_owned(), others }
    }

    #[test]
    fn the_user_stands_where_nothing_changes_for_clients() {
        use Others::{AnonymousAlone, Unaffected};
        for (text, name, others) in [
            ("", "$SYS", AnonymousAlone),
            ("jetstream: enabled", "$SYS", AnonymousAlone),
            ("accounts { }", "$SYS", AnonymousAlone),
            ("accounts { SYS { } }\nsystem_account: SYS", "SYS", AnonymousAlone),
            ("accounts { SYS { } }\nSystem: SYS", "SYS", AnonymousAlone),
            ("accounts { \"$SYS\" { users: [ { user: s, password: s } ] } }", "$SYS", Unaffected),
            ("authorization { timeout: 5 }\naccounts { \"$SYS\" { users: [ { user: s } ] } }", "$SYS", Unaffected),
            ("authorization { users: [ { user: a, password: a } ] }", "$SYS", Unaffected),
            ("authorization { users: [ { nkey: U } ] }", "$SYS", Unaffected),
            ("accounts { A { users: [ { user: a, password: a } ] }, B { } }", "$SYS", Unaffected),
            (
                "accounts { A { users: [ { user: a } ] }, SYS { } }\nsystem_account: SYS\nno_auth_user: a",
                "SYS",
                Unaffected,
            ),
            ("tls { verify_and_map: true }\nauthorization { users: [ { user: a } ] }", "$SYS", Unaffected),
            ("leafnodes { listen: 7422, authorization { user: l, password: l } }", "$SYS", AnonymousAlone),
            ("leafnodes { port: 7422, authorization { users: [ { user: l } ] } }", "$SYS", AnonymousAlone),
            ("leafnodes { remotes: [ { url: \"nats://h:7422\" } ] }", "$SYS", AnonymousAlone),
            ("leafnodes { listen: 7422 }\nauthorization { users: [ { user: a } ] }", "$SYS", Unaffected),
            ("websocket { no_auth_user: a }\nauthorization { users: [ { user: a } ] }", "$SYS", Unaffected),
        ] {
            assert_eq!(placement(&read(text), KEY), account(name, others), "{text}");
        }
        let bypass =
            format!("authorization {{ users: [ {{ user: a }} ], auth_callout {{ auth_users: [ a, {KEY} ] }} }}");
        assert_eq!(placement(&read(&bypass), KEY), account("$SYS", Unaffected));
    }

    #[test]
    fn the_user_stands_nowhere_else_and_the_obstacle_has_a_name() {
        use Obstacle as O;
        for (text, obstacle) in [
            ("operator: /o.jwt", O::Operator),
            ("resolver: MEMORY", O::Operator),
            ("trusted_keys: [ O ]", O::Operator),
            ("authorization { token: t }", O::Token),
            ("authorization { user: a, password: a }", O::SingleUser),
            ("Authorization { timeout: 5 }", O::AuthorizationWithoutUsers),
            ("authorization { }", O::AuthorizationWithoutUsers),
            ("authorization { users: [] }", O::AuthorizationWithoutUsers),
            ("accounts { A { jetstream: enabled } }", O::AccountsWithoutUsers),
            ("accounts { A { exports: [ ] }, B { imports: [ ] } }", O::AccountsWithoutUsers),
            ("accounts { SYS { } }", O::AccountsWithoutUsers),
            ("accounts: [ A, B ]", O::AccountsListed),
            ("tls { verify_and_map: true }", O::CertificatesMapped),
            ("websocket { tls { verify_and_map: true } }", O::CertificatesMapped),
            ("leafnodes { listen: 7422 }", O::LeafnodesOpen),
            ("Leaf { port: 7422, authorization { timeout: 2 } }", O::LeafnodesOpen),
            ("websocket { authorization { username: w, password: w } }", O::WebsocketAuthorization),
            ("websocket { authorization { token: w } }", O::WebsocketAuthorization),
            ("mqtt { authorization { user: m, password: m } }", O::MqttAuthorization),
            ("authorization { users: [ { user: a } ], auth_callout { auth_users: [ a ] } }", O::AuthCallout),
            ("accounts { \"$SYS\" { limits { max_connections: 1 } } }", O::AccountLimited),
            ("accounts { \"$SYS\" { users: { user: s } } }", O::Unreadable),
            ("accounts: x", O::Unreadable),
            ("accounts { A { users: [ { user: a } ] } }\nsystem_account: B", O::AccountUnknown),
            ("system_account: \"$SYS\"", O::AccountUnknown),
        ] {
            let mut tree = read(text);
            assert_eq!(add(&mut tree, KEY, None), Placement::Nowhere(obstacle), "{text}");
            assert!(tree == read(text), "{text}");
        }
        let codes: std::collections::BTreeSet<_> = O::ALL.iter().map(|obstacle| obstacle.code()).collect();
        assert_eq!(codes.len(), O::ALL.len());
    }

    #[test]
    fn the_committed_text_says_where_the_user_comes_from_and_the_user_is_known_by_that() {
        for text in ["", "accounts { A { users: [ { user: a } ] }, \"$SYS\" { users: [ { user: s } ] } }"] {
            let mut tree = read(text);
            add(&mut tree, KEY, None);
            assert!(has_own(&tree) && !has_own(&read(text)));
            let written = Rendered::from_text(write::text(&tree));
            assert_eq!(written.text().matches("# nats-tls-agent (nats.system)\n").count(), 1, "{}", written.text());
            let again = written.tree(Path::new("/n.conf")).unwrap();
            assert!(has_own(&again) && again == tree, "{}", written.text());
            // A text may be written from the tree that was read back.
            assert!(has_own(&Rendered::from_text(write::text(&again)).tree(Path::new("/n.conf")).unwrap()));
        }
    }

    #[test]
    fn clients_that_send_a_user_bar_the_user_only_where_nobody_needs_one() {
        let barred = Some(Obstacle::ClientsSendUsers);
        assert_eq!(add(&mut Map::default(), KEY, barred), Placement::Nowhere(Obstacle::ClientsSendUsers));
        let mut tree = read("authorization { users: [ { user: a } ] }");
        assert_eq!(add(&mut tree, KEY, barred), account("$SYS", Others::Unaffected));
    }

    #[test]
    fn the_user_is_added_beside_the_users_of_its_account() {
        let mut tree = read("Accounts { SYS { Users: [ { user: s } ], exports: [ ] } }\nsystem_account: SYS");
        add(&mut tree, KEY, None);
        let users = tree.at("Accounts.SYS.Users").and_then(|users| users.value.as_array()).unwrap();
        assert!(users.len() == 2 && users[1].value.as_map().unwrap().get("nkey").unwrap().value.as_text() == Some(KEY));
    }

    #[test]
    fn anonymous_clients_are_disconnected_only_where_their_stand_in_goes() {
        let mut open = Map::default();
        add(&mut open, KEY, None);
        assert!(disconnects(&open, &read("")));
        assert!(disconnects(&open, &read("max_payload: 1")));
        assert!(!disconnects(&read(""), &open) && !disconnects(&read(""), &read("a: 1")));
        assert!(!disconnects(&open, &read("accounts { \"$SYS\" { } }")));
        // Where clients need a user from now on, the anonymous clients go in any case.
        assert!(!disconnects(&open, &read("authorization { users: [ { user: a } ] }")));
        assert!(!disconnects(&read("authorization { users: [ { user: a } ] }"), &read("")));
    }
}
