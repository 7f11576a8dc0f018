//! Which addresses a request may go to: the kind of every IP address that is no ordinary one of
//! the public internet.
//!
//! An IPv6 address that carries an IPv4 one (mapped, compatible, translated, NAT64, 6to4, Teredo,
//! ISATAP) is of the kind of what it carries.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not of the public internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// This machine.
    Loopback,
    /// A private network: 10/8, 172.16/12, 192.168/16, fc00::/7.
    Private,
    /// Shared by the customers of a carrier: 100.64/10.
    Shared,
    /// One cable; the metadata services of clouds are here.
    LinkLocal,
    /// No address at all.
    Unspecified,
    /// Many receivers.
    Multicast,
    /// All receivers.
    Broadcast,
    /// For examples in texts.
    Documentation,
    /// Set aside for protocols, tests or the future.
    Reserved,
}

impl Kind {
    /// In a sentence: "10.0.0.1 is a private address".
    #[must_use]
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::Shared => "an address of shared space",
            Self::LinkLocal => "a link-local address",
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::Documentation => "an address for documentation",
            Self::Reserved => "a reserved address",
        }
    }

    /// Whether a company runs servers at such addresses.
    #[must_use]
    pub const fn is_inside(self) -> bool {
        matches!(self, Self::Loopback | Self::Private | Self::Shared)
    }
}

/// How far requests may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The public internet alone.
    Public,
    /// Also loopback, private and shared addresses; never link-local, multicast or reserved ones.
    PublicAndInside,
    /// Loopback, private and shared addresses alone: offline.
    Inside,
}

/// An address that a request may not go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The address.
    pub address: IpAddr,
    /// What it is; none of the public internet.
    pub kind: Option<Kind>,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.map_or("a public address, and this run is offline", Kind::shown);
        write!(f, "{} is {kind}", self.address)
    }
}

impl Reach {
    /// Whether a request may go to this address.
    ///
    /// # Errors
    /// [`Blocked`], with what the address is.
    pub fn check(self, address: IpAddr) -> Result<(), Blocked> {
        let kind = kind(address);
        let may = match (self, kind) {
            (Self::Public | Self::PublicAndInside, None) => true,
            (Self::Public, Some(_)) | (Self::Inside, None) => false,
            (Self::PublicAndInside | Self::Inside, Some(kind)) => kind.is_inside(),
        };
        if may { Ok(()) } else { Err(Blocked { address, kind }) }
    }
}

/// What an address is; none for one of the public internet.
///
/// Source: the registries of special-purpose addresses of IANA (RFC 6890), as of 2025.
#[must_use]
pub fn kind(address: IpAddr) -> Option<Kind> {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Option<Kind> {
    Some(match address.octets() {
        [0, 0, 0, 0] => Kind::Unspecified,
        [255, 255, 255, 255] => Kind::Broadcast,
        [127, ..] => Kind::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Private,
        [100, 64..=127, ..] => Kind::Shared,
        [169, 254, ..] => Kind::LinkLocal,
        [224..=239, ..] => Kind::Multicast,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Kind::Documentation,
        // this network, protocol assignments, 6to4 relays, benchmarks, the future
        [0, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] | [240..=255, ..] => {
            Kind::Reserved
        }
        _ => return None,
    })
}

fn kind_v6(address: Ipv6Addr) -> Option<Kind> {
    if address.is_unspecified() {
        return Some(Kind::Unspecified);
    }
    if address.is_loopback() {
        return Some(Kind::Loopback);
    }
    let carried = carried(address);
    if !carried.is_empty() {
        return carried.into_iter().find_map(kind_v4);
    }
    Some(match address.segments() {
        [0xfc00..=0xfdff, ..] => Kind::Private,
        [0xfe80..=0xfebf, ..] => Kind::LinkLocal,
        [0xff00..=0xffff, ..] => Kind::Multicast,
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Kind::Documentation,
        // protocol assignments but Teredo, which carries an IPv4 address
        [0x2001, 1..=0x01ff, ..] => Kind::Reserved,
        [0x2000..=0x3fff, ..] => return None,
        // all that is not global unicast
        _ => Kind::Reserved,
    })
}

/// The IPv4 addresses that an IPv6 address carries.
fn carried(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let v4 = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
    let bytes = address.octets();
    match address.segments() {
        // compatible, mapped, translated
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => vec![v4(&bytes[12..])],
        // NAT64; of its local prefix nobody knows where the four bytes are
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![v4(&bytes[12..])],
        // 6to4
        [0x2002, ..] => vec![v4(&bytes[2..])],
        // Teredo: its server, and its client with every bit turned
        [0x2001, 0, ..] => {
            let client: Vec<u8> = bytes[12..].iter().map(|byte| !byte).collect();
            vec![v4(&bytes[4..]), v4(&client)]
        }
        // ISATAP
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![v4(&bytes[12..])],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Reach, kind};

    const TABLE: [(&str, Option<Kind>); 58] = [
        ("8.8.8.8", None),
        ("1.1.1.1", None),
        ("172.15.255.255", None),
        ("172.32.0.0", None),
        ("100.63.255.255", None),
        ("100.128.0.0", None),
        ("223.255.255.255", None),
        ("0.0.0.0", Some(Kind::Unspecified)),
        ("0.1.2.3", Some(Kind::Reserved)),
        ("127.0.0.1", Some(Kind::Loopback)),
        ("127.255.255.254", Some(Kind::Loopback)),
        ("10.0.0.1", Some(Kind::Private)),
        ("172.16.0.1", Some(Kind::Private)),
        ("172.31.255.255", Some(Kind::Private)),
        ("192.168.1.1", Some(Kind::Private)),
        ("100.64.0.1", Some(Kind::Shared)),
        ("100.127.255.255", Some(Kind::Shared)),
        ("169.254.169.254", Some(Kind::LinkLocal)),
        ("192.0.0.192", Some(Kind::Reserved)),
        ("192.0.2.1", Some(Kind::Documentation)),
        ("198.51.100.7", Some(Kind::Documentation)),
        ("203.0.113.7", Some(Kind::Documentation)),
        ("192.88.99.1", Some(Kind::Reserved)),
        ("198.18.0.1", Some(Kind::Reserved)),
        ("198.19.255.255", Some(Kind::Reserved)),
        ("224.0.0.1", Some(Kind::Multicast)),
        ("239.255.255.250", Some(Kind::Multicast)),
        ("240.0.0.1", Some(Kind::Reserved)),
        ("255.255.255.255", Some(Kind::Broadcast)),
        ("2606:4700:4700::1111", None),
        ("2a00:1450::1", None),
        ("::", Some(Kind::Unspecified)),
        ("::1", Some(Kind::Loopback)),
        ("fc00::1", Some(Kind::Private)),
        ("fd12:3456::1", Some(Kind::Private)),
        ("fe80::1", Some(Kind::LinkLocal)),
        ("febf::1", Some(Kind::LinkLocal)),
        ("fec0::1", Some(Kind::Reserved)),
        ("ff02::1", Some(Kind::Multicast)),
        ("2001:db8::1", Some(Kind::Documentation)),
        ("3fff::1", Some(Kind::Documentation)),
        ("2001:10::1", Some(Kind::Reserved)),
        ("100::1", Some(Kind::Reserved)),
        ("4000::1", Some(Kind::Reserved)),
        // mapped, compatible, translated
        ("::ffff:127.0.0.1", Some(Kind::Loopback)),
        ("::ffff:100.64.0.1", Some(Kind::Shared)),
        ("::ffff:8.8.8.8", None),
        ("::10.0.0.1", Some(Kind::Private)),
        ("::ffff:0:10.0.0.1", Some(Kind::Private)),
        // NAT64, the well-known prefix and the local one
        ("64:ff9b::169.254.169.254", Some(Kind::LinkLocal)),
        ("64:ff9b::8.8.8.8", None),
        ("64:ff9b:1::8.8.8.8", Some(Kind::Reserved)),
        // 6to4 of 192.168.0.1 and of 8.8.8.8
        ("2002:c0a8:1::1", Some(Kind::Private)),
        ("2002:808:808::1", None),
        // Teredo: server 10.0.0.1; then client 127.0.0.1 by way of 8.8.8.8; then both public
        ("2001:0:a00:1:0:0:f7f7:f7f7", Some(Kind::Private)),
        ("2001:0:808:808:0:0:80ff:fffe", Some(Kind::Loopback)),
        ("2001:0:808:808:0:0:f7f7:f7f7", None),
        // ISATAP within a public prefix
        ("2a00:1450::5efe:10.0.0.1", Some(Kind::Private)),
    ];

    #[test]
    fn every_form_of_address_has_its_kind() {
        for (text, expected) in TABLE {
            assert_eq!(kind(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_may_be_reached_follows_from_the_kind() {
        for (text, kind) in TABLE {
            let address = text.parse().unwrap();
            let inside = matches!(kind, Some(Kind::Loopback | Kind::Private | Kind::Shared));
            assert_eq!(Reach::Public.check(address).is_ok(), kind.is_none(), "{text}");
            let both = Reach::PublicAndInside.check(address);
            assert_eq!(both.is_ok(), kind.is_none() || inside, "{text}");
            assert_eq!(Reach::Inside.check(address).is_ok(), inside, "{text}");
        }
        let blocked = Reach::Public.check("169.254.169.254".parse().unwrap()).unwrap_err();
        assert_eq!(blocked.to_string(), "169.254.169.254 is a link-local address");
    }
}
