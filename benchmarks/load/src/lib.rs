//! What the load generator and the bare loop share: datagrams in batches.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Datagrams a system call.
pub const BATCH: usize = 64;
/// Longest datagram of the benchmarks.
pub const OCTETS: usize = 1536;
const CONTROL_WORDS: usize = 8;

/// Buffers of one batch, for either direction.
pub struct Batch {
    buffers: Box<[[u8; OCTETS]]>,
    peers: Box<[libc::sockaddr_storage]>,
    controls: Box<[[u64; CONTROL_WORDS]]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: all zeroes is valid for these plain structures.
        let (peers, vectors, headers) =
            unsafe { (vec![zeroed(); BATCH], vec![zeroed(); BATCH], vec![zeroed(); BATCH]) };
        let mut batch = Self {
            buffers: vec![[0; OCTETS]; BATCH].into(),
            peers: peers.into(),
            controls: vec![[0; CONTROL_WORDS]; BATCH].into(),
            vectors: Vec::into(vectors),
            headers: Vec::into(headers),
            count: 0,
        };
        for at in 0..BATCH {
            batch.vectors[at] = libc::iovec { iov_base: batch.buffers[at].as_mut_ptr().cast(), iov_len: OCTETS };
            let header = &mut batch.headers[at].msg_hdr;
            header.msg_iov = &raw mut batch.vectors[at];
            header.msg_iovlen = 1;
        }
        batch
    }
}

impl Batch {
    /// Receives what is there; with `wait`, at least one. 0 is none.
    pub fn receive(&mut self, socket: &UdpSocket, with_peers: bool, wait: bool) -> usize {
        for at in 0..BATCH {
            self.vectors[at].iov_len = OCTETS;
            let header = &mut self.headers[at].msg_hdr;
            header.msg_name = if with_peers { (&raw mut self.peers[at]).cast() } else { std::ptr::null_mut() };
            header.msg_namelen = if with_peers { size_of::<libc::sockaddr_storage>() as libc::socklen_t } else { 0 };
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
        }
        let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
        // SAFETY: every header points into buffers of this struct.
        let count = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH as _, flags as _, std::ptr::null_mut())
        };
        usize::try_from(count).unwrap_or(0)
    }

    /// A datagram of the last receive.
    pub fn datagram(&self, at: usize) -> &[u8] {
        &self.buffers[at][..(self.headers[at].msg_len as usize).min(OCTETS)]
    }

    /// The buffer of the next datagram to send.
    pub fn buffer(&mut self) -> &mut [u8; OCTETS] {
        &mut self.buffers[self.count]
    }

    /// How many stand in the batch.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes `octets` of [`Batch::buffer`] into the batch, to a peer that is set already (`from_slot` of a receive).
    pub fn push_reply(&mut self, octets: usize, peers_of: &Batch, from_slot: usize) {
        let at = self.count;
        self.peers[at] = peers_of.peers[from_slot];
        self.push(octets, peers_of.headers[from_slot].msg_hdr.msg_namelen);
    }

    /// Takes `octets` of [`Batch::buffer`] into the batch, to `peer`, from the address `source`.
    pub fn push_query(&mut self, octets: usize, peer: &(libc::sockaddr_storage, libc::socklen_t), source: IpAddr) {
        let at = self.count;
        self.peers[at] = peer.0;
        self.push(octets, peer.1);
        let header = &mut self.headers[at].msg_hdr;
        header.msg_control = self.controls[at].as_mut_ptr().cast();
        header.msg_controllen = (CONTROL_WORDS * 8) as _;
        // SAFETY: the control buffer is aligned and has room for one message of either kind.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(header);
            let octets = match source {
                IpAddr::V4(address) => {
                    (*control).cmsg_level = libc::IPPROTO_IP;
                    (*control).cmsg_type = libc::IP_PKTINFO;
                    let mut info: libc::in_pktinfo = zeroed();
                    info.ipi_spec_dst.s_addr = u32::from_ne_bytes(address.octets());
                    libc::CMSG_DATA(control).cast::<libc::in_pktinfo>().write_unaligned(info);
                    size_of::<libc::in_pktinfo>()
                }
                IpAddr::V6(address) => {
                    (*control).cmsg_level = libc::IPPROTO_IPV6;
                    (*control).cmsg_type = libc::IPV6_PKTINFO;
                    let mut info: libc::in6_pktinfo = zeroed();
                    info.ipi6_addr.s6_addr = address.octets();
                    libc::CMSG_DATA(control).cast::<libc::in6_pktinfo>().write_unaligned(info);
                    size_of::<libc::in6_pktinfo>()
                }
            } as libc::c_uint;
            (*control).cmsg_len = libc::CMSG_LEN(octets) as _;
            header.msg_controllen = libc::CMSG_SPACE(octets) as _;
        }
    }

    fn push(&mut self, octets: usize, name_length: libc::socklen_t) {
        let at = self.count;
        self.vectors[at].iov_len = octets;
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.peers[at]).cast();
        header.msg_namelen = name_length;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
        self.count += 1;
    }

    /// Sends the batch; says how many were taken by the kernel. The rest is forgotten.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let mut at = 0;
        while at < self.count {
            let rest = &mut self.headers[at..self.count];
            // SAFETY: every header points into buffers of this struct.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as _, 0) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                _ => break,
            }
        }
        self.count = 0;
        at
    }
}

/// An address as the kernel takes it.
pub fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is valid, and the storage is large and aligned enough for either family.
    unsafe {
        let mut storage: libc::sockaddr_storage = zeroed();
        match address {
            SocketAddr::V4(v4) => {
                let raw = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                raw.sin_family = libc::AF_INET as _;
                raw.sin_port = v4.port().to_be();
                raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                (storage, size_of::<libc::sockaddr_in>() as _)
            }
            SocketAddr::V6(v6) => {
                let raw = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                raw.sin6_family = libc::AF_INET6 as _;
                raw.sin6_port = v6.port().to_be();
                raw.sin6_addr.s6_addr = v6.ip().octets();
                (storage, size_of::<libc::sockaddr_in6>() as _)
            }
        }
    }
}

/// A socket with a large receive buffer, that may send from any address of the machine.
pub fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let octets: libc::c_int = 8 << 20;
    for name in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: the pointer is to a live value whose size is given beside it.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                (&raw const octets).cast(),
                size_of::<libc::c_int>() as _,
            )
        };
        if done == 0 {
            break;
        }
    }
    Ok(socket)
}

/// Where the question of a message ends; `None` when it is no message with one question.
pub fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *packet.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    (packet.len() >= at + 5).then_some(at + 5)
}
