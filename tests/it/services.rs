//! What the standard tools of gRPC ask of any server.

use crate::rig::{Rig, until};
use thrifty::wire::channel;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// What a node's health is asked of: as a whole, and each service for clients.
const ALL: [&str; 3] = ["", SERVICES[0], SERVICES[1]];

const SERVICES: [&str; 2] = ["thrifty.location.v1.Location", "thrifty.store.v1.Store"];

async fn health(address: &str, service: &str) -> Result<ServingStatus, Code> {
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
    for service in ALL {
        let seen = until("its health is told", || match rig.wait(health(&address, service)) {
            Err(Code::Unavailable) => None,
            told => Some(told),
        });
        assert_eq!(seen, Ok(ServingStatus::NotServing), "{service:?}");
    }

    let nodes = rig.ring_of(1);
    for service in ALL {
        until(&format!("{service:?} serves"), || {
            let told = rig.wait(health(&nodes[0].address(), service));
            (told == Ok(ServingStatus::Serving)).then_some(())
        });
    }
    assert_eq!(rig.wait(health(&nodes[0].address(), "no.such.Service")), Err(Code::NotFound));
}

#[test]
fn a_location_node_claims_no_health_of_a_store() {
    let rig = Rig::new();
    let node = rig.spawn("location", &["--listen", &rig.any_port(), "--memory", "--bootstrap"]);
    let address = node.address();
    until("it serves", || {
        (rig.wait(health(&address, SERVICES[0])) == Ok(ServingStatus::Serving)).then_some(())
    });
    assert_eq!(rig.wait(health(&address, SERVICES[1])), Err(Code::NotFound));
}

/// What is told of a service's health, once it serves, until the node is gone.
fn watched(rig: &Rig, address: &str, service: &str) -> JoinHandle<Vec<ServingStatus>> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answers = rig.wait(async {
        let mut client = HealthClient::new(channel::lazy(&address.parse().unwrap()));
        let mut answers = client.watch(request).await.unwrap().into_inner();
        while answers.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        answers
    });
    let told = answers.map_while(Result::ok).map(|answer| answer.status());
    rig.runtime().spawn(told.collect())
}

#[test]
fn a_node_on_its_way_out_serves_no_more() {
    for way in ["interrupt", "leave", "shutdown"] {
        let rig = Rig::new();
        let mut nodes = rig.ring_of(2);
        let address = nodes[1].address();
        let watching = ALL.map(|service| (service, watched(&rig, &address, service)));
        match way {
            "interrupt" => nodes[1].interrupt(),
            command => _ = rig.tool("storectl", &["--peer", &address, command]).silent(),
        }
        nodes[1].ends_well();
        for (service, told) in watching {
            let told = rig.wait(told).unwrap();
            assert_eq!(told, [ServingStatus::NotServing], "{way}: {service:?}");
        }
    }
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
