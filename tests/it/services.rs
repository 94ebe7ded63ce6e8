//! What the standard tools of gRPC ask of any server.

use crate::rig::Rig;
use thrifty::wire::channel;
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const SERVICES: [&str; 2] = ["thrifty.location.v1.Location", "thrifty.store.v1.Store"];

async fn health(address: &str, service: &str) -> Result<ServingStatus, tonic::Code> {
    let mut client = HealthClient::new(channel::lazy(&address.parse().unwrap()));
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(client.check(request).await.map_err(|status| status.code())?.into_inner().status())
}

#[test]
fn a_node_is_healthy_from_when_it_is_in_a_ring() {
    let rig = Rig::new();
    // Nobody there answers, so this one looks for a ring for ever.
    let silent = std::net::TcpListener::bind(rig.any_port()).unwrap();
    let waiting = rig.join("waiting", &silent.local_addr().unwrap().to_string());
    let address = waiting.address();
    let seen = crate::rig::until("its health is told", || rig.wait(health(&address, "")).ok());
    assert_eq!(seen, ServingStatus::NotServing);

    let nodes = rig.ring_of(1);
    for service in ["", SERVICES[0], SERVICES[1]] {
        assert_eq!(rig.wait(health(&nodes[0].address(), service)), Ok(ServingStatus::Serving), "{service:?}");
    }
    assert_eq!(rig.wait(health(&nodes[0].address(), "no.such.Service")), Err(tonic::Code::NotFound));
}

async fn reflect(address: &str, asked: MessageRequest) -> ServerReflectionResponse {
    let mut client = ServerReflectionClient::new(channel::lazy(&address.parse().unwrap()));
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    answers.next().await.unwrap().unwrap()
}

#[test]
fn reflection_lists_the_services_and_describes_them() {
    let rig = Rig::new();
    let nodes = rig.ring_of(1);
    let answer = rig.wait(reflect(&nodes[0].address(), MessageRequest::ListServices(String::new())));
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for service in SERVICES {
        assert!(names.contains(&service), "{service} is not in {names:?}");
        let described =
            rig.wait(reflect(&nodes[0].address(), MessageRequest::FileContainingSymbol(service.into())));
        let Some(MessageResponse::FileDescriptorResponse(files)) = described.message_response else {
            panic!("{described:?}")
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
}
