//! Which services can be served: hyper's, and tower's (axum's `Router` is one).

use std::{future::Future, net::SocketAddr, sync::Arc};

use http::{Request, Response};
use http_body::Body;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use crate::{RequestBody, connection::Order};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which connection a request came on: [`RequestBody::connection`], and for tower's services (axum's are) also in the request's
/// extensions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The client; `None` on a Unix socket. Survives the move of the connection to another process.
    pub peer: Option<SocketAddr>,
    /// The name of the listener that accepted it.
    pub listener: Arc<str>,
    orders: Arc<watch::Receiver<Order>>,
}

impl ConnectionInfo {
    pub(crate) fn new(
        peer: Option<SocketAddr>,
        listener: Arc<str>,
        orders: watch::Receiver<Order>,
    ) -> Self {
        Self {
            peer,
            listener,
            // Of this connection's own: a count that all requests of the process share would be a queue.
            orders: Arc::new(orders),
        }
    }

    /// Waits until this process drains: it has been replaced or is being stopped. An answer that could go on without an end (server-sent
    /// events, a long poll) ends then, and its connection moves.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut orders = watch::Receiver::clone(&self.orders);
        async move {
            let is_gone = orders
                .wait_for(|order| *order != Order::Serve)
                .await
                .is_err();
            if is_gone {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A service that the server can call: implemented for hyper's services and for tower's, of
/// [`RequestBody`] requests.
///
/// `Kind` only tells the two apart; it is inferred.
pub trait IntoService<Kind> {
    /// As hyper sees it.
    type Service: Serve;

    /// Makes it one.
    fn into_service(self) -> Self::Service;
}

/// What the server asks of a service: cloned for each connection, called for each request.
pub trait Serve:
    Service<
        Request<RequestBody>,
        Response = Response<Self::Body>,
        Error = Self::Failure,
        Future: Future + Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of its answers.
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
    /// What it fails with: the connection then ends without an answer.
    type Failure: Into<BoxError>;
}

impl<S, B> Serve for S
where
    S: Service<Request<RequestBody>, Response = Response<B>, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
    type Failure = S::Error;
}

/// See [`IntoService`].
#[derive(Debug)]
pub struct Hyper;

/// See [`IntoService`].
#[derive(Debug)]
pub struct Tower;

impl<S: Serve> IntoService<Hyper> for S {
    type Service = S;

    fn into_service(self) -> S {
        self
    }
}

impl<S, B> IntoService<Tower> for S
where
    S: tower_service::Service<Request<RequestBody>, Response = Response<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Service = TowerService<S>;

    fn into_service(self) -> TowerService<S> {
        TowerService(TowerToHyperService::new(self))
    }
}

/// A tower service as hyper sees it, with [`ConnectionInfo`] in the extensions of each request, where axum's extractors look.
///
/// hyper's own services do not pay for that: a map is made for each request.
#[derive(Clone, Debug)]
pub struct TowerService<S>(TowerToHyperService<S>);

impl<S> Service<Request<RequestBody>> for TowerService<S>
where
    TowerToHyperService<S>: Service<Request<RequestBody>>,
{
    type Response = <TowerToHyperService<S> as Service<Request<RequestBody>>>::Response;
    type Error = <TowerToHyperService<S> as Service<Request<RequestBody>>>::Error;
    type Future = <TowerToHyperService<S> as Service<Request<RequestBody>>>::Future;

    fn call(&self, mut request: Request<RequestBody>) -> Self::Future {
        if let Some(info) = request.body().connection().cloned() {
            request.extensions_mut().insert(info);
        }
        self.0.call(request)
    }
}

/// Tells each request which connection it came on.
#[derive(Clone, Debug)]
pub(crate) struct Informed<S> {
    pub(crate) service: S,
    pub(crate) info: Arc<ConnectionInfo>,
}

impl<S: Serve> Service<Request<RequestBody>> for Informed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<RequestBody>) -> S::Future {
        request.body_mut().came_on(self.info.clone());
        self.service.call(request)
    }
}
