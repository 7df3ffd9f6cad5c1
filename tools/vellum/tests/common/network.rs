//! Hosts on one switch, each a network namespace of its own.

use std::process::Command;

/// A bridge in a namespace, where the gateways run too, and a host per member.
pub struct Network {
    name: String,
    hosts: usize,
}

/// The port of the bridge that a host is plugged into.
fn port(host: usize) -> String {
    format!("host{host}")
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().expect("iproute2 is there").success(), "ip {args:?}");
}

impl Network {
    pub fn new(hosts: usize) -> Network {
        let network = Network { name: format!("vellum-test-{}", std::process::id()), hosts };
        let hub = network.hub();
        ip(&["netns", "add", hub]);
        ip(&["-n", hub, "link", "set", "lo", "up"]);
        ip(&["-n", hub, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", hub, "addr", "add", "10.77.0.1/24", "dev", "bridge"]);
        ip(&["-n", hub, "link", "set", "bridge", "up"]);
        for host in 0..hosts {
            let (namespace, port) = (network.host(host), port(host));
            ip(&["netns", "add", &namespace]);
            ip(&["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["-n", hub, "link", "set", &port, "master", "bridge", "up"]);
            ip(&["-n", &namespace, "addr", "add", &format!("{}/24", Network::address(host)), "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// The namespace of the bridge.
    pub fn hub(&self) -> &str {
        &self.name
    }

    /// The namespace of a host.
    pub fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 2)
    }

    /// Pulls a host's plug, or puts it in again.
    pub fn cut(&self, host: usize, cut: bool) {
        ip(&["-n", self.hub(), "link", "set", &port(host), if cut { "down" } else { "up" }]);
    }
}

/// The binary, as a process of that namespace.
pub fn command_in(namespace: &str, binary: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(binary);
    command
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in (0..self.hosts).map(|host| self.host(host)).chain([self.name.clone()]) {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}
