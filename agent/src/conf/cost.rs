//! What a reload costs the connected clients, by nats-server's settings and the number of clients.
//!
//! nats-server keeps its clients over a reload, and authenticates each of them anew. The figures were measured on 2.10.26,
//! 2.12.8 and 2.15.1 (docs/nats-server.md, sections 4 and 11).

use std::fmt;
use std::time::Duration;

use super::tree::{Ambiguous, Map};

/// The time of one bcrypt comparison with cost 11. Each cost more doubles the time.
const BCRYPT_11: Duration = Duration::from_millis(100);
/// The greatest cost of bcrypt.
const MAX_BCRYPT: u32 = 31;
/// A shorter reload is nothing that anybody notices.
const NOTICED: Duration = Duration::from_secs(2);

/// What makes a reload dear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadCost {
    /// Clients with a bcrypt password are authenticated one after the other, and new clients wait meanwhile.
    Bcrypt {
        /// The clients that are connected. How many of them have such a password is unknown.
        clients: u32,
        /// The longest time, in seconds.
        seconds: u64,
    },
    /// Each client that only the auth callout knows is disconnected.
    Callout,
    /// Before 2.15 each client that sends `nkey` beside its JWT is disconnected.
    NkeyBesideJwt,
}

impl fmt::Display for ReloadCost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bcrypt { clients, seconds } => write!(
                formatter,
                "a reload authenticates {clients} clients by bcrypt again, takes up to {seconds} s, and new clients wait \
                 meanwhile; nkeys or plain passwords take no time"
            ),
            Self::Callout => formatter.write_str("a reload disconnects each client that only the auth callout knows"),
            Self::NkeyBesideJwt => formatter.write_str(
                "a reload disconnects each client that sends an nkey beside its JWT, as nats.js does; nats-server 2.15 \
                 keeps these clients",
            ),
        }
    }
}

/// What makes a reload of `settings` dear, with so many clients, by a nats-server of this version.
#[must_use]
pub fn reload_costs(settings: &Map, clients: u32, version: &str) -> Vec<ReloadCost> {
    // One setting under two names is refused elsewhere.
    costs(settings, clients, version).unwrap_or_default()
}

fn costs(settings: &Map, clients: u32, version: &str) -> Result<Vec<ReloadCost>, Ambiguous> {
    let mut costs = Vec::new();
    let authorization = settings.find(&["authorization"])?.and_then(|entry| entry.value.as_map());
    let accounts = settings.find(&["accounts"])?.and_then(|entry| entry.value.as_map());
    let accounts = accounts.into_iter().flat_map(Map::iter).filter_map(|(_, account)| account.value.as_map());
    let mut highest = None;
    for block in authorization.into_iter().chain(accounts) {
        highest = highest.max(bcrypt_of(block)?);
    }
    if let Some(cost) = highest {
        let once = BCRYPT_11.mul_f64(2_f64.powi(i32::try_from(cost).unwrap_or_default() - 11));
        let all = once.saturating_mul(clients);
        if all >= NOTICED {
            costs.push(ReloadCost::Bcrypt { clients, seconds: all.as_secs() });
        }
    }
    if let Some(authorization) = authorization
        && authorization.find(&["auth_callout", "auth_hook"])?.is_some()
    {
        costs.push(ReloadCost::Callout);
    }
    let is_operated = settings.find(&["operator", "operators", "roots", "root", "root_operators", "root_operator"])?;
    if is_operated.is_some() && is_before_2_15(version) {
        costs.push(ReloadCost::NkeyBesideJwt);
    }
    Ok(costs)
}

/// The highest cost of a bcrypt hash among the passwords of a block: its own, and its users'.
fn bcrypt_of(block: &Map) -> Result<Option<u32>, Ambiguous> {
    let users = block.find(&["users"])?.and_then(|users| users.value.as_array()).unwrap_or_default();
    let mut highest = None;
    for map in users.iter().filter_map(|user| user.value.as_map()).chain([block]) {
        for names in [&["password", "pass"][..], &["token"]] {
            let text = map.find(names)?.and_then(|entry| entry.value.as_text());
            highest = highest.max(text.and_then(bcrypt));
        }
    }
    Ok(highest)
}

/// The cost of a bcrypt hash: `$2a$11$…`.
fn bcrypt(text: &str) -> Option<u32> {
    let (kind, rest) = text.strip_prefix("$2")?.split_once('$')?;
    let (cost, _) = rest.split_once('$')?;
    let cost = cost.parse().ok().filter(|cost| *cost <= MAX_BCRYPT)?;
    (kind.len() <= 1).then_some(cost)
}

fn is_before_2_15(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) < (2, 15))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(text: &str, clients: u32, version: &str) -> Vec<ReloadCost> {
        reload_costs(&crate::conf::read(text, Path::new("/a.conf")).unwrap(), clients, version)
    }

    #[test]
    fn a_reload_is_dear_by_bcrypt_by_a_callout_and_by_nkeys_beside_jwts() {
        let hash = |cost: u32| format!("$2a${cost:02}$abcdefghijklmnopqrstuuViuGI07N4McP9Kl.tD6XMEzyuvcY8LG");
        let users = |cost| format!("authorization {{ users: [ {{ user: u, password: \"{}\" }} ] }}", hash(cost));
        let bcrypt = |clients, seconds| vec![ReloadCost::Bcrypt { clients, seconds }];
        assert_eq!(of(&users(11), 150, "2.15.1"), bcrypt(150, 15));
        assert_eq!(of(&users(12), 150, "2.15.1"), bcrypt(150, 30));
        assert_eq!(of(&users(11), 10, "2.15.1"), []);
        let account =
            format!("accounts {{ A {{ users: [ {{ user: u, pass: \"{}\" }}, {{ user: v, pass: p }} ] }} }}", hash(11));
        assert_eq!(of(&account, 100, "2.15.1"), bcrypt(100, 10));
        assert_eq!(of(&format!("authorization {{ token: \"{}\" }}", hash(11)), 100, "2.15.1"), bcrypt(100, 10));
        assert_eq!(of("authorization { users: [ { user: a, password: \"$2\" } ] }\n", 1000, "2.15.1"), []);
        let callout = "authorization { users: [ { user: a } ], auth_callout { issuer: A, auth_users: [ a ] } }";
        assert_eq!(of(callout, 1, "2.15.1"), [ReloadCost::Callout]);
        for (version, expected) in [("2.12.8", vec![ReloadCost::NkeyBesideJwt]), ("2.15.0", vec![]), ("x", vec![])] {
            assert_eq!(of("operator: /o.jwt", 1, version), expected, "{version}");
        }
        assert_eq!(of("", 5000, "2.10.26"), []);
    }

    #[test]
    fn the_greatest_cost_and_the_most_clients_have_an_end() {
        let text = "authorization { user: a, password: \"$2a$31$x\" }";
        assert!(matches!(of(text, u32::MAX, "2.15.1")[..], [ReloadCost::Bcrypt { .. }]));
        assert_eq!(of("authorization { user: a, password: \"$2a$99$x\" }", u32::MAX, "2.15.1"), []);
    }
}
