//! Names of keys. Scripts derive a partition's keys from its prefix; Rust names only those it uses itself.
//!
//! `docs/redis.md` lists every key with its type, owner and end.

use sha2::{Digest, Sha256};

use crate::job::{Name, Tenant};

/// The names of one installation. Two may share a Redis under different instance names.
#[derive(Debug, Clone)]
pub struct Keys {
    instance: String,
    partitions: u16,
}

// === impl Keys ===

impl Keys {
    /// Keys of an installation with this instance name (`jr` by default) and number of partitions.
    pub fn new(instance: &Name, partitions: u16) -> Self {
        assert!(partitions > 0, "there is at least one partition");
        Self { instance: instance.as_str().to_owned(), partitions }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition of a tenant. Stable for ever: a tenant's jobs and counts live there.
    pub fn partition_of(&self, tenant: &Tenant) -> u16 {
        let digest = Sha256::digest(tenant.name());
        let bits = u64::from_be_bytes(digest[..8].try_into().expect("SHA-256 has 32 bytes"));
        (bits % u64::from(self.partitions)) as u16
    }

    /// `{jr:<p>}:`, the prefix of a partition's keys; never a key itself.
    pub fn partition(&self, partition: u16) -> String {
        format!("{{{}:{partition}}}:", self.instance)
    }

    /// `{jr:runners}:`, the prefix of the runner registry's keys; never a key itself.
    pub fn runners(&self) -> String {
        format!("{{{}:runners}}:", self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_never_changes_its_partition_between_releases() {
        let keys = Keys::new(&Name::new("jr").expect("a name"), 16);
        let partitions: Vec<u16> = (1..=4).map(|id| keys.partition_of(&Tenant::of_namespace(id))).collect();
        assert_eq!(partitions, [7, 12, 15, 11]);
        assert_eq!(keys.partition(3), "{jr:3}:");
    }
}
