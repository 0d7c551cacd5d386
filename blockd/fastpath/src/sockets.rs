//! Datagram sockets in batches: the crate's only dealings with the kernel, and with `unsafe`.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Datagrams a system call.
pub const BATCH: usize = 64;
/// Longest datagram that is read whole; a longer one is marked as cut.
pub const DATAGRAM_OCTETS: usize = 4096;
const CONTROL_WORDS: usize = 8;
const RECEIVE_BUFFER_OCTETS: libc::c_int = 4 << 20;

/// The address that a datagram was sent to, so that its reply comes from there.
#[derive(Debug, Clone, Copy)]
pub enum LocalAddress {
    /// The kernel did not say, and need not: the socket is bound to that address alone.
    Unknown,
    /// IPv4.
    V4(Ipv4Addr),
    /// IPv6 and interface.
    V6(Ipv6Addr, u32),
}

/// How a reply gets back.
#[derive(Debug, Clone)]
pub struct ReturnPath {
    /// The listening socket.
    pub socket: RawFd,
    /// Who asked.
    pub peer: SocketAddr,
    /// What was asked.
    pub local: LocalAddress,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: the pointer is to a live value whose size is given beside it.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<T>() as libc::socklen_t) })
        .map(drop)
}

fn socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the descriptor is owned from here on.
    let socket = unsafe {
        let fd = check(libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0))?;
        OwnedFd::from_raw_fd(fd)
    };
    if address.is_ipv6() {
        set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1 as libc::c_int)?;
    }
    Ok(socket)
}

fn bind(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let (storage, length) = to_raw(address);
    // SAFETY: storage is a filled socket address of the length beside it.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const storage).cast(), length) }).map(drop)
}

/// Opens one listening socket for each thread, all on one address.
///
/// SO_REUSEPORT would let two daemons share a port in silence, so a plain socket tries the address first.
pub fn listen(address: SocketAddr, threads: usize) -> io::Result<Vec<OwnedFd>> {
    bind(&socket(&address)?, &address)?;
    (0..threads)
        .map(|_| {
            let socket = socket(&address)?;
            set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1 as libc::c_int)?;
            prepare(&socket, &address)?;
            bind(&socket, &address)?;
            Ok(socket)
        })
        .collect()
}

/// Sets what a listening socket needs that is, or will be, bound to an address.
fn prepare(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    grow_receive_buffer(fd);
    // The address that a datagram was sent to costs 0.15 µs a reply, so only sockets that need it are told.
    let needs_source = libc::c_int::from(!is_one_source(address.ip()));
    if address.is_ipv4() {
        set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, needs_source)?;
        // Never believe path MTU messages: a forged one would make replies fragment (RFC 9715).
        set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
    } else {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, needs_source)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT)
    }
}

/// Takes a copy of a bound datagram socket that somebody else opened.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that is not open gives an error, a new one is owned from here on.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?) };
    // SAFETY: all zeroes is valid for this plain structure.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: room for any address, its size beside it.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut storage).cast(), &raw mut length) })?;
    let address = from_raw(&storage).ok_or(io::ErrorKind::InvalidInput)?;
    prepare(&socket, &address)?;
    Ok(socket)
}

/// Whether every reply of a socket that is bound to an address leaves from that address, whatever datagram it answers.
///
/// True for an address that an interface of this machine has. The kernel picks another source for replies of a socket that
/// is bound to all addresses, to a group or to a broadcast address; of any other address it is not known here.
fn is_one_source(address: IpAddr) -> bool {
    match address.to_canonical() {
        // The loopback's whole prefix belongs to this machine, though its interface has one address of it.
        IpAddr::V4(v4) if v4.is_loopback() => {
            v4 != Ipv4Addr::new(127, 255, 255, 255) && v4 != Ipv4Addr::new(127, 0, 0, 0)
        }
        ip => !ip.is_unspecified() && !ip.is_multicast() && own_addresses().contains(&ip),
    }
}

fn grow_receive_buffer(fd: RawFd) {
    // The kernel doubles what it is asked for, and says the double.
    let wanted = 2 * RECEIVE_BUFFER_OCTETS as u32;
    // Without the right to go over the system's bound, as far as the bound: of a supervisor's larger buffer that would
    // leave a twentieth.
    if memory_of(fd)[SK_MEMINFO_RCVBUF] < wanted
        && set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_OCTETS).is_err()
    {
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER_OCTETS);
    }
}

/// What the kernel says of a socket's memory, by its linux/sock_diag.h; zeroes where it says nothing.
fn memory_of(fd: RawFd) -> [u32; SK_MEMINFO_DROPS + 1] {
    let mut values = [0u32; SK_MEMINFO_DROPS + 1];
    let mut octets = size_of_val(&values) as libc::socklen_t;
    // SAFETY: room for so many octets is behind the pointer; the kernel writes no more, and zeroes stay where it wrote less.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, values.as_mut_ptr().cast(), &raw mut octets) };
    values
}

const SK_MEMINFO_RMEM_ALLOC: usize = 0;
const SK_MEMINFO_RCVBUF: usize = 1;
const SK_MEMINFO_DROPS: usize = 8;

/// Datagrams that the kernel dropped at a socket since it was opened, most of them because its buffer was full; it goes
/// round at 2^32.
pub fn dropped(fd: RawFd) -> u32 {
    memory_of(fd)[SK_MEMINFO_DROPS]
}

/// Whether a socket's receive buffer is more than half full.
pub fn is_half_full(fd: RawFd) -> bool {
    let memory = memory_of(fd);
    memory[SK_MEMINFO_RMEM_ALLOC] > memory[SK_MEMINFO_RCVBUF] / 2
}

/// Opens a socket for exchanges with upstreams, on the given port.
pub fn open_source(is_ipv4: bool, port: u16) -> io::Result<OwnedFd> {
    let address: SocketAddr =
        if is_ipv4 { (Ipv4Addr::UNSPECIFIED, port).into() } else { (Ipv6Addr::UNSPECIFIED, port).into() };
    let socket = socket(&address)?;
    bind(&socket, &address)?;
    Ok(socket)
}

/// Has the allocator give large blocks back to the system when they are freed.
///
/// Left alone it learns from the first freed table that such blocks are wanted again, and keeps the memory of every
/// generation of rules that is replaced.
pub fn keep_no_large_blocks() {
    // SAFETY: no pointers; it changes where later allocations come from, and nothing else.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) };
}

/// Writes to stderr what it takes without waiting, a page at most; the rest is lost.
pub fn complain(text: &str) {
    const PAGE_OCTETS: usize = 4096;
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointers are to one live structure and to as many octets as are written. A pipe that is ready has room
    // for a page.
    unsafe {
        if libc::poll(&raw mut stderr, 1, 0) == 1 && stderr.revents & libc::POLLOUT != 0 {
            libc::write(stderr.fd, text.as_ptr().cast(), text.len().min(PAGE_OCTETS));
        }
    }
}

/// Has the kernel kill this process when its parent ends; false when that has ended before.
pub fn end_with_parent(parent: u32) -> bool {
    // SAFETY: no pointers; it changes what happens to this process when its parent ends, and nothing else.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    std::os::unix::process::parent_id() == parent
}

/// Gives back what the allocator holds and nobody uses: after a reload, the parts of the one before.
pub fn give_back_memory() {
    // SAFETY: no pointers; free pages alone are returned.
    unsafe { libc::malloc_trim(0) };
}

/// The addresses of this machine's interfaces.
///
/// Not by trying to bind: with `ip_nonlocal_bind`, usual beside keepalived, every address can be bound.
pub fn own_addresses() -> Vec<IpAddr> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    let mut found = Vec::new();
    // SAFETY: getifaddrs fills the pointer or fails; the list is walked while it lives and freed once. An address is
    // read as its family says, and each family's structure is as large as the kernel makes it.
    unsafe {
        if libc::getifaddrs(&raw mut first) != 0 {
            return found;
        }
        let mut at = first;
        while !at.is_null() {
            let address = (*at).ifa_addr;
            if !address.is_null() {
                match libc::c_int::from((*address).sa_family) {
                    libc::AF_INET => {
                        let raw = address.cast::<libc::sockaddr_in>().read_unaligned();
                        found.push(Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes()).into());
                    }
                    libc::AF_INET6 => {
                        let raw = address.cast::<libc::sockaddr_in6>().read_unaligned();
                        found.push(Ipv6Addr::from(raw.sin6_addr.s6_addr).into());
                    }
                    _ => {}
                }
            }
            at = (*at).ifa_next;
        }
        libc::freeifaddrs(first);
    }
    found
}

/// The number of an interface, by its name or its number; none when there is no such interface.
pub fn interface_index(scope: &str) -> Option<u32> {
    let name = std::ffi::CString::new(scope).ok()?;
    // SAFETY: the string lives through the call and ends with a zero.
    let named = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if named != 0 {
        return Some(named);
    }
    let number = scope.parse().ok().filter(|&number| number != 0)?;
    let mut room = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the kernel's longest name, and its zero, fit into the room.
    (!unsafe { libc::if_indextoname(number, room.as_mut_ptr()) }.is_null()).then_some(number)
}

fn to_raw(address: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_storage is large and aligned enough for every socket address.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_flowinfo = v6.flowinfo();
            raw.sin6_scope_id = v6.scope_id();
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

fn from_raw(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which address is in there.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

type Control = [u64; CONTROL_WORDS];
/// From one buffer to the next: at a whole page, all of them would fall on the same few lines of the cache.
const STRIDE_OCTETS: usize = DATAGRAM_OCTETS + 64;

/// Buffers for one recvmmsg.
pub struct Inbound {
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Headers that the last batch wrote to; at first all, so that each is filled once.
    used: usize,
}

/// One datagram of a batch.
pub struct Datagram<'a> {
    /// Its octets, at most [`DATAGRAM_OCTETS`].
    pub octets: &'a [u8],
    /// Whether there were more.
    pub is_cut: bool,
}

type Parts = (Box<[libc::sockaddr_storage]>, Box<[libc::iovec]>, Box<[libc::mmsghdr]>);

fn plain_parts() -> Parts {
    // SAFETY: all zeroes is valid for these plain structures; pointers are set before each use.
    unsafe {
        (
            vec![zeroed(); BATCH].into_boxed_slice(),
            vec![zeroed(); BATCH].into_boxed_slice(),
            vec![zeroed(); BATCH].into_boxed_slice(),
        )
    }
}

impl Default for Inbound {
    fn default() -> Self {
        let (names, vectors, headers) = plain_parts();
        Self {
            buffers: vec![0; STRIDE_OCTETS * BATCH].into_boxed_slice(),
            names,
            controls: vec![[0; CONTROL_WORDS]; BATCH].into_boxed_slice(),
            vectors,
            headers,
            used: BATCH,
        }
    }
}

impl Inbound {
    /// Receives what is there, at most [`BATCH`], without waiting; 0 when nothing is.
    pub fn receive(&mut self, socket: RawFd) -> usize {
        // The kernel wrote its lengths into the headers of the last batch, and into no others.
        for at in 0..self.used {
            self.reset(at);
        }
        // SAFETY: every header points into buffers of this struct that outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket,
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.used = usize::try_from(count).unwrap_or(0);
        self.used
    }

    fn reset(&mut self, at: usize) {
        let buffer = &mut self.buffers[STRIDE_OCTETS * at..][..DATAGRAM_OCTETS];
        self.vectors[at] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: DATAGRAM_OCTETS };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.names[at]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut self.vectors[at];
        header.msg_iovlen = 1;
        header.msg_control = self.controls[at].as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>() as _;
        header.msg_flags = 0;
    }

    /// A datagram of the last batch.
    pub fn datagram(&self, at: usize) -> Datagram<'_> {
        let header = &self.headers[at];
        let length = (header.msg_len as usize).min(DATAGRAM_OCTETS);
        Datagram {
            octets: &self.buffers[STRIDE_OCTETS * at..][..length],
            is_cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    /// Who sent a datagram of the last batch.
    pub fn peer(&self, at: usize) -> Option<SocketAddr> {
        from_raw(&self.names[at])
    }

    /// The address that a datagram of the last batch was sent to.
    pub fn local(&self, at: usize) -> LocalAddress {
        let header = &raw const self.headers[at].msg_hdr;
        // SAFETY: the kernel filled the control buffer; CMSG_* walk inside its length, and the data of a control
        // message is read unaligned after its level and type were looked at.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(header);
            while !control.is_null() {
                match ((*control).cmsg_level, (*control).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let pktinfo = libc::CMSG_DATA(control).cast::<libc::in_pktinfo>().read_unaligned();
                        return LocalAddress::V4(Ipv4Addr::from(pktinfo.ipi_spec_dst.s_addr.to_ne_bytes()));
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let pktinfo = libc::CMSG_DATA(control).cast::<libc::in6_pktinfo>().read_unaligned();
                        return LocalAddress::V6(Ipv6Addr::from(pktinfo.ipi6_addr.s6_addr), pktinfo.ipi6_ifindex);
                    }
                    _ => control = libc::CMSG_NXTHDR(header, control),
                }
            }
        }
        LocalAddress::Unknown
    }
}

/// Replies to datagrams of one batch, sent with one sendmmsg. Where they go is not copied: peer and local address stand
/// in the buffers of the batch that asked.
pub struct Replies {
    buffers: Vec<Vec<u8>>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    count: usize,
}

impl Default for Replies {
    fn default() -> Self {
        let (_, vectors, headers) = plain_parts();
        Self { buffers: (0..BATCH).map(|_| Vec::with_capacity(512)).collect(), vectors, headers, count: 0 }
    }
}

impl Replies {
    /// The buffer for the next reply.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffers[self.count]
    }

    /// Takes what was written to [`Replies::buffer`] as the reply to a datagram of the batch.
    pub fn push(&mut self, batch: &Inbound, datagram: usize) {
        let at = self.count;
        self.vectors[at] =
            libc::iovec { iov_base: self.buffers[at].as_mut_ptr().cast(), iov_len: self.buffers[at].len() };
        let asked = batch.headers[datagram].msg_hdr;
        let header = &mut self.headers[at].msg_hdr;
        *header = asked;
        header.msg_iov = &raw mut self.vectors[at];
        header.msg_flags = 0;
        (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
        // SAFETY: the kernel filled the control buffer of `asked` with messages of the length that it says.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(&raw const asked);
            while !control.is_null() {
                // Only this one goes back: a socket that a supervisor opened may bring others, such as timestamps.
                if let Some(octets) = turn_round(control) {
                    header.msg_control = control.cast();
                    header.msg_controllen = libc::CMSG_SPACE(octets as libc::c_uint) as _;
                    break;
                }
                control = libc::CMSG_NXTHDR(&raw const asked, control);
            }
        }
        self.count += 1;
    }

    /// Sends the replies to the batch; says how many could not be sent.
    pub fn send(&mut self, socket: RawFd, _batch: &Inbound) -> usize {
        let count = std::mem::take(&mut self.count);
        send_all(socket, &mut self.headers[..count]).len()
    }
}

/// Makes the address that a datagram was sent to the one that its reply leaves from; gives the octets of that, or none
/// when the message is of another kind.
///
/// # Safety
/// `control` must point to a whole control message.
unsafe fn turn_round(control: *mut libc::cmsghdr) -> Option<usize> {
    // SAFETY: the caller's promise; the data is read and written unaligned after level and type were looked at.
    unsafe {
        match ((*control).cmsg_level, (*control).cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let place = libc::CMSG_DATA(control).cast::<libc::in_pktinfo>();
                let pktinfo = place.read_unaligned();
                place.write_unaligned(libc::in_pktinfo { ipi_ifindex: 0, ..pktinfo });
                Some(size_of::<libc::in_pktinfo>())
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let place = libc::CMSG_DATA(control).cast::<libc::in6_pktinfo>();
                let mut pktinfo = place.read_unaligned();
                // The interface matters to link-local addresses alone; else the routing table decides.
                if !Ipv6Addr::from(pktinfo.ipi6_addr.s6_addr).is_unicast_link_local() {
                    pktinfo.ipi6_ifindex = 0;
                }
                place.write_unaligned(pktinfo);
                Some(size_of::<libc::in6_pktinfo>())
            }
            _ => None,
        }
    }
}

/// Sends datagrams; gives which could not be sent, and the system's error of each.
fn send_all(socket: RawFd, headers: &mut [libc::mmsghdr]) -> Vec<(usize, i32)> {
    let (mut at, mut lost) = (0, Vec::new());
    while at < headers.len() {
        let rest = &mut headers[at..];
        // SAFETY: every header points into buffers that its owner keeps until this returns.
        let sent = unsafe { libc::sendmmsg(socket, rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
        match usize::try_from(sent) {
            Ok(sent) if sent > 0 => at += sent,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    // One that cannot be sent (no route, a full queue) must not hold up the others.
                    lost.push((at, error.raw_os_error().unwrap_or(0)));
                    at += 1;
                }
            }
        }
    }
    lost
}

/// Datagrams to anybody, sent from one socket with one sendmmsg: late replies, or questions to upstreams.
pub struct Outbound {
    socket: RawFd,
    buffers: Vec<Vec<u8>>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    count: usize,
}

impl Default for Outbound {
    fn default() -> Self {
        let (names, vectors, headers) = plain_parts();
        Self {
            // They grow at their first use, so that an Outbound for one reply costs one buffer.
            buffers: (0..BATCH).map(|_| Vec::new()).collect(),
            names,
            controls: vec![[0; CONTROL_WORDS]; BATCH].into_boxed_slice(),
            vectors,
            headers,
            count: 0,
            socket: -1,
        }
    }
}

impl Outbound {
    /// The buffer for the next datagram.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffers[self.count]
    }

    /// Takes what was written to [`Outbound::buffer`] into the batch, as a late reply. What stands in it for another
    /// socket is sent first, and a full batch at once; says how many could not be sent.
    pub fn reply(&mut self, path: &ReturnPath) -> usize {
        let mut lost = 0;
        if self.count > 0 && self.socket != path.socket {
            let written = self.count;
            lost = self.flush().len();
            self.buffers.swap(0, written);
        }
        self.socket = path.socket;
        self.push(&path.peer, path.local);
        if self.count == BATCH {
            lost += self.flush().len();
        }
        lost
    }

    /// Sends what stands in the batch from the socket of the last [`Outbound::reply`]; gives which were not sent.
    pub fn flush(&mut self) -> Vec<(usize, i32)> {
        self.send(self.socket)
    }

    /// Takes what was written to [`Outbound::buffer`] into the batch.
    pub fn push(&mut self, peer: &SocketAddr, local: LocalAddress) {
        let at = self.count;
        let (name, name_length) = to_raw(peer);
        self.names[at] = name;
        self.vectors[at] =
            libc::iovec { iov_base: self.buffers[at].as_mut_ptr().cast(), iov_len: self.buffers[at].len() };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.names[at]).cast();
        header.msg_namelen = name_length;
        header.msg_iov = &raw mut self.vectors[at];
        header.msg_iovlen = 1;
        header.msg_flags = 0;
        header.msg_control = self.controls[at].as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>() as _;
        // SAFETY: the control buffer is aligned and large enough for one message of either kind.
        let used = unsafe {
            let control = libc::CMSG_FIRSTHDR(header);
            match local {
                LocalAddress::Unknown => 0,
                LocalAddress::V4(address) => {
                    let mut pktinfo: libc::in_pktinfo = zeroed();
                    pktinfo.ipi_spec_dst.s_addr = u32::from_ne_bytes(address.octets());
                    fill_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, pktinfo)
                }
                LocalAddress::V6(address, interface) => {
                    let mut pktinfo: libc::in6_pktinfo = zeroed();
                    pktinfo.ipi6_addr.s6_addr = address.octets();
                    // The interface matters to link-local addresses alone; else the routing table decides.
                    pktinfo.ipi6_ifindex = if address.is_unicast_link_local() { interface } else { 0 };
                    fill_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, pktinfo)
                }
            }
        };
        header.msg_controllen = used as _;
        if used == 0 {
            header.msg_control = std::ptr::null_mut();
        }
        self.count += 1;
    }

    /// Sends the batch; gives which could not be sent.
    pub fn send(&mut self, socket: RawFd) -> Vec<(usize, i32)> {
        let count = std::mem::take(&mut self.count);
        send_all(socket, &mut self.headers[..count])
    }
}

/// Writes one control message; returns the octets it takes.
///
/// # Safety
/// `control` must point to a buffer with room for `T` as a control message.
unsafe fn fill_control<T>(control: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        (*control).cmsg_level = level;
        (*control).cmsg_type = kind;
        (*control).cmsg_len = libc::CMSG_LEN(size_of::<T>() as libc::c_uint) as _;
        libc::CMSG_DATA(control).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(size_of::<T>() as libc::c_uint) as usize
    }
}

/// Waits for readable descriptors.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is owned from here on.
        unsafe { Ok(Self(OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?))) }
    }

    /// Watches a descriptor; closing it ends that.
    pub fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.add(fd, token, libc::EPOLLIN)
    }

    /// Watches a descriptor that other threads may watch too: one of them is woken.
    pub fn watch_shared(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.add(fd, token, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)
    }

    fn add(&self, fd: RawFd, token: u64, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event lives through the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Watches a descriptor no longer.
    pub fn forget(&self, fd: RawFd) {
        // SAFETY: no pointer is read for a removal.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// The tokens that are ready, at most 64.
    pub fn wait(&self, timeout: Duration, ready: &mut Vec<u64>) {
        ready.clear();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the array has room for as many events as are asked for.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, milliseconds) };
        ready.extend(events.iter().take(usize::try_from(count).unwrap_or(0)).map(|event| event.u64));
    }
}

/// An eventfd: how one side of the seam wakes the other.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A silent one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is owned from here on.
        unsafe { Ok(Self(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?))) }
    }
    /// Makes it readable.
    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight octets of a live value; a full counter is readable all the same.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
    /// Makes it silent.
    pub fn hush(&self) {
        let mut count = 0u64;
        // SAFETY: room for eight octets.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Random octets from the kernel, drawn in blocks: what an attacker would have to guess comes from here.
#[derive(Debug)]
pub struct Entropy {
    block: [u8; 256],
    used: usize,
}

impl Default for Entropy {
    fn default() -> Self {
        Self { block: [0; 256], used: 256 }
    }
}

impl Entropy {
    /// A random 64-bit number.
    pub fn draw(&mut self) -> u64 {
        if self.used + 8 > self.block.len() {
            // SAFETY: room for the block; requests of up to 256 octets are never cut short (getrandom(2)).
            let got = unsafe { libc::getrandom(self.block.as_mut_ptr().cast(), self.block.len(), 0) };
            assert!(got == self.block.len() as isize, "the kernel gives no random numbers");
            self.used = 0;
        }
        let mut octets = [0; 8];
        octets.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        u64::from_ne_bytes(octets)
    }

    /// A random 16-bit number.
    pub fn draw_short(&mut self) -> u16 {
        self.draw() as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// Asks a listening socket on an address and gives whence the reply to the batch and a late one came, and whether the
    /// kernel said where the question was sent.
    fn sources(listening: &OwnedFd, client: &UdpSocket, asked: SocketAddr) -> (SocketAddr, SocketAddr, bool) {
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(b"question", asked).unwrap();
        let poller = Poller::new().unwrap();
        poller.watch(listening.as_raw_fd(), 7).unwrap();
        poller.wait(Duration::from_secs(5), &mut Vec::new());
        let mut inbound = Inbound::default();
        assert_eq!(inbound.receive(listening.as_raw_fd()), 1);
        let local = inbound.local(0);
        let path = ReturnPath { socket: listening.as_raw_fd(), peer: inbound.peer(0).unwrap(), local };
        let (mut replies, mut late) = (Replies::default(), Outbound::default());
        replies.buffer().extend_from_slice(b"reply");
        replies.push(&inbound, 0);
        assert_eq!(replies.send(listening.as_raw_fd(), &inbound), 0);
        late.buffer().extend_from_slice(b"late");
        assert_eq!(late.reply(&path), 0);
        assert!(late.flush().is_empty());
        let from = || client.recv_from(&mut [0; 16]).unwrap().1;
        (from(), from(), !matches!(local, LocalAddress::Unknown))
    }

    fn of_any_port(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 0)
    }

    #[test]
    fn replies_leave_from_the_address_that_was_asked() {
        // What a socket is bound to, the addresses that it is asked on, and whether the kernel has to say which.
        let cases: [(&str, &[&str], bool); 6] = [
            ("0.0.0.0", &["127.0.0.1", "127.0.0.5", "127.1.2.3"], true),
            ("127.0.0.1", &["127.0.0.1"], false),
            ("127.0.0.5", &["127.0.0.5"], false),
            ("::", &["::1"], true),
            ("::1", &["::1"], false),
            ("::ffff:127.0.0.6", &["127.0.0.6"], false),
        ];
        for (bound, asked, needs_source) in cases {
            let is_mapped = bound.starts_with("::ffff");
            let free = UdpSocket::bind(of_any_port(if is_mapped { "127.0.0.6" } else { bound })).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let own = SocketAddr::new(bound.parse().unwrap(), port);
            let ask_all = |listening: &OwnedFd, how: &str| {
                for ip in asked {
                    let ip: IpAddr = ip.parse().unwrap();
                    let client = UdpSocket::bind(of_any_port(if ip.is_ipv4() { "127.0.0.1" } else { "::1" })).unwrap();
                    let asked = SocketAddr::new(ip, port);
                    assert_eq!(sources(listening, &client, asked), (asked, asked, needs_source), "{bound}, {how}");
                }
            };
            let given = if is_mapped {
                let given = socket(&own).unwrap();
                set_option(given.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0 as libc::c_int).unwrap();
                bind(&given, &own).unwrap();
                given
            } else {
                let given = listen(own, 1).unwrap().remove(0);
                ask_all(&given, "opened here");
                given
            };
            // A supervisor may have asked for it (PassPacketInfo= of systemd).
            if own.is_ipv4() {
                set_option(given.as_raw_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1 as libc::c_int).unwrap();
            } else {
                set_option(given.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1 as libc::c_int).unwrap();
            }
            ask_all(&adopt(given.as_raw_fd()).unwrap(), "handed over");
        }
    }

    #[test]
    fn only_an_address_of_this_machine_is_one_source() {
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_one_source(ip.parse().unwrap()), "{ip}");
        }
        for ip in own_addresses() {
            assert!(is_one_source(ip), "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.251",
            "255.255.255.255",
            "127.255.255.255",
            "ff02::fb",
            "198.51.100.7",
            "2001:db8::7",
            "fe80::7",
        ] {
            assert!(!is_one_source(ip.parse().unwrap()), "{ip}");
        }
    }
}
