//! What people and certificates say: endpoints, the path that a client is confined to.

use vellum_keys::Subtree;
use vellum_rt::net::Endpoint;

pub fn endpoints() -> Vec<Vec<u8>> {
    ["unix:/run/vellum.sock", "tcp:127.0.0.1:7000", "tcp:[::1]:7000"].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub fn endpoint(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(endpoint) = text.parse::<Endpoint>() else { return false };
    let shown = endpoint.to_string();
    assert_eq!(shown.parse::<Endpoint>().ok(), Some(endpoint));
    true
}

pub fn subtrees() -> Vec<Vec<u8>> {
    ["/a", "/projects/x-1", "/with%20space/%FF"].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub fn subtree(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(subtree) = text.parse::<Subtree>() else { return false };
    assert_eq!(subtree.to_string(), text, "a path has one spelling");
    assert!(subtree.names().all(|name| !name.is_empty() && name.len() <= 255));
    true
}
