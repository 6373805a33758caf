//! X.509: DER inside, PEM at the edges.

pub mod csr;
pub(crate) mod der;
pub mod leaf;
pub mod pem;
pub mod san;
#[cfg(test)]
pub(crate) mod test_ca;
