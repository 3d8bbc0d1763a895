//! The application's service, with its requests counted; and the pages of the admin listener beside it.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::service::Service;

use super::{ADMIN, Pages};
use crate::body::RequestBody;
use crate::service::Serve;

/// See the module. Without pages it is the service, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Measured<S> {
    service: S,
    pages: Option<Arc<Pages>>,
}

impl<S> Measured<S> {
    pub(crate) fn new(service: S, pages: Option<Arc<Pages>>) -> Self {
        Self { service, pages }
    }
}

type PageFuture = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

impl<S: Serve> Service<Request<RequestBody>> for Measured<S> {
    type Response = Response<MeasuredBody<S::Body>>;
    type Error = S::Error;
    type Future = Measuring<S::Future>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let Some(pages) = &self.pages else {
            let future = self.service.call(request);
            return Measuring::Application {
                future,
                flight: None,
            };
        };
        let listener = request.body().connection().map(|info| &*info.listener);
        match listener {
            Some(ADMIN) => {
                let pages = pages.clone();
                let (head, _) = request.into_parts();
                let page = async move { pages.answer(&head).await };
                Measuring::Page {
                    page: Box::pin(page),
                }
            }
            listener => {
                // The process itself asks by no listener.
                let counts = listener.is_some_and(|name| name != crate::probe::LISTENER);
                let flight = counts.then(|| Flight::begin(pages));
                Measuring::Application {
                    future: self.service.call(request),
                    flight,
                }
            }
        }
    }
}

/// A request under way, until the last byte of its answer has been given.
#[derive(Debug)]
pub(crate) struct Flight(Arc<Pages>);

impl Flight {
    fn begin(pages: &Arc<Pages>) -> Self {
        pages.takes_off();
        Self(pages.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.lands();
    }
}

pin_project_lite::pin_project! {
    #[project = MeasuringProjection]
    pub(crate) enum Measuring<F> {
        Application { #[pin] future: F, flight: Option<Flight> },
        Page { page: PageFuture },
    }
}

impl<F, B, E> Future for Measuring<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<MeasuredBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            MeasuringProjection::Application { future, flight } => {
                let response = ready!(future.poll(cx))?;
                let flight = flight.take();
                if let Some(Flight(pages)) = &flight {
                    pages.tally.answered(response.status());
                }
                let body = |body| MeasuredBody::Application {
                    body,
                    _flight: flight,
                };
                Poll::Ready(Ok(response.map(body)))
            }
            MeasuringProjection::Page { page } => {
                let response = ready!(page.as_mut().poll(cx));
                Poll::Ready(Ok(response.map(|page| MeasuredBody::Page { page })))
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// The body of an answer.
    #[project = BodyProjection]
    pub(crate) enum MeasuredBody<B> {
        Application { #[pin] body: B, _flight: Option<Flight> },
        Page { #[pin] page: Full<Bytes> },
    }
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = Data<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        match self.project() {
            BodyProjection::Application { body, .. } => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| Ok(frame?.map_data(Data::Application))))
            }
            BodyProjection::Page { page } => {
                let frame = ready!(page.poll_frame(cx));
                Poll::Ready(frame.map(|frame| {
                    let frame = frame.unwrap_or_else(|never: Infallible| match never {});
                    Ok(frame.map_data(Data::Page))
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Application { body, .. } => body.is_end_stream(),
            Self::Page { page } => page.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Application { body, .. } => body.size_hint(),
            Self::Page { page } => page.size_hint(),
        }
    }
}

/// Bytes of either.
#[derive(Debug)]
pub(crate) enum Data<D> {
    Application(D),
    Page(Bytes),
}

impl<D: Buf> Buf for Data<D> {
    fn remaining(&self) -> usize {
        match self {
            Self::Application(data) => data.remaining(),
            Self::Page(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Application(data) => data.chunk(),
            Self::Page(data) => data.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, to: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Application(data) => data.chunks_vectored(to),
            Self::Page(data) => data.chunks_vectored(to),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Application(data) => data.advance(count),
            Self::Page(data) => data.advance(count),
        }
    }
}
