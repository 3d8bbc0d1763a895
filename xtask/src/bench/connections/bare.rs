//! A: the least that moving connections takes. Descriptors over a `SOCK_SEQPACKET` pair, an
//! acknowledgement for each message, an epoll at the other end.
//!
//! Three processes, all of this binary; the clients are one, so that none holds both ends of a connection. The sender prints its
//! address, accepts, and says `ready`; a line on its stdin lets it pass all it has, and it prints how many microseconds that
//! took. The receiver holds what it got until the sender has gone.

use std::io::{self, BufRead, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use handoff::measuring;

use crate::bench::args::{BareArgs, BareClientsArgs};
use crate::bench::crowd::Crowd;

/// `SCM_MAX_FD`, the most that one message carries.
const MAX_FDS: usize = 253;
/// While many connect at once.
const BACKLOG: i32 = 4096;

/// The sending process.
pub(crate) fn sender(args: &BareArgs) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    rustix::net::listen(&listener, BACKLOG)?;
    println!("{}", listener.local_addr()?);
    let mut accepted = Vec::with_capacity(args.count as usize);
    for _ in 0..args.count {
        accepted.push(OwnedFd::from(listener.accept()?.0));
    }
    let (ours, theirs) = if args.by_channel {
        measuring::pair()?
    } else {
        pair()?
    };
    let mut receiver = Receiver::start(theirs, args.by_channel)?;
    println!("ready");
    // The bench may have gone: then nothing is left to do.
    if io::stdin().lock().read_line(&mut String::new())? == 0 {
        return Ok(());
    }
    let took = if args.by_channel {
        event_loop()?.block_on(measuring::pass(ours, accepted))?
    } else {
        let took = pass(&ours, accepted, args.batch as usize)?;
        drop(ours);
        took
    };
    println!("{}", took.as_micros());
    receiver.wait()?;
    Ok(())
}

/// The clients' process: opens all, and holds them until its stdin ends.
pub(crate) fn clients(args: &BareClientsArgs) -> Result<()> {
    let crowd = Crowd::open(args.server, args.count)?;
    io::stdin().lock().read_line(&mut String::new())?;
    drop(crowd);
    Ok(())
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    Ok(runtime.enable_all().build()?)
}

/// Passes all, and closes each that was acknowledged.
fn pass(channel: &OwnedFd, mut fds: Vec<OwnedFd>, batch: usize) -> Result<Duration> {
    let began = Instant::now();
    while !fds.is_empty() {
        let sent = fds.split_off(fds.len().saturating_sub(batch));
        send(channel.as_fd(), &sent)?;
        let mut ack = [0; 8];
        let (_, length) = rustix::net::recv(channel, &mut ack, RecvFlags::empty())?;
        ensure!(
            ack[..length] == (sent.len() as u64).to_le_bytes(),
            "the receiver did not get all of a message"
        );
    }
    Ok(began.elapsed())
}

#[doc(alias = "SCM_RIGHTS")]
fn send(channel: BorrowedFd<'_>, fds: &[OwnedFd]) -> Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(
        control.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for {} descriptors",
        fds.len()
    );
    rustix::net::sendmsg(
        channel,
        &[IoSlice::new(b"fds")],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .context("failed to pass descriptors")?;
    Ok(())
}

/// The receiving process: adopts what comes, until its stdin ends.
pub(crate) fn receiver(by_channel: bool) -> Result<()> {
    let channel = io::stdin();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut adopted = Vec::new();
    let mut adopt = |fd: OwnedFd| {
        // As tokio does: edge-triggered, reading and writing.
        let events = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let number = epoll::EventData::new_u64(adopted.len() as u64);
        epoll::add(&epoll, &fd, number, events)?;
        adopted.push(fd);
        io::Result::Ok(())
    };
    if by_channel {
        let channel = channel.as_fd().try_clone_to_owned()?;
        return Ok(event_loop()?.block_on(measuring::adopt(channel, adopt))?);
    }
    loop {
        let fds = receive(channel.as_fd())?;
        if fds.is_empty() {
            return Ok(());
        }
        let got = fds.len() as u64;
        fds.into_iter().try_for_each(&mut adopt)?;
        rustix::net::send(&channel, &got.to_le_bytes(), SendFlags::NOSIGNAL)?;
    }
}

/// The descriptors of one message; none at the end.
fn receive(channel: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 8];
    let got = rustix::net::recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut data)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("failed to receive descriptors")?;
    ensure!(
        !got.flags.contains(ReturnFlags::CTRUNC),
        "descriptors were lost: the receiver is at its limit of open files"
    );
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(fds)
}

/// Killed and reaped if it is dropped while it runs.
struct Receiver(Child);

impl Receiver {
    fn start(channel: OwnedFd, by_channel: bool) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(["bench", "bare-receiver"])
            .args(by_channel.then_some("--by-channel"))
            .stdin(Stdio::from(channel))
            .spawn()
            .context("failed to start the receiver")?;
        Ok(Self(child))
    }

    /// Until it has seen the channel's end.
    fn wait(&mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "the receiver has failed: {status}");
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It has ended already, if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_is_passed_arrives_in_batches() {
        let (ours, theirs) = pair().unwrap();
        let fds = (0..10)
            .map(|_| OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap()))
            .collect();
        let passing = std::thread::spawn(move || pass(&ours, fds, 4));
        let mut sizes = Vec::new();
        loop {
            let fds = receive(theirs.as_fd()).unwrap();
            if fds.is_empty() {
                break;
            }
            sizes.push(fds.len());
            let ack = (fds.len() as u64).to_le_bytes();
            rustix::net::send(&theirs, &ack, SendFlags::empty()).unwrap();
        }
        assert_eq!(sizes, [4, 4, 2]);
        passing.join().unwrap().unwrap();
    }

    #[test]
    fn a_message_that_did_not_arrive_whole_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        rustix::net::send(&theirs, &0_u64.to_le_bytes(), SendFlags::empty()).unwrap();
        assert!(pass(&ours, vec![socket.into()], 253).is_err());
    }
}
