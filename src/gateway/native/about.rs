//! What a node says of its ring and of itself.

use super::super::failed::Failed;
use super::super::json as told;
use super::query::Query;
use super::{Holds, hold, json};
use crate::core::layout::Layout;
use crate::location::service::Service;
use crate::store::Store;
use crate::wire::convert::{self, Malformed};
use crate::wire::location::location_server::Location;
use crate::wire::location::{GetLayoutRequest, StatusRequest};
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tonic::{Request, Status};

/// The layout, with the addresses at which its members can be reached now.
async fn layout(service: &Service) -> Result<Layout, Status> {
    let answer = service.get_layout(Request::new(GetLayoutRequest::default())).await?.into_inner();
    Ok(convert::layout(answer.layout.ok_or(Malformed::Missing("the layout"))?)?)
}

pub(super) async fn status(State(store): State<Store>, holds: Holds, uri: Uri) -> Result<Response, Failed> {
    Query::of(&uri, &[])?;
    let service = Service::new(store.location().clone());
    let mut status = service.status(Request::new(StatusRequest::default())).await?.into_inner();
    told::from_median(&mut status.nodes);
    answer(&holds, &told::status(&status, &layout(&service).await?))
}

pub(super) async fn ring(State(store): State<Store>, holds: Holds, uri: Uri) -> Result<Response, Failed> {
    Query::of(&uri, &[])?;
    let service = Service::new(store.location().clone());
    answer(&holds, &told::ring(&layout(&service).await?))
}

fn answer(holds: &Holds, told: &serde_json::Value) -> Result<Response, Failed> {
    let text = told.to_string().into_bytes();
    hold(holds, text.len())?;
    Ok(json(text))
}

pub(super) async fn ready(State(store): State<Store>) -> Response {
    match store.is_ready() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not yet part of a ring\n").into_response(),
    }
}
