//! Which client a request comes from.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

/// Headers of a reverse proxy.
const PROXY_HEADERS: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// The address of the other end of a connection.
#[derive(Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The address of a client; none behind a proxy, where all clients have one address.
///
/// The headers of a proxy are no address either: anybody can send them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl ClientAddress {
    fn new(peer: Option<IpAddr>, headers: &HeaderMap) -> Self {
        if PROXY_HEADERS.iter().any(|name| headers.contains_key(*name)) {
            return Self(None);
        }
        Self(peer.map(|address| address.to_canonical()))
    }
}

impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        Ok(Self::new(peer, &parts.headers))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn client_is_its_peer_unless_a_proxy_is_between() {
        let of = |peer: &str, header: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(name) = header {
                headers.insert(
                    name.parse::<axum::http::HeaderName>().unwrap(),
                    "10.0.0.1".parse().unwrap(),
                );
            }
            ClientAddress::new(Some(peer.parse().unwrap()), &headers).0
        };
        let address: IpAddr = "10.0.0.9".parse().unwrap();
        assert_eq!(of("10.0.0.9", None), Some(address));
        assert_eq!(of("10.0.0.9", Some("accept")), Some(address));
        assert_eq!(of("::ffff:10.0.0.9", None), Some(address));
        for name in ["Forwarded", "X-Forwarded-For", "X-Real-IP"] {
            assert_eq!(of("10.0.0.9", Some(name)), None, "{name}");
        }
        assert_eq!(ClientAddress::new(None, &HeaderMap::new()).0, None);
    }
}
