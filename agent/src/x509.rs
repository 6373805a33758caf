//! X.509: DER inside, PEM at the edges.

pub mod chain;
pub mod csr;
pub(crate) mod der;
pub mod leaf;
pub(crate) mod pem;
pub mod san;
#[cfg(test)]
pub(crate) mod test_ca;
