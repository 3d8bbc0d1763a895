//! Connections of which nobody has said a word for long: a socket, and its place in one epoll.
//!
//! Most connections of most servers rest. Neither a task nor hyper nor tokio is needed for one until its client speaks;
//! what is kept is what a handover needs. So a process that is given ten thousand of them
//! is done with each after one `epoll_ctl`, and gives them up again without waking anybody.
//!
//! Only [`Order::Serve`] and [`Order::LastAnswer`] leave connections here; whatever else is ordered takes all out, and [`Pool::admit`]
//! then refuses. A refused connection is served by a task, which knows every order.
//!
//! Failure rules: what is to be closed is woken, and judged by its task, which looks into the kernel's queue first. Where
//! the kernel gives no epoll, all is served by tasks.

use std::{
    collections::BTreeSet,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use handoff::{ConnectionGuard, registered::register};
use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};
use slab::Slab;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{
    clock::{FOREVER, Spent},
    connection::{Carried, Order, Rested},
    drain::{self, Live, Taken},
    io::Stream,
    service::{ConnectionInfo, Serve},
};

/// How many connections are looked at between two chances for others to run.
const CHUNK: usize = 256;

type Epoll = AsyncFd<OwnedFd>;

/// A connection at rest of which nothing was read ahead.
#[derive(Debug)]
pub(crate) struct Dormant {
    pub(crate) socket: OwnedFd,
    /// Since when its client is waited for.
    pub(crate) since: Instant,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) listener: Arc<str>,
    pub(crate) guard: ConnectionGuard,
}

impl Dormant {
    /// `rested` has brought nothing along but time.
    pub(crate) fn new(rested: Rested, info: &ConnectionInfo, guard: ConnectionGuard) -> Self {
        let now = Instant::now();
        Self {
            socket: rested.socket,
            // A machine may have been up for less than what was spent on another boot's clock.
            since: now.checked_sub(rested.carried.spent.waited).unwrap_or(now),
            peer: info.peer,
            listener: info.listener.clone(),
            guard,
        }
    }

    fn carried(&self) -> Carried {
        let spent = Spent {
            waited: self.since.elapsed(),
            head: None,
        };
        Carried {
            leftover: Bytes::new(),
            spent,
        }
    }
}

/// All that rest in this process.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    rest: Mutex<Rest>,
    /// Somebody is to be woken before all others.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Rest {
    /// `None` while nobody is kept.
    epoll: Option<Arc<Epoll>>,
    places: Slab<Place>,
    /// When each has rested too long, by place.
    due: BTreeSet<(Instant, usize)>,
    last_number: u32,
}

#[derive(Debug)]
struct Place {
    dormant: Dormant,
    due: Instant,
    /// Tells the connection from those that had the place before: the kernel's word may be late.
    number: u32,
}

impl Rest {
    fn take(&mut self, place: usize) -> Option<Dormant> {
        let Place { dormant, due, .. } = self.places.try_remove(place)?;
        self.due.remove(&(due, place));
        if let Some(epoll) = &self.epoll {
            // It may live on in another process, and would be reported here for as long.
            let _ = epoll::delete(epoll.get_ref(), &dormant.socket);
        }
        Some(dormant)
    }

    fn is(&self, place: usize, number: u32) -> bool {
        self.places.get(place).is_some_and(|p| p.number == number)
    }
}

impl Pool {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        // Nothing is left half done under this lock.
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection until its client speaks, or for as long as `idle_timeout` since its rest began.
    ///
    /// # Errors
    /// The connection, if nobody is kept here now.
    pub(crate) fn admit(&self, dormant: Dormant, idle_timeout: Duration) -> Result<(), Dormant> {
        let due = dormant.since.checked_add(idle_timeout);
        let due = due.unwrap_or_else(|| Instant::now() + FOREVER);
        let mut rest = self.rest();
        let Some(epoll) = rest.epoll.clone() else {
            return Err(dormant);
        };
        let number = rest.last_number.wrapping_add(1);
        rest.last_number = number;
        let place = rest.places.vacant_key();
        let events = EventFlags::IN | EventFlags::RDHUP;
        if let Err(error) = epoll::add(
            epoll.get_ref(),
            &dormant.socket,
            data(place, number),
            events,
        ) {
            tracing::debug!(%error, "a connection that rests needs a task");
            return Err(dormant);
        }
        rest.places.insert(Place {
            dormant,
            due,
            number,
        });
        let is_first = rest.due.first().is_none_or(|(first, _)| due < *first);
        rest.due.insert((due, place));
        drop(rest);
        if is_first {
            self.sooner.notify_one();
        }
        Ok(())
    }

    /// Begins to keep connections: from now on [`Pool::admit`] takes them.
    pub(crate) fn open(&self) -> Option<Arc<Epoll>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from);
        match epoll.and_then(|epoll| register(epoll, Interest::READABLE)) {
            Ok(epoll) => {
                let epoll = Arc::new(epoll);
                self.rest().epoll = Some(epoll.clone());
                Some(epoll)
            }
            Err(error) => {
                tracing::warn!(%error, "connections at rest need a task each");
                None
            }
        }
    }

    /// Keeps nobody any more, and gives all back. With the last copy of the epoll, the kernel forgets them at once.
    fn close(&self) -> Vec<Dormant> {
        let Rest { places, .. } = std::mem::take(&mut *self.rest());
        let places = places.into_iter().map(|(_, place)| place.dormant);
        places.collect()
    }

    fn first_due(&self) -> Option<Instant> {
        self.rest().due.first().map(|(due, _)| *due)
    }

    /// Those who have rested too long at `now`.
    fn late(&self, now: Instant) -> Vec<Dormant> {
        let mut rest = self.rest();
        let mut late = Vec::new();
        while let Some((due, place)) = rest.due.first().copied()
            && due <= now
            && late.len() < CHUNK
        {
            late.extend(rest.take(place));
        }
        late
    }

    /// Those whose clients have spoken, or have gone; `None` when the kernel has nothing more to say.
    fn spoken(&self, epoll: &OwnedFd) -> io::Result<Option<Vec<Dormant>>> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); CHUNK];
        let (events, _) = epoll::wait(epoll, &mut events, Some(&Timespec::default()))?;
        if events.is_empty() {
            return Ok(None);
        }
        let mut rest = self.rest();
        let spoken = events.iter().filter_map(|event| {
            let (place, number) = place_and_number(event.data);
            rest.is(place, number).then(|| rest.take(place))?
        });
        Ok(Some(spoken.collect()))
    }
}

/// Begins the work of an [open](Pool::open) pool.
pub(crate) fn start<S: Serve>(server: &Arc<Live<S>>) {
    tokio::spawn(run(server.clone()));
}

/// Keeps connections, wakes those that are to be served, and gives all up or wakes all when that is ordered.
async fn run<S: Serve>(server: Arc<Live<S>>) {
    let mut epoll = server.pool.rest().epoll.clone();
    let mut orders = server.orders.clone();
    loop {
        let order = *orders.borrow_and_update();
        match order {
            Order::Serve if epoll.is_none() => epoll = server.pool.open(),
            // Who has spoken by then gets a last answer.
            Order::Serve | Order::LastAnswer => {}
            Order::HandOver | Order::Close | Order::Cut => {
                let dormant = server.pool.close();
                epoll = None;
                leave(&server, dormant, order).await;
            }
        }
        let may_go_on = match &epoll {
            Some(epoll) => keep(&server, epoll, &mut orders).await,
            None => orders.changed().await.is_ok(),
        };
        if !may_go_on {
            return;
        }
    }
}

/// Keeps connections until the next order. `false` if none will come.
async fn keep<S: Serve>(
    server: &Arc<Live<S>>,
    epoll: &Epoll,
    orders: &mut watch::Receiver<Order>,
) -> bool {
    let pool = &server.pool;
    loop {
        let now = Instant::now();
        let first = pool.first_due().unwrap_or_else(|| now + FOREVER);
        if first <= now {
            // Not left to the select: there, whoever speaks all the time would come first all the time.
            pool.late(now).into_iter().for_each(|one| wake(server, one));
            continue;
        }
        tokio::select! {
            biased;
            changed = orders.changed() => return changed.is_ok(),
            ready = epoll.readable() => match ready {
                Ok(mut ready) => match pool.spoken(epoll.get_ref()) {
                    Ok(Some(spoken)) => spoken.into_iter().for_each(|one| wake(server, one)),
                    Ok(None) => ready.clear_ready(),
                    Err(error) => tracing::debug!(%error, "epoll"),
                },
                // The runtime is ending.
                Err(_) => return false,
            },
            () = sleep_until(first) => {}
            () = pool.sooner.notified() => {}
        }
    }
}

/// Carries `order` out on all that were kept.
async fn leave<S: Serve>(server: &Arc<Live<S>>, dormant: Vec<Dormant>, order: Order) {
    for (n, one) in dormant.into_iter().enumerate() {
        if order == Order::HandOver {
            hand_over(server, one);
        } else {
            wake(server, one);
        }
        if n % CHUNK == CHUNK - 1 {
            tokio::task::yield_now().await;
        }
    }
}

/// Gives a connection to a task.
fn wake<S: Serve>(server: &Arc<Live<S>>, dormant: Dormant) {
    match awake(server, dormant) {
        Ok(taken) => drain::spawn(server, |server| drain::serve(server, taken)),
        Err(error) => tracing::error!(%error, "a connection at rest cannot be served"),
    }
}

/// As a task serves it.
///
/// # Errors
/// If tokio does not take the socket, which is closed then.
pub(crate) fn awake<S: Serve>(server: &Live<S>, dormant: Dormant) -> io::Result<Taken> {
    Ok(Taken {
        carried: dormant.carried(),
        stream: Stream::from_fd(dormant.socket)?,
        info: server.info(dormant.peer, dormant.listener),
        guard: dormant.guard,
    })
}

fn hand_over<S: Serve>(server: &Arc<Live<S>>, dormant: Dormant) {
    let rested = Rested {
        carried: dormant.carried(),
        socket: dormant.socket,
        answered: false,
    };
    let info = server.info(dormant.peer, dormant.listener);
    drain::hand_over(server, rested, info, dormant.guard);
}

fn data(place: usize, number: u32) -> EventData {
    // A process has fewer descriptors than 2^32.
    EventData::new_u64((u64::from(number) << 32) | (place as u64 & u64::from(u32::MAX)))
}

fn place_and_number(data: EventData) -> (usize, u32) {
    let data = data.u64();
    let number = u32::try_from(data >> 32).unwrap_or_default();
    ((data & u64::from(u32::MAX)) as usize, number)
}
