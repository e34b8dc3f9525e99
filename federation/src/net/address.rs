use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which addresses a name from the outside may lead to. Checked on the address that is about to be connected to, after
/// DNS: a check of the name alone is bypassed by a name that resolves to a private address.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Every address is allowed: for tests and closed networks.
    pub allow_private: bool,
    /// Networks that are allowed although they are not public.
    pub allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// Whether a connection to `address` may be made.
    pub fn permits(&self, address: IpAddr) -> bool {
        self.allow_private
            || is_public(address)
            || self.allowed.iter().any(|net| net.contains(&address.to_canonical()))
    }
}

/// Whether anybody on the Internet could be meant by the address. Written as "deny what is special", from the IANA
/// registries of special-purpose addresses; the standard library's `is_global` is not stable.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a >= 240
        // Carrier-grade NAT.
        || (a == 100 && (64..128).contains(&b))
        // Protocol assignments, 6to4 relays, benchmarking.
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, third, fourth, fifth, sixth, seventh, eighth] = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    // NAT64 and 6to4 carry an IPv4 address that the packet ends at.
    if (first, second) == (0x64, 0xff9b) && [third, fourth, fifth, sixth] == [0; 4] {
        return embedded(seventh, eighth);
    }
    if first == 0x2002 {
        return embedded(second, third);
    }
    // Global unicast is 2000::/3; inside it protocol assignments (Teredo, ORCHID) and documentation.
    (first & 0xe000) == 0x2000
        && !(first == 0x2001 && second < 0x200)
        && !(first == 0x2001 && second == 0xdb8)
        && !(first == 0x3fff && second < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        AddressPolicy::default().permits(text.parse().unwrap())
    }

    #[test]
    fn private_and_special_addresses_are_refused() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "64:ff9b::a00:1",
            "2001:0:1::",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_permitted() {
        for address in ["8.8.8.8", "100.128.0.1", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn the_operator_can_open_a_network() {
        let policy = AddressPolicy { allow_private: false, allowed: vec!["10.0.0.0/8".parse().unwrap()] };
        assert!(policy.permits("10.9.9.9".parse().unwrap()));
        assert!(policy.permits("::ffff:10.9.9.9".parse().unwrap()));
        assert!(!policy.permits("192.168.0.1".parse().unwrap()));
    }
}
