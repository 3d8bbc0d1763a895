//! What the kernel knows of one TCP socket: sock_diag(7). /proc/net/tcp says the same of all sockets, and takes
//! a thousand times as long.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `SOCK_DIAG_BY_FAMILY`, also the type of the answer.
const BY_FAMILY: u16 = 20;
const NLMSG_HEADER: usize = 16;

/// The end of a connection at `local`: how many bytes it has not read, and whether a process has accepted
/// it. `None` if there is no such socket.
pub fn look(local: SocketAddr, remote: SocketAddr) -> Option<(u64, bool)> {
    let socket = find(local, remote)?;
    Some((u64::from(socket.received), socket.inode != 0))
}

/// The backlog of a listening socket.
pub fn backlog(local: SocketAddr) -> Option<u32> {
    find(local, ([0, 0, 0, 0], 0).into()).map(|socket| socket.sent)
}

/// Of struct inet_diag_msg. A listening socket has its backlog where others have what they sent.
struct Found {
    received: u32,
    sent: u32,
    inode: u32,
}

fn find(local: SocketAddr, remote: SocketAddr) -> Option<Found> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .expect("a netlink socket");
    let request = request(local, remote);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty()).expect("ask");
    let mut answer = [0; 1024];
    recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer");
    let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().expect("4 bytes"));
    // Family and state, the id's 48 bytes, expires; then these, with the uid before the inode.
    let queues = NLMSG_HEADER + 4 + 48 + 4;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    (kind == BY_FAMILY).then(|| Found {
        received: word(queues),
        sent: word(queues + 4),
        inode: word(queues + 12),
    })
}

/// struct nlmsghdr, struct inet_diag_req_v2.
fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 72;
    const NLM_F_REQUEST: u16 = 1;
    let mut request = Vec::new();
    request.extend(LENGTH.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    // AF_INET, IPPROTO_TCP, and all states.
    request.extend([2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        let IpAddr::V4(ip) = address.ip() else {
            panic!("IPv4 only")
        };
        request.extend(ip.octets());
        request.extend([0; 12]);
    }
    // Any interface, any cookie.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}
