//! One request and its answer: the service as hyper sees it, with guards that tell when it is over.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;

use crate::body::{Hold, RequestBody};
use crate::malformed::{self, Refusal};
use crate::upgrade::Switch;

mod shared;

pub(crate) use shared::{Direction, Name, Shared};

/// The life of one exchange, from the head of its request to the last byte that the service gives.
struct Exchange {
    shared: Arc<Shared>,
    name: Name,
    number: u64,
    version: Version,
}

impl Exchange {
    fn begin<B>(shared: &Arc<Shared>, request: &Request<B>) -> Self {
        Self {
            number: shared.exchange_begins(),
            shared: Arc::clone(shared),
            name: Name::of(request),
            version: request.version(),
        }
    }

    /// Says its name if somebody has asked.
    fn answer(&self) {
        if self.shared.is_asked() {
            self.shared.tell(&self.name);
        }
    }

    /// Says in the head of the answer what we know of the connection's end.
    fn settle<B>(&self, response: &mut Response<B>) {
        let status = response.status();
        let connects = self.name.is_connect() && status.is_success();
        if status == StatusCode::SWITCHING_PROTOCOLS || connects {
            self.shared.may_last(&self.name);
            self.shared.upgrade();
            if status == StatusCode::SWITCHING_PROTOCOLS && is_websocket(response.headers()) {
                self.shared.speaks_websocket();
            }
            return;
        }
        // A body that was dropped and that we will not read either ends the connection.
        if self.shared.is_last_answer() || self.shared.is_unread(self.number) {
            self.close(response);
        }
    }

    /// Makes it the connection's last answer.
    fn close<B>(&self, response: &mut Response<B>) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        // To a client of HTTP/1.0 hyper would add `keep-alive` to it, unless the answer is of that version too.
        if self.version == Version::HTTP_10 {
            *response.version_mut() = Version::HTTP_10;
        }
    }

    /// The answer to what is not served. Where such a request ends is not known, so that it is the last one.
    fn refusal<B>(&self, status: StatusCode) -> Response<Option<B>> {
        let mut refusal = Response::new(None);
        *refusal.status_mut() = status;
        self.close(&mut refusal);
        refusal
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(b"websocket"))
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.exchange_ends(&self.name);
    }
}

/// The service, as hyper sees it.
pub(crate) struct Watched<S> {
    service: S,
    shared: Arc<Shared>,
}

impl<S> Watched<S> {
    pub(crate) fn new(service: S, shared: Arc<Shared>) -> Self {
        Self { service, shared }
    }

    pub(crate) fn into_inner(self) -> S {
        self.service
    }
}

impl<S, B> Service<Request<Incoming>> for Watched<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = Serving<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = Exchange::begin(&self.shared, &request);
        let refusal = malformed::refusal(&request);
        // Most requests have no body, and pay nothing for those that have.
        let hold = (!request.body().is_end_stream()).then(|| {
            self.shared.may_last(&exchange.name);
            let expects_continue = request.headers().contains_key(header::EXPECT);
            Hold::new(&self.shared, expects_continue)
        });
        let mut request = request.map(|body| RequestBody::new(body, hold));
        if request.extensions().get::<OnUpgrade>().is_some() {
            let switch = Switch(Arc::clone(&self.shared));
            request.extensions_mut().insert(switch);
        }
        let answer = match refusal {
            Some(Refusal { status, reason }) => {
                tracing::debug!(reason, %status, "not served");
                Answer::Refused { status }
            }
            None => Answer::Served {
                future: self.service.call(request),
            },
        };
        Serving {
            answer,
            exchange: Some(exchange),
        }
    }
}

pin_project_lite::pin_project! {
    /// Whence the answer comes.
    #[project = AnswerNow]
    enum Answer<F> {
        Served {
            #[pin]
            future: F,
        },
        /// The service does not see it.
        Refused {
            status: StatusCode,
        },
    }
}

pin_project_lite::pin_project! {
    /// A request under way, until its answer begins.
    pub(crate) struct Serving<F> {
        #[pin]
        answer: Answer<F>,
        exchange: Option<Exchange>,
    }
}

impl<F, B, E> Future for Serving<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = "a future that is done is not polled";
        let exchange = this.exchange.as_ref().expect(polled);
        exchange.answer();
        let response = match this.answer.project() {
            AnswerNow::Served { future } => {
                let mut response = ready!(future.poll(cx))?.map(Some);
                exchange.settle(&mut response);
                response
            }
            AnswerNow::Refused { status } => exchange.refusal(*status),
        };
        let exchange = this.exchange.take();
        Poll::Ready(Ok(response.map(|body| ResponseBody {
            body,
            _exchange: exchange,
        })))
    }
}

pin_project_lite::pin_project! {
    /// The response's body, if it has one: the exchange lives as long as hyper has not dropped it.
    pub(crate) struct ResponseBody<B> {
        #[pin]
        body: Option<B>,
        _exchange: Option<Exchange>,
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Some(exchange) = &self._exchange {
            exchange.answer();
        }
        match self.project().body.as_pin_mut() {
            Some(body) => body.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
