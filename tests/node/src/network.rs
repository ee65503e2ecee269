//! Sockets in the network of a node, made from outside: a socket stays in the namespace in which it
//! was made, whoever uses it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Does `work` on a thread of its own that has entered a network namespace.
pub fn in_network<T: Send>(
    network: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of a network panicked")))
    })
}

/// A listener on the loopback of a network namespace.
pub fn listen_in(network: &File, port: u16) -> io::Result<TcpListener> {
    in_network(network, || TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
}
